"""The machine loses its power at every write of the embedded broker: what was not synced is gone, nothing confirmed is.

`strace` tells what a process wrote and when it synced. From that is rebuilt, and opened, what a disk holds for certain.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pytest

from shared.broker.sqlite import database, readers
from shared.broker.sqlite.broker import SqliteBroker
from tests.support.children.power_cut import MESSAGES, body_of
from tests.support.store_process import ROOT

pytestmark = pytest.mark.slow

_HEX = r"((?:\\x[0-9a-f]{2})*)"
_CALL = re.compile(rf'^(\w+)\((\d+)<{_HEX}>(?:, "{_HEX}")?(?:, (\d+))?(?:, (\d+))?\) += \d+$')
_UNLINK = re.compile(rf'^unlink\("{_HEX}"\) += 0$')


@dataclass
class Disk:
    """What the process has written, and what of that is certain to be there after a power cut.

    Attributes:
        written: the files as the system shows them.
        synced: the files as they were when they were synced last.
        confirmed: messages that were confirmed by now.
        settled: messages whose acknowledgement was begun.
    """

    written: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)
    confirmed: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)

    def write(self, file: str, data: bytes, offset: int) -> None:
        content = self.written.setdefault(file, bytearray())
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data


def replayed(trace: Path) -> Iterator[Disk]:
    """Yields the disk as it is after every write, every sync and every confirmation."""
    disk = Disk()
    removed: set[str] = set()
    for line in trace.read_text().splitlines():
        if (unlinked := _UNLINK.match(line)) is not None:
            removed.add(PurePath(_decoded(unlinked[1])).name)
            disk.written.pop(PurePath(_decoded(unlinked[1])).name, None)
            continue
        call = _CALL.match(line)
        assert call is not None or "= -1" in line or line.startswith("+++"), line[:200]
        if call is None:
            continue
        name, descriptor, path, data, first, second = call.groups()
        file = PurePath(_decoded(path)).name
        content = bytes.fromhex((data or "").replace("\\x", ""))
        if name == "write" and descriptor == "1":
            word, *ids = content.decode().split()
            (disk.confirmed if word == "confirmed" else disk.settled).update(ids)
        elif name == "pwrite64":
            disk.write(file, content, int(second))
        elif name == "ftruncate":
            del disk.written.setdefault(file, bytearray())[int(first) :]
        elif name in {"fsync", "fdatasync"} and file in disk.written:
            disk.synced[file] = bytes(disk.written[file])
        elif name in {"fsync", "fdatasync"}:  # the folder: now what was deleted in it stays so
            for gone in removed - disk.written.keys():
                disk.synced.pop(gone, None)
        yield disk


def _decoded(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a publishing process wrote and synced."""
    if (strace := shutil.which("strace")) is None:
        pytest.skip("strace is not installed: no power is cut")
    folder = tmp_path_factory.mktemp("traced")
    written = folder / "trace"
    calls = "write,pwrite64,ftruncate,fsync,fdatasync,unlink"
    command = [strace, "-y", "-xx", "-s", "1000000", "-e", f"trace={calls}", "-o", str(written)]
    child = [sys.executable, "-m", "tests.support.children.power_cut", str(folder / "broker.db")]
    subprocess.run([*command, *child], cwd=ROOT, check=True, capture_output=True, timeout=60)
    return written


def survivors(files: dict[str, bytes], folder: Path) -> set[str]:
    """Opens what is left, and returns the messages that are whole."""
    folder.mkdir()
    for name, content in files.items():
        if not name.endswith("-shm"):
            (folder / name).write_bytes(content)
    with SqliteBroker(folder / "broker.db") as broker, broker.consume([broker.topology.predictions], 0) as consumer:
        found = consumer.receive(MESSAGES * 2, 0)
    assert all(each.message.body == body_of(int(each.message.message_id)) for each in found)
    return {each.message.message_id for each in found}


@pytest.fixture(autouse=True)
def restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the machine's clock start anew, as it does after a power cut."""
    started = time.monotonic()
    for module in (database, readers):
        monkeypatch.setattr(module, "now", lambda: time.monotonic() - started)


def test_no_confirmed_message_is_lost_wherever_the_power_is_cut(trace: Path, tmp_path: Path) -> None:
    cuts, begun_anew = 0, 0
    checked: tuple[dict[str, bytes], int] | None = None
    for disk in replayed(trace):
        state = (dict(disk.synced), len(disk.confirmed))
        if state == checked or "broker.db" not in disk.synced:
            continue  # nothing more is certain, and nothing more was promised
        if checked is not None and state[0].get("broker.db") != checked[0].get("broker.db"):
            begun_anew += 1
        checked = state
        cuts += 1
        found = survivors(disk.synced, tmp_path / f"cut-{cuts}")
        assert disk.confirmed - disk.settled <= found, f"cut {cuts}"
    assert len(disk.confirmed) == MESSAGES
    assert cuts > MESSAGES / 2
    assert begun_anew >= 2  # the log was moved into the database, and written from its start again


def test_what_was_written_and_not_synced_does_no_harm_where_it_did_reach_the_disk(trace: Path, tmp_path: Path) -> None:
    cuts = 0
    for step, disk in enumerate(replayed(trace)):
        if step % 7 or "broker.db" not in disk.synced:
            continue
        cuts += 1
        written = {name: bytes(content) for name, content in disk.written.items()}
        found = survivors(written, tmp_path / f"cut-{cuts}")
        assert disk.confirmed - disk.settled <= found, f"cut {cuts}"
    assert cuts > 20
