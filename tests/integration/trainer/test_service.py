"""A dataset message's whole way through a real trainer process."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from prometheus_client import CollectorRegistry

from shared.broker.base import DeadLetter, Message, Outgoing
from shared.client import Client
from shared.faces.synthetic import draw_sample
from shared.messages import ZIP, by_reference, run_id_of
from shared.params import TrainingParams
from shared.records.runs import RunState
from shared.runtime.settings import Settings
from shared.store.base import sha256_of
from shared.store.files import FileStore
from shared.telemetry.metrics import TrainerMetrics
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from tests.support.services import Installation, collect, eventually
from tests.support.training import SLOW, finished, models_of, without_checkpoint
from trainer.handler import DatasetHandler
from trainer.pipeline import Pipeline

pytestmark = pytest.mark.slow

FAST = {"network": "small", "epochs": 1, "quantize": False, "augment": False}
USEFUL = {**FAST, "epochs": 10, "batch_size": 4}
"""As fast as a model can be trained that tells the genders apart a little, which its promotion needs."""


def test_a_dataset_by_value_sent_twice_becomes_one_model_with_replies_and_metrics(
    with_either_trainer: Installation, sample_zip: Path
) -> None:
    with with_either_trainer.client() as client, client.broker.reply_queue() as inbox:
        headers = {"name": "by value", "params": json.dumps(USEFUL)}
        message = Message(sample_zip.read_bytes(), ZIP, "m1", "c1", inbox.name, headers)
        client.broker.publish_many([Outgoing(client.broker.topology.datasets, message)] * 2)
        replies = collect(inbox, 3, 90)
        assert {reply.correlation_id for reply in replies} == {"c1"}
        accepted, registered, again = (json.loads(reply.body) for reply in replies)
        run_id = run_id_of("m1")
        assert accepted.pop("labels")["source"] == "names"
        assert accepted == {"schema": 1, "run_id": run_id, "status": "accepted", "name": "by value"}
        assert registered["status"] == "registered"
        version = registered["model"]["version"]
        assert registered["model"] == {"name": "gender", "version": version}
        assert 0 <= registered["metrics"]["val_accuracy"] <= 1
        assert again == registered
        assert models_of(client, run_id) == [version]
        assert [row.epoch for row in client.runs.history(run_id)] == list(range(1, 11))
        assert client.registry.aliases().champion is not None
        without_checkpoint(client, run_id)

        # The model file stands on its own: uint8 faces in, probabilities out.
        session = ort.InferenceSession(client.store.get(client.registry.model_key(version)))
        (probability,) = session.run(None, {"image": np.zeros((3, 1, 128, 128), np.uint8)})
        assert probability.shape == (3,)
        assert ((probability >= 0) & (probability <= 1)).all()

        dataset = hashlib.sha256(sample_zip.read_bytes()).hexdigest()
        rejects = client.store.get_json(f"datasets/{dataset}/summary.json")["rejects"]
    status, text = with_either_trainer.services[0].get("/metrics")
    assert status == 200
    for line in (
        'genderline_datasets_total{outcome="registered"}',
        'genderline_training_loss{split="train"}',
        'genderline_training_accuracy{split="val"}',
        "genderline_images_ingested_total 60.0",
        *(f'genderline_images_rejected_total{{reason="{reason}"}} {n:.1f}' for reason, n in rejects.items()),
        "genderline_training_epoch 0.0",
        "genderline_training_images_per_second 0.0",
        'genderline_queue_depth{queue="datasets"} 0.0',
        "genderline_broker_reconnects_total 0.0",
        "process_resident_memory_bytes",
    ):
        assert line in text, line


def test_a_dataset_by_reference_trains_and_what_is_no_better_becomes_the_challenger(
    with_trainer: Installation, sample_zip: Path
) -> None:
    allowed = with_trainer.folder / "allowed"
    allowed.mkdir(exist_ok=True)
    path = Path(shutil.copy(sample_zip, allowed / "faces ü.zip"))
    with with_trainer.client() as client, client.broker.subscribe(["model.challenged"]) as events:
        if client.registry.aliases().champion is None:  # this test is run alone
            finished(client, client.submit_dataset(sample_zip, params=USEFUL))
        champion = client.registry.aliases().champion
        # The same faces, parameters and seed as in the run before give the same model, which is no better.
        message = by_reference(path.as_uri(), params=TrainingParams.model_validate(USEFUL), message_id="ref")
        client.broker.publish(client.broker.topology.datasets, message)
        eventually(lambda: client.runs.find(run_id_of("ref")), 20, "the run")
        record = finished(client, run_id_of("ref"))
        assert record.state == RunState.REGISTERED
        assert path.exists()
        version = record.model.version
        assert (client.registry.aliases().champion, client.registry.aliases().challenger) == (champion, version)
        (told,) = events.receive(10)
        assert told.payload["version"] == version
        assert told.payload["reason"].startswith("gate: ")


def test_a_champion_that_cannot_be_run_costs_the_new_model_nothing_but_its_promotion(
    with_trainer: Installation, sample_zip: Path
) -> None:
    with with_trainer.client() as client:
        if client.registry.aliases().champion is None:  # this test is run alone
            finished(client, client.submit_dataset(sample_zip, params=USEFUL))
        champion = client.registry.aliases().champion
        assert champion is not None
        key = client.registry.model_key(champion)
        sound = client.store.get(key)
        client.store.put(key, b"no ONNX file")
        try:
            record = finished(client, client.submit_dataset(sample_zip, params={**FAST, "seed": 1}))
        finally:
            client.store.put(key, sound)
        assert record.state == RunState.REGISTERED, record.error
        version = record.model.version
        assert (client.registry.aliases().champion, client.registry.aliases().challenger) == (champion, version)
        entry = client.registry.history()[-1]
        assert (entry.action, entry.version) == ("challenge", version)
        assert entry.reason.startswith(f"gate: it cannot be compared with version {champion}: ")


def test_a_later_message_with_the_same_id_changes_nothing_about_a_run_that_has_ended(
    with_trainer: Installation, sample_zip: Path
) -> None:
    with with_trainer.client() as client, client.broker.reply_queue() as inbox:
        datasets = client.broker.topology.datasets
        message = Message(sample_zip.read_bytes(), ZIP, "twice", "1", inbox.name, {"params": json.dumps(FAST)})
        client.broker.publish(datasets, message)
        assert [json.loads(reply.body)["status"] for reply in collect(inbox, 2, 90)] == ["accepted", "registered"]
        record = client.runs.get(run_id_of("twice"))
        client.broker.publish(datasets, Message(b"x", "text/plain", "twice", "2", inbox.name))
        (reply,) = collect(inbox, 1, 30)
        body = json.loads(reply.body)
        assert (body["status"], body["error"]["code"]) == ("rejected", "unsupported_content_type")
        assert client.runs.get(run_id_of("twice")) == record


def test_a_dead_letter_sent_back_is_worked_on_again(with_either_trainer: Installation, sample_zip: Path) -> None:
    path = with_either_trainer.folder / "allowed" / "late.zip"
    path.parent.mkdir(exist_ok=True)
    message = by_reference(path.as_uri(), params=TrainingParams.model_validate(FAST), message_id="late")
    with with_either_trainer.client() as client:
        client.broker.publish(client.broker.topology.datasets, message)
        eventually(lambda: client.runs.find(run_id_of("late")), 20, "the run")
        record = finished(client, run_id_of("late"))
        assert (record.state, record.error.code) == (RunState.REJECTED, "uri_not_found")

        def buried() -> list[DeadLetter]:
            return [letter for letter in client.broker.dead_letters() if letter.message.message_id == "late"]

        (dead,) = eventually(buried, 10, "its dead letter")
        shutil.copy(sample_zip, path)
        assert len(client.broker.retry_dead([dead.dead_id])) == 1
        eventually(lambda: client.runs.get(run_id_of("late")).state == RunState.REGISTERED, 90, "a model")
        assert client.runs.get(run_id_of("late")).error is None
        without_checkpoint(client, run_id_of("late"))
        path.unlink()


def test_a_store_that_is_away_is_waited_for_and_costs_no_run_and_no_trainer(
    installation: Installation, sample_zip: Path
) -> None:
    trainer = installation.start("trainer")
    with installation.client() as client:
        records = installation.folder / "store" / "runs"
        records.parent.mkdir(exist_ok=True)
        records.symlink_to(records)  # nothing can be read or written there
        message = Message(sample_zip.read_bytes(), ZIP, "away", headers={"params": json.dumps(FAST)})
        client.broker.publish(client.broker.topology.datasets, message)
        eventually(lambda: "trying again in 4 s" in trainer.log.read_text(), 30, "some tries")
        records.unlink()
        eventually(lambda: client.runs.find(run_id_of("away")), 30, "the run")
        assert finished(client, run_id_of("away")).state == RunState.REGISTERED
        assert trainer.process.poll() is None
        assert client.broker.dead_letters() == []


@pytest.fixture
def small_disk(installation: Installation) -> Iterator[Path]:
    """The installation's store, on a disk of its own of 100 MB."""
    store = installation.folder / "store"
    store.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", store], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield store
    installation.close()
    subprocess.run(["umount", store], check=True)


def test_a_full_disk_is_waited_for_and_costs_no_run_and_no_trainer(
    installation: Installation, small_disk: Path, sample_zip: Path
) -> None:
    trainer = installation.start("trainer")
    with installation.client() as client:
        run_id = client.submit_dataset(sample_zip, params=SLOW | {"epochs": 3}, message_id="full")
        eventually(lambda: client.runs.history(run_id), 60, "a first epoch")
        ballast = small_disk / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], stderr=subprocess.DEVNULL, check=False)
        assert shutil.disk_usage(small_disk).free == 0
        eventually(lambda: "trying again in 8 s" in trainer.log.read_text(), 60, "more tries than a message is given")
        assert client.runs.get(run_id).state is RunState.TRAINING
        ballast.unlink()
        assert finished(client, run_id).state is RunState.REGISTERED, trainer.log.read_text()
        assert trainer.process.poll() is None
        assert client.broker.dead_letters() == []


class OvertakenStore(FileStore):
    """A store whose user writes the next version of an archive once the trainer has copied the one that it saw."""

    def __init__(self, root: Path, archive: Path, following: list[Path]) -> None:
        super().__init__(root)
        self._archive = archive
        self._following = following

    def exists(self, key: str) -> bool:
        if key.endswith("/archive.zip") and self._following:
            shutil.copyfile(self._following.pop(), self._archive)
        return super().exists(key)


def test_an_archive_that_changes_while_it_is_copied_is_stored_under_the_hash_of_what_was_copied(
    installation: Installation, sample_zip: Path
) -> None:
    next_version = installation.folder / "next.zip"
    draw_sample(next_version, 60, seed=8)
    allowed = installation.folder / "allowed"
    allowed.mkdir()
    path = Path(shutil.copy(sample_zip, allowed / "faces.zip"))
    store = OvertakenStore(installation.folder / "store", path, [next_version])
    settings = Settings(store_url=f"file:{store.root}", lease_s=4, allowed_roots=(allowed,))
    metrics = TrainerMetrics(CollectorRegistry())
    stop = threading.Event()
    with installation.broker() as broker:
        pipeline = Pipeline(store, settings, metrics, torch.device("cpu"))
        service = threading.Thread(
            target=ConsumerLoop(
                broker,
                {
                    broker.topology.datasets: DatasetHandler(
                        store, settings, metrics, pipeline, broker.emit, broker.topology
                    )
                },
                RetryPolicy(None, metrics.dead_letters),
                prefetch=0,
            ).run,
            args=[stop],
            name="service",
        )
        service.start()
        try:
            client = Client(broker, store)
            message = by_reference(path.as_uri(), params=TrainingParams.model_validate(SLOW), message_id="changing")
            broker.publish(broker.topology.datasets, message)
            run_id = run_id_of("changing")
            eventually(lambda: (run := client.runs.find(run_id)) and run.dataset, 30, "the run is accepted")
        finally:
            stop.set()
            service.join()
    assert client.runs.get(run_id).dataset == sha256_of(sample_zip)
    assert store.children("datasets") == [sha256_of(sample_zip)]
    assert store.get(f"datasets/{sha256_of(sample_zip)}/archive.zip") == sample_zip.read_bytes()


def test_a_cancelled_run_ends_so_while_it_waits_and_while_it_trains(
    with_trainer: Installation, sample_zip: Path
) -> None:
    with with_trainer.client() as client:
        training = client.submit_dataset(sample_zip, params=SLOW)
        waiting = client.submit_dataset(sample_zip, params=FAST)
        eventually(lambda: client.runs.get(training).state == RunState.TRAINING, 60, "training")
        client.runs.request_cancel(waiting)
        assert client.runs.get(waiting).state == RunState.QUEUED
        client.runs.request_cancel(training)
        for run_id in (training, waiting):
            record = finished(client, run_id)
            assert (record.state, record.error.code) == (RunState.CANCELLED, "cancelled")
            assert models_of(client, run_id) == []
            without_checkpoint(client, run_id)


def test_a_zip_that_lands_in_the_inbox_becomes_a_model(with_trainer: Installation, sample_zip: Path) -> None:
    inbox = with_trainer.folder / "inbox"
    shutil.copy(sample_zip, inbox / "dropped.zip")
    with with_trainer.client() as client:
        eventually(lambda: any(run.name == "dropped" for run in client.runs.all().records), 30, "a run")
        (record,) = (run for run in client.runs.all().records if run.name == "dropped")
        eventually((inbox / "submitted" / "dropped.zip").exists, 10, "the file is put aside")
        eventually(lambda: client.runs.get(record.run_id).state == RunState.TRAINING, 60, "training")
        client.runs.request_cancel(record.run_id)
        finished(client, record.run_id)


BAD_MESSAGES = {
    "unknown content type": (Message(b"x", "text/plain"), "unsupported_content_type", "text/plain"),
    "no JSON": (Message(b"{", "application/json"), "invalid_message", "not JSON"),
    "no schema": (Message(b'{"uri": "store:x"}', "application/json"), "unsupported_schema", "schema"),
    "another schema": (Message(b'{"schema": 2, "uri": "store:x"}', "application/json"), "unsupported_schema", "2"),
    "no uri": (Message(b'{"schema": 1}', "application/json"), "invalid_message", "uri"),
    "an unknown parameter": (
        Message(b"PK", ZIP, headers={"params": '{"epoch": 3}'}),
        "invalid_params",
        "Valid parameters: init, network, epochs",
    ),
    "outside the roots": (by_reference("file:///etc/passwd"), "uri_not_allowed", "outside the allowed roots"),
    "climbing out of the store": (by_reference("store:../../etc/passwd"), "uri_not_allowed", "not a store key"),
    "nothing there": (by_reference("store:datasets/none/archive.zip"), "uri_not_found", "no object"),
}
BAD_ARCHIVES = {
    "not a zip": (b"GIF89a, surely no zip", "invalid_archive"),
    "empty": (b"", "invalid_archive"),
}


def test_what_cannot_be_trained_is_rejected_with_the_reason(with_trainer: Installation, sample_zip: Path) -> None:
    allowed = with_trainer.folder / "allowed"
    allowed.mkdir(exist_ok=True)
    wrong_hash = by_reference(f"file://{shutil.copy(sample_zip, allowed)}", sha256="0" * 64)
    cases = {**BAD_MESSAGES, "wrong hash": (wrong_hash, "sha256_mismatch", "0" * 64)}
    cases |= {name: (Message(body, ZIP), code, "expected") for name, (body, code) in BAD_ARCHIVES.items()}
    with with_trainer.client() as client, client.broker.reply_queue() as inbox:
        for name, (message, _, _) in cases.items():
            client.broker.publish(
                client.broker.topology.datasets,
                Message(message.body, message.content_type, f"{name}-{inbox.name}", name, inbox.name, message.headers),
            )
        answers: dict[str, dict[str, Any]] = {}

        def collect() -> bool:
            for reply in inbox.receive(1):
                body = json.loads(reply.body)
                if body["status"] != "accepted":
                    answers[str(reply.correlation_id)] = body
            return len(answers) == len(cases)

        eventually(collect, 60, "an answer to each")
        for name, (_, code, words) in cases.items():
            assert answers[name]["status"] == "rejected", name
            assert answers[name]["error"]["code"] == code, name
            assert words in answers[name]["error"]["message"], name
            assert client.runs.get(answers[name]["run_id"]).state == RunState.REJECTED
        # The messages at fault are kept as dead letters; an archive at fault is not its message's fault.
        dead = [letter for letter in client.broker.dead_letters() if inbox.name in letter.message.message_id]
        assert sorted(letter.reason for letter in dead) == sorted(
            code for name, (_, code, _) in cases.items() if name not in BAD_ARCHIVES
        )
        assert {letter.origin for letter in dead} == {client.broker.topology.datasets}


def test_an_archive_that_is_only_looked_at_is_read_and_not_trained_on(
    with_trainer: Installation, tmp_path: Path
) -> None:
    draw_sample(tmp_path / "look.zip", 40, seed=21)
    with with_trainer.client() as client:
        run_id = client.submit_dataset(tmp_path / "look.zip", train=False)
        record = finished(client, run_id)
        assert record.state is RunState.INGESTED
        assert client.store.exists(f"datasets/{record.dataset}/faces.npy")
        assert models_of(client, run_id) == []
        assert client.runs.history(run_id) == []
