"""`python -m inference` as processes: several workers, drained, killed and orphaned."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from shared.broker.base import Message, Outgoing, ReplyQueue
from shared.client import Client
from shared.messages import ZIP, job_id_of, pack_message
from shared.records.jobs import Jobs
from shared.runtime.environment import SINGLE_CORE_ENV
from tests.integration.inference.test_jobs import faces, job_replies, zip_of
from tests.support.builders.models import ModelBuilder, brightness_model, constant_model, image_of
from tests.support.inference_loops import replies
from tests.support.killers import KILLER, killing_environment
from tests.support.services import Installation, Service, eventually


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_WORKERS", "2")


def with_model(installation: Installation, client: Client) -> ModelBuilder:
    builder = ModelBuilder(client.store)  # type: ignore[arg-type]
    builder.register(brightness_model())
    return builder


def workers(service: Service) -> list[int]:
    """Returns the process ids of the living workers."""
    _, body = service.get("/readyz")
    return [state["pid"] for state in json.loads(body)["workers"] if is_alive(state["pid"])]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def metric(service: Service, name: str) -> float:
    _, text = service.get("/metrics")
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def serves(service: Service, version: int, count: int) -> bool:
    return metric(service, f'genderline_model_info{{provider="cpu",version="{version}"}}') == count


def send_packs(client: Client, inbox: ReplyQueue, count: int) -> None:
    face = image_of(230)
    images: list[tuple[str | int | None, bytes]] = [(number, face) for number in range(8)]
    packs = [
        Outgoing(client.broker.topology.predictions, pack_message(images, reply_to=inbox.name)) for _ in range(count)
    ]
    client.broker.publish_many(packs)


def test_two_workers_get_ready_share_the_work_follow_promotions_and_add_up_their_metrics(
    either_installation: Installation,
) -> None:
    with either_installation.client() as client, client.broker.reply_queue() as inbox:
        builder = with_model(either_installation, client)
        started = time.monotonic()
        service = either_installation.start("inference")
        assert time.monotonic() - started < 20  # 2 s on a quiet machine
        assert len(set(workers(service))) == 2
        eventually(lambda: serves(service, 1, 2), 20, "both workers serve version 1")
        send_packs(client, inbox, 50)
        assert len(replies(inbox, 50)) == 50
        eventually(
            lambda: metric(service, 'genderline_predictions_total{outcome="ok"}') == 400, 10, "metrics that add up"
        )
        assert metric(service, 'genderline_predicted_gender_total{gender="female"}') == 400
        assert metric(service, 'genderline_queue_depth{queue="predictions"}') == 0

        client.promote(builder.register(constant_model(0.1), promote=False), "a test")
        eventually(lambda: serves(service, 2, 2), 20, "both workers serve version 2")
        assert serves(service, 1, 0)
        entries, model = client.predict([image_of(230)], timeout_s=20)
        assert (entries[0]["gender"], model) == ("male", {"name": "gender", "version": 2})
        assert service.stop() == 0


def test_sigterm_answers_what_is_in_flight_and_the_rest_waits(either_installation: Installation) -> None:
    with either_installation.client() as client, client.broker.reply_queue() as inbox:
        with_model(either_installation, client)
        service = either_installation.start("inference")
        pids = workers(service)
        send_packs(client, inbox, 300)
        answered = len(inbox.receive(20))
        told = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - told < 15  # it gives back what it has not begun, however much waits
        assert not any(is_alive(pid) for pid in pids)
        while more := inbox.receive(1):
            answered += len(more)
        queue = client.broker.topology.predictions
        eventually(lambda: client.broker.depths()[queue].ready == 300 - answered, 10, "all others wait in the queue")
        either_installation.start("inference")
        assert len(replies(inbox, 300 - answered)) == 300 - answered


def test_a_killed_worker_is_started_again_and_nothing_is_lost(either_installation: Installation) -> None:
    with either_installation.client() as client, client.broker.reply_queue() as inbox:
        with_model(either_installation, client)
        service = either_installation.start("inference")
        eventually(lambda: serves(service, 1, 2), 20, "both workers serve")
        victim, other = workers(service)
        sent = {f"p{number}" for number in range(200)}
        queue = client.broker.topology.predictions
        face = image_of(230)
        images: list[tuple[str | int | None, bytes]] = [(number, face) for number in range(8)]
        messages = [pack_message(images, message_id=key, reply_to=inbox.name) for key in sorted(sent)]
        client.broker.publish_many([Outgoing(queue, message) for message in messages])
        answered = {message.correlation_id for message in inbox.receive(20)}
        os.kill(victim, signal.SIGKILL)

        def all_answered() -> bool:
            answered.update(message.correlation_id for message in inbox.receive(0.2))
            return answered == sent

        eventually(all_answered, 40, "a reply to every message")
        eventually(lambda: len(workers(service)) == 2, 20, "two workers again")
        assert victim not in workers(service)
        assert other in workers(service)
        eventually(service.ready, 20, "ready again")
        eventually(lambda: serves(service, 1, 2), 20, "two workers serve, and the dead one does not")
        assert client.broker.dead_letters() == []


def test_images_that_kill_the_process_that_decodes_them_kill_no_worker(
    installation: Installation, tmp_path: Path
) -> None:
    with installation.client() as client, client.broker.reply_queue() as inbox:
        with_model(installation, client)
        service = installation.start("inference", wait=True, **killing_environment(tmp_path))
        eventually(lambda: serves(service, 1, 2), 20, "both workers serve")
        before = workers(service)
        queue = client.broker.topology.predictions
        messages = [Message(image_of(230), "image/png", f"m{number}", reply_to=inbox.name) for number in range(200)]
        for number in (50, 150):
            messages[number] = Message(KILLER, "image/png", f"m{number}", reply_to=inbox.name)
        client.broker.publish_many([Outgoing(queue, message) for message in messages])
        answers = replies(inbox, 200, 60)
        assert workers(service) == before
        assert client.broker.dead_letters() == []
    failed = {key: body["predictions"][0]["error"]["code"] for key, body in answers.items() if "error" in str(body)}
    assert failed == {"m50": "killed_worker", "m150": "killed_worker"}


def test_a_worker_has_the_environment_of_a_process_with_a_core_to_itself(installation: Installation) -> None:
    service = installation.start("inference")
    for pid in workers(service):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {f"{name}={value}".encode() for name, value in SINGLE_CORE_ENV.items()} <= set(environment)
    service.stop()


def test_workers_end_by_themselves_when_their_parent_is_killed(installation: Installation) -> None:
    with installation.client() as client:
        with_model(installation, client)
    service = installation.start("inference")
    pids = workers(service)
    assert len(pids) == 2
    service.kill()
    eventually(lambda: not any(is_alive(pid) for pid in pids), 20, "no worker left")


def test_two_workers_share_a_jobs_shards_and_one_of_them_assembles_it_once(installation: Installation) -> None:
    with installation.client() as client, client.broker.reply_queue() as inbox:
        with_model(installation, client)
        service = installation.start("inference", GENDERLINE_SHARD_IMAGES="10")
        eventually(lambda: serves(service, 1, 2), 20, "both workers serve")
        entries = faces(995)
        client.broker.publish(client.broker.topology.jobs, Message(zip_of(entries), ZIP, "job", reply_to=inbox.name))
        _, finished = job_replies(inbox, "accepted", "finished")
        heartbeats = client.broker.subscribe(["worker.heartbeat"])
        assert finished["counts"] == {"images": 995, "errors": 0}
        text = client.store.get(Jobs.results_key(job_id_of("job"))).decode()
        assert [row["name"] for row in csv.DictReader(io.StringIO(text))] == [name for name, _ in entries]

        def busy_beats() -> list[dict[str, Any]]:
            return [event.payload for event in heartbeats.receive(3) if event.payload["images_per_second"]]

        beat = eventually(busy_beats, 10, "the heartbeat of a worker that has worked")[0]
        assert (beat["service"], beat["version"], beat["provider"]) == ("inference", 1, "cpu")
        assert metric(service, 'genderline_predictions_total{outcome="ok"}') == 995


def test_a_job_survives_the_death_of_a_worker_in_the_middle_of_it(either_installation: Installation) -> None:
    with either_installation.client() as client, client.broker.reply_queue() as inbox:
        with_model(either_installation, client)
        service = either_installation.start("inference", GENDERLINE_SHARD_IMAGES="10")
        eventually(lambda: serves(service, 1, 2), 20, "both workers serve")
        entries = faces(1500)
        job_id = job_id_of("job")
        client.broker.publish(client.broker.topology.jobs, Message(zip_of(entries), ZIP, "job", reply_to=inbox.name))
        eventually(lambda: len(client.jobs.parts(job_id)) >= 5, 30, "five parts")
        os.kill(workers(service)[0], signal.SIGKILL)
        assert client.jobs.get(job_id).state == "accepted"
        _, finished = job_replies(inbox, "accepted", "finished")
        assert finished["counts"] == {"images": 1500, "errors": 0}
        text = client.store.get(Jobs.results_key(job_id)).decode()
        assert [row["name"] for row in csv.DictReader(io.StringIO(text))] == [name for name, _ in entries]
        assert client.broker.dead_letters() == []


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_where_cuda_must_be_and_is_not_the_service_refuses_to_start(installation: Installation) -> None:
    service = installation.start("inference", wait=False, GENDERLINE_PROVIDER="cuda")
    assert service.process.wait(30) == 2
    assert "GENDERLINE_PROVIDER is cuda; this ONNX Runtime has" in service.log.read_text()


def test_a_wrong_setting_ends_with_2_and_a_broker_that_is_away_or_a_taken_port_with_1(
    installation: Installation,
) -> None:
    def ended(**env: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "inference"]
        env = installation.env(**env)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    code, text = ended(GENDERLINE_WORKERS="many")
    assert code == 2
    assert "GENDERLINE_WORKERS" in text
    code, text = ended(GENDERLINE_BROKER_URL="amqp://127.0.0.1/?heartbeat=often")
    assert code == 2
    assert "GENDERLINE_BROKER_URL: " in text
    assert "often" in text
    code, text = ended(GENDERLINE_BROKER_URL="amqps://127.0.0.1:1/?ssl_options={'ca_certs':'/none.pem'}")
    assert code == 2
    assert "GENDERLINE_BROKER_URL: a parameter of the URL cannot be used: [Errno 2] No such file" in text
    code, text = ended(GENDERLINE_BROKER_URL=f"sqlite:///{installation.folder}")
    assert code == 1
    assert "cannot open the embedded broker" in text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, text = ended(GENDERLINE_METRICS_PORT=str(port))
    assert code == 1
    assert f"cannot serve metrics on port {port}: Address already in use; set GENDERLINE_METRICS_PORT" in text
    assert "Traceback" not in text


def test_a_worker_never_imports_torch_and_the_parent_not_even_onnx_runtime() -> None:
    code = """
import sys
import inference.__main__
assert "onnxruntime" not in sys.modules
import inference.worker
unwanted = {"torch", "torchvision", "onnx", "onnxscript", "sklearn"} & sys.modules.keys()
assert not unwanted, unwanted
assert "onnxruntime" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_a_killed_parent_left_among_the_temporary_files_is_gone_at_the_next_start(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setenv("TMPDIR", str(temp))
    with installation.client() as client:
        with_model(installation, client)
    first = installation.start("inference")
    left = workers(first)
    first.kill()
    eventually(lambda: not any(map(is_alive, left)), 20, "its workers end")
    (abandoned,) = temp.iterdir()
    assert list(abandoned.iterdir())  # metrics and states of its workers

    second = installation.start("inference")

    assert not abandoned.exists()
    assert len(list(temp.iterdir())) == 1
    assert second.stop() == 0
    assert list(temp.iterdir()) == []
