"""`python -m trainer`: one trainer process."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Final

import torch

from shared.broker.base import Broker
from shared.client import Client
from shared.connect import open_broker_for
from shared.faces.decode import configure_opencv
from shared.runtime.service import run_service
from shared.runtime.settings import Settings
from shared.store import open_store
from shared.store.base import Store
from shared.telemetry.heartbeat import Heartbeat
from shared.telemetry.metrics import BrokerCollector, TrainerMetrics, process_registry
from shared.telemetry.status_server import StatusServer
from trainer.handler import TrainerService
from trainer.inbox import InboxWatcher
from trainer.pipeline import Pipeline
from trainer.tempdir import workspace
from trainer.training.crew import dismiss, follow
from trainer.training.device import choose_device
from trainer.training.distributed import Team, end_with_launcher, watch_launcher

PORT: Final = 9101
_LOG = logging.getLogger("trainer")


def main() -> int:
    """Trains until it is told to stop. Returns the exit code."""
    with workspace():
        return run_service("trainer", _serve)


def _serve(settings: Settings, stop: threading.Event) -> int:
    device = choose_device(settings.device)
    team = Team.from_environment(on_lost=stop.set)
    if team.size > 1:
        watch_launcher(stop)
    if not team.leads:
        end_with_launcher()
    torch.set_num_threads(settings.threads or max(1, settings.cores // team.local_size))
    configure_opencv()
    store = open_store(settings.store_url)
    if not team.leads:  # stopped by its leader, which finishes what is under way
        _LOG.info("member %d of %d on %s", team.rank, team.size, device)
        follow(team, store, device)
        team.leave()
        return 0
    with open_broker_for(settings) as broker:
        _lead(settings, stop, broker, store, device, team)
    if team.lost:
        _LOG.error("this process failed and the others of its team did not; the team ends with it")
    return 1 if team.lost else 0


def _lead(
    settings: Settings, stop: threading.Event, broker: Broker, store: Store, device: torch.device, team: Team
) -> None:
    """Takes messages until `stop`; the other members of the team train along."""
    registry = process_registry()
    registry.register(BrokerCollector(broker))
    metrics = TrainerMetrics(registry)
    service = TrainerService(broker, store, settings, metrics, Pipeline(store, settings, metrics, device, team))

    def state() -> dict[str, Any]:
        return {"version": None, "provider": device.type, "device": str(device), "busy": service.busy}

    def readiness() -> dict[str, Any]:
        return {"ready": broker.ping() and store.ping(), "busy": service.busy, "device": str(device)}

    port = PORT if settings.metrics_port is None else settings.metrics_port
    status = StatusServer(registry, readiness, host=settings.host, port=port, token=settings.token)
    _LOG.info("ready on %s with %d threads; metrics on port %d", device, torch.get_num_threads(), status.port)
    inbox = InboxWatcher(Client(broker, store), settings.inbox, settings.max_members)
    helpers = [
        threading.Thread(target=Heartbeat(broker, "trainer", state).run, args=[stop], name="heartbeat"),
        threading.Thread(target=inbox.run, args=[stop], name="inbox"),
    ]
    for helper in helpers:
        helper.start()
    try:
        service.run(stop)
    finally:
        stop.set()
        for helper in helpers:
            helper.join()
        status.close()
        if not team.lost:
            dismiss(team)
            team.leave()


if __name__ == "__main__":
    sys.exit(main())
