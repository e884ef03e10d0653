import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.model import champion as models_module
from inference.model.champion import Models
from inference.model.loader import ProviderUnavailable, ServedModel
from inference.model.run import Runtime
from inference.model.run_journal import DEATHS, RunJournal
from shared.broker.sqlite.broker import SqliteBroker
from shared.errors import InvalidMessage, InvalidModel, Retryable
from shared.records.registry import Registry
from shared.topology import MODEL_PROMOTED
from tests.support.builders import models as build
from tests.support.builders.models import constant_model
from tests.support.inference_loops import Loops, open_loops
from tests.support.services import eventually


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}") as made:
        yield made


def champion(loops: Loops) -> int | None:
    model = loops.models.champion
    return model.version if model else None


@pytest.mark.slow
def test_there_is_no_champion_before_one_is_promoted(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9), promote=False)
    loops.models.refresh()
    assert champion(loops) is None
    assert not loops.models.wait_for_champion(0.0)


def test_a_version_is_never_another_model_than_it_was_when_it_was_loaded_first(loops: Loops) -> None:
    for probability in (0.9, 0.2):
        loops.builder.register(constant_model(probability))
    loops.models.refresh()
    assert loops.models.load(1).predict(np.zeros((1, 128, 128), np.uint8)).tolist() == pytest.approx([0.9])
    for name in loops.store.children("models/gender/2"):  # whole, and of the same number: another store's, say
        loops.store.put(f"models/gender/1/{name}", loops.store.get(f"models/gender/2/{name}"))
    card = loops.store.get_json("models/gender/1/card.json")
    loops.store.put_json("models/gender/1/card.json", {**card, "version": 1})
    with pytest.raises(InvalidModel, match=r"version 1: its card says the SHA-256 .* A version never changes"):
        loops.models.get(1)


def test_a_good_new_champion_takes_over_and_is_counted(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    loops.models.refresh()
    loops.models.refresh()
    assert champion(loops) == 1
    loops.builder.register(constant_model(0.2))
    loops.models.refresh()
    assert champion(loops) == 2
    assert loops.value("genderline_model_swaps_total", outcome="ok") == 2
    assert loops.value("genderline_model_info", version="1", provider="cpu") == 0
    assert loops.value("genderline_model_info", version="2", provider="cpu") == 1


def test_a_broken_new_champion_leaves_the_old_one_serving_and_is_counted_as_failed(
    loops: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    loops.builder.register(constant_model(0.9))
    loops.models.refresh()
    loops.builder.register(constant_model(0.9, build.not_a_number))
    loops.models.refresh()
    assert champion(loops) == 1
    assert loops.value("genderline_model_swaps_total", outcome="failed") == 1
    assert "model version 2 not taken (version 1 goes on serving): version 2 answered [nan" in caplog.text
    loops.models.refresh()  # a broken one is left alone for a while
    assert loops.value("genderline_model_swaps_total", outcome="failed") == 1


def test_a_spoiled_card_or_alias_file_leaves_the_old_one_serving(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    loops.models.refresh()
    second = loops.builder.register(constant_model(0.8))
    loops.store.put(f"models/gender/{second}/card.json", b"{}")
    loops.models.refresh()
    assert champion(loops) == 1
    loops.store.put("models/gender/aliases.json", b"[1, 2")
    loops.models.refresh()
    assert champion(loops) == 1


def test_a_broken_champion_is_tried_again_once_it_is_promoted_again(loops: Loops) -> None:
    good = constant_model(0.8)
    loops.builder.register(constant_model(0.9))
    loops.models.refresh()
    second = loops.builder.register(good)
    loops.builder.damage(second, good[:100])
    loops.models.refresh()
    loops.builder.damage(second, good)
    loops.models.refresh(at_once=True)
    assert champion(loops) == 2


def test_a_worker_that_starts_while_the_champion_is_broken_serves_the_previous_one(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    loops.builder.register(constant_model(0.9, build.not_a_number))
    loops.models.refresh()
    assert champion(loops) == 1
    loops.builder.register(constant_model(0.7))
    loops.models.refresh()
    assert champion(loops) == 3


def test_an_event_brings_the_new_champion_long_before_the_next_poll(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "_POLL_S", 3600.0)
    loops.builder.register(constant_model(0.9))
    with loops.running(loops.follow):
        assert loops.models.wait_for_champion(10)
        loops.builder.register(constant_model(0.2))
        loops.broker.emit(MODEL_PROMOTED, {"version": 2, "reason": "a test"})
        eventually(lambda: champion(loops) == 2, 10, "version 2 serves")


def test_polling_brings_the_new_champion_where_no_event_comes(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "_POLL_S", 0.1)
    with loops.running(loops.follow):
        loops.builder.register(constant_model(0.9))
        assert loops.models.wait_for_champion(10)


def test_the_champion_is_followed_even_where_the_broker_is_gone(
    loops: Loops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "_POLL_S", 0.1)
    closed = SqliteBroker(tmp_path / "other.db")
    closed.close()
    with loops.running(lambda stop: loops.models.follow(closed, stop)):
        loops.builder.register(constant_model(0.9))
        assert loops.models.wait_for_champion(10)


def test_a_pinned_version_answers_beside_the_champion_and_stays_loaded(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    loops.builder.register(constant_model(0.2))
    loops.models.refresh()
    pinned = loops.models.get(1)
    assert pinned.predict(np.zeros((1, 128, 128), np.uint8)).tolist() == pytest.approx([0.9])
    assert loops.models.get(1) is pinned
    assert loops.models.get(2) is loops.models.champion


def test_of_pinned_versions_the_last_two_used_stay_loaded(loops: Loops) -> None:
    for probability in (0.2, 0.3, 0.4, 0.5):
        loops.builder.register(constant_model(probability), promote=False)
    first, second = loops.models.get(1), loops.models.get(2)
    assert loops.models.get(1) is first
    loops.models.get(3)
    assert loops.models.get(1) is first
    assert loops.models.get(2) is not second


def test_what_served_until_now_stays_loaded_for_those_who_pinned_it(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    loops.models.refresh()
    served = loops.models.champion
    loops.builder.register(constant_model(0.2))
    loops.models.refresh()
    assert loops.models.get(1) is served


def test_an_unknown_or_broken_pinned_version_is_told_apart(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    with pytest.raises(InvalidMessage, match="no model version 9; registered: 1") as caught:
        loops.models.get(9)
    assert caught.value.code == "unknown_model_version"
    loops.builder.register(constant_model(0.9, build.not_a_number))
    with pytest.raises(InvalidModel, match="version 2 answered"):
        loops.models.get(2)


def test_a_broken_pinned_version_is_tried_again_after_a_pause_or_a_promotion_and_not_for_each_message(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = 0

    def survives(_data: bytes, _runtime: Runtime) -> bool:
        nonlocal trials
        trials += 1
        return True

    models = Models(loops.store, "cpu", loops.metrics, survives)
    version = loops.builder.register(constant_model(0.9, build.not_a_number), promote=False)
    for _ in range(3):
        with pytest.raises(InvalidModel, match="version 1 answered") as caught:
            models.get(version)
        assert caught.value.code == "invalid_model"
    assert trials == 1
    models.refresh(at_once=True)
    monkeypatch.setattr(models_module, "_FAILED_PAUSE_S", 0.0)
    for _ in range(2):
        with pytest.raises(InvalidModel, match="version 1 answered"):
            models.get(version)
    assert trials == 3


def test_a_pinned_version_that_could_not_be_read_is_tried_again_a_little_later_and_not_for_each_message(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = 0

    def survives(_data: bytes, _runtime: Runtime) -> bool:
        nonlocal trials
        trials += 1
        if trials == 1:
            raise Retryable("no room for a process")
        return True

    models = Models(loops.store, "cpu", loops.metrics, survives)
    version = loops.builder.register(constant_model(0.9), promote=False)
    for _ in range(3):
        with pytest.raises(Retryable):
            models.get(version)
    assert trials == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + models_module._AWAY_PAUSE_S)
    assert models.get(version).version == version


def test_a_loaded_version_is_had_while_another_one_is_being_loaded(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    for probability in (0.2, 0.3):
        loops.builder.register(constant_model(probability), promote=False)
    first, load = loops.models.get(1), Models.load
    begun, go_on = threading.Event(), threading.Event()

    def load_slowly(self: Models, version: int) -> ServedModel:
        begun.set()
        assert go_on.wait(20)
        return load(self, version)

    monkeypatch.setattr(Models, "load", load_slowly)
    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(loops.models.get, 2)
        assert begun.wait(20)
        try:
            assert pool.submit(loops.models.get, 1).result(10) is first
            assert loops.models.loaded(2) is None
        finally:
            go_on.set()
        assert second.result(20) is loops.models.loaded(2)


def test_a_version_that_was_unknown_is_served_once_it_is_registered(loops: Loops) -> None:
    with pytest.raises(InvalidMessage, match="no model version 1"):
        loops.models.get(1)
    loops.builder.register(constant_model(0.9), promote=False)
    assert loops.models.get(1).version == 1


def test_where_cuda_must_be_and_is_not_following_ends_instead_of_serving_on_the_cpu(loops: Loops) -> None:
    loops.builder.register(constant_model(0.9))
    insisting = Models(loops.store, "cuda", loops.metrics)
    with pytest.raises(ProviderUnavailable):
        insisting.follow(loops.broker, threading.Event())
    assert insisting.champion is None


def test_of_versions_that_ran_as_workers_died_the_champion_is_not_refused(loops: Loops, tmp_path: Path) -> None:
    for probability in (0.9, 0.2, 0.3):
        loops.builder.register(constant_model(probability))
    path, left = tmp_path / "worker-0.runs", tmp_path / "left.runs"
    for _ in range(DEATHS):
        journal = RunJournal(path)
        journal.watched(3, journal.watched(1, lambda: shutil.copy(path, left)))()
        left.replace(path)
    models = Models(loops.store, "cpu", loops.metrics, journal=RunJournal(path))
    models.refresh()
    assert [Registry(loops.store).refusal(version) is not None for version in (1, 2, 3)] == [True, False, False]
    assert models.champion is not None
    assert models.champion.version == 3
    assert RunJournal(path).killers == []
