"""Two ways to S3 on one local server: `python -m tests.bench.parts.s3`. Needs `pip install obstore==0.12.1`.

The store's own operations, by s3fs (which the store uses) and by obstore. The server is a Python program that takes
most of the time, so the client's own CPU time is what tells both apart.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.s3_server import serve_s3

ROUNDS = 20
LISTED = 1000
LARGE = 64 * 2**20


def serve(pipe: Connection) -> None:
    """Runs the server until it is killed."""
    with serve_s3() as endpoint:
        pipe.send(endpoint)
        pipe.recv()


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def cpu_s() -> float:
    """Returns the CPU time of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Returns each call's (median wall time, mean CPU time) in milliseconds; they take turns."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus = dict.fromkeys(calls, 0.0)
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started, used = time.perf_counter(), cpu_s()
            call()
            walls[name].append(1000 * (time.perf_counter() - started))
            cpus[name] += 1000 * (cpu_s() - used)
    return {name: (statistics.median(walls[name]), cpus[name] / rounds) for name in calls}


def main() -> int:
    """Prints the times of both, and their ratio."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    endpoint = here.recv()
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import s3fs
    from obstore.store import S3Store as ObjectStore

    from shared.store.s3 import S3Object, S3Store

    s3fs.S3FileSystem().call_s3("create_bucket", Bucket="bench")
    ours = S3Store("s3://bench")
    other = ObjectStore(
        "bench",
        endpoint=endpoint,
        access_key_id="bench",
        secret_access_key="bench",
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    body = b"x" * 2000
    for i in range(LISTED):
        other.put(f"list/{i:06}", b"")
    numbers = iter(range(10**9))

    def put_if_match() -> None:
        found = other.get("record")
        content, etag = bytes(found.bytes()), found.meta["e_tag"]
        other.put("record", content, mode={"e_tag": etag})

    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large"
        large.write_bytes(os.urandom(LARGE))
        copy = Path(folder) / "copy"

        def upload_ours() -> None:
            copy.unlink(missing_ok=True)
            copy.hardlink_to(large)
            ours.put_file("large", copy)

        def download_ours() -> None:
            S3Object("s3://bench/large").download(copy)

        def download_other() -> None:
            with copy.open("wb") as file:
                for chunk in other.get("large").stream(min_chunk_size=2**20):
                    file.write(chunk)

        ours.put("record", body)
        pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any], int]] = {
            "put, 2 kB": (lambda: ours.put("a", body), lambda: other.put("b", body), ROUNDS),
            "get, 2 kB": (lambda: ours.get("record"), lambda: bytes(other.get("record").bytes()), ROUNDS),
            "create (If-None-Match)": (
                lambda: ours.create(f"c/{next(numbers)}", body),
                lambda: other.put(f"d/{next(numbers)}", body, mode="create"),
                ROUNDS,
            ),
            "update (get, put If-Match)": (lambda: ours.update("record", lambda data: data), put_if_match, ROUNDS),
            "exists": (lambda: ours.exists("record"), lambda: other.head("record"), ROUNDS),
            f"list, {LISTED} keys": (
                lambda: ours.children("list"),
                lambda: other.list_with_delimiter("list/"),
                ROUNDS // 4,
            ),
            "upload, 64 MiB": (upload_ours, lambda: other.put("large", large), 5),
            "download, 64 MiB": (download_ours, download_other, 5),
        }
        say(f"{'':<28}{'s3fs':>8}{'obstore':>9}{'ratio':>7}   {'s3fs':>8}{'obstore':>9}{'ratio':>7}")
        say(f"{'':<28}{'wall time, ms':>24}   {'CPU of the client, ms':>24}")
        for name, (one, two, rounds) in pairs.items():
            found = measure({"s3fs": one, "obstore": two}, rounds)
            (wall, cpu), (other_wall, other_cpu) = found["s3fs"], found["obstore"]
            say(
                f"{name:<28}{wall:>8.1f}{other_wall:>9.1f}{wall / other_wall:>7.1f}   "
                f"{cpu:>8.2f}{other_cpu:>9.2f}{cpu / other_cpu:>7.1f}"
            )
    server.kill()
    server.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
