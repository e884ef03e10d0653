"""`python -m trainer`: one trainer process."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any, Final

import torch

from shared.archives.archive import ArchiveLimits
from shared.broker.base import Broker
from shared.client import Client
from shared.connect import open_broker_for, open_store_for
from shared.faces.decode import configure_opencv
from shared.runtime.service import run_service
from shared.runtime.settings import Settings
from shared.runtime.tempdir import workspace
from shared.store.base import Store
from shared.store.identity import watch_store
from shared.telemetry.heartbeat import Heartbeat
from shared.telemetry.metrics import BrokerCollector, StoreCollector, TrainerMetrics, process_registry
from shared.telemetry.status_server import StatusServer
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy
from trainer.handler import DatasetHandler
from trainer.inbox import InboxWatcher
from trainer.pipeline import Pipeline
from trainer.training.device import choose_device
from trainer.training.distributed import run_member, stop_members
from trainer.training.process_group import ProcessGroup, end_with_launcher, watch_launcher

PORT: Final = 9101
_LOG = logging.getLogger("trainer")


def main() -> int:
    """Trains until it is told to stop. Returns the exit code."""
    return run_service("trainer", _serve)


def _serve(settings: Settings, stop: threading.Event) -> int:
    with workspace("trainer"):
        return _train(settings, stop)


def _train(settings: Settings, stop: threading.Event) -> int:
    device = choose_device(settings.device)
    group = ProcessGroup.from_environment(on_abort=stop.set)
    if group.size > 1:
        watch_launcher(stop)
    if not group.is_main:
        end_with_launcher()
    torch.set_num_threads(settings.threads or max(1, settings.cores // group.local_size))
    configure_opencv()
    if not group.is_main:  # the main process ends it once the run under way is done
        _LOG.info("member %d of %d on %s", group.rank, group.size, device)
        run_member(group, open_store_for(settings), device)
        group.destroy()
        return 0
    with open_broker_for(settings) as broker:
        _run_main_process(settings, stop, broker, open_store_for(settings, broker), device, group)
    if group.aborted:
        _LOG.error("this process failed and the others of its group did not; the group ends with it")
    return 1 if group.aborted else 0


def _run_main_process(
    settings: Settings, stop: threading.Event, broker: Broker, store: Store, device: torch.device, group: ProcessGroup
) -> None:
    """Takes messages until `stop`; the other processes of the group train along."""
    registry = process_registry()
    registry.register(BrokerCollector(broker))
    registry.register(StoreCollector(store))
    metrics = TrainerMetrics(registry)
    pipeline = Pipeline(store, settings, metrics, device, group)
    handler = DatasetHandler(store, settings, metrics, pipeline, broker.emit, broker.topology)
    loop = ConsumerLoop(
        broker,
        {broker.topology.continuations: handler, broker.topology.datasets: handler},
        RetryPolicy(None, metrics.dead_letters),  # a run counts by itself how often it was begun
        prefetch=0,  # a dataset held here, unacknowledged, could not be trained by anybody else meanwhile
    )

    def state() -> dict[str, Any]:
        return {"version": None, "provider": device.type, "device": str(device), "busy": handler.busy}

    def readiness() -> dict[str, Any]:
        ready = broker.ping() and store.ping()
        trouble, store_trouble = broker.trouble, store.trouble
        return {
            "ready": ready,
            "broker_trouble": trouble and trouble.text,
            "store_trouble": store_trouble and store_trouble.text,
            "busy": handler.busy,
            "device": str(device),
        }

    port = PORT if settings.metrics_port is None else settings.metrics_port
    status = StatusServer(registry, readiness, host=settings.host, port=port, tokens=settings.access_tokens)
    _LOG.info("ready on %s with %d threads; metrics on port %d", device, torch.get_num_threads(), status.port)
    inbox = InboxWatcher(Client(broker, store), settings.inbox, ArchiveLimits.from_settings(settings))
    helpers = [
        threading.Thread(target=Heartbeat(broker, "trainer", state, store).run, args=[stop], name="heartbeat"),
        threading.Thread(target=inbox.run, args=[stop], name="inbox"),
        threading.Thread(target=watch_store, args=[store, stop], name="store"),
    ]
    for helper in helpers:
        helper.start()
    try:
        loop.run(stop)
    finally:
        stop.set()
        for helper in helpers:
            helper.join()
        status.close()
        if not group.aborted:
            stop_members(group)
            group.destroy()


if __name__ == "__main__":
    sys.exit(main())
