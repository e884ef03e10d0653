"""A dataset opened for training, with and without edits of its labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidDataset
from shared.records.dataset import SPLITS
from shared.records.edits import Edits
from shared.store.files import FileStore
from tests.support.builders.stores import StoreBuilder
from trainer.data.dataset import open_dataset


def test_edits_change_labels_and_leave_faces_out_of_an_unchanged_split(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    sha256 = StoreBuilder(store).dataset(80)
    with open_dataset(store, sha256) as plain:
        before, parts = plain.labels, {split: plain.part(split) for split in SPLITS}
    train, test = parts["train"], parts["test"]
    edits = Edits(store)
    flipped, left_out = int(train[0]), int(test[0])
    edits.add(sha256, "male" if before[flipped] else "female", [flipped])
    edits.add(sha256, "exclude", [left_out, int(train[1])])
    frozen = edits.freeze(sha256)
    edits.add(sha256, "exclude", train[2:5].tolist())  # too late for that copy

    with open_dataset(store, sha256, frozen) as edited:
        assert np.flatnonzero(edited.labels != before).tolist() == [flipped]
        assert edited.part("train").tolist() == np.delete(train, 1).tolist()
        assert edited.part("test").tolist() == test[1:].tolist()
        assert edited.part("validation").tolist() == parts["validation"].tolist()
        assert len(edited.rows) == 80
        assert edited.edits == frozen
    with open_dataset(store, sha256) as plain:
        assert (plain.labels == before).all()
        assert plain.edits is None


def test_edits_that_leave_a_part_without_a_gender_or_that_are_unknown_are_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    sha256 = StoreBuilder(store).dataset(80)
    with open_dataset(store, sha256) as plain:
        women = [int(i) for i in plain.part("test") if plain.labels[i]]
    edits = Edits(store)
    edits.add(sha256, "exclude", women)

    with (
        pytest.raises(InvalidDataset, match="no female face in the test part"),
        open_dataset(store, sha256, edits.freeze(sha256)),
    ):
        pass
    with pytest.raises(InvalidDataset, match="has no edits"), open_dataset(store, sha256, "0" * 64):
        pass
