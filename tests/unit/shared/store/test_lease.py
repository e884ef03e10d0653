from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.store.files import FileStore
from shared.store.lease import LeaseLost, Leases
from tests.soak.clock import SettableClock
from tests.support.store_process import store_process


class Clock:
    """Seconds that stand still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_one_of_many_becomes_the_owner(store: FileStore) -> None:
    barrier = threading.Barrier(8)

    def acquire(_: int) -> bool:
        lease = Leases(store, 60).lease("runs/run-1")
        barrier.wait()
        return lease.acquire()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(acquire, range(8))).count(True) == 1


def test_leases_on_different_work_do_not_meet(store: FileStore) -> None:
    assert Leases(store, 60).lease("runs/run-1").acquire()
    assert Leases(store, 60).lease("runs/run-2").acquire()


def test_a_living_owner_is_not_taken_over_for_as_long_as_it_renews(store: FileStore, clock: Clock) -> None:
    owner, other = (Leases(store, 10, clock).lease("runs/run-1") for _ in range(2))
    assert owner.acquire()
    for _ in range(5):
        clock.now += 9
        owner.renew()
        assert not other.acquire()


def test_a_paused_owner_is_taken_over_after_its_time_and_finds_out(store: FileStore, clock: Clock) -> None:
    paused, successor = (Leases(store, 10, clock).lease("runs/run-1") for _ in range(2))
    assert paused.acquire()
    assert not successor.acquire()  # it begins to watch
    clock.now += 9.9
    assert not successor.acquire()
    clock.now += 0.2
    assert successor.acquire()
    with pytest.raises(LeaseLost, match="runs/run-1/lease is not held: another process has taken over"):
        paused.renew()


def test_an_owner_that_was_only_slow_stays_the_owner(store: FileStore, clock: Clock) -> None:
    owner = Leases(store, 10, clock).lease("runs/run-1")
    assert owner.acquire()
    clock.now += 100
    owner.renew()
    assert not Leases(store, 10, clock).lease("runs/run-1").acquire()


def test_the_late_release_of_a_paused_owner_does_not_harm_its_successor(store: FileStore, clock: Clock) -> None:
    paused, successor, third = (Leases(store, 10, clock).lease("runs/run-1") for _ in range(3))
    assert paused.acquire()
    assert not successor.acquire()
    clock.now += 11
    assert successor.acquire()
    paused.release()
    assert not third.acquire()
    successor.renew()


def test_a_released_lease_is_free_at_once_and_no_longer_renewed(store: FileStore, clock: Clock) -> None:
    first, second = (Leases(store, 10, clock).lease("runs/run-1") for _ in range(2))
    assert first.acquire()
    first.release()
    with pytest.raises(LeaseLost):
        first.renew()
    assert second.acquire()
    second.release()
    assert first.acquire()


def test_who_never_acquired_neither_renews_nor_releases(store: FileStore) -> None:
    lease = Leases(store, 10).lease("runs/run-1")
    with pytest.raises(LeaseLost):
        lease.renew()
    lease.release()
    assert store.children("runs/run-1/lease") == []


def test_a_killed_owner_of_this_machine_is_taken_over_at_once(store: FileStore) -> None:
    successor = Leases(store, 3600).lease("runs/run-1")
    with store_process(store.root, "hold", "runs/run-1") as owner:
        assert owner.line() == "held"
        assert not successor.acquire()
        owner.kill()
        assert successor.acquire()


def test_an_owner_on_another_machine_gets_its_whole_time(store: FileStore, clock: Clock) -> None:
    # The process id is one that no process here has: ids say nothing across machines.
    store.put_json("runs/run-1/lease/00000001", {"owner": "far/pid:[1]:4194999:aa", "renewals": 0})
    lease = Leases(store, 10, clock).lease("runs/run-1")
    assert not lease.acquire()
    clock.now += 11
    assert lease.acquire()


def test_an_owner_on_another_machine_of_the_same_name_gets_its_whole_time(store: FileStore, clock: Clock) -> None:
    # A cloned machine differs in nothing else: the first namespace of process ids has one number everywhere.
    assert Leases(store, 10, clock).lease("runs/run-1").acquire()
    owner = store.get_json("runs/run-1/lease/00000001")["owner"]
    pid = owner.rsplit(":", 2)[1]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    far = owner.replace(boot, str(uuid.uuid4())).replace(f":{pid}:", ":4194999:")
    store.put_json("runs/run-1/lease/00000001", {"owner": far, "renewals": 0})
    successor = Leases(store, 10, clock).lease("runs/run-1")
    assert not successor.acquire()
    clock.now += 11
    assert successor.acquire()


def test_a_living_process_of_another_user_is_no_dead_owner(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Leases(store, 60).lease("runs/run-1")
    assert owner.acquire()

    def refused(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr("os.kill", refused)
    assert not Leases(store, 60).lease("runs/run-1").acquire()


def test_a_machine_without_process_namespaces_leases_too(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> Path:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "readlink", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    assert Leases(store, 60).lease("runs/run-1").acquire()
    assert not Leases(store, 60).lease("runs/run-1").acquire()


def test_a_file_that_somebody_left_among_the_leases_is_no_lease(store: FileStore) -> None:
    store.put("runs/run-1/lease/notes.txt", b"")
    assert Leases(store, 60).lease("runs/run-1").acquire()


TAKE_OVER = """
import struct, sys, threading, time
from shared.store.files import FileStore
from shared.store.lease import Leases

folder, offset, step = sys.argv[1], sys.argv[2], float(sys.argv[3])
store = FileStore(folder)
owner, other = (Leases(store, 1.0).lease("runs/run-1") for _ in range(2))
assert owner.acquire()
since = time.monotonic()
assert not other.acquire()
before = time.time()
with open(offset, "r+b") as file:
    file.write(struct.pack("<d", step))
assert abs(time.time() - before - step) < 60, "the clock was not set"
while not other.acquire() and time.monotonic() - since < 30:
    threading.Event().wait(0.02)
print(time.monotonic() - since)
"""


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_by_an_hour_neither_hastens_nor_delays_a_take_over(tmp_path: Path, step_s: float) -> None:
    clock_folder = tmp_path / "clock"
    clock_folder.mkdir()
    environment = {**os.environ, **SettableClock(clock_folder).environment}
    arguments = [str(tmp_path / "store"), str(clock_folder / "offset"), str(step_s)]
    done = subprocess.run(
        [sys.executable, "-c", TAKE_OVER, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 1.0 <= float(done.stdout) < 20
