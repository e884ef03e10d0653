"""The weights that `init` names: a registered model's, a file's, and the starter's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.errors import Cancelled, InvalidMessage
from shared.records.model_card import CardStart
from shared.records.registry import Registry
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder
from trainer.data import seen
from trainer.data.dataset import open_dataset
from trainer.data.near_duplicates import dhash
from trainer.release.lineage import find_learned
from trainer.release.start import find_start, find_teacher
from trainer.training.model import build_network
from trainer.training.starter import Weights, load_starter, save_weights

ORIGIN = {"name": "ours", "network": "small", "source": "drawn", "archive_sha256": "a" * 64, "faces": 120}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def weights() -> Weights:
    return build_network("small", dropout=0.0).state_dict()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(allowed_roots=(tmp_path / "allowed",))


def noise(seed: int, faces: int = 60) -> NDArray[np.uint8]:
    """Returns faces that look like no others."""
    cells = np.random.default_rng(seed).integers(0, 256, (faces, 16, 16), np.uint8)
    return cells.repeat(8, axis=1).repeat(8, axis=2)


def version_of(
    store: FileStore,
    sha256: str,
    weights: Weights,
    tmp_path: Path,
    *,
    start: CardStart | None = None,
    distil: str = "none",
) -> int:
    """Registers a version that was trained on a dataset."""
    builder = StoreBuilder(store)
    version = builder.model(sha256, f"run-{sha256[:12]}", start=start, distil=distil)
    save_weights(weights, tmp_path / "weights.npz")
    store.put_file(Registry.weights_key(version), tmp_path / "weights.npz")
    return version


def written(folder: Path, weights: Weights, seen: NDArray[np.uint8], card: dict[str, object] = ORIGIN) -> str:
    """Writes what `make pretrain` writes. Returns its URI."""
    folder.mkdir()
    save_weights(weights, folder / "starter.npz")
    (folder / "starter.json").write_text(json.dumps(card))
    np.save(folder / "starter_seen.npy", dhash(seen))
    return (folder / "starter.npz").as_uri()


def refusal(init: str, store: FileStore, sha256: str, settings: Settings) -> str:
    with open_dataset(store, sha256) as dataset, pytest.raises(InvalidMessage) as caught:
        find_start(init, dataset, store, settings)
    return str(caught.value)


@pytest.mark.parametrize("init", ["auto", "starter", "scratch"])
def test_the_starter_is_what_auto_and_starter_name(init: str, store: FileStore, settings: Settings) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    with open_dataset(store, sha256) as dataset:
        start = find_start(init, dataset, store, settings)
    assert (start.network, start.weights, start.card.name) == ("compact", None, "starter")


def test_a_registered_version_is_begun_from_on_other_faces_and_on_its_own(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    second = StoreBuilder(store, 2).dataset(60, noise(2))
    version = version_of(store, first, weights, tmp_path)
    for sha256 in (first, second):
        with open_dataset(store, sha256) as dataset:
            start = find_start(f"gender:{version}", dataset, store, settings)
        assert start.network == "small"
        assert start.card.archive_sha256 == first
        assert start.weights is not None
        assert torch.equal(start.weights["gender.weight"], weights["gender.weight"].half().float())


def test_a_version_that_has_learned_from_held_out_faces_is_refused(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    grown = StoreBuilder(store, 2).dataset(80, np.concatenate([noise(1), noise(2, 20)]))
    version = version_of(store, first, weights, tmp_path)
    assert "validation and test faces of this dataset" in refusal(f"gender:{version}", store, grown, settings)
    mirrored = StoreBuilder(store, 3).dataset(60, np.ascontiguousarray(noise(1)[:, :, ::-1]))
    assert "validation and test faces of this dataset" in refusal(f"gender:{version}", store, mirrored, settings)


def test_the_starter_is_refused_by_name_where_it_has_seen_held_out_faces(
    store: FileStore, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    np.save(tmp_path / "seen.npy", dhash(noise(1)))
    monkeypatch.setattr(seen, "SEEN", tmp_path / "seen.npy")
    mirrored = StoreBuilder(store, 2).dataset(60, np.ascontiguousarray(noise(1)[:, :, ::-1]))
    for known in (sha256, mirrored):
        assert "init is starter, which has learned from" in refusal("starter", store, known, settings)
    with open_dataset(store, sha256) as dataset:
        find_start("auto", dataset, store, settings)  # which looks for itself


def test_a_version_is_refused_for_what_its_own_start_has_learned_from(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    second = StoreBuilder(store, 2).dataset(60, noise(2))
    third = StoreBuilder(store, 3).dataset(60, noise(3))
    grown = StoreBuilder(store, 4).dataset(80, np.concatenate([noise(1), noise(4, 20)]))
    np.save(tmp_path / "seen.npy", dhash(noise(3)))
    monkeypatch.setattr(seen, "SEEN", tmp_path / "seen.npy")
    starter = CardStart.model_validate(load_starter().card)
    before = version_of(store, first, weights, tmp_path, start=starter)
    after = version_of(
        store, second, weights, tmp_path, start=starter.changed(name=f"gender:{before}", archive_sha256=first)
    )

    def learned(sha256: str, version: int = after) -> float:
        with open_dataset(store, sha256) as dataset:
            card = Registry(store).card(version)
            return float(find_learned(store, card, dataset, dataset.held_out).mean())

    assert learned(third) == learned(third, before) == 1  # by the starter, at the beginning of both
    assert 0 < learned(grown) < 1
    assert learned(first, before) == 0
    assert "has learned from" in refusal(f"gender:{after}", store, grown, settings)
    assert "has learned from" in refusal(f"gender:{after}", store, third, settings)
    store.delete(f"models/gender/{before}")
    assert learned(third) == 0  # nobody knows any more
    assert 0 < learned(grown) < 1  # the card still names the dataset of what it began from


def test_what_the_start_of_a_version_has_seen_is_known_where_it_came_from_a_file(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    second = StoreBuilder(store, 2).dataset(60, noise(2))
    uri = written(tmp_path / "allowed", weights, noise(2), ORIGIN | {"name": "starter"})  # as `make pretrain` says
    with open_dataset(store, first) as dataset:
        start = find_start(uri, dataset, store, settings)
    version = version_of(store, first, weights, tmp_path, start=start.card)
    assert start.seen is not None
    np.save(tmp_path / "start_seen.npy", start.seen)
    store.put_file(Registry.start_seen_key(version), tmp_path / "start_seen.npy")
    assert "has learned from" in refusal(f"gender:{version}", store, second, settings)


def test_a_dataset_whose_edits_are_gone_is_still_one_that_a_version_has_learned_from(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    """It was deleted, and the edits with it, and its archive was submitted again."""
    first = StoreBuilder(store).dataset(60, noise(1))
    grown = StoreBuilder(store, 2).dataset(80, np.concatenate([noise(1), noise(2, 20)]))
    version = version_of(store, first, weights, tmp_path)
    card = Registry(store).card(version)
    store.put_json(Registry.card_key(version), card.changed(dataset=card.dataset.changed(edits="e" * 64)).as_dict())
    assert "has learned from" in refusal(f"gender:{version}", store, grown, settings)


def test_a_search_can_be_cancelled(store: FileStore, weights: Weights, settings: Settings, tmp_path: Path) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    second = StoreBuilder(store, 2).dataset(60, noise(2))
    version = version_of(store, first, weights, tmp_path)

    def cancel() -> None:
        raise Cancelled("cancelled by a user")

    with open_dataset(store, second) as dataset:
        for init in (f"gender:{version}", "starter", written(tmp_path / "allowed", weights, noise(3))):
            with pytest.raises(Cancelled):
                find_start(init, dataset, store, settings, cancel)
        with pytest.raises(Cancelled):
            find_teacher(f"gender:{version}", dataset, store, cancel)


def test_a_file_whose_hashes_are_something_else_is_refused(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    uri = written(tmp_path / "allowed", weights, noise(2))
    for found in (np.zeros(3, np.uint64), np.zeros((3, 2))):
        np.save(tmp_path / "allowed" / "starter_seen.npy", found)
        assert "expected uint64 (N, 2)" in refusal(uri, store, sha256, settings)
    (tmp_path / "allowed" / "starter_seen.npy").write_bytes(b"")
    assert "cannot be read" in refusal(uri, store, sha256, settings)


def test_a_registered_version_teaches_on_its_own_dataset_and_not_where_it_has_learned_from_held_out_faces(
    store: FileStore, weights: Weights, tmp_path: Path
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    grown = StoreBuilder(store, 2).dataset(80, np.concatenate([noise(1), noise(2, 20)]))
    version = version_of(store, first, weights, tmp_path)
    with open_dataset(store, first) as dataset:
        assert find_teacher("none", dataset, store) is None
        teacher = find_teacher(f"gender:{version}", dataset, store)
        assert teacher is not None
        assert teacher.network == "small"
        with pytest.raises(InvalidMessage, match=r"^distil: .*99"):
            find_teacher("gender:99", dataset, store)
    with open_dataset(store, grown) as dataset, pytest.raises(InvalidMessage) as caught:
        find_teacher(f"gender:{version}", dataset, store)
    assert str(caught.value).startswith(f"distil is gender:{version}, which has learned from")
    assert str(caught.value).endswith("Leave distil to none")


def test_a_version_is_refused_for_what_its_teacher_has_learned_from(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    first = StoreBuilder(store).dataset(60, noise(1))
    second = StoreBuilder(store, 2).dataset(60, noise(2))
    grown = StoreBuilder(store, 3).dataset(80, np.concatenate([noise(1), noise(3, 20)]))
    teacher = version_of(store, first, weights, tmp_path)
    taught = version_of(store, second, weights, tmp_path, distil=f"gender:{teacher}")
    assert "has learned from" in refusal(f"gender:{taught}", store, grown, settings)


def test_a_version_without_weights_and_one_that_is_not_there_are_refused(store: FileStore, settings: Settings) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    StoreBuilder(store).model(sha256, "run-000000000001")
    assert "registered without weights.npz" in refusal("gender:1", store, sha256, settings)
    assert "there is no model version 7" in refusal("gender:7", store, sha256, settings)


def test_a_file_is_begun_from_where_it_has_not_seen_the_held_out_faces(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    fresh = written(tmp_path / "allowed", weights, noise(2))
    with open_dataset(store, sha256) as dataset:
        start = find_start(fresh, dataset, store, settings)
    assert (start.network, start.card.name, start.card.faces) == ("small", "ours", 120)
    known = written(tmp_path / "allowed" / "known", weights, noise(1))
    assert "every figure would lie" in refusal(known, store, sha256, settings)


def test_a_file_outside_of_the_allowed_roots_is_refused(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    uri = written(tmp_path / "elsewhere", weights, noise(2))
    assert "outside the allowed roots" in refusal(uri, store, sha256, settings)


@pytest.mark.parametrize("network", ["compact", "x"])
def test_weights_of_another_network_are_refused(
    network: str, store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    uri = written(tmp_path / "allowed", weights, noise(2), ORIGIN | {"network": network})
    assert "weights cannot be used" in refusal(uri, store, sha256, settings)


def test_a_file_that_is_no_weights_is_refused(
    store: FileStore, weights: Weights, settings: Settings, tmp_path: Path
) -> None:
    sha256 = StoreBuilder(store).dataset(60, noise(1))
    uri = written(tmp_path / "allowed", weights, noise(2))
    (tmp_path / "allowed" / "starter.npz").write_bytes(b"no archive")
    assert "weights cannot be used" in refusal(uri, store, sha256, settings)
