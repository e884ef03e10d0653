"""The trainer's queue side: takes datasets, sees each run through, answers, and hands long runs over in time."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from typing import Final

from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.fetch import fetch_archive
from shared.broker.base import RETRIED_AT, Broker, BrokerError, Consumer, Delivery, Outgoing
from shared.errors import Cancelled, GenderlineError, InvalidDataset, InvalidMessage, Retryable
from shared.messages import ArchiveRequest, by_reference, json_reply, parse_dataset, run_id_of
from shared.records.dataset import LABELS_JSON, dataset_id
from shared.records.record import DamagedRecord, Fault, ModelRef, RecordEnded
from shared.records.registry import Registry
from shared.records.runs import EpochRow, Progress, Run, Runs, RunState
from shared.runtime.settings import Settings
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store, sha256_of
from shared.store.lease import Lease, LeaseLost, Leases
from shared.telemetry.metrics import TrainerMetrics
from shared.topology import (
    MODEL_CHALLENGED,
    MODEL_PROMOTED,
    MODEL_REGISTERED,
    RUN_EPOCH,
    RUN_PROGRESS,
    run_state_topic,
)
from shared.worker.retry import FailurePolicy
from trainer.data.labelling import recognize_labels
from trainer.pipeline import Pipeline, Steps
from trainer.release.promotion_gate import compare_registered
from trainer.training.train import Interrupted

_WAIT_S: Final = 0.5
_EVENT_EVERY_S: Final = 1.0
_RECORD_EVERY_S: Final = 3.0
_LOG = logging.getLogger(__name__)


class HandOver(Exception):
    """The run goes back to the queue, to be carried on from where it stands."""


class TrainerService:
    """Trains what comes over the datasets queue, one run at a time.

    A run belongs to its `message_id`, whoever trains it and however often it comes: the store's lease decides who may
    work on it, the checkpoint where it goes on, and the record whether there is anything left to do.

    Args:
        broker: where datasets come from.
        store: where everything lies.
        settings: limits and times.
        metrics: told how runs end.
        pipeline: does the work of a run.
    """

    def __init__(
        self, broker: Broker, store: Store, settings: Settings, metrics: TrainerMetrics, pipeline: Pipeline
    ) -> None:
        self._broker = broker
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._pipeline = pipeline
        self._runs = Runs(store)
        self._leases = Leases(store, settings.lease_s)
        self._registry = Registry(store)
        self._policy = FailurePolicy(settings.delivery_limit, metrics.dead_letters)
        self.busy: str | None = None
        """The run that is being worked on, for the heartbeat."""

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`; a run that is under way then is handed over."""
        topology = self._broker.topology
        while not stop.is_set():
            try:
                # No prefetch: a dataset held here, unacknowledged, could not be trained by anybody else meanwhile.
                with self._broker.consume([topology.continuations, topology.datasets], prefetch=0) as consumer:
                    while not stop.is_set():
                        for delivery in consumer.receive(1, _WAIT_S):
                            self._handle(consumer, delivery, stop)
                            consumer.flush()
            except BrokerError as error:
                # What was taken comes again, and goes on from its checkpoint.
                _LOG.warning("broker: %s", error)
                stop.wait(_WAIT_S)

    def _handle(self, consumer: Consumer, delivery: Delivery, stop: threading.Event) -> None:
        run_id = run_id_of(delivery.message.message_id)
        lease = self._leases.lease(f"runs/{run_id}")

        def end(error: GenderlineError) -> list[Outgoing]:
            state = RunState.REJECTED if isinstance(error, InvalidMessage) else RunState.FAILED
            return self._end(delivery, run_id, state, error)

        try:
            if self._policy.exhausted(delivery):
                self._policy.bury_exhausted(consumer, delivery, end)
                return
            request = parse_dataset(delivery.message)
            self._runs.create(
                run_id, message_id=request.message_id, name=request.name, params=request.params, state=RunState.QUEUED
            )
            self._reopen(delivery, run_id)
            if not self._runs.get(run_id).state.is_final and not lease.acquire():
                # Somebody trains it right now: a duplicate, or a message that the broker gave out again too early.
                consumer.defer(delivery, self._settings.lease_s / 2)
                return
            record = self._runs.get(run_id)  # now that nobody else can end it
            if record.state.is_final:
                _LOG.info("%s came again; it is %s", run_id, record.state)
                self._announce(record)
                consumer.settle([delivery], json_reply(delivery.message, record.reply()))
            else:
                self.busy = run_id
                self._work(consumer, delivery, request, lease, stop)
        except BrokerError:
            raise
        except (LeaseLost, RecordEnded) as error:  # another trainer works on it, or has ended it
            _LOG.warning("%s: %s", run_id, error)
            consumer.defer(delivery, self._settings.lease_s / 2)
        except Exception as error:
            self._policy.handle(consumer, delivery, error, end)
        finally:
            self.busy = None
            try:
                lease.release()
            except Retryable as error:
                _LOG.warning("%s: lease not released: %s", run_id, error)

    def _reopen(self, delivery: Delivery, run_id: str) -> None:
        """Opens a run again whose message became a dead letter and was sent back, once for each time."""
        retried_at = delivery.message.headers.get(RETRIED_AT)
        record = self._runs.get(run_id)
        if retried_at is None or not record.state.is_retryable or record.retried_at == retried_at:
            return
        record = self._runs.reopen(run_id, retried_at)
        _LOG.info("%s opened again: it was sent back from the dead letters", run_id)
        self._announce(record)

    def _work(
        self,
        consumer: Consumer,
        delivery: Delivery,
        request: ArchiveRequest,
        lease: Lease,
        stop: threading.Event,
    ) -> None:
        """Carries a run on, as its owner, to its end or to a hand-over."""
        run_id = run_id_of(request.message_id)
        sha256: str | None = None
        with _Guard(lease, self._runs, run_id, self._settings, stop) as guard:
            try:
                if self._runs.cancel_requested(run_id):
                    raise Cancelled("cancelled by a user")
                sha256 = self._accept(consumer, delivery, request)
                watcher = _Watcher(self._broker, self._runs, run_id)
                steps = Steps(
                    on_state=lambda state: self._enter(run_id, state),
                    on_progress=watcher.on_progress,
                    on_epoch=watcher.on_epoch,
                    should_yield=guard.should_yield,
                    checkpoint=guard.checkpoint,
                )
                try:
                    card = self._pipeline.run(run_id, request.name, sha256, request.params, steps)
                except Interrupted:
                    guard.checkpoint()  # raises why, unless it was time
                    raise HandOver(f"{self._settings.handover_s:g} s are over") from None
                self._registered(consumer, delivery, request, card.version, card.metrics)
            except HandOver as why:
                _LOG.info("%s handed over: %s", run_id, why)
                lease.release()
                consumer.settle([delivery], self._continuation(delivery, request, sha256))
            except Cancelled as error:
                consumer.settle([delivery], self._end(delivery, run_id, RunState.CANCELLED, error))
            except InvalidDataset as error:
                consumer.settle([delivery], self._end(delivery, run_id, RunState.REJECTED, error))

    def _accept(self, consumer: Consumer, delivery: Delivery, request: ArchiveRequest) -> str:
        """Makes sure that the archive lies in the store, and says so and what its labels are, once.

        Returns:
            The dataset's id.
        """
        run_id = run_id_of(request.message_id)
        record = self._runs.get(run_id)
        if record.dataset:
            return record.dataset
        with (
            temp_folder() as folder,
            fetch_archive(request, self._store, self._settings, folder) as path,
        ):
            with Archive(path, ArchiveLimits.from_settings(self._settings)) as archive:
                labels = recognize_labels(archive, request.labels).report
            sha256 = dataset_id(request.sha256 or sha256_of(path), request.labels)
            if request.labels is not None:
                self._store.put_json(f"datasets/{sha256}/{LABELS_JSON}", request.labels.as_dict())
            key = f"datasets/{sha256}/archive.zip"
            if not self._store.exists(key):
                is_ours = path.is_relative_to(folder)  # and may be moved into the store
                self._store.put_file(key, path if is_ours else shutil.copyfile(path, folder / "copy.zip"))
        told = record.changed(labels=labels).reply(RunState.ACCEPTED)
        consumer.settle([], json_reply(delivery.message, told))
        record = self._runs.update(
            run_id,
            state=RunState.ACCEPTED,
            dataset=sha256,
            labels=labels,
            params=request.params,
            name=request.name,
        )
        self._announce(record)
        _LOG.info("%s accepted: %s; %s", run_id, request.name, labels.text)
        return sha256

    def _enter(self, run_id: str, state: RunState) -> None:
        record = self._runs.get(run_id)
        if record.state != state:
            timings = record.timings.changed(**{f"{state}_at": round(time.time(), 3)})
            record = self._runs.update(run_id, state=state, timings=timings, progress=None)
            _LOG.info("%s %s", run_id, state)
        self._announce(record)

    def _registered(
        self,
        consumer: Consumer,
        delivery: Delivery,
        request: ArchiveRequest,
        version: int,
        metrics: dict[str, float],
    ) -> None:
        run_id = run_id_of(request.message_id)
        self._broker.emit(MODEL_REGISTERED, {"schema": 1, "version": version, "run_id": run_id, "metrics": metrics})
        if request.params.promote:
            self._pass_gate(version)
        self._store.delete(f"runs/{run_id}/checkpoint.pt")  # the registry knows from now on that the run is done
        record = self._runs.get(run_id)
        record = self._runs.update(
            run_id,
            state=RunState.REGISTERED,
            model=ModelRef(version=version),
            metrics=metrics,
            progress=None,
            timings=record.timings.changed(registered_at=round(time.time(), 3)),
        )
        self._metrics.datasets.labels(RunState.REGISTERED).inc()
        _LOG.info("%s registered as version %d", run_id, version)
        self._announce(record)
        consumer.settle([delivery], json_reply(delivery.message, record.reply()))

    def _pass_gate(self, version: int) -> None:
        """Promotes a version, or makes it the challenger."""
        gate = compare_registered(self._store, version)
        promotes = self._settings.auto_promote
        while promotes and gate.passed:
            if self._registry.promote_over(gate.champion, version, f"gate: {gate.reason}"):
                _LOG.info("version %d promoted: %s", version, gate.reason)
                promoted = {"schema": 1, "version": version, "reason": f"gate: {gate.reason}"}
                self._broker.emit(MODEL_PROMOTED, promoted)
                return
            gate = compare_registered(self._store, version)  # another version has become the champion meanwhile
        reason = f"gate: {gate.reason}" if not gate.passed else f"gate: a person has to promote it; {gate.reason}"
        _LOG.info("version %d not promoted: %s", version, reason)
        if gate.champion in (None, version):
            return
        if self._registry.challenge(version, reason, by="gate").challenger == version:
            self._broker.emit(MODEL_CHALLENGED, {"schema": 1, "version": version, "reason": reason})

    def _continuation(self, delivery: Delivery, request: ArchiveRequest, sha256: str | None) -> list[Outgoing]:
        """Returns the message with which any trainer carries the run on; until it is confirmed, this one is ours."""
        asked = delivery.message
        if sha256 is None:
            return [Outgoing(delivery.queue, asked)]  # nothing has happened yet
        message = by_reference(
            f"{STORE_SCHEME}datasets/{sha256}/archive.zip",
            name=request.name,
            sha256=sha256,
            params=request.params,
            labels=request.labels,
            message_id=request.message_id,
            reply_to=asked.reply_to,
            correlation_id=asked.correlation_id,
        )
        return [Outgoing(self._broker.topology.continuations, message)]

    def _end(self, delivery: Delivery, run_id: str, state: RunState, error: GenderlineError) -> list[Outgoing]:
        """Ends a run without a model. Returns the reply."""
        self._runs.create(
            run_id, message_id=delivery.message.message_id, name="archive", params=None, state=RunState.QUEUED
        )
        reply = {"run_id": run_id, "status": state.value, "error": error.as_dict()}
        try:
            record = self._runs.get(run_id)
        except DamagedRecord as damage:  # nothing can be noted there; the asker gets a reply all the same
            _LOG.error("%s %s: %s; %s", run_id, state, error, damage)
            return json_reply(delivery.message, reply)
        if record.state.is_final:  # of an earlier message with the same id, which this one cannot undo
            return json_reply(delivery.message, reply)
        if state != RunState.FAILED:  # a failed run goes on from it once its dead letter is sent back
            self._store.delete(f"runs/{run_id}/checkpoint.pt")
        record = self._runs.update(run_id, state=state, error=Fault.of(error), progress=None)
        self._metrics.datasets.labels(state).inc()
        _LOG.warning("%s %s: %s", run_id, state, error)
        self._announce(record)
        return json_reply(delivery.message, record.reply())

    def _announce(self, record: Run) -> None:
        self._broker.emit(run_state_topic(record.state), {"schema": 1, **record.reply()})


class _Guard:
    """Watches over a run from a thread of its own: renews the lease, and knows when and why to stop."""

    def __init__(self, lease: Lease, all_runs: Runs, run_id: str, settings: Settings, stop: threading.Event) -> None:
        self._lease = lease
        self._runs = all_runs
        self._run_id = run_id
        self._settings = settings
        self._stop = stop
        self._reason: Exception | None = None
        self._over = threading.Event()
        self._hand_over_at = time.monotonic() + settings.handover_s

    def __enter__(self) -> _Guard:
        threading.Thread(target=self._watch, name="run-guard", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        renew_every_s = self._settings.lease_s / 4
        renewed = time.monotonic()
        while not self._over.wait(min(_EVENT_EVERY_S, renew_every_s)):
            try:
                if time.monotonic() - renewed >= renew_every_s:
                    self._lease.renew()
                    renewed = time.monotonic()
                if self._runs.cancel_requested(self._run_id):
                    self._reason = Cancelled("cancelled by a user")
            except LeaseLost as error:
                self._reason = error
                return
            except Retryable as error:
                _LOG.warning("%s: %s", self._run_id, error)

    def should_yield(self) -> bool:
        """Returns whether training, which resumes from its checkpoint, must stop or has had its share of time."""
        return self._reason is not None or self._stop.is_set() or time.monotonic() > self._hand_over_at

    def checkpoint(self) -> None:
        """Raises why the run must stop, if it must.

        That time is over is no reason: a step that cannot resume would take as long the next time. Should the broker
        lose patience and give the message out again meanwhile, the lease keeps others from working on it.
        """
        if self._reason is not None:
            raise self._reason
        if self._stop.is_set():
            raise HandOver("the trainer is shutting down")


class _Watcher:
    """Passes progress on: an event a second, and now and then the run's record."""

    def __init__(
        self, broker: Broker, all_runs: Runs, run_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._broker = broker
        self._runs = all_runs
        self._run_id = run_id
        self._clock = clock
        self._stage: str | None = None
        self._emitted = self._recorded = -float("inf")

    def on_progress(self, progress: Progress) -> None:
        now = self._clock()
        new_stage, self._stage = progress.stage != self._stage, progress.stage
        done = progress.done == progress.total
        if new_stage or done or now - self._emitted >= _EVENT_EVERY_S:
            self._emitted = now
            self._broker.emit(RUN_PROGRESS, {"schema": 1, "run_id": self._run_id, "progress": progress.as_dict()})
        if new_stage or now - self._recorded >= _RECORD_EVERY_S:
            self._recorded = now
            self._runs.update(self._run_id, progress=progress)

    def on_epoch(self, row: EpochRow) -> None:
        self._broker.emit(RUN_EPOCH, {"schema": 1, "run_id": self._run_id, "row": row.as_dict()})
