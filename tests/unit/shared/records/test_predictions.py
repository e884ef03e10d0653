"""What models predicted for a dataset's faces: where it lies, and which face a result is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import GenderlineError, NotFound
from shared.records.deletion import Deletion
from shared.records.predictions import predictions_key, read_predictions, write_predictions
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
    assert len(read_predictions(store, sha256, card)) == 30
    Deletion(store).delete("run", "run-00000000000a")
    with pytest.raises(NotFound, match="version 1 has not predicted dataset"):
        read_predictions(store, sha256, card)
    names = [f"{index}.jpg" for index in range(30)]
    rows = [f"{index},{name},0.25" for index, name in enumerate(names)]
    write_predictions(store, sha256, 1, names, "\n".join(["index,name,probability_female", *rows]))
    np.testing.assert_array_equal(read_predictions(store, sha256, card), np.full(30, 0.25, np.float32))
