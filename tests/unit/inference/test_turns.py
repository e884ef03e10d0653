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


def test_trials_wait_for_one_piece_of_work_once_and_not_for_ever(bulk: list[threading.Thread]) -> None:
    turns, begun, go_on = Turns(trials_wait_s=0.2), threading.Event(), threading.Event()

    def work() -> None:
        with turns.at_work():
            begun.set()
            go_on.wait(20)

    def waited_s() -> float:
        asked = time.monotonic()
        turns.begin_trials()
        return time.monotonic() - asked

    bulk.append(threading.Thread(target=work))
    bulk[0].start()
    assert begun.wait(20)
    assert 0.2 <= waited_s() < 10
    assert waited_s() < 0.1
    turns.end_trials()
    assert waited_s() < 0.1
    go_on.set()


def test_work_does_not_wait_for_ever_either() -> None:
    turns = Turns(work_waits_s=0.2)
    turns.begin_trials()
    asked = time.monotonic()
    with turns.at_work():
        assert 0.2 <= time.monotonic() - asked < 10
