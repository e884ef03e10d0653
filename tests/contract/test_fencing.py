"""Whoever lost its lease changes nothing any more: with real processes that are stopped and go on, on both stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.jobs.finish import JobFinisher
from shared.broker.base import Outgoing
from shared.errors import Retryable
from shared.params import TrainingParams
from shared.records.jobs import Jobs, JobState
from shared.records.runs import Runs, RunState
from shared.store.base import Store
from shared.store.lease import LeaseLost, Leases
from tests.support.children.fence import CHECKPOINT, RUN, finish
from tests.support.children.finish import JOB
from tests.support.services import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def contents(store: Store, prefix: str = "") -> dict[str, bytes]:
    """Returns every object but those of leases."""
    found: dict[str, bytes] = {}
    for name in store.children(prefix):
        key = f"{prefix}/{name}" if prefix else name
        if name == "lease":
            continue
        if store.exists(key):
            found[key] = store.get(key)
        else:
            found |= contents(store, key)
    return found


def stopped_at(module: str, url: str, point: str) -> subprocess.Popen[str]:
    """Starts a process that owns some work, and waits until it has stopped itself there."""
    child = subprocess.Popen([sys.executable, "-m", module, url, point], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status
    return child


def continued(child: subprocess.Popen[str]) -> dict[str, str]:
    """Lets a stopped process go on to its end, and returns what became of its writes."""
    child.send_signal(signal.SIGCONT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0, out
    return dict(line.split(": ") for line in out.splitlines())


@pytest.mark.parametrize("point", ["after-checkpoint", "in-a-write", "after-result"])
def test_a_process_stopped_past_its_lease_changes_nothing_when_it_goes_on(
    open_again: Callable[[], Store], store_url: str, point: str
) -> None:
    store = open_again()
    Runs(store).create(RUN, message_id="1", name="faces", params=TrainingParams(), state=RunState.TRAINING)
    child = stopped_at("tests.support.children.fence", store_url, point)
    try:
        successor = Leases(store, 0.1).lease(f"runs/{RUN}")
        eventually(successor.acquire, 20, "the lease is taken over")
        if point == "after-result":  # the message comes again: there is nothing left to do
            assert Runs(store).get(RUN).state is RunState.REGISTERED
        else:
            for _, write in finish(successor.store, "the successor"):
                write()
            assert store.get(CHECKPOINT) == b"the successor"
        before = contents(store)
        outcomes = continued(child)
        assert contents(store) == before
        assert set(outcomes.values()) <= {"LeaseLost", "RecordEnded"}, outcomes
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("point", ["before-the-parts", "after-the-parts"])
def test_a_worker_stopped_while_it_ends_a_job_changes_nothing_once_another_has_ended_it(
    store: Store, store_url: str, point: str
) -> None:
    jobs = Jobs(store)
    jobs.create(JOB, message_id="1", name="faces")
    jobs.accept(JOB, images=2, shards=2, shard_images=1, reply_to="somebody", model={"version": 1})
    for shard in (0, 1):
        store.put(Jobs.part_key(JOB, shard), f"{shard}.jpg,female,0.9,0.9,,,\n".encode())
    child = stopped_at("tests.support.children.finish", store_url, point)
    try:
        successor = JobFinisher(store, lambda *_: None, 0.1)
        assert successor.claim(JOB, 1)  # the same shard, delivered again
        replies: list[Outgoing] = []

        def finished() -> bool:
            try:
                replies.extend(successor.finish(JOB))
            except Retryable:
                return False
            return True

        eventually(finished, 20, "the job's end")
        assert len(replies) == 1
        before = contents(store)
        assert before[Jobs.results_key(JOB)].count(b"\n") == 3
        assert set(continued(child).values()) <= {"LeaseLost", "Retryable"}
        assert contents(store) == before
        assert jobs.get(JOB).state is JobState.FINISHED
    finally:
        child.kill()
        child.wait()


def test_an_attempt_whose_lease_was_taken_writes_nothing_not_even_what_is_not_there_yet(
    store: Store, tmp_path: Path
) -> None:
    leases = Leases(store, 0.0)
    old, new = leases.lease("runs/run-1"), leases.lease("runs/run-1")
    assert old.acquire()
    old.store.put("runs/run-1/checkpoint.pt", b"old")
    assert new.acquire()
    assert new.number > old.number
    file = tmp_path / "predictions.csv"
    file.write_bytes(b"old")
    for write in (
        lambda: old.store.put("runs/run-1/checkpoint.pt", b"older"),
        lambda: old.store.put("runs/run-1/history.csv", b"older"),
        lambda: old.store.put_file("runs/run-1/predictions.csv", file),
        lambda: old.store.create("models/gender/1/claim.json", b"older"),
        lambda: old.store.update("runs/run-1/run.json", lambda _: b"older"),
        lambda: old.store.delete("runs/run-1/checkpoint.pt"),
        old.renew,
    ):
        with pytest.raises(LeaseLost):
            write()
    old.release()
    assert contents(store) == {"runs/run-1/checkpoint.pt": b"old"}
    new.store.put("runs/run-1/checkpoint.pt", b"new")
    assert store.get("runs/run-1/checkpoint.pt") == b"new"


def test_fenced_writes_leave_nothing_beside_the_objects(tmp_path: Path, store: Store) -> None:
    lease = Leases(store, 10).lease("runs/run-1")
    for _ in range(3):
        assert lease.acquire()
        lease.store.put("runs/run-1/checkpoint.pt", b"x")
        lease.renew()
        lease.release()
    assert len(store.children("runs/run-1/lease")) == 1
    assert [path for path in tmp_path.rglob(".staged/*") if path.is_file()] == []
