"""A RabbitMQ node of the tests' own: its own ports, data, node name, cookie and port mapper, on loopback only."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's. The one it puts on PATH is a wrapper that changes to the user `rabbitmq`, so it is the second choice."""

MAX_MESSAGE_BYTES = 32 * 2**20
START_TIMEOUT_S = 60.0


def find_server() -> Path | None:
    """Returns the `rabbitmq-server` script to start; None where there is none."""
    if SERVER.exists():
        return SERVER
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def rabbitmq_server() -> Path:
    """Returns the script to start; skips the test where there is none, and fails it in CI."""
    server = find_server()
    if server is None:
        missing = "no rabbitmq-server on this machine; on Debian: apt-get install rabbitmq-server"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return server


def free_port() -> int:
    """Returns a port of the loopback interface that was free a moment ago.

    It is none that Linux would give to a connection of anybody else's, in the next moment or while a node is down.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(lowest // 2, lowest), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"found no free port of a hundred between {lowest // 2} and {lowest}")


def _dying_with_us(command: list[str]) -> list[str]:
    """Returns the command as one that Linux kills when the tests' process dies, even by `kill -9`.

    By a program, which Debian always has, and not by code that runs between fork and exec: another thread may hold a
    lock at that moment, and the child would wait for it for ever.
    """
    setpriv = shutil.which("setpriv")
    return command if setpriv is None else [setpriv, "--pdeathsig", "KILL", *command]


class RabbitNode:
    """One node, which can be stopped, killed and started again on the same data.

    Args:
        home: an empty folder for everything that it writes.
        server: the `rabbitmq-server` script.
        tls: take `amqps://` too, and logins by certificate.
        cluster: of which it is a member, and whose port mapper it uses.

    Attributes:
        url: where clients connect, with its user and password.
        port: the same, as a port of 127.0.0.1.
        tls_port: for `amqps://`, with a certificate for `localhost` by the authority in `certificates`.
        certificates: `ca.pem`, and `client.pem` with `client.key`, whose common name is the user `certified`.
    """

    def __init__(self, home: Path, server: Path, *, tls: bool = False, cluster: ClusterMember | None = None) -> None:
        self._home = home
        self._server = server
        self._beam: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"
        self._epmd_port = cluster.epmd_port if cluster else free_port()
        self._has_own_epmd = cluster is None
        self.name = cluster.name if cluster else f"gl{os.getpid()}-{self.port}@localhost"
        self.tls_port = free_port() if tls else 0
        self.certificates = home / "tls"
        tls_lines = ""
        if tls:
            _make_certificates(self.certificates)
            tls_lines = (
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {self.certificates}/ca.pem\n"
                f"ssl_options.certfile = {self.certificates}/server.pem\n"
                f"ssl_options.keyfile = {self.certificates}/server.key\n"
                "ssl_options.verify = verify_peer\n"
                "ssl_options.fail_if_no_peer_cert = false\n"
                "ssl_cert_login_from = common_name\n"
                "auth_mechanisms.1 = PLAIN\n"
                "auth_mechanisms.2 = EXTERNAL\n"
            )
        (home / "node.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"{tls_lines}{cluster.lines if cluster else ''}"
            f"max_message_size = {MAX_MESSAGE_BYTES}\n"
            "raft.wal_max_size_bytes = 67108864\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        if cluster:
            (home / ".erlang.cookie").write_text("tests")
            (home / ".erlang.cookie").chmod(0o400)
        (home / "env.conf").touch()
        (home / "plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n" if tls else "[].\n")
        self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            # The script then becomes the Erlang process instead of waiting for it, so that our pid is the node's.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(home / "node.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_PLUGINS_EXPAND_DIR": str(home / "expanded"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
        }

    def start(self) -> None:
        """Starts the node unless it runs, and returns once it takes connections.

        Raises:
            RuntimeError: it did not start; the text ends with its last log lines.
        """
        self.begin()
        self.await_start()

    def begin(self) -> None:
        """Starts the node's process unless it runs."""
        if self._beam is not None:
            return
        if self._epmd is None and self._has_own_epmd:
            self._epmd = start_epmd(self._epmd_port, self._home)
        self._beam = self._spawn([str(self._server)])
        self.starts += 1

    def await_start(self) -> None:
        """Returns once the node, which was begun, takes connections; raises as `start` does."""
        assert self._beam is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                pika.BlockingConnection(pika.URLParameters(self.url)).close()
                return
            except (AMQPError, OSError) as error:
                if self._beam.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    output = (self._home / "output").read_text(errors="replace")
                    raise RuntimeError(f"RabbitMQ did not start ({error!r}):\n{output[-2000:]}") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Stops the node in an orderly way, as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the node with SIGKILL."""
        self._end(signal.SIGKILL)

    @property
    def is_running(self) -> bool:
        """Whether its process was started and not ended since."""
        return self._beam is not None

    @property
    def pid(self) -> int:
        """The node's process; only while it runs."""
        assert self._beam is not None
        return self._beam.pid

    def control(self, *command: str) -> str:
        """Runs `rabbitmqctl`. It takes a second: rather several steps in one `evaluate`."""
        whole = [str(self._server.with_name("rabbitmqctl")), *command]
        done = subprocess.run(whole, env=self._environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def add_user(self, name: str, configure: str, write: str, read: str, *, virtual_host: str = "/") -> None:
        """Adds a user with the password `secret` and these permissions, as regular expressions."""
        patterns = ", ".join(f'<<"{pattern}">>'.replace("\\", "\\\\") for pattern in (configure, write, read))
        backend = "rabbit_auth_backend_internal"
        self.evaluate(
            f'{backend}:add_user(<<"{name}">>, <<"secret">>, <<"tests">>), '
            f'{backend}:set_permissions(<<"{name}">>, <<"{virtual_host}">>, {patterns}, <<"tests">>).'
        )

    def evaluate(self, expression: str) -> str:
        """Evaluates Erlang inside the node, for what can only be changed there."""
        return self.control("eval", expression)

    def close(self) -> None:
        """Ends the node and its port mapper. Idempotent."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        return _spawn(command, self._home, self._environment)

    def _end(self, how: signal.Signals) -> None:
        if self._beam is None:
            return
        self._beam.send_signal(how)
        try:
            self._beam.wait(30)
        except subprocess.TimeoutExpired:
            self._beam.kill()
            self._beam.wait()
        self._beam = None


@dataclass(frozen=True)
class ClusterMember:
    """What makes a node one of a cluster.

    Attributes:
        name: of the node.
        epmd_port: where the port mapper of all of them listens.
        lines: of its configuration.
    """

    name: str
    epmd_port: int
    lines: str


class RabbitCluster:
    """Three nodes that form a cluster, each with a folder and ports of its own.

    Args:
        home: an empty folder.
        server: the `rabbitmq-server` script.

    Attributes:
        url: of all three, for clients.
        nodes: the nodes.
    """

    def __init__(self, home: Path, server: Path) -> None:
        self._home = home
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        names = [f"gl{os.getpid()}-{self._epmd_port}-{number}@localhost" for number in range(3)]
        lines = (
            "queue_leader_locator = balanced\ncluster_formation.peer_discovery_backend = classic_config\n"
            + "".join(
                f"cluster_formation.classic_config.nodes.{number + 1} = {name}\n" for number, name in enumerate(names)
            )
        )
        self.nodes: list[RabbitNode] = []
        for name in names:
            (folder := home / name.partition("@")[0]).mkdir()
            self.nodes.append(RabbitNode(folder, server, cluster=ClusterMember(name, self._epmd_port, lines)))
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.url = f"amqp://guest:guest@{hosts}/%2F"

    def start(self) -> None:
        """Starts all nodes, and returns once they are one cluster."""
        self._epmd = start_epmd(self._epmd_port, self._home)
        for node in self.nodes:
            node.begin()
        for node in self.nodes:
            node.await_start()

    def placed(self, *queues: str) -> list[tuple[RabbitNode, int]]:
        """Returns the node that leads each quorum queue, and how many replicas the queue has."""
        running = next(node for node in self.nodes if node.is_running)
        asked = ", ".join(f'<<"{queue}">>' for queue in queues)
        found = running.evaluate(
            f'[begin {{ok, Q}} = rabbit_amqqueue:lookup({{resource, <<"/">>, queue, Name}}), '
            "{Key, _} = amqqueue:get_pid(Q), {_, Leader} = ra_leaderboard:lookup_leader(Key), "
            'lists:flatten(io_lib:format("~s ~b", [Leader, length(maps:get(nodes, amqqueue:get_type_state(Q)))])) end '
            f"|| Name <- [{asked}]]."
        )
        names = {node.name: node for node in self.nodes}
        return [(names[name], int(count)) for name, count in re.findall(r'"(\S+) (\d+)"', found)]

    def leader_of(self, queue: str) -> RabbitNode:
        """Returns the node that leads a quorum queue."""
        return self.placed(queue)[0][0]

    def close(self) -> None:
        """Ends all nodes and the port mapper. Idempotent."""
        for node in self.nodes:
            node.close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None


def start_epmd(port: int, home: Path) -> subprocess.Popen[bytes]:
    """Starts Erlang's port mapper, and returns once it answers.

    In the foreground, as our own child: the daemon that Erlang would start outlives every node.
    """
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(home)}
    epmd = _spawn(["epmd", "-address", "127.0.0.1", "-port", str(port)], home, environment)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return epmd
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _spawn(command: list[str], home: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (home / "output").open("ab") as output:
        return subprocess.Popen(
            _dying_with_us(command),
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Its own session: Ctrl-C in the terminal is for the tests, which then end the node themselves.
            start_new_session=True,
        )


def _make_certificates(folder: Path) -> None:
    """Makes an authority, a certificate for the server `localhost`, and one for the client `certified`."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem")
    for name, subject in (("server", "localhost"), ("client", "certified")):
        openssl(*new, "-subj", f"/CN={subject}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text(f"subjectAltName=DNS:{subject}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
