"""The watched folder, on a real broker and store."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from shared.archives.archive import ArchiveLimits
from shared.broker.base import Broker, Message
from shared.broker.sqlite.broker import SqliteBroker
from shared.client import Client
from shared.clock import iso
from shared.faces.synthetic import draw_sample
from shared.records.record import Fault
from shared.records.runs import Run, RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.topology import Topology
from tests.support.builders.archives import labelled_faces, zipped
from tests.support.builders.layouts import tarred
from trainer.inbox import InboxWatcher

ZIP = zipped(labelled_faces(1))
LIMITS = ArchiveLimits.from_settings(Settings())


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with SqliteBroker(tmp_path / "broker.db", Topology()) as broker:
        yield broker


@pytest.fixture
def client(broker: Broker, tmp_path: Path) -> Client:
    return Client(broker, FileStore(tmp_path / "store"))


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "inbox"


@pytest.fixture
def watcher(client: Client, inbox: Path) -> InboxWatcher:
    watcher = InboxWatcher(client, inbox, LIMITS)
    watcher.look()
    return watcher


def messages(broker: Broker) -> list[Message]:
    """Takes everything off the datasets queue, for good."""
    with broker.consume([broker.topology.datasets], prefetch=100) as consumer:
        deliveries = consumer.receive(100, timeout_s=0.0)
        consumer.settle(deliveries)
        consumer.flush()
    return [delivery.message for delivery in deliveries]


def during_copy(patch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Does something before the end of the next copy of an open file."""
    copy = shutil.copyfileobj

    def act(source: BinaryIO, target: BinaryIO, length: int) -> None:
        target.write(source.read(len(ZIP) // 2))
        action()
        copy(source, target, length)
        patch.undo()

    patch.setattr(shutil, "copyfileobj", act)


def test_a_zip_is_submitted_at_the_second_look_and_moved_aside(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path
) -> None:
    (inbox / "faces.ZIP").write_bytes(ZIP)
    watcher.look()
    assert messages(broker) == []
    watcher.look()
    (message,) = messages(broker)
    moved = inbox / "submitted" / "faces.ZIP"
    assert json.loads(message.body)["sha256"] == sha256_of(moved)
    assert [run.name for run in client.runs.all().records] == ["faces"]
    assert not (inbox / "faces.ZIP").exists()


def test_a_zip_that_still_grows_is_left_to_grow(watcher: InboxWatcher, broker: Broker, inbox: Path) -> None:
    with (inbox / "faces.zip").open("wb") as file:
        for _ in range(3):
            file.write(ZIP)
            file.flush()
            watcher.look()
    assert messages(broker) == []
    watcher.look()
    assert len(messages(broker)) == 1


def test_a_copy_that_pauses_half_way_is_submitted_once_it_is_whole(
    watcher: InboxWatcher, broker: Broker, inbox: Path, tmp_path: Path
) -> None:
    draw_sample(tmp_path / "faces.zip", 4, seed=7)
    data = (tmp_path / "faces.zip").read_bytes()
    with (inbox / "faces.zip").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        for _ in range(3):
            watcher.look()
        assert messages(broker) == []
        file.write(data[len(data) // 2 :])
    watcher.look()
    watcher.look()
    (message,) = messages(broker)
    assert json.loads(message.body)["sha256"] == sha256_of(tmp_path / "faces.zip")
    assert (inbox / "submitted" / "faces.zip").read_bytes() == data


def test_a_broken_zip_is_submitted_once_it_has_been_quiet_for_a_minute(
    client: Client, broker: Broker, inbox: Path
) -> None:
    now = 1000.0
    watcher = InboxWatcher(client, inbox, LIMITS, clock=lambda: now)
    watcher.look()
    (inbox / "faces.zip").write_bytes(b"PK\x03\x04")
    for seconds in (0.0, 30.0, 29.0):
        now += seconds
        watcher.look()
    (inbox / "faces.zip").write_bytes(b"PK\x03\x04, and more")
    for seconds in (30.0, 59.0):
        now += seconds
        watcher.look()
    assert messages(broker) == []
    now += 1.0
    watcher.look()
    assert len(messages(broker)) == 1
    assert (inbox / "submitted" / "faces.zip").exists()


@pytest.mark.parametrize("is_preallocated", [False, True])
@pytest.mark.parametrize("at", ["between two files", "in a file", "in the last file", "before the end"])
def test_a_tar_whose_copy_pauses_is_submitted_once_it_is_whole(
    watcher: InboxWatcher, broker: Broker, inbox: Path, at: str, is_preallocated: bool
) -> None:
    data = tarred((name, content + b"end") for name, content in labelled_faces(30))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    end = len(data.rstrip(b"\0"))
    pause = {
        "between two files": members[20].offset,
        "in a file": members[20].offset_data + 10,
        "in the last file": members[-1].offset_data + 10,
        "before the end": end + -end % 512,
    }[at]
    with (inbox / "faces.tar").open("wb") as file:
        file.truncate(len(data) if is_preallocated else 0)
        file.write(data[:pause])
        file.flush()
        for _ in range(3):
            watcher.look()
        if not (is_preallocated and at == "before the end"):  # nothing but zeros is missing
            assert messages(broker) == []
            file.write(data[pause:])
    watcher.look()
    watcher.look()
    (message,) = messages(broker)
    assert json.loads(message.body)["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_tar_whose_end_may_be_missing_is_submitted_once_it_has_been_quiet_for_a_minute(
    client: Client, broker: Broker, inbox: Path
) -> None:
    now = 1000.0
    watcher = InboxWatcher(client, inbox, LIMITS, clock=lambda: now)
    watcher.look()
    data = tarred(labelled_faces(3))
    (inbox / "without.tar").write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512))
    (inbox / "long.tar").write_bytes(data + bytes(2 * 10_240))
    for seconds in (0.0, 30.0, 29.0):
        now += seconds
        watcher.look()
    assert messages(broker) == []
    now += 1.0
    watcher.look()
    assert len(messages(broker)) == 2


def test_a_zip_with_too_many_entries_is_whole_all_the_same(client: Client, broker: Broker, inbox: Path) -> None:
    watcher = InboxWatcher(client, inbox, replace(LIMITS, max_members=3))
    watcher.look()
    draw_sample(inbox / "faces.zip", 4, seed=7)
    watcher.look()
    watcher.look()
    assert len(messages(broker)) == 1


def test_a_crash_between_submitting_and_moving_does_not_submit_another_run(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    watcher.look()
    # As if the move had not happened; the inode stays the same.
    (inbox / "submitted" / "faces.zip").rename(inbox / "faces.zip")
    again = InboxWatcher(client, inbox, LIMITS)
    again.look()
    again.look()
    assert len(messages(broker)) == 1
    assert len(client.runs.all().records) == 1


def end_run(client: Client, state: RunState) -> Run:
    """Ends the newest run, as a trainer does."""
    newest = next(iter(client.runs.newest()))
    return client.runs.update(newest.run_id, state=state, error=Fault(code="too_few_faces", message="too few faces"))


def drop_again(inbox: Path, run: Run) -> None:
    """Moves an archive back, later than its run was made by the file system's clock, which may be some ms behind."""
    submitted = inbox / "submitted" / "faces.zip"
    submitted.rename(inbox / "faces.zip")
    while iso((inbox / "faces.zip").stat().st_ctime) <= run.created:
        (inbox / "faces.zip").rename(submitted)
        submitted.rename(inbox / "faces.zip")


@pytest.mark.parametrize("state", [RunState.REJECTED, RunState.FAILED])
def test_an_archive_that_is_moved_back_after_its_run_went_wrong_is_another_run(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path, state: RunState
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    watcher.look()
    for _ in range(2):
        drop_again(inbox, end_run(client, state))
        watcher.look()
        watcher.look()
        assert not (inbox / "faces.zip").exists()
    assert len({message.message_id for message in messages(broker)}) == 3
    assert [run.state for run in client.runs.newest()] == [RunState.QUEUED, state, state]


def test_an_archive_that_is_moved_back_after_its_run_went_well_is_not_said_to_be_submitted(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    watcher.look()
    run = end_run(client, RunState.REGISTERED)
    drop_again(inbox, run)
    with caplog.at_level(logging.INFO):
        watcher.look()
        watcher.look()
    assert [record.getMessage() for record in caplog.records] == [
        f"{inbox / 'faces.zip'}: its run {run.run_id} is registered already; drop a copy to train once more"
    ]
    assert len(messages(broker)) == 1
    assert (inbox / "submitted" / "faces.zip").exists()


def test_an_archive_that_a_crash_left_in_place_is_not_submitted_again_after_its_run_was_rejected(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(_path: Path, _target: Path) -> None:
        raise Crash

    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            watcher.look()
    end_run(client, RunState.REJECTED)
    again = InboxWatcher(client, inbox, LIMITS)
    again.look()
    again.look()
    assert len(messages(broker)) == 1
    assert len(client.runs.all().records) == 1
    assert (inbox / "submitted" / "faces.zip").exists()


def test_a_second_archive_of_the_same_name_is_another_run_and_keeps_the_first(
    watcher: InboxWatcher, client: Client, inbox: Path
) -> None:
    for content in (ZIP, ZIP + b"\0"):
        (inbox / "faces.zip").write_bytes(content)
        watcher.look()
        watcher.look()
    assert len(client.runs.all().records) == 2
    assert sorted(file.stat().st_size for file in (inbox / "submitted").iterdir()) == [len(ZIP), len(ZIP) + 1]


def test_a_second_archive_that_takes_the_name_of_one_being_copied_is_submitted_too(
    watcher: InboxWatcher, broker: Broker, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    (tmp_path / "corrected.zip").write_bytes(ZIP + b"\0")
    corrected = sha256_of(tmp_path / "corrected.zip")
    watcher.look()
    during_copy(monkeypatch, lambda: (tmp_path / "corrected.zip").replace(inbox / "faces.zip"))
    watcher.look()
    assert [json.loads(message.body)["sha256"] for message in messages(broker)] == [hashlib.sha256(ZIP).hexdigest()]
    assert list((inbox / "submitted").iterdir()) == []
    watcher.look()
    watcher.look()
    assert [json.loads(message.body)["sha256"] for message in messages(broker)] == [corrected]
    assert (inbox / "submitted" / "faces.zip").read_bytes() == ZIP + b"\0"


def test_an_archive_that_is_written_to_while_it_is_copied_is_submitted_once_it_is_whole(
    watcher: InboxWatcher, broker: Broker, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    during_copy(monkeypatch, lambda: (inbox / "faces.zip").write_bytes(ZIP + b"\0"))
    watcher.look()
    assert messages(broker) == []
    watcher.look()
    watcher.look()
    (message,) = messages(broker)
    assert json.loads(message.body)["sha256"] == sha256_of(inbox / "submitted" / "faces.zip")
    assert (inbox / "submitted" / "faces.zip").read_bytes() == ZIP + b"\0"


def test_links_hidden_files_and_other_files_are_left_alone(
    watcher: InboxWatcher, broker: Broker, inbox: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.zip"
    secret.write_bytes(ZIP)
    (inbox / "link.zip").symlink_to(secret)
    (inbox / ".part.zip").write_bytes(ZIP)
    (inbox / "notes.txt").write_bytes(ZIP)
    (inbox / "folder.zip").mkdir()
    watcher.look()
    watcher.look()
    assert messages(broker) == []
    assert secret.exists()


@pytest.mark.parametrize("trouble", ["broker", "store"])
def test_trouble_is_said_once_and_the_file_is_tried_again(
    trouble: str, client: Client, inbox: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SqliteBroker(tmp_path / "small.db", Topology(), queue_limit=1) as full:
        store = FileStore(tmp_path / "store")
        if trouble == "broker":
            full.publish(full.topology.datasets, Message(b"", "text/plain"))
        else:
            (tmp_path / "store" / "datasets").write_text("in the way")
        watcher = InboxWatcher(Client(full, store), inbox, LIMITS)
        watcher.look()
        (inbox / "faces.zip").write_bytes(ZIP)
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                watcher.look()
        assert len(caplog.records) == 1
        assert "faces.zip" in caplog.text
        assert (inbox / "faces.zip").exists()
        if trouble == "broker":
            assert len(messages(full)) == 1
        else:
            (tmp_path / "store" / "datasets").unlink()
        watcher.look()
        assert len(messages(full)) == 1
        assert not (inbox / "faces.zip").exists()


def test_a_file_that_vanishes_is_no_trouble(
    watcher: InboxWatcher, broker: Broker, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    (inbox / "faces.zip").unlink()
    watcher.look()
    assert messages(broker) == []
    assert caplog.records == []


def test_a_folder_that_cannot_be_made_is_said_once(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    watcher = InboxWatcher(client, tmp_path / "file" / "inbox", LIMITS)
    watcher.look()
    watcher.look()
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot watch {tmp_path / 'file' / 'inbox'}: Not a directory"
    ]


def test_run_watches_until_it_is_told_to_stop(broker: Broker, client: Client, inbox: Path) -> None:
    inbox.mkdir(parents=True)
    (inbox / "faces.zip").write_bytes(ZIP)
    stop = threading.Event()
    thread = threading.Thread(target=InboxWatcher(client, inbox, LIMITS).run, args=[stop])
    thread.start()
    try:
        with broker.consume([broker.topology.datasets], prefetch=1) as consumer:
            assert len(consumer.receive(1, timeout_s=20)) == 1
    finally:
        stop.set()
        thread.join()


def test_a_tar_gz_is_submitted_once_it_is_whole(
    watcher: InboxWatcher, broker: Broker, client: Client, inbox: Path, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in labelled_faces(30):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    with (inbox / "UTKFace.tar.gz").open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        for _ in range(3):
            watcher.look()
        assert messages(broker) == []
        file.write(data[len(data) // 2 :])
    watcher.look()
    watcher.look()
    assert len(messages(broker)) == 1
    assert [run.name for run in client.runs.all().records] == ["UTKFace"]
    assert (inbox / "submitted" / "UTKFace.tar.gz").read_bytes() == data


def test_a_file_that_is_swapped_for_a_link_after_it_was_looked_at_is_not_followed(
    watcher: InboxWatcher, broker: Broker, inbox: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.zip").write_bytes(ZIP)
    (inbox / "faces.zip").write_bytes(ZIP)
    watcher.look()
    rename = os.scandir

    def swap(folder: Path) -> object:
        # What the watcher lists is the plain file; before it opens it, a link has taken the name.
        entries = list(rename(folder))
        for entry in entries:
            entry.stat(follow_symlinks=False)
        (inbox / "faces.zip").unlink()
        (inbox / "faces.zip").symlink_to(tmp_path / "secret.zip")
        return contextlib.nullcontext(entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", swap)
        watcher.look()
    assert messages(broker) == []
    assert (tmp_path / "secret.zip").exists()
