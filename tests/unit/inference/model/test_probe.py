"""Model files that kill the process that opens them; real ones, so the test's own process must not open them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.model.champion import Models, Refused
from inference.model.loader import KillsProcess
from inference.model.probe import ModelProber
from tests.support.builders import models as build
from tests.support.builders.models import constant_model
from tests.support.inference_loops import Loops, open_loops


def killer() -> bytes:
    return constant_model(0.2, build.kills_its_process)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    with open_loops(tmp_path, f"sqlite:///{tmp_path / 'broker.db'}") as made:
        yield made


@pytest.fixture
def models(loops: Loops, tmp_path: Path) -> Models:
    return Models(loops.store, "cpu", loops.metrics, ModelProber(tmp_path, "cpu").survives)


def test_a_file_that_kills_its_process_is_told_from_one_that_is_only_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prober = ModelProber(tmp_path, "cpu")
    assert prober.survives(constant_model(0.9))
    assert prober.survives(b"no model at all")
    assert not prober.survives(killer())
    assert f"killed the process that opened it ({signal.SIGFPE.name})" in caplog.text


def test_of_workers_that_ask_at_the_same_time_one_tries_and_all_have_the_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probers = [ModelProber(tmp_path, "cpu") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prober: prober.survives(killer()), probers)) == [False] * 4
    assert caplog.text.count("killed the process") == 1
    assert not probers[0].survives(killer())  # asked later, it tries again: the first death may have been bad luck
    assert caplog.text.count("killed the process") == 2
    assert probers[0].survives(constant_model(0.9))
    started = time.perf_counter()
    assert probers[1].survives(constant_model(0.9))  # known by now, so no process is started
    assert time.perf_counter() - started < 0.1


def test_a_champion_that_kills_its_process_is_refused_and_the_one_before_serves_also_after_a_restart(
    loops: Loops, models: Models, tmp_path: Path
) -> None:
    loops.builder.register(constant_model(0.9))
    models.refresh()
    loops.builder.register(killer())
    models.refresh()
    assert models.champion is not None
    assert models.champion.version == 1
    why = "version 2: its float32 file killed the process that tried it"
    assert models.refused == Refused(2, why)
    assert loops.value("genderline_model_swaps_total", outcome="crashed") == 1
    restarted = Models(loops.store, "cpu", loops.metrics, ModelProber(tmp_path, "cpu").survives)
    restarted.refresh()
    assert restarted.champion is not None
    assert restarted.champion.version == 1
    assert restarted.refused == Refused(2, why)
    loops.builder.register(constant_model(0.8))
    models.refresh()
    assert models.champion.version == 3
    models.refresh()
    assert models.refused == Refused(2, why)  # it is the previous one, to which a rollback would lead
    loops.builder.register(constant_model(0.7))
    models.refresh()
    models.refresh()
    assert models.refused is None


def test_a_pinned_version_that_kills_its_process_is_refused(loops: Loops, models: Models) -> None:
    loops.builder.register(constant_model(0.9))
    pinned = loops.builder.register(killer(), promote=False)
    with pytest.raises(KillsProcess, match="version 2: its float32 file killed the process that tried it"):
        models.get(pinned)


def test_a_variant_that_kills_its_process_costs_its_speed_only(
    loops: Loops, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    loops.builder.register(constant_model(0.9), int8=killer())
    models.refresh()
    assert models.champion is not None
    assert models.champion.precision == "float32"
    assert "int8 not taken, float32 serves: version 1: its int8 file killed the process" in caplog.text
