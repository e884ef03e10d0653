"""The weights that training begins from, by what the parameter `init` names, and the teacher that `distil` names."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.archives.fetch import open_allowed
from shared.errors import InvalidMessage, NotFound, short_repr
from shared.params import Network, TrainingParams, named_version
from shared.records.model_card import CardStart, ModelCard
from shared.records.registry import WEIGHTS_FILE, Registry
from shared.runtime.settings import Settings
from shared.store.base import Store
from trainer.data.dataset import Dataset
from trainer.data.near_duplicates import dhash_all
from trainer.data.seen import find_seen, read_seen
from trainer.release.lineage import find_learned
from trainer.training.loss import Teacher
from trainer.training.model import NETWORKS, build_network
from trainer.training.starter import STARTER_NETWORK, Weights, load_starter, load_weights

_MAX_BYTES: Final = 2**28


@dataclass(frozen=True, slots=True)
class Start:
    """Weights to begin from.

    Attributes:
        network: whose they are.
        mirrors: whether they answer with the mean of a face and its mirror image.
        weights: None stands for the starter's, which every process has.
        card: where they come from.
        seen: uint64 (N, 2), the hashes of `dhash` of the faces that they have seen, where they come from a file.
    """

    network: Network
    mirrors: bool
    weights: Weights | None
    card: CardStart
    seen: NDArray[np.uint64] | None = None


def find_start(
    init: str, dataset: Dataset, store: Store, settings: Settings, check_cancelled: Callable[[], None] = lambda: None
) -> Start:
    """Returns the weights that `init` names, once it is sure that they have not seen the dataset's held-out faces.

    Args:
        init: as in `TrainingParams`; `auto`, `starter` and `scratch` give the starter. `auto` uses it only where
            `starter_helps`.
        dataset: to be trained on.
        store: holds the registered models.
        settings: name the roots that files may lie in.
        check_cancelled: called several times a second; what it raises ends the search.

    Raises:
        InvalidMessage: there are no such weights, they cannot be read, or they have seen faces that are held out.
    """
    if (version := named_version(init)) is not None:
        return _of_version(version, dataset, store, check_cancelled)
    if init.startswith("file:"):
        return _of_file(init, dataset, settings, check_cancelled)
    if init == "starter":
        _require_unseen("init", init, find_seen(dhash_all(dataset.faces, dataset.held_out, check_cancelled)))
    return Start(STARTER_NETWORK, False, None, CardStart.model_validate(load_starter().card))


def find_teacher(
    distil: str, dataset: Dataset, store: Store, check_cancelled: Callable[[], None] = lambda: None
) -> Teacher | None:
    """Returns the teacher that `distil` names, once it is sure that it has not seen the dataset's held-out faces.

    Args:
        distil: as in `TrainingParams`.
        dataset: to be trained on.
        store: holds the registered models.
        check_cancelled: called several times a second; what it raises ends the search.

    Raises:
        InvalidMessage: there is no such model, or it cannot teach on this dataset.
    """
    if (version := named_version(distil)) is None:
        return None
    card, weights = _open_version("distil", version, dataset, store, check_cancelled)
    if card.params["network"] == "reference":
        raise InvalidMessage(
            f"distil is {distil}, a model of the network reference, which reads faces of another size than all others",
            code="invalid_params",
        )
    return Teacher(card.params["network"], weights)


def _open_version(
    role: str, version: int, dataset: Dataset, store: Store, check_cancelled: Callable[[], None]
) -> tuple[ModelCard, Weights]:
    """Returns a registered model's card and weights; `role` is the parameter that names it."""
    try:
        card = Registry(store).card(version)
    except NotFound as error:
        raise InvalidMessage(f"{role}: {error}", code="invalid_params") from None
    key = Registry.weights_key(version)
    if not store.exists(key):
        raise InvalidMessage(
            f"{role} is gender:{version}, registered without {WEIGHTS_FILE}; expected a version of this release",
            code="invalid_params",
        )
    name = f"gender:{version}"
    weights = _read(role, name, card.params["network"], store.get(key))
    _require_unseen(role, name, find_learned(store, card, dataset, dataset.held_out, check_cancelled))
    return card, weights


def _of_version(version: int, dataset: Dataset, store: Store, check_cancelled: Callable[[], None]) -> Start:
    card, weights = _open_version("init", version, dataset, store, check_cancelled)
    return Start(
        network=card.params["network"],
        mirrors=bool(card.params.get("mirror", False)),
        weights=weights,
        card=CardStart(
            name=f"gender:{version}",
            source=card.dataset.name,
            archive_sha256=card.dataset.sha256,
            faces=card.dataset.counts["train"],
        ),
    )


def _of_file(uri: str, dataset: Dataset, settings: Settings, check_cancelled: Callable[[], None]) -> Start:
    stem = uri.removesuffix(".npz")
    try:
        card = json.loads(_bytes_at(f"{stem}.json", settings))
        seen = read_seen(_bytes_at(f"{stem}_seen.npy", settings))
        network, origin = card["network"], CardStart.model_validate(card)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InvalidMessage(f"init: the card or the hashes beside {uri} cannot be read: {error}") from None
    weights = _read("init", uri, network, _bytes_at(uri, settings))
    _require_unseen("init", uri, find_seen(dhash_all(dataset.faces, dataset.held_out, check_cancelled), seen))
    return Start(network, False, weights, origin, seen)


def _bytes_at(uri: str, settings: Settings) -> bytes:
    with open_allowed(uri, settings.allowed_roots) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InvalidMessage(f"init: found a file of more than {_MAX_BYTES:,} bytes at {uri}", code="invalid_params")
    return data


def _read(role: str, name: str, network: str, data: bytes) -> Weights:
    """Reads weights, and makes sure that they fit their network."""
    try:
        if network not in NETWORKS:
            raise ValueError(f"found network {short_repr(network)}; expected one of {', '.join(NETWORKS)}")
        weights = load_weights(io.BytesIO(data))
        build_network(network, dropout=0.0).load_state_dict(weights)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        first = str(error).splitlines()[0]
        raise InvalidMessage(
            f"{role} is {name}, whose weights cannot be used: {first}", code="invalid_params"
        ) from None
    return weights


def _require_unseen(role: str, name: str, seen: NDArray[np.bool_]) -> None:
    if seen.any():
        raise InvalidMessage(
            f"{role} is {name}, which has learned from {seen.sum():,} of the {len(seen):,} validation and test faces "
            f"of this dataset: every figure would lie. Leave {role} to {TrainingParams.model_fields[role].default}",
            code="invalid_params",
        )
