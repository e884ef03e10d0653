"""A run's way from one trainer process to another: by a crash, by the clock and by a signal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.broker.base import Message
from shared.messages import ZIP, run_id_of
from shared.records.runs import EpochRow, RunState
from tests.support.services import Installation, collect, eventually
from tests.support.training import SLOW, finished, models_of

pytestmark = pytest.mark.slow


def figures(row: EpochRow) -> EpochRow:
    """Returns an epoch without its speed."""
    return row.changed(seconds=0, images_per_second=0)


def test_a_long_run_hands_itself_over_and_loses_nothing_when_a_trainer_is_killed_in_mid_epoch(
    either_installation: Installation, sample_zip: Path
) -> None:
    either_installation.extra |= {"GENDERLINE_HANDOVER_S": "1", "GENDERLINE_CHECKPOINT_S": "0.3"}
    first = either_installation.start("trainer")
    with either_installation.client() as client, client.broker.reply_queue() as inbox:
        params = {"params": json.dumps({**SLOW, "epochs": 4})}
        message = Message(sample_zip.read_bytes(), ZIP, "long", "c", inbox.name, params)
        client.broker.publish(client.broker.topology.datasets, message)
        run_id = run_id_of("long")
        eventually(lambda: "handed over" in first.log.read_text(), 60, "the run is handed over")
        eventually(lambda: client.runs.history(run_id), 60, "a first epoch")
        first.kill()
        before = client.runs.history(run_id)
        assert client.runs.get(run_id).state is RunState.TRAINING

        second = either_installation.start("trainer")
        replies = collect(inbox, 2, 110)

        assert [json.loads(reply.body)["status"] for reply in replies] == ["accepted", "registered"]
        assert [reply.correlation_id for reply in replies] == ["c", "c"]
        assert models_of(client, run_id) == [1]
        after = client.runs.history(run_id)
        assert [row.epoch for row in after] == [1, 2, 3, 4]
        # An epoch that is told again after the crash has the same figures to the bit; only its time is another.
        assert [figures(row) for row in after[: len(before)]] == [figures(row) for row in before]
        # It went on from the checkpoint: no second ingest.
        assert "ingesting" not in second.log.read_text()
        assert client.broker.depths()[client.broker.topology.dead].ready == 0


def test_a_trainer_told_to_stop_hands_its_run_over_and_of_two_others_one_finishes_it(
    installation: Installation, sample_zip: Path
) -> None:
    first = installation.start("trainer")
    with installation.client() as client:
        (run_id,) = {
            client.submit_dataset(sample_zip, params={**SLOW, "epochs": 3}, message_id="one") for _ in range(2)
        }
        eventually(lambda: client.runs.history(run_id), 60, "a first epoch")
        assert first.stop() == 0
        assert client.broker.depths()[client.broker.topology.continuations].ready == 1
        for _ in range(2):
            installation.start("trainer", wait=False)
        assert finished(client, run_id).state == RunState.REGISTERED
        eventually(
            lambda: not any(d.ready + (d.unacknowledged or 0) for d in client.broker.depths().values()), 30, "idle"
        )
        assert models_of(client, run_id) == [1]
        assert [row.epoch for row in client.runs.history(run_id)] == [1, 2, 3]
