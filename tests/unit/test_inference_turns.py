"""Turns: nothing of a job is at hand while a message is tried that may kill the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from inference.turns import Turns


@pytest.fixture
def bulk() -> Iterator[list[threading.Thread]]:
    """Threads that work on jobs, joined after the test."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_trials_wait_for_the_work_at_hand(bulk: list[threading.Thread]) -> None:
    turns, begun, go_on = Turns(), threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with turns.at_work():
            begun.set()
            go_on.wait(20)
            order.append("work done")

    bulk.append(threading.Thread(target=work))
    bulk[0].start()
    assert begun.wait(20)
    threading.Timer(0.1, go_on.set).start()
    turns.begin_trials()
    order.append("trials")
    assert order == ["work done", "trials"]


def test_no_work_begins_within_trials_however_many_there_are(bulk: list[threading.Thread]) -> None:
    turns, begun = Turns(), threading.Event()

    def work() -> None:
        with turns.at_work():
            begun.set()

    turns.begin_trials()
    bulk.append(threading.Thread(target=work))
    bulk[0].start()
    turns.begin_trials()
    assert not begun.wait(0.1)
    turns.end_trials()
    assert begun.wait(20)


def test_trials_do_not_wait_for_ever(bulk: list[threading.Thread]) -> None:
    turns, begun, go_on = Turns(patience_s=0.1), threading.Event(), threading.Event()

    def work() -> None:
        with turns.at_work():
            begun.set()
            go_on.wait(20)

    bulk.append(threading.Thread(target=work))
    bulk[0].start()
    assert begun.wait(20)
    asked = time.monotonic()
    turns.begin_trials()
    assert 0.1 <= time.monotonic() - asked < 10
    asked = time.monotonic()
    turns.begin_trials()  # nor again within the same trials
    assert time.monotonic() - asked < 0.1
    go_on.set()
