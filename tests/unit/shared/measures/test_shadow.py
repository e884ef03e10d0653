from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.measures.shadow import ShadowFigures, add_shadow_figures, shadow_figures
from shared.records.registry import Registry
from shared.store.files import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


SOME = ShadowFigures(images=100, agreed=97, failed=1, difference=1.98, timed=8, challenger_s=0.4, champion_s=0.5)


def test_figures_say_how_often_how_far_and_how_fast() -> None:
    assert (SOME.agreement, SOME.mean_difference, SOME.time_ratio) == pytest.approx((0.97, 0.02, 0.8))
    assert SOME.sentence() == (
        "agrees on 97.0 % of 100 images, failed on 1 of them, mean difference 0.020, takes 0.80 times as long"
    )
    nothing = ShadowFigures()
    assert nothing.summary() == {
        "images": 0,
        "failed": 0,
        "agreement": None,
        "mean_difference": None,
        "time_ratio": None,
    }
    assert nothing.sentence() == "has not seen any images yet"
    broken = ShadowFigures(images=5, failed=5)
    assert broken.sentence() == "agrees on 0.0 % of 5 images, failed on 5 of them"


def test_what_all_workers_add_at_the_same_time_is_all_there(store: FileStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add_shadow_figures(store, 2, 1, SOME), range(20)))
    found = shadow_figures(store, 2, 1)
    assert (found.images, found.agreed, found.failed, found.timed) == (2000, 1940, 20, 160)
    assert found.difference == pytest.approx(39.6)


def test_against_another_champion_counting_starts_anew(store: FileStore) -> None:
    add_shadow_figures(store, 3, 1, SOME)
    assert shadow_figures(store, 3, 1) == SOME
    assert shadow_figures(store, 3, 2) == ShadowFigures()
    add_shadow_figures(store, 3, 2, SOME)
    assert shadow_figures(store, 3, 2).images == 100
    add_shadow_figures(store, 3, 2, SOME)
    content = store.get_json(Registry.shadow_key(3))
    assert (content["champion"], content["images"]) == (2, 200)
    assert content["since"] <= content["updated"]


def test_a_spoiled_file_makes_counting_start_anew(store: FileStore) -> None:
    store.put_json(Registry.shadow_key(2), {"champion": 1, "images": "many"})
    assert shadow_figures(store, 2, 1) == ShadowFigures()
    add_shadow_figures(store, 2, 1, SOME)
    assert shadow_figures(store, 2, 1) == SOME
