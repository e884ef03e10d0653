"""RabbitMQ as companies run it: several hosts, TLS, queues made by an administrator, least rights, alarms."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest
from click.testing import CliRunner

from shared.broker import open_broker
from shared.broker.base import Access, AccessRefused, Broker, BrokerError, Message, Outgoing, Unconfirmed
from shared.broker.rabbitmq.definitions import Definitions
from shared.cli import main
from shared.faces.synthetic import draw_sample
from shared.topology import Topology
from tests.contract.conftest import Place
from tests.support.brokers.rabbitmq_node import RabbitNode, rabbitmq_server
from tests.support.services import Installation, Service, eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]
PAGE = Path(__file__).parents[3] / "docs" / "rabbitmq.md"
PASSIVE = Access(declare="passive")


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A node of this file's own: an alarm holds up everybody."""
    with contextlib.closing(RabbitNode(tmp_path_factory.mktemp("rabbitmq"), rabbitmq_server(), tls=True)) as node:
        node.start()
        yield node


@pytest.fixture
def place(rabbitmq: RabbitNode) -> Iterator[Place]:
    place = Place(rabbitmq.url, rabbitmq)
    yield place
    place.clear()


def documented_rights() -> dict[str, list[str]]:
    """Returns the patterns for configure, write and read of each user in docs/rabbitmq.md."""
    commands = re.findall(r"rabbitmqctl set_permissions -p / (\w+)((?: \\\n +'[^']*')+)", PAGE.read_text())
    return {user: re.findall("'([^']*)'", patterns) for user, patterns in commands}


@dataclass(frozen=True)
class Administered:
    """Queues that an administrator has made, and a user for each service."""

    node: RabbitNode
    topology: Topology
    users: dict[str, str]

    def url(self, user: str) -> str:
        return f"amqp://{self.users[user]}:secret@127.0.0.1:{self.node.port}/%2F"

    def open(self, user: str) -> Broker:
        return open_broker(self.url(user), self.topology, access=PASSIVE)

    def settings(self, user: str, folder: Path) -> dict[str, str]:
        return {
            "GENDERLINE_BROKER_URL": self.url(user),
            "GENDERLINE_QUEUE_PREFIX": self.topology.prefix,
            "GENDERLINE_DECLARE": "passive",
            "GENDERLINE_STORE_URL": f"file:{folder / 'store'}",
        }


@pytest.fixture(scope="module")
def administered(rabbitmq: RabbitNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administered]:
    topology = Topology(f"adm-{uuid.uuid4().hex[:8]}")
    file = tmp_path_factory.mktemp("definitions") / "definitions.json"
    file.write_text(json.dumps(Definitions(topology, delivery_limit=20, queue_limit=1000).document("/")))
    rabbitmq.control("import_definitions", str(file))
    rights = documented_rights()
    assert rights.keys() == {"trainer", "inference", "dashboard", "client"}
    users = {user: f"{user}-{topology.prefix}" for user in rights}
    for user, patterns in rights.items():
        rabbitmq.add_user(users[user], *(pattern.replace("genderline", topology.prefix) for pattern in patterns))
    yield Administered(rabbitmq, topology, users)
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq.url))
    for queue in topology.queues:
        connection.channel().queue_delete(queue)
    for exchange in (topology.events, topology.requests):
        connection.channel().exchange_delete(exchange)
    connection.close()


def test_the_command_prints_what_a_service_would_make(place: Place, rabbitmq: RabbitNode, tmp_path: Path) -> None:
    place.open().close()  # made by a service
    settings = {"GENDERLINE_QUEUE_PREFIX": place.topology.prefix, "GENDERLINE_BROKER_URL": place.url}
    printed = CliRunner().invoke(main, ["definitions"], env=settings, catch_exceptions=False)
    file = tmp_path / "definitions.json"
    file.write_text(printed.output)
    rabbitmq.control("import_definitions", str(file))  # and again by an administrator: nothing differs
    place.open().close()


# -- connecting


def test_of_several_hosts_one_that_is_there_is_found(place: Place, rabbitmq: RabbitNode) -> None:
    url = f"amqp://guest:guest@127.0.0.1:1,127.0.0.1:{rabbitmq.port},localhost:2/%2F"
    with open_broker(url, place.topology) as broker:
        broker.publish(place.topology.jobs, Message(b"", "text/plain"))
        assert broker.trouble is None


def test_a_client_certificate_logs_in_and_an_unknown_authority_is_named(place: Place, rabbitmq: RabbitNode) -> None:
    tls = rabbitmq.certificates
    rabbitmq.add_user("certified", ".*", ".*", ".*")
    url = f"amqps://localhost:{rabbitmq.tls_port}/%2F"
    access = Access(ca_file=tls / "ca.pem", cert_file=tls / "client.pem", key_file=tls / "client.key", login="external")
    with open_broker(url, place.topology, access=access) as broker:
        broker.publish(place.topology.jobs, Message(b"", "text/plain"))
        with broker.consume([place.topology.jobs], 1) as consumer:
            (delivery,) = consumer.receive(1, 10)
            consumer.defer(delivery, 0)
            assert [again.delivery_count for again in consumer.receive(1, 10)] == [0]
    with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
        open_broker(url, place.topology, access=Access(login="external"))
    with pytest.raises(ValueError, match=r"the TLS files .*none\.pem cannot be used: No such file"):
        open_broker(url, place.topology, access=Access(ca_file=tls / "none.pem"))
    with pytest.raises(ValueError, match="expected an amqps:// URL"):
        open_broker(rabbitmq.url, place.topology, access=access)


# -- least rights


def test_each_service_does_its_work_with_the_documented_rights(administered: Administered) -> None:
    queues = administered.topology
    with (
        administered.open("trainer") as trainer,
        administered.open("inference") as inference,
        administered.open("dashboard") as dashboard,
        administered.open("client") as client,
        dashboard.subscribe(["run.*"]) as events,
        inference.subscribe(["model.*"]),
        client.reply_queue() as replies,
        dashboard.reply_queue(),
    ):
        asked = Message(b"", "image/png", "asked", reply_to=replies.name)
        for queue in queues.request_queues:
            client.publish(queue, asked)
            dashboard.publish(queue, asked)
        trainer.publish(queues.datasets, asked)
        work = {
            "trainer": (trainer, [queues.datasets, queues.continuations], queues.continuations),
            "inference": (inference, [queues.predictions, queues.jobs, queues.shards], queues.shards),
        }
        for broker, own, more in work.values():
            with broker.consume(own, 2) as consumer:
                first, second = consumer.receive(1, 10) + consumer.receive(1, 10)
                consumer.settle([first], [*first.message.reply(b"done", "text/plain"), Outgoing(more, asked)])
                consumer.dead_letter(second, "invalid_message")
                consumer.flush()
                (third,) = consumer.receive(1, 10)
                consumer.defer(third, 0)
                consumer.flush()
            broker.emit("run.training", {})
        assert len(replies.receive(10) + replies.receive(1)) == 2
        assert events.receive(10)
        assert len(dashboard.dead_letters()) == 2
        assert len(dashboard.retry_dead()) == 2
        assert dashboard.depths()[queues.dead].ready == 0


@pytest.mark.parametrize("wrong", ["shards", "another's replies", "events"])
def test_a_client_can_ask_and_nothing_else(wrong: str, administered: Administered) -> None:
    queues = administered.topology
    with administered.open("client") as client, administered.open("dashboard") as other:
        if wrong == "events":
            with pytest.raises(AccessRefused, match=r"no configure permission on queue 'amq\.gen-"):
                client.subscribe()
            return
        shards = other.depths()[queues.shards]
        with other.reply_queue() as replies:
            target = queues.shards if wrong == "shards" else replies.name
            with pytest.raises(AccessRefused, match=r"no write permission on exchange 'amq\.default'"):
                client.publish(target, Message(b"forged", "text/plain"))
            assert replies.receive(0.2) == []
        assert other.depths()[queues.shards] == shards


def test_the_documented_client_needs_no_more_than_a_client_s_rights(administered: Administered, tmp_path: Path) -> None:
    page = PAGE.with_name("messages.md").read_text()
    (found,) = re.findall(r"```python\n(import json.*?)\nparams = ", page, re.DOTALL)
    asked = 'send("jobs", b"", "text/plain", "id")\nprint("sent to", inbox)\n'
    program = tmp_path / "client.py"
    program.write_text(f"{found}\n{asked}".replace("genderline.", f"{administered.topology.prefix}."))
    command = [sys.executable, str(program), administered.url("client"), "none.zip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith(f"sent to {administered.topology.prefix}.inbox."), done.stderr


@pytest.mark.parametrize("command", ["train", "predict"])
def test_the_command_line_sends_nothing_that_its_user_may_not_follow(
    command: str, administered: Administered, tmp_path: Path
) -> None:
    draw_sample(tmp_path / "faces.zip", 40, seed=1)
    queues = administered.topology
    # Whoever makes a store listens for another one first: here it is there.
    CliRunner().invoke(main, ["models"], env=administered.settings("dashboard", tmp_path), catch_exceptions=False)
    with administered.open("dashboard") as other:
        before = other.depths()
        asked = [command, str(tmp_path / "faces.zip")]
        done = CliRunner().invoke(main, asked, env=administered.settings("client", tmp_path), catch_exceptions=False)
        assert done.exit_code == 1
        assert "no configure permission on queue 'amq.gen-" in done.output
        assert "the command line" in done.output
        assert other.depths() == before
        if command == "train":  # nothing is to be followed: then it may
            detached = [*asked, "--detach"]
            settings = administered.settings("client", tmp_path)
            done = CliRunner().invoke(main, detached, env=settings, catch_exceptions=False)
            assert done.exit_code == 0, done.output
            assert other.depths()[queues.datasets].ready == before[queues.datasets].ready + 1


@pytest.mark.parametrize("user", ["client", "dashboard"])
def test_doctor_says_what_a_user_may_not_do(user: str, administered: Administered, tmp_path: Path) -> None:
    settings = administered.settings(user, tmp_path)
    done = CliRunner().invoke(main, ["doctor", "--json"], env=settings, catch_exceptions=False)
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0, done.output
    if user == "dashboard":
        assert findings["broker"]["state"] == "ok"
        assert findings["services"]["found"] == "no service is running"
        return
    assert "no write permission on exchange 'amq.default'" in findings["broker"]["found"]
    assert "no configure permission on queue 'amq.gen-" in findings["events and services"]["found"]
    assert {finding["state"] for finding in findings.values()} == {"ok", "warning"}


@pytest.mark.parametrize("lacks", ["configure", "write", "read"])
def test_a_missing_permission_is_named_and_ends_the_work(lacks: str, place: Place, rabbitmq: RabbitNode) -> None:
    place.open().close()
    prefix = place.topology.prefix
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    rights[lacks] = {"configure": "^$", "write": f"^({prefix}[.](?!events).*|amq[.].*)$", "read": "^$"}[lacks]
    user = f"lacks-{lacks}-{prefix}"
    rabbitmq.add_user(user, **rights)
    url = f"amqp://{user}:secret@127.0.0.1:{rabbitmq.port}/%2F"
    refused = rf"the user {user} has no {lacks} permission on (queue|exchange) '{prefix}\.\w+' of RabbitMQ at 127"
    if lacks == "configure":
        started = time.monotonic()
        with pytest.raises(BrokerError, match=refused):
            open_broker(url, place.topology)
        assert time.monotonic() - started < 8  # at once, not after the time for connecting
        return
    with (
        open_broker(url, place.topology, access=PASSIVE) as broker,
        broker.consume([place.topology.jobs], 1) as consumer,
    ):
        broker.emit("worker.heartbeat", {})
        with pytest.raises(AccessRefused, match=refused):
            consumer.receive(1, 30)
        assert broker.trouble is not None
        assert broker.trouble.kind == "forbidden"
        assert broker.reconnects == 0


@pytest.mark.parametrize("service", ["trainer", "inference", "dashboard"])
def test_a_service_that_may_not_publish_events_is_not_ready_and_says_why(
    service: str, place: Place, rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    place.open().close()
    prefix = place.topology.prefix
    user = f"{service}-{prefix}"
    rabbitmq.add_user(user, ".*", f"^({prefix}[.](?!events).*|amq[.].*)$", ".*")
    url = f"amqp://{user}:secret@127.0.0.1:{rabbitmq.port}/%2F"
    installation = Installation(tmp_path, url, {"GENDERLINE_WORKERS": "1"}, prefix=prefix, delivery_limit=20)
    with contextlib.closing(installation):
        started = installation.start(service, wait=False)
        refusal = f"the user {user} has no write permission on exchange '{prefix}.events'"
        if service == "trainer":
            assert started.process.wait(60) == 1
        else:  # inference starts its worker again, with growing pauses; the dashboard shows pages all the same
            eventually(lambda: refusal in started.log.read_text(), 60, "a refusal in the log")
            eventually(lambda: not started.ready(), 20, "it is not called ready")
        assert refusal in started.log.read_text()
        assert "Traceback" not in started.log.read_text()


def test_what_an_administrator_has_not_made_is_named(place: Place) -> None:
    with pytest.raises(BrokerError, match=r"no exchange '.*events'.*import what `genderline definitions` prints"):
        open_broker(place.url, place.topology, access=PASSIVE)


# -- alarms


def test_an_alarm_is_called_by_its_name_and_what_was_sent_meanwhile_is_done_after_it(
    place: Place,
    rabbitmq: RabbitNode,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = place.open()
    queue = place.topology.jobs
    rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        broker.emit("worker.heartbeat", {})
        eventually(lambda: broker.trouble is not None, 10, "the alarm")
        assert broker.trouble == ("blocked", "RabbitMQ takes no messages: low on memory")
        assert not broker.ping(0.5)
        with pytest.raises(BrokerError, match="takes no messages: low on memory"):  # as `genderline status` ends
            broker.depths(0.5)
        with pytest.raises(Unconfirmed, match="takes no messages: low on memory; they may yet be accepted"):
            broker.publish(queue, Message(b"late", "text/plain"), timeout_s=0.5)
        late = place.open()
        eventually(lambda: late.trouble is not None, 10, "the alarm")  # who comes meanwhile hears of it too
    finally:
        rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
    eventually(lambda: broker.trouble is None, 10, "the end of the alarm")
    assert "takes no messages: low on memory" in caplog.text
    with broker.consume([queue], 1) as consumer:
        assert [delivery.message.body for delivery in consumer.receive(1, 10)] == [b"late"]


def test_what_is_sent_on_connections_made_during_an_alarm_is_there_after_it(place: Place, rabbitmq: RabbitNode) -> None:
    place.open()  # declares the queues
    queue = place.topology.jobs

    def send(number: int) -> None:
        with pytest.raises(Unconfirmed):
            place.open().publish(queue, Message(b"%d" % number, "text/plain"), timeout_s=2)

    rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        with ThreadPoolExecutor(12) as senders:
            list(senders.map(send, range(12)))
    finally:
        rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
    with place.open().consume([queue], 12) as consumer:
        received = {int(delivery.message.body) for _ in range(12) for delivery in consumer.receive(1, 10)}
    assert received == set(range(12))


def test_an_alarm_is_called_by_its_name_in_every_place_where_somebody_looks(
    place: Place, rabbitmq: RabbitNode, tmp_path: Path
) -> None:
    installation = Installation(
        tmp_path, place.url, {"OMP_NUM_THREADS": "1"}, prefix=place.topology.prefix, delivery_limit=20
    )
    draw_sample(tmp_path / "faces.zip", 30, seed=1)
    trouble = "takes no messages: low on memory"

    def look_at(service: Service) -> None:
        eventually(lambda: trouble in service.get("/readyz")[1], 30, f"{service.name} says it")
        assert service.get("/readyz")[0] == 503
        assert 'genderline_broker_trouble{kind="blocked"} 1.0' in service.get("/metrics")[1]
        eventually(lambda: trouble in service.log.read_text(), 10, "a line in the log")

    def genderline(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from shared.cli import main; main()", *arguments]
        return subprocess.run(command, env=installation.env(), capture_output=True, text=True, timeout=120, check=False)

    with contextlib.closing(installation), installation.client() as client:
        inference = installation.start("inference", wait=False, GENDERLINE_WORKERS="1")
        dashboard = installation.start("dashboard", GENDERLINE_TOKEN="")
        client.broker.emit("worker.heartbeat", {})
        rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
        try:
            look_at(dashboard)
            look_at(inference)
            status = genderline("status")
            assert trouble in status.stdout + status.stderr
            followed = genderline("train", str(tmp_path / "faces.zip"))  # nothing is sent that cannot be followed
            assert (followed.returncode, trouble in followed.stderr) == (1, True)
            assert "run-" not in followed.stdout + followed.stderr
            sent = genderline("train", "--detach", str(tmp_path / "faces.zip"))
            assert (sent.returncode, trouble in sent.stderr) == (1, True)
            (run_id,) = set(re.findall(r"run-[0-9a-f]+", sent.stdout + sent.stderr))
            assert f"{run_id} may yet be done" in sent.stderr
        finally:
            rabbitmq.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
        eventually(lambda: dashboard.get("/readyz")[0] == 200, 30, "the dashboard is ready again")
        # RabbitMQ may not hear what a client said that has left; it never hears it twice.
        assert client.broker.depths()[place.topology.datasets].ready <= 1
