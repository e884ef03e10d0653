"""One contract for both stores: a folder, and a bucket of a real S3 server on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import resource
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import s3fs
from moto.s3.models import s3_backends

from shared.archives.fetch import fetch_archive
from shared.connect import STORE_FORMAT, open_store_for
from shared.errors import Conflict, InvalidMessage, NotFound, Retryable
from shared.messages import ArchiveRequest
from shared.runtime.settings import Settings, SettingsError
from shared.store import open_store
from shared.store.base import Store
from shared.store.s3 import S3Object
from shared.store.staging import StagedFile
from tests.contract.conftest import BUCKET
from tests.support.builders.archives import zipped


def test_what_was_put_is_what_everybody_gets(store: Store, open_again: Callable[[], Store]) -> None:
    store.put("runs/run-1/note.txt", b"first")
    store.put("runs/run-1/note.txt", b"second")
    assert open_again().get("runs/run-1/note.txt") == b"second"
    assert open_again().size("runs/run-1/note.txt") == 6
    assert open_again().exists("runs/run-1/note.txt")


def test_an_empty_object_exists(store: Store) -> None:
    store.put("runs/run-1/cancel", b"")
    assert store.exists("runs/run-1/cancel")
    assert store.get("runs/run-1/cancel") == b""


@pytest.mark.parametrize("key", ["runs/none", "runs", "runs/run-1/note.txt/below"])
def test_what_is_no_object_is_not_found(store: Store, key: str) -> None:
    store.put("runs/run-1/note.txt", b"x")
    assert not store.exists(key)
    assert store.find_json(key) is None
    for ask in (store.get, store.size, store.get_json):
        with pytest.raises(NotFound, match=f"there is no object '{key}'"):
            ask(key)
    with pytest.raises(NotFound, match=f"there is no object '{key}'"), store.local(key):
        pass


def test_create_never_overwrites(store: Store) -> None:
    assert store.create("claim", b"first")
    assert not store.create("claim", b"second")
    assert store.get("claim") == b"first"


def test_of_many_threads_that_create_one_wins(store: Store, open_again: Callable[[], Store]) -> None:
    barrier = threading.Barrier(8)

    def claim(who: int) -> bool:
        mine = open_again()
        barrier.wait()
        return mine.create("claim", str(who).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert won.count(True) == 1
    assert store.get("claim") == str(won.index(True)).encode()


def test_updates_at_the_same_time_lose_nothing(open_again: Callable[[], Store]) -> None:
    def count(_: int) -> None:
        mine = open_again()
        for _ in range(5):
            mine.update_json("counter.json", lambda value: {"n": value.get("n", 0) + 1})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert open_again().get_json("counter.json") == {"n": 20}


def test_an_update_whose_change_raises_changes_nothing(store: Store) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        raise Conflict("no")

    store.put_json("aliases.json", {"champion": 1})
    with pytest.raises(Conflict, match="no"):
        store.update_json("aliases.json", refuse)
    assert store.get_json("aliases.json") == {"champion": 1}
    assert store.update_json("aliases.json", lambda now: {**now, "previous": 0}) == {"champion": 1, "previous": 0}


def test_children_are_the_names_directly_below_in_order(store: Store) -> None:
    for key in ("runs/b/run.json", "runs/a/run.json", "runs/a/deep/er.csv", "runs/c.txt", "runs-other/x"):
        store.put(key, b"x")
    assert store.children("runs") == ["a", "b", "c.txt"]
    assert store.children("runs/a") == ["deep", "run.json"]
    assert store.children("") == ["runs", "runs-other"]
    assert store.children("nothing") == []
    assert store.children("runs/c.txt") == []


def test_a_list_longer_than_one_answer_of_s3_is_whole(s3_url: str) -> None:
    names = [f"{number:06d}.csv" for number in range(1005)]
    prefix = s3_url.removeprefix(f"s3://{BUCKET}/")
    # Straight into the server's memory: a thousand requests would take ten seconds.
    (account,) = s3_backends
    for name in names:
        s3_backends[account]["aws"].put_object(BUCKET, f"{prefix}/parts/{name}", b"")
    store = open_store(s3_url)
    assert store.children("parts") == names
    store.delete("parts")
    assert store.children("parts") == []


def test_deleting_takes_an_object_or_all_below_and_nothing_else(store: Store) -> None:
    for key in ("jobs/a/parts/1", "jobs/a/parts/2", "jobs/a/parts-of-others", "jobs/b"):
        store.put(key, b"x")
    store.delete("jobs/a/parts")
    assert store.children("jobs/a") == ["parts-of-others"]
    store.delete("jobs/b")
    assert store.children("jobs") == ["a"]
    store.delete("jobs/b")
    store.delete("jobs/a/parts-of-others/below")
    assert store.get("jobs/a/parts-of-others") == b"x"


def test_a_file_is_moved_in_over_what_was_there(store: Store, tmp_path: Path) -> None:
    for content in (b"old", b"newer"):
        source = tmp_path / "archive.zip"
        source.write_bytes(content)
        store.put_file("datasets/1/archive.zip", source)
        assert not source.exists()
    assert store.get("datasets/1/archive.zip") == b"newer"


def test_a_local_file_that_is_missing_is_told_apart_from_a_missing_object(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.zip"):
        store.put_file("datasets/1/archive.zip", tmp_path / "gone.zip")
    assert not store.exists("datasets/1/archive.zip")


def test_an_object_can_be_read_as_a_local_file_in_its_newest_version(store: Store) -> None:
    for content in (b"version 1", b"version 2"):
        store.put("models/gender/1/model.onnx", content)
        with store.local("models/gender/1/model.onnx") as path:
            assert path.read_bytes() == content
            assert path.suffix == ".onnx"


def test_several_readers_share_a_local_file_and_many_more_do_not_take_it_away(store: Store) -> None:
    store.put("datasets/1/archive.zip", b"mine")
    for number in range(8):
        store.put(f"others/{number}", str(number).encode())
    with store.local("datasets/1/archive.zip") as first, store.local("datasets/1/archive.zip") as second:
        assert first == second
        for number in range(8):
            with store.local(f"others/{number}") as other:
                assert other.read_bytes() == str(number).encode()
        assert first.read_bytes() == b"mine"


def test_json_keeps_every_text_even_half_a_character(store: Store) -> None:
    value = {"name": "Grüße 🙂", "broken": "\ud800", "nested": {"list": [1, None, True]}}
    store.put_json("a.json", value)
    assert store.get_json("a.json") == value
    assert "Grüße 🙂".encode() in store.get("a.json")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up"])
def test_a_key_that_is_no_plain_relative_path_is_refused_by_every_method(
    store: Store, key: str, tmp_path: Path
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b""),
        lambda: store.create(key, b""),
        lambda: store.put_file(key, source),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.size(key),
        lambda: store.delete(key),
        lambda: store.update_json(key, lambda value: value),
        lambda: store.local(key).__enter__(),
        lambda: store.children(key or "/"),
    ]
    for call in calls:
        with pytest.raises(InvalidMessage, match="is not a store key; expected") as caught:
            call()
        assert caught.value.code == "uri_not_allowed"
    assert source.exists()


def test_a_store_answers_a_ping(store: Store) -> None:
    assert store.ping()


def test_a_bucket_that_does_not_exist_is_said_at_the_start(s3_endpoint: str) -> None:
    with pytest.raises(Retryable, match="the bucket 'nowhere' does not exist"):
        open_store("s3://nowhere/prefix")


def test_a_bucket_that_went_away_is_retryable_and_answers_no_ping(s3_endpoint: str) -> None:
    s3fs.S3FileSystem().call_s3("create_bucket", Bucket="passing")
    store = open_store("s3://passing")
    store.put("a", b"x")
    assert store.children("") == ["a"]
    store.delete("a")
    s3fs.S3FileSystem().call_s3("delete_bucket", Bucket="passing")
    assert not store.ping()


def test_a_server_that_is_away_is_retryable(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(Retryable, match=r"S3 failed on .*Could not connect"):
            open_store(s3_url)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_local_copy_is_fetched_once_a_version(s3_url: str) -> None:
    store = open_store(s3_url)
    store.put("archive.zip", b"content")
    with store.local("archive.zip") as first:
        written = first.stat().st_mtime_ns
    with store.local("archive.zip") as second:
        assert second == first
        assert second.stat().st_mtime_ns == written


def test_a_download_for_which_the_disk_has_no_room_leaves_nothing_there(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = open_store(s3_url)
    store.put("jobs/job-1/archive.zip", b"x" * 1_000_000)
    with largest_file(300_000), pytest.raises(Retryable, match="File too large"), store.local("jobs/job-1/archive.zip"):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with store.local("jobs/job-1/archive.zip") as path:
        assert path.read_bytes() == b"x" * 1_000_000


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets the operating system refuse what this process writes beyond so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_object_of_s3_is_measured_and_downloaded(s3_url: str, tmp_path: Path) -> None:
    open_store(s3_url).put("faces.zip", b"12345")
    found = S3Object(f"{s3_url}/faces.zip")
    assert found.size() == 5
    found.download(tmp_path / "copy.zip")
    assert (tmp_path / "copy.zip").read_bytes() == b"12345"
    with pytest.raises(NotFound, match=r"there is no object 's3://.*none\.zip'"):
        S3Object(f"{s3_url}/none.zip").size()
    with pytest.raises(NotFound, match="there is no object"):
        S3Object(s3_url).size()


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://bucket", "s3://bucket/", "s3://b!d/key", "s3://x\ny/key"])
def test_a_uri_that_names_no_object_of_s3_is_the_message_s_fault(uri: str) -> None:
    with pytest.raises(InvalidMessage, match="expected s3://BUCKET/KEY") as caught:
        S3Object(uri)
    assert caught.value.code == "uri_not_allowed"


def test_an_archive_in_s3_is_fetched_but_not_one_that_is_too_large(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    data = zipped([("30_0_0.jpg", b"a face")])
    store.put("faces.zip", data)
    request = ArchiveRequest("m1", "faces", uri=f"{s3_url}/faces.zip")
    enough = Settings(max_archive_bytes=len(data), allowed_buckets=(BUCKET,))
    with fetch_archive(request, store, enough, tmp_path) as path:
        assert path.read_bytes() == data
        path.unlink()
    limit = Settings(max_archive_bytes=len(data) - 1, allowed_buckets=(BUCKET,))
    said = f"has {len(data)} bytes; at most {len(data) - 1}"
    with pytest.raises(InvalidMessage, match=said), fetch_archive(request, store, limit, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    missing = ArchiveRequest("m1", "faces", uri=f"{s3_url}/none.zip")
    with pytest.raises(InvalidMessage, match="uri: there is no object") as caught:
        fetch_archive(missing, store, limit, tmp_path).__enter__()
    assert caught.value.code == "uri_not_found"


class _Proxy(BaseHTTPRequestHandler):
    """A proxy before the S3 server."""

    protocol_version = "HTTP/1.1"
    endpoint = ""
    removed = ""
    """A header that it removes, as some companies' do."""
    lose: Callable[[], None] | None = None
    """Called once, after a conditional write was done whose answer gets lost on the way back."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in {self.removed.lower(), "expect"}
        }
        upstream = http.client.HTTPConnection(urlsplit(self.endpoint).netloc)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        if (lose := type(self).lose) is not None and {"If-Match", "If-None-Match"} & set(self.headers):
            type(self).lose = None
            lose()
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "connection", "transfer-encoding", "date", "server"}:
                self.send_header(name.title(), value)  # as servers in Go do
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        upstream.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _forward  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def _behind_proxy(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Proxy]]:
    """Leads stores that are opened meanwhile through a proxy, and gives its class to change what it does."""
    proxy: type[_Proxy] = type("Proxy", (_Proxy,), {"endpoint": endpoint})
    with ThreadingHTTPServer(("127.0.0.1", 0), proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        s3fs.S3FileSystem.clear_instance_cache()  # which knows the server itself
        try:
            yield proxy
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("removed", ["If-Match", "If-None-Match", "X-Nothing"])
def test_a_server_that_ignores_conditions_is_refused_when_the_store_is_opened(
    s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    with _behind_proxy(s3_endpoint, monkeypatch) as proxy:
        proxy.removed = removed
        if removed == "X-Nothing":
            assert open_store(s3_url).children("") == []  # the probe is gone
        else:
            with pytest.raises(ValueError, match=f"ignores the header {removed}, so two processes could own"):
                open_store(s3_url)


@pytest.mark.parametrize("before", [None, b"0"])
def test_an_update_whose_answer_was_lost_is_made_once(
    s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    seen: list[bytes | None] = []

    def append(data: bytes | None) -> bytes:
        seen.append(data)
        return (data or b"") + b"1"

    with _behind_proxy(s3_endpoint, monkeypatch) as proxy:
        store = open_store(s3_url)
        if before is not None:
            store.put("note.txt", before)
        proxy.lose = lambda: None
        store.update("note.txt", append)
        assert proxy.lose is None
        assert seen == [before]
        assert store.get("note.txt") == (before or b"") + b"1"


def test_an_update_whose_answer_was_lost_is_made_once_though_another_came_meanwhile(
    s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(s3_url)
    with _behind_proxy(s3_endpoint, monkeypatch) as proxy:
        store = open_store(s3_url)
        store.put("note.txt", b"0")
        proxy.lose = lambda: other.update("note.txt", lambda data: (data or b"") + b"2")
        store.update("note.txt", lambda data: (data or b"") + b"1")
        assert store.get("note.txt") == b"012"


def test_who_created_an_object_knows_it_though_the_answer_was_lost(
    s3_endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _behind_proxy(s3_endpoint, monkeypatch) as proxy:
        store = open_store(s3_url)
        proxy.lose = lambda: None
        assert store.create("claim", b"mine")
        assert proxy.lose is None
        assert not store.create("claim", b"mine")  # of the same bytes, and yet not the first


def test_a_store_of_another_format_is_refused_with_words(tmp_path: Path) -> None:
    settings = Settings(store_url=f"file:{tmp_path / 'store'}")
    assert open_store_for(settings).get_json("format.json") == {"format": STORE_FORMAT}
    assert open_store_for(settings).get_json("format.json") == {"format": STORE_FORMAT}
    open_store(settings.store_url).put_json("format.json", {"format": 99})
    with pytest.raises(SettingsError, match="has format 99; this release reads format 1"):
        open_store_for(settings)


def test_a_file_in_the_staging_folder_is_no_object_until_it_is_moved_in(store: Store) -> None:
    staged = StagedFile(store.staging_folder())
    staged.write(b"face")
    staged.close()
    assert store.children("") == []
    assert staged.sha256 == hashlib.sha256(b"face").hexdigest()
    store.put_file("datasets/x/archive.zip", staged.path)
    staged.discard()
    assert store.get("datasets/x/archive.zip") == b"face"
    assert list(store.staging_folder().iterdir()) == []


def test_folders_are_found_by_an_object_that_they_hold(store: Store) -> None:
    for key in (
        "models/gender/2/card.json",
        "models/gender/1/card.json",
        "models/gender/3/claim.json",
        "models/gender/a",
    ):
        store.put(key, b"x")
    store.put("models/gender/4/deeper/card.json", b"x")
    assert store.folders_with("models/gender", "card.json") == ["1", "2"]
    assert store.folders_with("nothing", "card.json") == []
