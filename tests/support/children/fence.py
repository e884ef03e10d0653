"""A process that owns a run and stops itself at a named point: `fence.py STORE_URL POINT`.

Once it goes on, it carries on as if nothing had happened, and prints of each write whether it was refused.

Points:
    after-checkpoint: a checkpoint is written; history, evaluation, model and the run's end are not.
    after-result: the model is registered and the run has ended; its message is not acknowledged.
    in-a-write: the lease was looked at, the object is not in its place yet.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from shared.errors import GenderlineError
from shared.records.record import ModelRef
from shared.records.registry import Registry
from shared.records.runs import Runs, RunState
from shared.store import open_store
from shared.store.base import Store
from shared.store.lease import Lease, Leases
from tests.support.builders.cards import card_of

RUN = "run-1"
CHECKPOINT = f"runs/{RUN}/checkpoint.pt"


class _StopsInAWrite(Lease):
    """Stops the process after the next look at the lease."""

    stops = False

    def require(self) -> None:
        super().require()
        if self.stops:
            self.stops = False
            os.kill(os.getpid(), signal.SIGSTOP)


def finish(store: Store, by: str) -> list[tuple[str, Callable[[], object]]]:
    """Returns what an owner writes from its checkpoint to the run's end, by name."""
    runs, registry = Runs(store), Registry(store)
    card = card_of(registry.claim(RUN), RUN, by.encode())

    def register() -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.onnx"
            model.write_bytes(by.encode())
            registry.register(card, f"# by {by}\n", {"model.onnx": model})

    return [
        ("checkpoint", lambda: store.put(CHECKPOINT, by.encode())),
        ("history", lambda: runs.write_history(RUN, [])),
        ("evaluation", lambda: runs.write_evaluation(RUN, card.evaluation.changed(count=len(by)))),
        ("state", lambda: runs.update(RUN, state=RunState.EXPORTING)),
        ("model", register),
        ("end", lambda: runs.update(RUN, state=RunState.REGISTERED, model=ModelRef(version=card.version))),
    ]


def main() -> None:
    url, point = sys.argv[1:]
    lease = _StopsInAWrite(Leases(open_store(url), 3600), f"runs/{RUN}")
    assert lease.acquire()
    writes = finish(lease.store, "a stopped process")
    if point == "in-a-write":
        lease.stops = True
    elif point == "after-checkpoint":
        writes[0][1]()
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        for _, write in writes:
            write()
        os.kill(os.getpid(), signal.SIGSTOP)
    for name, write in writes:
        try:
            write()
            outcome = "written"
        except GenderlineError as error:
            outcome = type(error).__name__
        sys.stdout.write(f"{name}: {outcome}\n")


if __name__ == "__main__":
    main()
