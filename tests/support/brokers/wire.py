"""Holds what services say and write to its types: every event on the wire, and every record in the store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from shared.broker.base import Broker, Event
from shared.events import EVENT_TYPES
from shared.records.jobs import Jobs
from shared.records.registry import Registry
from shared.records.runs import Runs
from shared.store.base import Store

_RECEIVE_S = 0.2


@contextlib.contextmanager
def typed(broker: Broker, store: Store, *expected: str) -> Iterator[None]:
    """Listens for as long as the context lasts, and fails at its end over what is not of its type.

    Args:
        broker: a connection of its own.
        store: where the records lie.
        expected: topics that must have been heard, or nothing was shown.
    """
    heard: list[Event] = []
    over = threading.Event()
    with broker, broker.subscribe() as events:

        def listen() -> None:
            while not over.is_set():
                heard.extend(events.receive(_RECEIVE_S))
            heard.extend(events.receive(0))

        listener = threading.Thread(target=listen, name="wire", daemon=True)
        listener.start()
        try:
            yield
        finally:
            over.set()
            listener.join()
    for event in heard:
        EVENT_TYPES[event.topic].model_validate(event.payload)
        assert event.payload["schema"] == 1, event
    assert set(expected) <= {event.topic for event in heard}
    runs, jobs, registry = Runs(store), Jobs(store), Registry(store)
    for run_id in store.children("runs"):
        runs.get(run_id)
        runs.history(run_id)
    for job_id in store.children("jobs"):
        jobs.get(job_id)
    for version in registry.versions():
        registry.card(version)
