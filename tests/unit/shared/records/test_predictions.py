"""What models predicted for a dataset's faces: where it lies, and which face a result is of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.errors import GenderlineError, NotFound
from shared.records.deletion import Deletion
from shared.records.predictions import (
    out_of_fold_key,
    predictions_key,
    read_out_of_fold,
    read_predictions,
    write_predictions,
)
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder

RESULTS = "index,name,probability_female\n0,1.jpg,\n1,1.jpg,0.9\n2,2.jpg,0.5\n3,1.jpg,0.1\n"
"""Of an archive with three entries of one name, of which the first is no image."""


def test_results_of_entries_that_share_a_name_are_told_apart_by_their_order(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    write_predictions(store, "a" * 64, 1, ["1.jpg", "2.jpg", "1.jpg"], RESULTS)
    text = store.get(predictions_key("a" * 64, 1)).decode()
    assert text == "index,probability_female\n0,0.9\n1,0.5\n2,0.1\n"
    with pytest.raises(GenderlineError, match=r"no prediction for '1\.jpg', face 2 of the dataset"):
        write_predictions(store, "a" * 64, 1, ["1.jpg", "1.jpg", "1.jpg"], RESULTS)


def test_a_model_whose_run_was_deleted_may_predict_its_dataset_anew(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    builder = StoreBuilder(store)
    sha256 = builder.dataset(30)
    card = builder.registry.card(builder.model(sha256, "run-00000000000a"))
    assert len(read_predictions(store, sha256, card, 30)) == 30
    Deletion(store).delete("run", "run-00000000000a")
    with pytest.raises(NotFound, match="version 1 has not predicted dataset"):
        read_predictions(store, sha256, card, 30)
    names = [f"{index}.jpg" for index in range(30)]
    rows = [f"{index},{name},0.25" for index, name in enumerate(names)]
    write_predictions(store, sha256, 1, names, "\n".join(["index,name,probability_female", *rows]))
    np.testing.assert_array_equal(read_predictions(store, sha256, card, 30), np.full(30, 0.25, np.float32))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "cut|expected 30|no table"),
        (lambda data: data[:-2], "found 30 predictions, the last one cut, expected 30"),
        (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], "found 29 predictions, expected 30"),
        (lambda _: b"", "found 0 predictions"),
        (lambda _: b"\xff" * 40, "it is no table of predictions"),
    ],
)
def test_predictions_that_do_not_fit_the_faces_are_logged_and_count_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], said: str
) -> None:
    store = FileStore(tmp_path)
    builder = StoreBuilder(store)
    sha256 = builder.dataset(30)
    card = builder.registry.card(builder.model(sha256, "run-00000000000a"))
    key = "runs/run-00000000000a/predictions.csv"
    whole = store.get(key)
    for damaged, read in ((key, read_predictions), (out_of_fold_key(card.run_id), read_out_of_fold)):
        store.put(damaged, damage(whole))
        with pytest.raises(NotFound):
            read(store, sha256, card, 30)
        assert re.search(rf"{damaged} in the store is damaged: .*({said})", caplog.text)

    store.put(predictions_key(sha256, 1), whole)  # as after a job has predicted it anew
    assert len(read_predictions(store, sha256, card, 30)) == 30
