"""The starter as a first model, from the files that the package ships."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from shared.records.model_card import ModelCard
from shared.records.registry import Registry
from shared.store.base import sha256_of
from shared.store.files import FileStore
from trainer.release.export import MAX_DIFFERENCE
from trainer.release.import_starter import register_starter
from trainer.training.model import build_network, measure_cost
from trainer.training.starter import load_starter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FileStore:
    return FileStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def card(store: FileStore) -> Iterator[ModelCard]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        yield register_starter(store)


def test_the_starter_becomes_a_version_with_the_figures_of_its_report(store: FileStore, card: ModelCard) -> None:
    assert Registry(store).versions() == [card.version] == [1]
    assert card.is_starter
    assert card.dataset.sha256 == load_starter().card["archive_sha256"]
    assert card.evaluation.count >= 1_000
    assert card.metrics["test_accuracy"] == card.evaluation.accuracy > 0.85
    assert card.parity <= MAX_DIFFERENCE
    with store.local(Registry.model_key(1)) as model:
        assert sha256_of(model) == card.file.sha256


def test_the_starter_is_served_without_the_mirror_image(card: ModelCard) -> None:
    assert card.multiply_adds == measure_cost(build_network("compact", dropout=0.0)).multiply_adds < 20_500_000


def test_its_card_says_where_it_comes_from(store: FileStore, card: ModelCard) -> None:
    text = store.get(Registry.card_text_key(card.version)).decode()
    assert "The starter, the weights that training begins from" in text
    assert "CC BY 4.0" in text


def test_registering_the_starter_again_gives_the_same_version(store: FileStore, card: ModelCard) -> None:
    assert register_starter(store) == card
    assert Registry(store).versions() == [card.version]
