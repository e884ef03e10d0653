"""What tests of real trainer processes ask of a run."""

from __future__ import annotations

from shared.client import Client
from shared.records.runs import Run
from tests.support.services import eventually

# In steps so small that an epoch takes a while even on the fastest machine.
SLOW = {"network": "reference", "batch_size": 4, "epochs": 400, "patience": 400, "quantize": False, "augment": False}


def finished(client: Client, run_id: str, timeout_s: float = 90) -> Run:
    """Waits for a run's end, and returns its record."""
    *_, record = client.follow_run(run_id, timeout_s)
    return record


def until_checkpoint(client: Client, run_id: str) -> None:
    """Waits until a run could be carried on by another process."""
    eventually(lambda: client.store.exists(f"runs/{run_id}/checkpoint.pt"), 60, "a checkpoint")


def without_checkpoint(client: Client, run_id: str) -> None:
    """Waits until an ended run's checkpoint is gone: it is deleted once the record says that the run has ended."""
    eventually(lambda: not client.store.exists(f"runs/{run_id}/checkpoint.pt"), 10, "the checkpoint is deleted")


def models_of(client: Client, run_id: str) -> list[int]:
    """Returns the versions that a run was registered as."""
    return [version for version in client.registry.versions() if client.registry.card(version).run_id == run_id]
