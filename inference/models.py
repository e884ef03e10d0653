"""Which model serves: the champion, followed by events and by polling, and the versions that messages pin."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import Final, Literal

from inference.session import ServedModel, load_model, release_freed_memory
from shared.broker.base import Broker
from shared.errors import GenderlineError, InvalidMessage, InvalidModel, NotFound, Retryable
from shared.metrics import InferenceMetrics
from shared.registry import Registry
from shared.store import Store
from shared.topology import MODEL_PROMOTED

_POLL_S: Final = 2.0
_FAILED_PAUSE_S: Final = 30.0
_PINNED_KEPT: Final = 2
_LOG = logging.getLogger(__name__)


class Models:
    """The models of one worker process.

    A new champion is loaded, verified, warmed up and probed in a thread of its own beside the old one; then one
    assignment swaps them, which batches see between two runs. If anything fails, the old one goes on serving.

    Args:
        store: where the registry lies.
        provider: where models shall run.
        metrics: told of swaps and of what serves.
    """

    def __init__(self, store: Store, provider: Literal["auto", "cpu", "cuda"], metrics: InferenceMetrics) -> None:
        self._store = store
        self._registry = Registry(store)
        self._provider = provider
        self._metrics = metrics
        self._champion: ServedModel | None = None
        self._there_is_one = threading.Event()
        self._pinned: OrderedDict[int, ServedModel] = OrderedDict()
        self._pinned_lock = threading.Lock()
        self._failed: tuple[int, float] | None = None  # a version, and when to try it again on the monotonic clock

    @property
    def champion(self) -> ServedModel | None:
        """The model that serves now; take it once a batch."""
        return self._champion

    def wait_for_champion(self, timeout_s: float) -> bool:
        """Waits until there is a model to serve. Returns whether there is."""
        return self._there_is_one.wait(timeout_s)

    def get(self, version: int) -> ServedModel:
        """Returns a version that a message or job pins; the last few stay loaded.

        Raises:
            InvalidMessage: code `unknown_model_version`.
            Retryable: it is registered, but the store is away or the file is broken.
        """
        champion = self._champion
        if champion is not None and champion.version == version:
            return champion
        with self._pinned_lock:
            if version in self._pinned:
                self._pinned.move_to_end(version)
                return self._pinned[version]
            try:
                model = load_model(self._store, version, self._provider)
            except NotFound as error:
                raise InvalidMessage(str(error), code="unknown_model_version") from None
            except InvalidModel as error:
                raise Retryable(str(error), code="invalid_model") from error
            self._pinned[version] = model
            while len(self._pinned) > _PINNED_KEPT:
                self._pinned.popitem(last=False)
                release_freed_memory()
            return model

    def follow(self, broker: Broker, stop: threading.Event) -> None:
        """Keeps the champion up to date until `stop`: at once upon an event, and every two seconds without one."""
        with broker.subscribe([MODEL_PROMOTED]) as events:
            while not stop.is_set():
                self.refresh()
                try:
                    events.take(_POLL_S)
                except Retryable:
                    stop.wait(_POLL_S)  # no events for now; the store still tells

    def refresh(self) -> None:
        """Loads the champion if it is not the one that serves."""
        try:
            wanted = self._registry.aliases().champion
        except Retryable as error:
            _LOG.warning("cannot see which model is champion: %s", error)
            return
        now = self._champion
        if wanted is None or (now is not None and now.version == wanted):
            return
        if self._failed is not None and self._failed[0] == wanted and time.monotonic() < self._failed[1]:
            return
        try:
            model = load_model(self._store, wanted, self._provider)
        except GenderlineError as error:
            self._metrics.swaps.labels("failed").inc()
            self._failed = (wanted, time.monotonic() + _FAILED_PAUSE_S)
            serving = f"version {now.version} goes on serving" if now else "nothing serves yet"
            _LOG.error("model version %d not taken (%s): %s", wanted, serving, error)
            return
        self._champion = model
        self._there_is_one.set()
        self._metrics.swaps.labels("ok").inc()
        self._metrics.model_info.labels(str(model.version), model.provider).set(1)
        if now is not None:
            # Label sets shared between processes cannot be removed, only set to nothing.
            self._metrics.model_info.labels(str(now.version), now.provider).set(0)
        _LOG.info("serving version %d on %s in %s", model.version, model.provider, model.precision)
        release_freed_memory()
