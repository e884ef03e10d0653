"""One worker process: its loops, its threads, and an orderly end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry

from inference.jobs.open import JobHandler, OpenArchive
from inference.jobs.shards import ShardHandler
from inference.model.champion import Models
from inference.model.decoder import Decoder
from inference.model.predictor import Predictor
from inference.model.probe import ModelProber
from inference.model.run_journal import RunJournal
from inference.monitoring.drift import Drift
from inference.monitoring.recent_predictions import RecentPredictions
from inference.monitoring.shadow import Shadow
from inference.monitoring.throughput import ThroughputMeter
from inference.predictions import PredictionHandler
from shared.archives.archive import ArchiveLimits
from shared.broker.base import Broker
from shared.faces.decode import ImageLimits
from shared.runtime.settings import Settings
from shared.store.base import STORE_TROUBLES, Store
from shared.telemetry.heartbeat import Heartbeat
from shared.telemetry.metrics import InferenceMetrics
from shared.worker.child import ForkServer
from shared.worker.loop import ConsumerLoop
from shared.worker.retry import RetryPolicy

_BULK_NICENESS: Final = 10
_READY_EVERY_S: Final = 1.0
_LOG = logging.getLogger(__name__)


class Worker:
    """Serves predictions and jobs from one process.

    Args:
        broker: where work comes from.
        store: where models and jobs lie.
        settings: as the environment has them.
        decode_processes: children that decode one batch; 1 where every core has a worker of its own.
        status_file: kept up to date with `{"pid", "ready", "version", "provider"}` for the parent process.
    """

    def __init__(
        self, broker: Broker, store: Store, settings: Settings, *, decode_processes: int, status_file: Path
    ) -> None:
        self._broker = broker
        self._store = store
        self._status_file = status_file
        self._metrics = metrics = InferenceMetrics(CollectorRegistry())
        limits = ImageLimits.from_settings(settings)
        self._models = Models(
            store,
            settings.provider,
            metrics,
            ModelProber(status_file.parent, settings.provider, settings.batch_size).survives,
            RunJournal(status_file.with_suffix(".runs")),
        )
        self._drift = Drift(metrics, lambda: self._models.champion)
        self._shadow = Shadow(store, settings, self._models, metrics)
        self._fork_server = ForkServer(Decoder.TARGET)
        self._decoder = Decoder(self._fork_server, limits, decode_processes)
        self._bulk_decoder = Decoder(self._fork_server, limits, decode_processes, niceness=_BULK_NICENESS)
        predictor = Predictor(self._decoder, settings.batch_size, metrics, observers=[self._drift.observe])
        bulk_predictor = replace(predictor, decoder=self._bulk_decoder)
        if self._shadow.wanted:
            predictor = replace(predictor, observers=[*predictor.observers, self._shadow.observe])
        self._throughput = ThroughputMeter()
        self._recent_predictions = RecentPredictions()
        self._predictions = PredictionHandler(
            self._models, predictor, metrics, self._throughput, self._recent_predictions
        )
        retry = RetryPolicy(settings.delivery_limit, metrics.dead_letters)
        topology = broker.topology
        self._interactive = ConsumerLoop(
            broker,
            {topology.predictions: self._predictions},
            retry,
            prefetch=settings.prefetch,
            batch_size=settings.batch_size,
            gather_s=settings.batch_delay_ms / 1000,
            wait_until_ready=self._models.wait_for_champion,
            on_idle=self._shadow.on_idle,
            queue_wait=metrics.queue_wait,
        )
        archives = OpenArchive(store, ArchiveLimits.from_settings(settings))
        self._jobs = JobHandler(store, settings, self._models, archives, broker.emit, topology.shards)
        self._shards = ShardHandler(
            store,
            self._models,
            bulk_predictor,
            archives,
            self._throughput,
            broker.emit,
            topology.shards,
            lease_s=settings.lease_s,
            interactive_recently=lambda: self._predictions.active_recently,
        )
        self._bulk = ConsumerLoop(
            broker,
            {topology.jobs: self._jobs, topology.shards: self._shards},
            retry,
            prefetch=1,
            wait_until_ready=self._models.wait_for_champion,
        )
        self._heartbeat = Heartbeat(broker, "inference", self._state, store)

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`, then finishes what it holds. A loop that dies of a bug ends the whole worker."""
        failures: list[BaseException] = []

        def guarded(name: str, work: Callable[[threading.Event], None]) -> threading.Thread:
            def body() -> None:
                try:
                    work(stop)
                except BaseException as error:
                    failures.append(error)
                    stop.set()

            thread = threading.Thread(target=body, name=name)
            thread.start()
            return thread

        threads = [
            guarded("models", lambda event: self._models.follow(self._broker, event)),
            guarded("interactive", self._interactive.run),
            guarded("bulk", self._run_bulk),
            guarded("heartbeat", self._heartbeat.run),
            *([guarded("shadow", self._shadow.run)] if self._shadow.wanted else []),
        ]
        try:
            while not stop.is_set():
                served = self._models.champion
                self._write_status(ready=self._broker.ping())
                if served is None:
                    self._models.wait_for_champion(_READY_EVERY_S / 2)  # which the status then names at once
                else:
                    stop.wait(_READY_EVERY_S)
            self._write_status(ready=False)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            self._fork_server.close()
        if failures:
            raise failures[0]

    def _run_bulk(self, stop: threading.Event) -> None:
        # On Linux niceness belongs to a thread: the interactive loop gets the core first.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BULK_NICENESS)
        self._bulk.run(stop)

    def _state(self) -> dict[str, Any]:
        champion, refused = self._models.champion, self._models.refused
        return {
            "version": champion.version if champion else None,
            "provider": champion.provider if champion else None,
            "device": champion.computes_in if champion else None,
            "busy": self._jobs.busy or self._shards.busy,
            "refused": None if refused is None else asdict(refused),
            "drift": self._drift.summary(),
            "challenger": self._shadow.summary(),
            **self._throughput.summary(),
            "recent_predictions": self._recent_predictions.summary(),
        }

    def _write_status(self, *, ready: bool) -> None:
        champion, trouble = self._models.champion, self._store.trouble
        for kind in STORE_TROUBLES:
            self._metrics.store_trouble.labels(kind).set(trouble is not None and trouble.kind == kind)
        state = {
            "pid": os.getpid(),
            "ready": ready,
            "version": champion.version if champion else None,
            "provider": champion.provider if champion else None,
            "broker_trouble": self._broker.trouble,
            "store_trouble": trouble and trouble.text,
        }
        aside = self._status_file.with_suffix(".new")
        try:
            aside.write_text(json.dumps(state))
            aside.replace(self._status_file)
        except OSError as error:  # a full disk, say: what it serves goes on, and its state is told a little later
            _LOG.warning("cannot write %s: %s", self._status_file, error.strerror)
