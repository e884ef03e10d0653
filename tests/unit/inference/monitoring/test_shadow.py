from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.model.loader import ServedModel
from inference.monitoring import shadow as shadow_module
from shared.measures.shadow import ShadowFigures, shadow_figures
from shared.records.registry import Registry
from tests.support.builders import models as build
from tests.support.builders.models import brightness_answer, brightness_model, constant_model
from tests.support.inference_loops import Loops, open_loops
from tests.support.services import eventually

OUTCOMES = ("agree", "disagree", "failed", "dropped")


@contextlib.contextmanager
def opened(folder: Path, **settings: object) -> Iterator[Loops]:
    url = f"sqlite:///{folder / 'broker.db'}"
    with open_loops(folder, url, **{"shadow_share": 1.0, **settings}) as made:
        yield made


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    with opened(tmp_path) as made:
        yield made


@contextlib.contextmanager
def challenged(loops: Loops, challenger: bytes, champion: bytes | None = None) -> Iterator[ServedModel]:
    """Runs the shadow beside a champion, by default `brightness_model`, and gives the champion."""
    loops.builder.register(brightness_model() if champion is None else champion)
    loops.builder.registry.challenge(loops.builder.register(challenger, promote=False), "a test")
    loops.models.refresh()
    assert loops.models.champion is not None
    with loops.running(loops.shadow.run):
        yield loops.models.champion


def loaded(loops: Loops) -> bool:
    return loops.shadow.challenger is not None


def outcomes(loops: Loops) -> dict[str, int]:
    counts = {name: int(loops.value("genderline_shadow_predictions_total", outcome=name)) for name in OUTCOMES}
    return {name: count for name, count in counts.items() if count}


def show(loops: Loops, model: ServedModel, *levels: int) -> None:
    """Shows the shadow a batch of plain images, as the loop does, with the champion's answers."""
    faces = np.stack([np.full((128, 128), level, np.uint8) for level in levels])
    loops.shadow.observe(model, faces, model.predict(faces).tolist())


def saved(loops: Loops, challenger: int = 2, champion: int = 1) -> ShadowFigures:
    return shadow_figures(loops.store, challenger, champion)


def test_what_the_champion_answered_is_compared_counted_and_kept(loops: Loops) -> None:
    with challenged(loops, constant_model(0.9)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, 250, 240, 230, 10)
        eventually(lambda: outcomes(loops) == {"agree": 3, "disagree": 1}, 10, "all compared")
        summary = loops.shadow.summary()
    expected = np.mean([abs(0.9 - brightness_answer(level)) for level in (250, 240, 230, 10)])
    assert summary is not None
    assert (summary["version"], summary["images"], summary["agreement"], summary["problem"]) == (2, 4, 0.75, None)
    assert summary["mean_difference"] == pytest.approx(expected, abs=1e-3)
    assert loops.value("genderline_shadow_difference_count") == 4
    assert saved(loops).agreed == 3  # at the stop, without waiting for the next time
    assert saved(loops).mean_difference == pytest.approx(expected, abs=1e-3)


def test_nothing_runs_while_the_loop_has_work_and_what_does_not_fit_is_dropped(loops: Loops) -> None:
    with challenged(loops, constant_model(0.9)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        for _ in range(20):
            show(loops, model, *[250] * 16)
        assert outcomes(loops) == {"dropped": 64}
        assert not threading.Event().wait(0.2)  # ten times as long as the shadow looks away
        assert outcomes(loops) == {"dropped": 64}
        loops.shadow.on_idle(True)
        eventually(lambda: outcomes(loops) == {"agree": 256, "dropped": 64}, 10, "what waited is compared")
        show(loops, model, 250)
        eventually(lambda: outcomes(loops)["agree"] == 257, 10, "there is room again")


def test_about_the_share_that_is_set_is_seen(tmp_path: Path) -> None:
    with opened(tmp_path, shadow_share=0.25) as loops, challenged(loops, constant_model(0.9)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        for _ in range(2000):
            show(loops, model, 250)
        loops.shadow.on_idle(True)
        eventually(lambda: outcomes(loops).get("agree") == 256, 20, "what waited is compared")
        assert 400 < sum(outcomes(loops).values()) < 600


def test_both_are_timed_on_the_same_images(loops: Loops) -> None:
    with challenged(loops, brightness_model(build.slow)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, *[250] * 200)
        eventually(lambda: outcomes(loops) == {"agree": 200}, 60, "all compared")
    runs = [loops.value("genderline_shadow_run_seconds_count", model=name) for name in ("champion", "challenger")]
    assert runs == [4, 4]  # of 25 chunks, the first and every eighth
    assert saved(loops).timed == 32
    assert (saved(loops).time_ratio or 0) > 2


def test_a_challenger_that_cannot_be_loaded_leaves_the_champion_alone_and_is_tried_again(
    loops: Loops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadow_module, "_RETRY_S", 0.1)
    good = constant_model(0.9)
    loops.builder.register(brightness_model())
    second = loops.builder.register(good, promote=False)
    loops.builder.registry.challenge(second, "a test")
    loops.builder.damage(second, good[:100])
    loops.models.refresh()
    model = loops.models.champion
    assert model is not None
    with loops.running(loops.shadow.run):
        eventually(lambda: (loops.shadow.summary() or {}).get("problem"), 10, "a problem in the heartbeat")
        told = "version 2 cannot challenge, the champion serves: version 2: the file has 100 bytes"
        eventually(lambda: told in caplog.text, 10, "the problem in the log, which comes after it")
        show(loops, model, 250)
        assert outcomes(loops) == {}
        assert loops.value("genderline_model_swaps_total", outcome="failed") == 0
        loops.builder.damage(second, good)
        eventually(lambda: loaded(loops), 10, "the repaired challenger is loaded")
        assert (loops.shadow.summary() or {})["problem"] is None


@pytest.mark.parametrize(
    ("fault", "problem"),
    [(build.dark_is_not_a_number, None), (build.fails_in_the_dark, "indices element out of data bounds")],
    ids=["no-number", "exception"],
)
def test_a_challenger_that_fails_is_counted_and_goes_on(loops: Loops, fault: build.Change, problem: str | None) -> None:
    with challenged(loops, brightness_model(fault)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, 0)
        eventually(lambda: outcomes(loops) == {"failed": 1}, 10, "the failure is counted")
        show(loops, model, 250, 100)
        eventually(lambda: outcomes(loops) == {"failed": 1, "agree": 2}, 10, "later images are compared")
        said = (loops.shadow.summary() or {})["problem"]
    assert said is None if problem is None else problem in said
    assert (saved(loops).images, saved(loops).agreed, saved(loops).failed) == (3, 2, 1)


def test_an_image_that_the_champion_has_no_number_for_says_nothing(loops: Loops) -> None:
    champion = brightness_model(build.dark_is_not_a_number)
    with challenged(loops, constant_model(0.9), champion) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, 0, 250)
        eventually(lambda: outcomes(loops) == {"agree": 1}, 10, "one is compared")
    assert saved(loops).images == 1


def test_a_new_champion_is_never_compared_with_answers_of_the_old_one(loops: Loops) -> None:
    with challenged(loops, constant_model(0.9)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        show(loops, model, *[250] * 10)
        loops.builder.register(constant_model(0.1))
        loops.models.refresh()
        show(loops, model, 250)  # a batch that was under way at the swap
        loops.shadow.on_idle(True)
        eventually(lambda: outcomes(loops) == {"dropped": 10}, 10, "answers of the old champion are dropped")
        champion = loops.models.champion
        assert champion is not None
        show(loops, champion, 250)
        eventually(lambda: outcomes(loops).get("disagree") == 1, 10, "answers of the new one are compared")
    assert (saved(loops).images, saved(loops, champion=3).images) == (0, 1)


def test_a_challenger_that_is_promoted_or_dismissed_is_let_go_of(loops: Loops) -> None:
    registry = loops.builder.registry
    with challenged(loops, constant_model(0.9)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        registry.dismiss("seen enough")
        loops.models.refresh()
        eventually(lambda: not loaded(loops), 10, "the dismissed one is let go of")
        assert loops.shadow.summary() is None
        show(loops, model, 250)
        assert outcomes(loops) == {}
        registry.challenge(2, "once more")
        loops.models.refresh()
        eventually(lambda: loaded(loops), 10, "the challenger is loaded again")
        registry.promote(2, "it won")
        loops.models.refresh()
        eventually(lambda: not loaded(loops), 10, "the promoted one is let go of")


def test_what_a_pinned_version_answers_is_not_shadowed(loops: Loops) -> None:
    with challenged(loops, constant_model(0.9)) as champion:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, loops.models.get(loops.builder.register(constant_model(0.3), promote=False)), 250)
        show(loops, champion, 250)
        eventually(lambda: outcomes(loops), 10, "what came after it is compared")
    assert outcomes(loops) == {"agree": 1}


def test_figures_that_could_not_be_saved_are_saved_later(
    loops: Loops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadow_module, "_RECORD_EVERY_S", 0.05)
    key = Registry.shadow_key(2)
    with challenged(loops, constant_model(0.9)) as model:
        loops.store.put(key, b"{spoiled")
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, 250)
        eventually(lambda: "what the challenger did is not saved" in caplog.text, 10, "a warning")
        loops.store.delete(key)
        eventually(lambda: saved(loops).images == 1, 10, "the figures are saved")
        show(loops, model, 250)
        eventually(lambda: saved(loops).images >= 2, 10, "later figures are saved")
    assert saved(loops).images == 2  # nothing twice


def test_no_challenger_is_promoted_by_itself(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_module, "_RECORD_EVERY_S", 0.05)
    with challenged(loops, brightness_model(), brightness_model(build.slow)) as model:
        eventually(lambda: loaded(loops), 10, "the challenger is loaded")
        loops.shadow.on_idle(True)
        show(loops, model, *[250] * 64)
        eventually(lambda: saved(loops).images == 64, 20, "the figures are saved")
    assert loops.builder.registry.aliases().champion == 1
