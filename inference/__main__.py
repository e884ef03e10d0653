"""`python -m inference`: a parent process that serves metrics and watches over its workers, one a core by default."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final

from inference.monitoring.worker_metrics import WorkersCollector
from inference.worker_layout import plan_for
from shared.broker.base import Trouble
from shared.connect import open_broker_for, open_store_for
from shared.runtime.environment import SINGLE_CORE_ENV
from shared.runtime.service import run_service
from shared.runtime.settings import Settings
from shared.runtime.supervisor import WRONG_USAGE, Child, Supervisor
from shared.runtime.tempdir import workspace
from shared.telemetry.metrics import BrokerCollector, process_registry
from shared.telemetry.status_server import StatusServer

PORT: Final = 9102
_LOG = logging.getLogger("inference")


def main() -> int:
    """Serves predictions and jobs until it is told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inference", description=__doc__)
    parser.add_argument("--worker", type=Path, metavar="STATUS_FILE", help=argparse.SUPPRESS)
    status_file: Path | None = parser.parse_args().worker
    if status_file is None:
        return run_service("inference", _supervise)
    return run_service("inference", lambda settings, stop: _work(settings, stop, status_file))


def _supervise(settings: Settings, stop: threading.Event) -> int:
    """Keeps the workers running and adds up their metrics; the parent process."""
    if settings.provider == "cuda":
        # Only then: without ONNX Runtime the parent stays small.
        from inference.model.loader import ProviderUnavailable, require_provider  # noqa: PLC0415

        try:
            require_provider(settings.provider)
        except ProviderUnavailable as error:
            _LOG.error("%s", error)
            return WRONG_USAGE
    workers = plan_for(settings).workers
    with open_broker_for(settings) as broker, workspace("inference") as folder:
        files = [folder / f"worker-{number}.json" for number in range(workers)]

        def states() -> list[dict[str, Any]]:
            return [json.loads(file.read_text()) for file in files if file.exists()]

        def trouble() -> Trouble | None:
            # RabbitMQ tells of an alarm only to who publishes: the workers.
            of_workers = (Trouble(*found) for state in states() if (found := state["broker_trouble"]))
            return broker.trouble or next(of_workers, None)

        registry = process_registry()
        registry.register(BrokerCollector(broker, trouble))
        children = [
            Child(
                name=f"worker {number}",
                command=[sys.executable, "-m", "inference", "--worker", str(file)],
                # Each worker's metrics are files in this folder, which the parent adds up; what it leaves goes with it.
                env=SINGLE_CORE_ENV | os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "TMPDIR": str(folder)},
            )
            for number, file in enumerate(files)
        ]
        supervisor = Supervisor(children, on_event=_LOG.info)
        registry.register(WorkersCollector(folder, lambda: set(supervisor.pids.values())))

        def readiness() -> dict[str, Any]:
            living = set(supervisor.pids.values())
            of_workers, found = states(), trouble()
            ready = [state["ready"] and state["pid"] in living for state in of_workers]
            return {
                "ready": len(ready) == workers and all(ready),
                "broker_trouble": found and found.text,
                "workers": of_workers,
            }

        port = PORT if settings.metrics_port is None else settings.metrics_port
        status = StatusServer(registry, readiness, host=settings.host, port=port, tokens=settings.access_tokens)
        _LOG.info("%d workers; metrics on port %d", workers, status.port)
        try:
            with supervisor:
                stop.wait()
        finally:
            status.close()
    return 0


def _work(settings: Settings, stop: threading.Event, status_file: Path) -> int:
    """Does the work of one worker process."""
    # ONNX Runtime and OpenCV are loaded by workers only: the parent stays small, and has started them sooner.
    from inference.model.loader import ProviderUnavailable  # noqa: PLC0415
    from inference.worker import Worker  # noqa: PLC0415
    from shared.faces.decode import configure_opencv  # noqa: PLC0415

    configure_opencv()
    decode_processes = plan_for(settings).decode_processes
    with open_broker_for(settings) as broker:
        store = open_store_for(settings, broker)
        worker = Worker(broker, store, settings, decode_processes=decode_processes, status_file=status_file)
        try:
            worker.run(stop)
        except ProviderUnavailable as error:
            _LOG.error("%s", error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
