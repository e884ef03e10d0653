"""`python -m inference`: a parent process that serves metrics and watches over its workers, one a core by default."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from inference.monitoring.worker_metrics import WorkersCollector
from inference.worker_layout import layout_of
from shared.broker.base import Broker
from shared.connect import open_broker_for
from shared.errors import Retryable
from shared.runtime.environment import ONE_CORE
from shared.runtime.log import configure_logging
from shared.runtime.settings import Settings, SettingsError, load_settings, unknown_settings
from shared.runtime.supervisor import Child, Supervisor, watch_parent
from shared.store import open_store
from shared.telemetry.metrics import BrokerCollector, StatusServer, process_registry

PORT = 9102
_LOG = logging.getLogger("inference")


def main() -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code: 2 where a setting is wrong, 1 where a service is away."""
    parser = argparse.ArgumentParser(prog="python -m inference", description=__doc__)
    parser.add_argument("--worker", type=Path, metavar="STATUS_FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        settings = load_settings()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    configure_logging("inference", settings.log_level, settings.log_format)
    for warning in unknown_settings():
        _LOG.warning(warning)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    watch_parent(stop)
    try:
        broker = open_broker_for(settings)
    except (Retryable, SettingsError) as error:
        _LOG.error("%s", error)
        return 1 if isinstance(error, Retryable) else 2  # a wrong URL stays wrong
    with broker:
        work: Callable[[], int] = (
            (lambda: _parent(broker, settings, stop))
            if arguments.worker is None
            else (lambda: _worker(broker, settings, stop, arguments.worker))
        )
        return work()


def _parent(broker: Broker, settings: Settings, stop: threading.Event) -> int:
    if settings.provider == "cuda":
        # Only then: without ONNX Runtime the parent stays small.
        from inference.model.loader import ProviderUnavailable, require_provider  # noqa: PLC0415

        try:
            require_provider(settings.provider)
        except ProviderUnavailable as error:
            _LOG.error("%s", error)
            return 2
    workers = layout_of(settings).workers
    with tempfile.TemporaryDirectory(prefix="genderline-workers-") as folder:
        registry = process_registry()
        registry.register(BrokerCollector(broker))
        files = [Path(folder) / f"worker-{number}.json" for number in range(workers)]
        children = [
            Child(
                name=f"worker {number}",
                command=[sys.executable, "-m", "inference", "--worker", str(file)],
                # Each worker's metrics are files in this folder, which the parent adds up.
                env=ONE_CORE | os.environ | {"PROMETHEUS_MULTIPROC_DIR": folder},
            )
            for number, file in enumerate(files)
        ]
        supervisor = Supervisor(children, on_event=_LOG.info)
        registry.register(WorkersCollector(Path(folder), lambda: set(supervisor.pids.values())))

        def readiness() -> dict[str, Any]:
            living = set(supervisor.pids.values())
            states = [json.loads(file.read_text()) for file in files if file.exists()]
            ready = [state["ready"] and state["pid"] in living for state in states]
            return {"ready": len(ready) == workers and all(ready), "workers": states}

        port = PORT if settings.metrics_port is None else settings.metrics_port
        try:
            status = StatusServer(registry, readiness, host=settings.host, port=port, token=settings.token)
        except OSError as error:
            _LOG.error("cannot serve metrics on port %d: %s; set GENDERLINE_METRICS_PORT", port, error.strerror)
            return 1
        _LOG.info("%d workers; metrics on port %d", workers, status.port)
        try:
            with supervisor:
                stop.wait()
        finally:
            status.close()
    return 0


def _worker(broker: Broker, settings: Settings, stop: threading.Event, status_file: Path) -> int:
    # ONNX Runtime and OpenCV are loaded by workers only: the parent stays small, and has started them sooner.
    from inference.model.loader import ProviderUnavailable  # noqa: PLC0415
    from inference.worker import Worker  # noqa: PLC0415
    from shared.faces.decode import configure_opencv  # noqa: PLC0415

    configure_opencv()
    try:
        store = open_store(settings.store_url)
        decode_processes = layout_of(settings).decode_processes
        Worker(broker, store, settings, decode_processes=decode_processes, status_file=status_file).run(stop)
    except (ProviderUnavailable, Retryable) as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
