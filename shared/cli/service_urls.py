"""All services on one machine: their commands, their ports and where a user finds them."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from shared.cli.reference_tables import without_password
from shared.runtime.listening import host_faults_named
from shared.runtime.settings import Settings, SettingsError, variable
from shared.runtime.supervisor import Child, Supervisor

SERVICES: Final = ("trainer", "inference", "dashboard")
METRICS_PORTS: Final[Mapping[str, int]] = {"trainer": 9101, "inference": 9102}
"""Where the services without pages serve `/metrics`, unless `GENDERLINE_METRICS_PORT` says otherwise."""

DRAIN_S: Final = 60.0
"""How long the services may take to put their work down in order."""


def choose_ports(settings: Settings, services: Sequence[str], *, pick_free: bool = False) -> dict[str, int]:
    """Returns the HTTP port of each service, by its name.

    Args:
        settings: what the user wants.
        services: those to be started.
        pick_free: take a free port where the wanted one is taken, instead of complaining.

    Raises:
        SettingsError: the host cannot be bound to, a port is taken, or one metrics port is set for two services.
    """
    wanted = {
        service: settings.port
        if service == "dashboard"
        else METRICS_PORTS[service]
        if settings.metrics_port is None
        else settings.metrics_port
        for service in services
    }
    if settings.metrics_port and len(METRICS_PORTS.keys() & wanted.keys()) > 1:
        raise SettingsError(
            f"{variable('metrics_port')} is {settings.metrics_port}, but a port is needed for each of "
            f"{' and '.join(METRICS_PORTS)}; set it to 0, which takes free ones, or start one of them alone with --only"
        )
    return {
        service: _checked_port(settings.host, service, port, pick_free=pick_free) for service, port in wanted.items()
    }


def service_children(ports: Mapping[str, int], log: Path | None = None) -> list[Child]:
    """Returns the processes of the services that have a port in `ports`, for a supervisor.

    Args:
        ports: by service.
        log: a file for what they print; None shares this process's standard error.
    """
    return [
        Child(
            service,
            [sys.executable, "-m", service],
            {variable("port" if service == "dashboard" else "metrics_port"): str(port)},
            log,
        )
        for service, port in ports.items()
    ]


def service_urls(settings: Settings, ports: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns (what, where) of everything that a user may want to open, for printing."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [(f"{service} metrics", f"http://{host}:{port}/metrics") for service, port in ports.items()]
    if "dashboard" in ports:
        lines.insert(0, ("dashboard", f"http://{host}:{ports['dashboard']}"))
    if "trainer" in ports:
        lines.append(("inbox", f"{settings.inbox.absolute()} (a zip that lands here is trained on)"))
    lines += [("broker", without_password(settings.broker_url)), ("store", settings.store_url)]
    return lines


def serve(children: Sequence[Child], on_event: Callable[[str], None]) -> str | None:
    """Keeps services running until this process is told to stop; a second Ctrl-C does not wait for them to drain.

    Returns:
        The service that refused its settings, which ends the others too; None where there was none.
    """
    stop = threading.Event()
    refused: list[str] = []

    def on_refusal(service: str) -> None:
        refused.append(service)
        stop.set()

    with stopped_by_signals(stop):
        supervisor = Supervisor(children, on_event, on_refusal=on_refusal)
        supervisor.start()
        stop.wait()
        on_event("stopping; the services put their work down in order (Ctrl-C again: at once)")
        drain(supervisor)
    return refused[0] if refused else None


def drain(supervisor: Supervisor) -> None:
    """Stops all services in order, or at once on a further Ctrl-C."""
    try:
        supervisor.stop(DRAIN_S)
    except KeyboardInterrupt:
        supervisor.stop(0.0)


@contextlib.contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Sets `stop` on the first of SIGINT, SIGTERM and SIGHUP; a second one raises `KeyboardInterrupt`."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checked_port(host: str, service: str, port: int, *, pick_free: bool) -> int:
    """Returns `port` where it is free, a free one for 0, or with `pick_free` where it is taken."""
    try:
        with host_faults_named(host):
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            with socket.create_server((host, port), family=family) as probe:
                return int(probe.getsockname()[1])
    except OSError as error:
        if pick_free:
            return _checked_port(host, service, 0, pick_free=False)
        name = variable("port" if service == "dashboard" else "metrics_port")
        raise SettingsError(
            f"the {service}'s port {port} on {host} cannot be used: {error.strerror}. Is another `genderline up` "
            f"running? Else set {name} to 0, which takes a free one"
        ) from None
