"""Several processes that train one network, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shared.client import Client
from shared.records.runs import EpochRow, RunState
from tests.support.services import Installation, eventually
from tests.support.store_process import ROOT
from tests.support.training import finished, until_checkpoint

pytestmark = pytest.mark.slow

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# No normalisation, no dropout, no augmentation, no rounding: nothing but the order of additions may differ.
EXACT = {
    "network": "reference",
    "epochs": 4,
    "batch_size": 16,
    "learning_rate": 0.0005,
    "augment": False,
    "dropout": 0,
    "precision": "float32",
    "quantize": False,
}
NEXT = {"network": "small", "epochs": 1, "batch_size": 4, "quantize": False}
MEMBER = """
import threading
from trainer.training.process_group import end_with_launcher
end_with_launcher(within_s=0.1)
print("waiting", flush=True)
threading.Event().wait()
"""


def trained(client: Client, run_id: str) -> list[EpochRow]:
    """Waits for a run's model, and returns the run's history."""
    record = finished(client, run_id)
    assert record.state == RunState.REGISTERED, record
    return client.runs.history(run_id)


@pytest.mark.timeout(300)
def test_two_processes_killed_in_mid_run_and_started_again_train_what_one_trains(
    tmp_path: Path, sample_zip: Path
) -> None:
    installation = Installation(tmp_path, f"sqlite:///{tmp_path}/broker.db")
    try:
        with installation.client() as client:
            alone = installation.start("trainer")
            expected = trained(client, client.submit_dataset(sample_zip, params=EXACT))
            assert alone.stop() == 0

            group = installation.start("trainer", launcher=TWO, GENDERLINE_CHECKPOINT_S="0")
            assert "member 1 of 2" in group.log.read_text()
            run_id = client.submit_dataset(sample_zip, params=EXACT)
            until_checkpoint(client, run_id)
            group.kill_with_children()
            assert client.runs.get(run_id).state == RunState.TRAINING

            again = installation.start("trainer", launcher=TWO)
            found = trained(client, run_id)
            for one, two in zip(expected, found, strict=True):
                assert two.train_loss == pytest.approx(one.train_loss, rel=1e-3)
                assert two.val_loss == pytest.approx(one.val_loss, rel=1e-3)
                assert two.train_accuracy == pytest.approx(one.train_accuracy, abs=0.05)

            # Its launcher gone, the group ends too: nobody would restart what is left of it.
            members = again.children()
            assert len(members) == 2
            again.kill()
            eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members), 30, "the members have ended")
    finally:
        installation.close()


@pytest.mark.timeout(240)
def test_a_run_that_diverges_fails_in_every_member_and_the_group_trains_the_next_one(
    installation: Installation, sample_zip: Path
) -> None:
    group = installation.start("tests.support.children.faulty_trainer", launcher=TWO, FAULT="diverging")
    with installation.client() as client:
        record = finished(client, client.submit_dataset(sample_zip, params=EXACT))
        assert (record.state, record.error.code) == (RunState.FAILED, "training_diverged")
        trained(client, client.submit_dataset(sample_zip, params=NEXT))
        assert len(group.children()) == 2


@pytest.mark.timeout(240)
def test_a_main_process_that_fails_alone_ends_its_group_and_the_next_group_trains_the_run(
    installation: Installation, sample_zip: Path
) -> None:
    failed = installation.folder / "failed"
    group = installation.start(
        "tests.support.children.faulty_trainer",
        launcher=(*TWO, "--max-restarts=1", "--monitor-interval=0.1"),
        FAULT=f"failing {failed}",
    )
    with installation.client() as client:
        members = group.children()
        trained(client, client.submit_dataset(sample_zip, params=NEXT))
        assert failed.exists()
        assert not set(members) & set(group.children())


def test_a_member_that_waits_for_a_stuck_main_process_ends_when_its_launcher_is_gone() -> None:
    launching = textwrap.dedent(f"""
        import subprocess, sys, threading
        subprocess.Popen([sys.executable, "-c", {MEMBER!r}])
        threading.Event().wait()
    """)
    # The member inherits our pipe: end-of-file on it means that both processes are gone.
    launcher = subprocess.Popen([sys.executable, "-c", launching], stdout=subprocess.PIPE, cwd=ROOT)
    with launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == b"waiting\n"
        launcher.kill()
        assert launcher.stdout.read() == b""
