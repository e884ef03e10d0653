"""What tests of real trainer processes ask of a run."""

from __future__ import annotations

from typing import Any

from shared.client import Client

# In steps so small that an epoch takes a while even on the fastest machine.
SLOW = {"network": "reference", "batch_size": 4, "epochs": 400, "patience": 400, "quantize": False, "augment": False}


def finished(client: Client, run_id: str, timeout_s: float = 90) -> dict[str, Any]:
    *_, record = client.follow_run(run_id, timeout_s)
    return record


def models_of(client: Client, run_id: str) -> list[int]:
    """Returns the versions that a run was registered as."""
    return [version for version in client.registry.versions() if client.registry.card(version)["run_id"] == run_id]
