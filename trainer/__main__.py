"""`python -m trainer`: one trainer process."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch

from shared.client import Client
from shared.connect import open_broker_for
from shared.errors import Retryable
from shared.faces.decode import configure_opencv
from shared.runtime.log import configure_logging
from shared.runtime.settings import SettingsError, load_settings, unknown_settings
from shared.runtime.supervisor import watch_parent
from shared.store import open_store
from shared.telemetry.heartbeat import Heartbeat
from shared.telemetry.metrics import BrokerCollector, StatusServer, TrainerMetrics, process_registry
from trainer.handler import TrainerService
from trainer.inbox import InboxWatcher
from trainer.pipeline import Pipeline
from trainer.tempdir import workspace
from trainer.training.device import choose_device
from trainer.training.distributed import (
    ProcessGroup,
    end_with_launcher,
    run_member,
    stop_members,
    watch_launcher,
)

PORT = 9101
_LOG = logging.getLogger("trainer")


def main() -> int:
    """Runs until SIGTERM or SIGINT.

    Returns:
        The exit code: 2 where a setting is wrong, 1 where a service is away or the process group is aborted.
    """
    try:
        settings = load_settings()
        configure_logging("trainer", settings.log_level, settings.log_format)
        device = choose_device(settings.device)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    for warning in unknown_settings():
        _LOG.warning(warning)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    watch_parent(stop)
    group = ProcessGroup.from_environment(on_abort=stop.set)
    if group.size > 1:
        watch_launcher(stop)
    if not group.is_main:
        end_with_launcher()
    threads = settings.threads or max(1, settings.cores // group.local_size)
    torch.set_num_threads(threads)
    configure_opencv()
    try:
        store = open_store(settings.store_url)
        if not group.is_main:  # the main process ends it once the run under way is done
            _LOG.info("member %d of %d on %s", group.rank, group.size, device)
            run_member(group, store, device)
            group.destroy()
            return 0
        broker = open_broker_for(settings)
    except (Retryable, SettingsError) as error:
        _LOG.error("%s", error)
        return 1 if isinstance(error, Retryable) else 2  # a wrong URL stays wrong
    with broker:
        registry = process_registry()
        registry.register(BrokerCollector(broker))
        metrics = TrainerMetrics(registry)
        service = TrainerService(broker, store, settings, metrics, Pipeline(store, settings, metrics, device, group))
        port = PORT if settings.metrics_port is None else settings.metrics_port

        def state() -> dict[str, Any]:
            return {"version": None, "provider": device.type, "device": str(device), "busy": service.busy}

        def readiness() -> dict[str, Any]:
            return {"ready": broker.ping() and store.ping(), "busy": service.busy, "device": str(device)}

        try:
            status = StatusServer(registry, readiness, host=settings.host, port=port, token=settings.token)
        except OSError as error:
            _LOG.error("cannot serve metrics on port %d: %s; set GENDERLINE_METRICS_PORT", port, error.strerror)
            return 1
        _LOG.info("ready on %s with %d threads; metrics on port %d", device, threads, status.port)
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
            if not group.aborted:
                stop_members(group)
                group.destroy()
    if group.aborted:
        _LOG.error("this process failed and the others of its group did not; the group ends with it")
    return 1 if group.aborted else 0


if __name__ == "__main__":
    with workspace():
        sys.exit(main())
