"""The datasets queue: each dataset becomes a run, which is seen through, answered, and handed over in time."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from shared.archives.archive import Archive, ArchiveLimits
from shared.archives.fetch import fetch_archive
from shared.broker.base import RETRIED_AT, Message, Outgoing
from shared.errors import Cancelled, GenderlineError, InvalidDataset, InvalidMessage, Retryable
from shared.events import Emit, ModelChallenged, ModelPromoted, ModelRegistered
from shared.messages import ArchiveRequest, by_reference, json_reply, parse_dataset, request_digest, run_id_of
from shared.records.dataset import LABELS_JSON, archive_key, dataset_id
from shared.records.model_card import ModelCard
from shared.records.record import DamagedRecord, Fault, ModelRef, RecordEnded
from shared.records.runs import Run, Runs, RunState
from shared.runtime.settings import Settings
from shared.runtime.tempdir import temp_folder
from shared.store.base import STORE_SCHEME, Store, sha256_of
from shared.store.lease import Lease, LeaseLost, Leases
from shared.telemetry.metrics import TrainerMetrics
from shared.topology import Topology
from shared.worker.loop import Context, Defer, Done, Handler, Outcome
from trainer.data.labelling.recognize import recognize_labels
from trainer.pipeline import Pipeline
from trainer.release.promotion_gate import pass_gate
from trainer.run_monitor import HandOver, RunMonitor, announce
from trainer.training.train import Interrupted

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, and what its replies need to know of its message."""

    message: Message
    request: ArchiveRequest
    run_id: str


class DatasetHandler(Handler[_Asked]):
    """Trains what comes over the datasets queue, one run at a time, and carries on what was handed over.

    A run belongs to its `message_id`, whoever trains it and however often it comes: the store's lease decides who may
    work on it, the checkpoint where it goes on, and the record whether there is anything left to do.

    Args:
        store: where everything lies.
        settings: limits and times.
        metrics: told how runs end.
        pipeline: does the work of a run.
        emit: tells events.
        topology: names the queue of continuations.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        metrics: TrainerMetrics,
        pipeline: Pipeline,
        emit: Emit,
        topology: Topology,
    ) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._pipeline = pipeline
        self._emit = emit
        self._topology = topology
        self._runs = Runs(store)
        self._leases = Leases(store, settings.lease_s)
        self.busy: str | None = None
        """The run that is being worked on, for the heartbeat."""

    def parse(self, message: Message) -> _Asked:
        return _Asked(message, parse_dataset(message), run_id_of(message.message_id))

    def handle(self, requests: Sequence[_Asked], context: Context) -> Sequence[Outcome]:
        (asked,) = requests
        lease = self._leases.lease(f"runs/{asked.run_id}")
        try:
            return [self._handle(asked, lease, context)]
        except (LeaseLost, RecordEnded) as error:  # another trainer works on it, or has ended it
            _LOG.warning("%s: %s", asked.run_id, error)
            return [Defer(self._settings.lease_s / 2)]
        finally:
            self.busy = None
            try:
                lease.release()
            except Retryable as error:
                _LOG.warning("%s: lease not released: %s", asked.run_id, error)

    def fail(self, message: Message, error: GenderlineError) -> Sequence[Outgoing]:
        run_id = run_id_of(message.message_id)
        state = RunState.REJECTED if isinstance(error, InvalidMessage) else RunState.FAILED
        reply = json_reply(message, {"run_id": run_id, "status": state.value, "error": error.as_dict()})
        fault = Fault.of(error)
        if self._runs.create(
            run_id, message_id=message.message_id, name="archive", params=None, state=state, error=fault
        ):
            run = self._runs.get(run_id)
            self._tell_end(run)
            return json_reply(message, run.reply())
        lease = self._leases.lease(f"runs/{run_id}")
        try:
            run = self._runs.get(run_id)
            is_others = isinstance(error, InvalidMessage) and run.request_sha256 != request_digest(message)
            if is_others or run.state.is_final or not lease.acquire():
                return reply  # another message with the same id has made the run, and is trained or done
            return self._end(message, run_id, state, error, lease)
        except (DamagedRecord, LeaseLost, RecordEnded) as failure:  # the asker gets a reply all the same
            _LOG.error("%s %s: %s; %s", run_id, state, error, failure)
            return reply
        finally:
            lease.release()

    def _handle(self, asked: _Asked, lease: Lease, context: Context) -> Outcome:
        run_id, request = asked.run_id, asked.request
        digest = request_digest(asked.message)
        self._runs.create(
            run_id,
            message_id=request.message_id,
            name=request.name,
            params=request.params,
            edits=request.edits,
            train=request.train,
            request_sha256=digest,
        )
        run = self._runs.get(run_id)
        if not self._continues(run, request):
            run.require_request(digest)
        self._reopen(asked)
        if not self._runs.get(run_id).state.is_final and not lease.acquire():
            # Somebody trains it right now: a duplicate, or a message that the broker gave out again too early.
            return Defer(self._settings.lease_s / 2)
        run = self._runs.get(run_id)  # now that nobody else can end it
        if run.state.is_final:
            _LOG.info("%s came again; it is %s", run_id, run.state)
            if run.state is not RunState.FAILED:  # left behind by an owner that was killed as it ended the run
                self._pipeline.discard(run_id)
            announce(run, self._emit)
            return Done(json_reply(asked.message, run.reply()))
        self.busy = run_id
        runs = Runs(lease.store)
        with RunMonitor(lease, runs, run_id, self._settings, self._emit, context.stopping) as monitor:
            try:
                return Done(self._work(asked, lease, monitor, context))
            except HandOver as why:
                _LOG.info("%s handed over: %s", run_id, why)
                return Done(self._continuation(asked))
            except Cancelled as error:
                return Done(self._end(asked.message, run_id, RunState.CANCELLED, error, lease))
            except InvalidDataset as error:
                return Done(self._end(asked.message, run_id, RunState.REJECTED, error, lease))

    def _continues(self, run: Run, request: ArchiveRequest) -> bool:
        """Returns whether a request is the continuation of a run: of its archive, and with all that it was asked."""
        asked, told = ((it.params, it.edits, it.train) for it in (run, request))
        return request.uri == f"{STORE_SCHEME}datasets/{run.dataset}/archive.zip" and asked == told

    def _reopen(self, asked: _Asked) -> None:
        """Opens a run again whose message became a dead letter and was sent back, once for each time."""
        retried_at = asked.message.headers.get(RETRIED_AT)
        if retried_at is None or not self._runs.get(asked.run_id).is_opened_by(retried_at):
            return
        run = self._runs.reopen(asked.run_id, retried_at)
        _LOG.info("%s opened again: it was sent back from the dead letters", asked.run_id)
        announce(run, self._emit)

    def _work(self, asked: _Asked, lease: Lease, monitor: RunMonitor, context: Context) -> list[Outgoing]:
        """Carries a run on, as its owner, to its model. Returns the reply."""
        if self._runs.cancel_requested(asked.run_id):
            raise Cancelled("cancelled by a user")
        dataset = self._accept(asked, lease, context)
        pipeline = self._pipeline.with_store(lease.store)
        try:
            if not asked.request.train:
                pipeline.ingest(dataset, monitor)
                return self._end_ingested(asked, lease)
            request = asked.request
            card = pipeline.run(asked.run_id, request.name, dataset, request.params, monitor, request.edits)
        except Interrupted:
            monitor.raise_if_stopped()  # raises why, unless it was time
            raise HandOver(f"{self._settings.handover_s:g} s are over") from None
        return self._register(asked, card, lease)

    def _accept(self, asked: _Asked, lease: Lease, context: Context) -> str:
        """Makes sure that the archive lies in the store, and says so and what its labels are, once.

        Returns:
            The dataset's id.
        """
        run, request = self._runs.get(asked.run_id), asked.request
        if run.dataset:
            return run.dataset
        with (
            temp_folder() as folder,
            fetch_archive(request, self._store, self._settings, folder) as path,
        ):
            with Archive(path, ArchiveLimits.from_settings(self._settings)) as archive:
                labels = recognize_labels(archive, request.labels).report
            sha256 = request.sha256 or sha256_of(path)
            dataset = dataset_id(sha256, request.labels)
            if request.labels is not None:
                self._store.put_json(f"datasets/{dataset}/{LABELS_JSON}", request.labels.as_dict())
            key = archive_key(dataset)
            is_there = request.uri == f"{STORE_SCHEME}{key}"
            if not is_there and not self._store.holds(key, path.stat().st_size, sha256):
                is_ours = path.is_relative_to(folder)  # and may be moved into the store
                self._store.put_file(key, path if is_ours else shutil.copyfile(path, folder / "copy.zip"))
        context.send(json_reply(asked.message, run.changed(labels=labels).reply(RunState.ACCEPTED)))
        run = Runs(lease.store).update(
            asked.run_id,
            state=RunState.ACCEPTED,
            dataset=dataset,
            labels=labels,
            params=request.params,
            name=request.name,
        )
        announce(run, self._emit)
        _LOG.info("%s accepted: %s; %s", asked.run_id, request.name, labels.text)
        return dataset

    def _register(self, asked: _Asked, card: ModelCard, lease: Lease) -> list[Outgoing]:
        """Announces a run's model, which is in the registry by now, and ends the run. Returns the reply."""
        run_id, version = asked.run_id, card.version
        self._emit(*ModelRegistered(version=version, run_id=run_id, metrics=card.metrics).wire())
        if asked.request.params.promote:
            self._pass_gate(version)
        timings = self._runs.get(run_id).timings
        run = Runs(lease.store).update(
            run_id,
            state=RunState.REGISTERED,
            model=ModelRef(version=version),
            metrics=card.metrics,
            progress=None,
            timings=timings.changed(registered_at=round(time.time(), 3)),
        )
        self._pipeline.with_store(lease.store).discard(run_id)
        self._metrics.datasets.labels(RunState.REGISTERED).inc()
        _LOG.info("%s registered as version %d", run_id, version)
        announce(run, self._emit)
        return json_reply(asked.message, run.reply())

    def _end_ingested(self, asked: _Asked, lease: Lease) -> list[Outgoing]:
        """Ends a run that only reads its dataset. Returns the reply."""
        run = Runs(lease.store).update(asked.run_id, state=RunState.INGESTED, progress=None)
        self._metrics.datasets.labels(RunState.INGESTED).inc()
        _LOG.info("%s ingested", asked.run_id)
        announce(run, self._emit)
        return json_reply(asked.message, run.reply())

    def _pass_gate(self, version: int) -> None:
        """Promotes a version, or makes it the challenger, and says so."""
        outcome = pass_gate(self._store, version, promote=self._settings.auto_promote)
        _LOG.info("version %d %s: %s", version, "promoted" if outcome.promoted else "not promoted", outcome.reason)
        if outcome.promoted:
            self._emit(*ModelPromoted(version=version, reason=outcome.reason).wire())
        elif outcome.challenges:
            self._emit(*ModelChallenged(version=version, reason=outcome.reason).wire())

    def _continuation(self, asked: _Asked) -> list[Outgoing]:
        """Returns the message with which any trainer carries the run on; until it is confirmed, this one is ours."""
        message, request = asked.message, asked.request
        dataset = self._runs.get(asked.run_id).dataset
        if dataset is None:
            return [Outgoing(self._topology.datasets, message)]  # nothing has happened yet
        continuation = by_reference(
            f"{STORE_SCHEME}{archive_key(dataset)}",
            name=request.name,
            sha256=dataset,
            params=request.params,
            labels=request.labels,
            edits=request.edits,
            train=request.train,
            message_id=request.message_id,
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
        )
        return [Outgoing(self._topology.continuations, continuation)]

    def _end(
        self, message: Message, run_id: str, state: RunState, error: GenderlineError, lease: Lease
    ) -> list[Outgoing]:
        """Ends a run without a model, as its owner. Returns the reply."""
        run = Runs(lease.store).update(run_id, state=state, error=Fault.of(error), progress=None)
        if state != RunState.FAILED:  # a failed run goes on from its checkpoint once its dead letter is sent back
            self._pipeline.with_store(lease.store).discard(run_id)
        self._tell_end(run)
        return json_reply(message, run.reply())

    def _tell_end(self, run: Run) -> None:
        """Tells everyone that a run has ended without a model."""
        self._metrics.datasets.labels(run.state).inc()
        _LOG.warning("%s %s: %s", run.run_id, run.state, run.error and run.error.message)
        announce(run, self._emit)
