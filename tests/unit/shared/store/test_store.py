"""What holds for the store in a folder beyond the contract of both: real processes race, and are killed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.errors import InvalidMessage, NotFound, Retryable
from shared.store import open_store
from shared.store.base import checked_key, json_bytes, sha256_of
from shared.store.files import FileStore
from tests.support.store_process import race, store_process


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_a_reader_never_sees_half_an_object_though_its_writer_is_killed(store: FileStore) -> None:
    size = 2_000_000
    for _ in range(3):
        with store_process(store.root, "rewrite", "big", str(size)) as writer:
            assert writer.line() == "writing"
            letters: set[bytes] = set()
            while len(letters) < 4:
                content = store.get("big")
                assert len(content) == size
                assert content == content[:1] * size
                letters.add(content[:1])
            writer.kill()
        content = store.get("big")
        assert content == content[:1] * size
        assert store.children("") == ["big"]


def test_of_many_processes_that_create_one_wins(store: FileStore) -> None:
    answers = race(store.root, [["create", "claim", str(who)] for who in range(4)])
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert store.get("claim").decode() == str(answers.index("True"))


def test_updates_by_several_processes_lose_nothing(store: FileStore) -> None:
    assert race(store.root, [["count", "counter.json", "50"]] * 3) == ["done"] * 3
    assert store.get_json("counter.json") == {"n": 150}


def test_an_update_of_one_key_does_not_wait_for_that_of_another(store: FileStore) -> None:
    inside, finished = threading.Event(), threading.Event()

    def slow(value: dict[str, int]) -> dict[str, int]:
        inside.set()
        assert finished.wait(10)
        return value

    thread = threading.Thread(target=store.update_json, args=("slow.json", slow))
    thread.start()
    assert inside.wait(10)
    assert store.update_json("other.json", lambda _: {"n": 1}) == {"n": 1}
    finished.set()
    thread.join()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system at /dev/shm")
def test_a_file_from_another_file_system_is_moved_in_whole(store: FileStore, tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"genderline-test-{os.getpid()}"
    source.write_bytes(b"x" * 3_000_000)
    try:
        if source.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is the file system of the temporary folder")
        store.put_file("a/archive.zip", source)
        assert not source.exists()
    finally:
        source.unlink(missing_ok=True)
    assert store.get("a/archive.zip") == b"x" * 3_000_000
    assert [path.name for path in (store.root / "a").iterdir()] == ["archive.zip"]


def test_a_full_disk_is_retryable_and_leaves_nothing_half_written(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put("a/note", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Retryable, match="the store failed on a/note: No space left on device"):
            store.put("a/note", b"new")
    assert store.get("a/note") == b"old"
    assert [path.name for path in (store.root / "a").iterdir()] == ["note"]


WRITE_ALL = """
import os, sys
from pathlib import Path
from shared.broker.sqlite.broker import SqliteBroker
from shared.store.files import FileStore

os.umask(int(sys.argv[2], 8))
folder = Path(sys.argv[1])
store = FileStore(folder / "store")
for name, mode in (("open", 0o666), ("closed", 0o600)):
    source = folder / name
    source.write_bytes(b"x")
    source.chmod(mode)
    store.put_file(f"moved/{name}", source)
store.put("put/it", b"x")
store.create("created/it", b"x")
store.update("updated/it", lambda _: b"x")
with SqliteBroker(folder / "broker.db"):
    for path in [folder / "broker.db", *folder.glob("broker.db-*"), *store.root.rglob("*")]:
        print("folder" if path.is_dir() else "file", oct(path.stat().st_mode & 0o777))
"""


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [("077", "0o600", "0o700"), ("007", "0o660", "0o770"), ("022", "0o644", "0o755")]
)
def test_who_may_read_what_is_written_is_what_the_umask_says(
    tmp_path: Path, umask: str, file: str, folder: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_ALL, str(tmp_path), umask], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.splitlines()) == {f"file {file}", f"folder {folder}"}


def test_a_key_below_an_object_is_retryable_not_a_crash(store: FileStore) -> None:
    store.put("a", b"x")
    with pytest.raises(Retryable, match="the store failed on a/b"):
        store.put("a/b", b"x")


def test_deleting_a_folder_takes_all_though_others_take_and_add_files_meanwhile(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        store.put(f"datasets/x/{number}.csv", b"x")
    unlink, rmdir = os.unlink, os.rmdir
    meanwhile = ["take", "add"]

    def unlink_late(path: str | Path, **options: int) -> None:
        if "take" in meanwhile:
            meanwhile.remove("take")
            unlink(path, **options)
        unlink(path, **options)

    def rmdir_late(path: str | Path, **options: int) -> None:
        if "add" in meanwhile:
            meanwhile.remove("add")
            store.put("datasets/x/new.csv", b"x")
        rmdir(path, **options)

    with monkeypatch.context() as late:
        late.setattr("os.unlink", unlink_late)
        late.setattr("os.rmdir", rmdir_late)
        store.delete("datasets/x")
    assert meanwhile == []
    assert store.children("datasets") == []


def test_a_folder_that_fills_as_fast_as_it_is_deleted_is_retryable(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("datasets/x/faces.csv", b"x")
    rmdir = os.rmdir

    def rmdir_late(path: str | Path, **options: int) -> None:
        store.put("datasets/x/new.csv", b"x")
        rmdir(path, **options)

    monkeypatch.setattr("os.rmdir", rmdir_late)
    with pytest.raises(Retryable, match="the store failed on datasets/x: Directory not empty"):
        store.delete("datasets/x")


def test_a_store_without_its_folder_answers_no_ping(store: FileStore) -> None:
    assert store.ping()
    store.root.rmdir()
    assert not store.ping()


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Retryable, match=r"the store failed on its folder .*file/store"):
        FileStore(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/etc/passwd", "..", "../up", "a/../../b", "a//b", "a/", "./a", "a/.", "a\\b", "a\0b", "a\nb"),
        *("a/.hidden", ".a.lock", "n" * 201, "ü" * 101, "/".join(["n" * 100] * 10), "\ud800", "a\u202eb"),
    ],
)
def test_a_key_that_is_no_plain_relative_path_is_refused(key: str) -> None:
    with pytest.raises(InvalidMessage, match="store key") as caught:
        checked_key(key)
    assert caught.value.code == "uri_not_allowed"
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("key", ["a", "runs/run-1/run.json", "n" * 200, "Grüße/x y.zip", "a..b/c...d"])
def test_a_plain_relative_path_is_a_key(key: str, store: FileStore) -> None:
    store.put(key, b"x")
    assert store.get(checked_key(key)) == b"x"


def test_urls_name_folders_relative_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("file:here", f"file:{tmp_path}/here", f"file://{tmp_path}/here"):
        opened = open_store(url)
        assert isinstance(opened, FileStore)
        assert opened.root == tmp_path / "here"


@pytest.mark.parametrize("url", ["", "file:", "file://", "ftp://x", "data/store"])
def test_an_unknown_url_is_refused_with_what_was_found_and_expected(url: str) -> None:
    with pytest.raises(ValueError, match=f"unknown store URL '{url}'; expected file:PATH or s3://BUCKET/PREFIX"):
        open_store(url)


def test_s3_without_its_extra_is_a_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "shared.store.s3", raising=False)
    with pytest.raises(ValueError, match="needs S3 support, which is not installed"):
        open_store("s3://bucket/prefix")


def test_a_file_s_hash_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_utf_8_for_people_and_for_programs_whatever_is_in_it() -> None:
    text = json_bytes({"name": "Zoë", "half": "\udc80"})
    assert "Zoë" in text.decode()
    assert json.loads(text.decode()) == {"name": "Zoë", "half": "\udc80"}


def test_a_missing_object_is_not_found_by_its_key(store: FileStore) -> None:
    with pytest.raises(NotFound, match=r"there is no object 'runs/x/run\.json' in the store") as caught:
        store.get_json("runs/x/run.json")
    assert caught.value.code == "not_found"
