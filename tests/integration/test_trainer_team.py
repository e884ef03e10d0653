"""Several processes that train one network, as torchrun starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared import runs
from shared.client import Client
from tests.services import Installation, eventually

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# No normalisation, no dropout, no augmentation: nothing but the order of additions may differ.
EXACT = {"network": "reference", "epochs": 2, "batch_size": 16, "augment": False, "dropout": 0, "quantize": False}


def trained(client: Client, archive: Path, **params: Any) -> tuple[dict[str, Any], list[dict[str, float]]]:
    run_id = client.submit_dataset(archive, params=params)
    *_, record = client.follow_run(run_id, 90)
    assert record["state"] == runs.REGISTERED, record
    return record, client.runs.history(run_id)


@pytest.mark.timeout(300)
def test_two_processes_train_what_one_trains_and_survive_a_restart(tmp_path: Path, sample_zip: Path) -> None:
    installation = Installation(tmp_path, f"sqlite:///{tmp_path}/broker.db")
    try:
        alone = installation.start("trainer")
        with installation.client() as client:
            _, expected = trained(client, sample_zip, **EXACT)
            assert alone.stop() == 0

            team = installation.start("trainer", launcher=TWO)
            assert "member 1 of 2" in team.log.read_text()
            _, found = trained(client, sample_zip, **EXACT)
            for one, two in zip(expected, found, strict=True):
                assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
                assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
                assert two["train_accuracy"] == pytest.approx(one["train_accuracy"], abs=0.05)

            # Killed all at once in mid-run, the team goes on from the checkpoint as if nothing had happened.
            run_id = client.submit_dataset(sample_zip, params=EXACT | {"epochs": 6, "patience": 6})
            eventually(lambda: client.store.exists(f"runs/{run_id}/checkpoint.pt"), 60, "a checkpoint")
            team.kill_with_children()
            again = installation.start("trainer", launcher=TWO)
            *_, record = client.follow_run(run_id, 90)
            assert record["state"] == runs.REGISTERED, record
            assert [row["epoch"] for row in client.runs.history(run_id)] == [1, 2, 3, 4, 5, 6]

            # Its launcher gone, the team ends too: nobody would restart what is left of it.
            members = again.children()
            assert len(members) == 2
            again.kill()
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members), 30, "the members have ended")
    finally:
        installation.close()
