"""Keeps a HTTP server busy: many requests outstanding, from one process. Prints `{"images", "seconds"}` a line for each
line of its standard input, which says for how many seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import zipfile
from collections.abc import Iterator

import aiohttp

CONCURRENCY = 64


def main() -> int:
    """Runs until its standard input ends. Arguments: the address, the archive, and `form` or `body`."""
    address, path, how = sys.argv[1:]
    with zipfile.ZipFile(path) as archive:
        images = itertools.cycle([archive.read(member) for member in archive.infolist()])
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asyncio.run(_drive(address, images, how, float(line)))) + "\n")
        sys.stdout.flush()
    return 0


async def _drive(address: str, images: Iterator[bytes], how: str, seconds: float) -> dict[str, float]:
    done = 0
    started = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            image = next(images)
            body: bytes | aiohttp.FormData = image
            if how == "form":
                body = aiohttp.FormData()
                body.add_field("content", image, filename="face.jpg", content_type="image/jpeg")
            headers = {"Content-Type": "image/jpeg"} if how == "body" else None
            async with session.post(address, data=body, headers=headers) as response:
                answer = await response.read()
                if response.status != 200 or b"probability_female" not in answer:
                    raise RuntimeError(f"expected a prediction, found {response.status}: {answer[:300]!r}")
            done += 1

    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as clients:
        for _ in range(CONCURRENCY):
            clients.create_task(client(session))
    return {"images": done, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    sys.exit(main())
