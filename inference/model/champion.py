"""Which model serves: the champion, followed by events and by polling, and the versions that messages pin."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from inference.model.loader import (
    KillsProcess,
    ProviderChoice,
    ProviderUnavailable,
    ServedModel,
    Survives,
    load_model,
    release_freed_memory,
)
from inference.model.run_journal import DEATHS, RunJournal
from shared.broker.base import Broker, Subscription
from shared.errors import GenderlineError, InvalidMessage, InvalidModel, NotFound, Retryable
from shared.records.registry import Aliases, Registry
from shared.store.base import Store
from shared.telemetry.metrics import InferenceMetrics
from shared.topology import MODEL_CHALLENGED, MODEL_PROMOTED

_POLL_S: Final = 2.0
_WAIT_S: Final = 0.5
"""How long a stop may go unnoticed."""
_FAILED_PAUSE_S: Final = 30.0
_AWAY_PAUSE_S: Final = 5.0
_PINNED_KEPT: Final = 2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """A version that is not served."""

    version: int
    message: str


class Models:
    """The models of one worker process.

    A new champion is verified, loaded, warmed up and probed in a thread of its own beside the old one; then one
    assignment swaps them, which batches see between two runs. If anything fails, the old one goes on serving.

    Args:
        store: where the registry lies.
        provider: where models shall run.
        metrics: told of swaps and of what serves.
        survives: as `ModelProber.survives`.
        journal: of this worker's runs; None keeps none.
    """

    def __init__(
        self,
        store: Store,
        provider: ProviderChoice,
        metrics: InferenceMetrics,
        survives: Survives = lambda *_: True,
        journal: RunJournal | None = None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._registry = Registry(store)
        self._provider = provider
        self._metrics = metrics
        self._survives = survives
        self._champion: ServedModel | None = None
        self._there_is_one = threading.Event()
        self._pinned: OrderedDict[int, ServedModel] = OrderedDict()
        self._pinned_lock = threading.Lock()
        self._loading_lock = threading.Lock()  # so that a pinned version is loaded once; held for as long as that takes
        self._served: dict[int, str] = {}  # versions, and the SHA-256 that their cards had when they were first loaded
        self._failed: dict[int, float] = {}  # versions, and when to try them again on the monotonic clock
        self._failed_pins: dict[int, tuple[float, Exception]] = {}  # when to try them again, and the error until then
        self.challenger: int | None = None
        """The version that the aliases name as challenger."""
        self.refused: Refused | None = None
        """The champion or previous champion that this worker does not serve, and why."""

    @property
    def champion(self) -> ServedModel | None:
        """The model that serves now; take it once a batch."""
        return self._champion

    @property
    def left_running(self) -> frozenset[int]:
        """The versions that ran when the worker before this one died."""
        return frozenset() if self._journal is None else self._journal.left_running

    def wait_for_champion(self, timeout_s: float) -> bool:
        """Waits until there is a model to serve. Returns whether there is."""
        return self._there_is_one.wait(timeout_s)

    def loaded(self, version: int) -> ServedModel | None:
        """Returns a version without waiting, None where it would have to be loaded."""
        champion = self._champion
        if champion is not None and champion.version == version:
            return champion
        with self._pinned_lock:
            if version in self._pinned:
                self._pinned.move_to_end(version)
            return self._pinned.get(version)

    def get(self, version: int) -> ServedModel:
        """Returns a version that a message or job pins; the last few stay loaded.

        One that failed fails again without being tried, for a while: messages wait for each trial.

        Raises:
            InvalidMessage: code `unknown_model_version`.
            InvalidModel: it is registered, but broken.
            Retryable: the store is away.
        """
        if (model := self.loaded(version)) is not None:
            return model
        with self._loading_lock:
            if (model := self.loaded(version)) is not None:  # by another thread, a moment ago
                return model
            again_at, failure = self._failed_pins.get(version, (0.0, None))
            if failure is not None and time.monotonic() < again_at:
                raise failure.with_traceback(None)
            try:
                model = self.load(version)
            except NotFound as error:
                raise InvalidMessage(str(error), code="unknown_model_version") from None
            except Exception as error:
                pause_s = _AWAY_PAUSE_S if isinstance(error, Retryable) else _FAILED_PAUSE_S
                self._failed_pins[version] = time.monotonic() + pause_s, error
                raise
            with self._pinned_lock:
                self._keep_pinned(model)
            return model

    def load(self, version: int) -> ServedModel:
        """Loads a version beside those that serve.

        Raises:
            KillsProcess: workers have died while it ran.
            InvalidModel: it is not the model that it was when this process loaded it first.
            Exception: as `load_model` says.
        """
        if (refusal := self._registry.refusal(version)) is not None:
            raise KillsProcess(f"version {version} was refused at {refusal.at}: {refusal.reason}")
        model = load_model(self._store, version, self._provider, self._survives)
        first, now = self._served.setdefault(version, model.card.file.sha256), model.card.file.sha256
        if now != first:
            raise InvalidModel(
                f"version {version}: its card says the SHA-256 {now}; it was {first} when this version was loaded "
                "before. A version never changes: put the files back, or register the model as a new version"
            )
        return model if self._journal is None else replace(model, run=self._journal.watched(version, model.run))

    def _keep_pinned(self, model: ServedModel) -> None:
        self._pinned[model.version] = model
        while len(self._pinned) > _PINNED_KEPT:
            self._pinned.popitem(last=False)
            release_freed_memory()

    def follow(self, broker: Broker, stop: threading.Event) -> None:
        """Keeps the champion up to date until `stop`: at once upon an event, and every two seconds without one.

        Raises:
            ProviderUnavailable: the settings insist on CUDA, and it turned out not to work before anything served.
        """
        while not stop.is_set():
            try:
                with broker.subscribe([MODEL_PROMOTED, MODEL_CHALLENGED]) as events:
                    self.refresh()
                    while not stop.is_set():
                        self.refresh(at_once=self._changed(events, stop))
            except Retryable:
                self.refresh()  # no events for now; the store still tells
                stop.wait(_POLL_S)

    def _changed(self, events: Subscription, stop: threading.Event) -> bool:
        """Waits until the aliases changed, or it is time to look. Returns whether they did."""
        deadline = time.monotonic() + _POLL_S
        while not stop.is_set() and time.monotonic() < deadline:
            if events.receive(_WAIT_S):
                return True
        return False

    def refresh(self, *, at_once: bool = False) -> None:
        """Loads the champion if it is not the one that serves; whatever goes wrong, what serves goes on serving.

        Where nothing serves and the champion is broken, the previous one is better than none.

        Args:
            at_once: try again even what has failed a moment ago.
        """
        if at_once:
            self._failed.clear()
        self._forget_failed_pins(at_once=at_once)
        try:
            aliases = self._registry.aliases()
        except Exception as error:  # the store is away, or somebody has spoiled the file
            _LOG.warning("cannot see which model is champion: %s", error)
            return
        self.challenger = aliases.challenger
        self._refuse_killers(aliases)
        if self.refused is not None and self.refused.version not in {aliases.champion, aliases.previous}:
            self.refused = None
        for wanted in (aliases.champion, aliases.previous):
            if wanted is not None and (self._serves(wanted) or self._swap_to(wanted)):
                return
            if self._champion is not None:
                return

    def _forget_failed_pins(self, *, at_once: bool) -> None:
        """Forgets failures that are over: an error keeps alive what its traceback leads to, such as images."""
        now = time.monotonic()
        for version, (again_at, _) in list(self._failed_pins.items()):
            if at_once or now >= again_at:
                self._failed_pins.pop(version, None)

    def _refuse_killers(self, aliases: Aliases) -> None:
        """Keeps every worker from versions that this worker's predecessors died of, where another one can serve."""
        if self._journal is None:
            return
        killers = self._journal.killers
        # Another version that ran at the same time is more likely the cause than the one that serves everybody.
        killers = [version for version in killers if version != aliases.champion] or killers
        if not killers or (killers == [aliases.champion] and aliases.previous in {None, aliases.champion}):
            return
        reason = f"{DEATHS} workers in a row died while it ran. To try it again, promote it once more"
        for version in killers:
            try:
                self._registry.refuse(version, reason)
            except Retryable as error:
                _LOG.warning("version %d is not refused yet: %s", version, error)
                return
            _LOG.error("version %d is refused: %s", version, reason)
        self._journal.forget()

    def _serves(self, version: int) -> bool:
        return self._champion is not None and self._champion.version == version

    def _swap_to(self, version: int) -> bool:
        """Puts a version in the place of what serves, if it is good. Returns whether it did."""
        if time.monotonic() < self._failed.get(version, 0.0):
            return False
        now = self._champion
        try:
            model = self.load(version)
        except Exception as error:
            if now is None and isinstance(error, ProviderUnavailable):
                raise
            self._metrics.swaps.labels("crashed" if isinstance(error, KillsProcess) else "failed").inc()
            if not isinstance(error, Retryable):
                self._failed[version] = time.monotonic() + _FAILED_PAUSE_S
                self.refused = Refused(version, str(error))
            serving = f"version {now.version} goes on serving" if now else "nothing serves yet"
            # Of our own errors the text is enough; anything else is a bug.
            trace = None if isinstance(error, GenderlineError) else error
            _LOG.error("model version %d not taken (%s): %s", version, serving, error, exc_info=trace)
            return False
        self._champion = model
        self._there_is_one.set()
        if self.refused is not None and self.refused.version == version:
            self.refused = None
        self._metrics.swaps.labels("ok").inc()
        with self._pinned_lock:
            self._pinned.pop(version, None)
            if now is not None:
                self._keep_pinned(now)  # the jobs under way go on with it
        if now is not None:
            # Label sets shared between processes cannot be removed, only set to nothing.
            self._metrics.model_info.labels(str(now.version), now.provider).set(0)
        self._metrics.model_info.labels(str(model.version), model.provider).set(1)
        _LOG.info("serving version %d on %s in %s by %s", model.version, model.provider, model.precision, model.runtime)
        release_freed_memory()
        return True
