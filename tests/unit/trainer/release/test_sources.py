"""What a run keeps of its start and its teacher: the same when it is read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.records.model_card import CardStart
from trainer.release.sources import Sources, dump, load
from trainer.release.start import Start
from trainer.training.checkpoint import CheckpointError
from trainer.training.loss import Teacher
from trainer.training.model import build_network

CARD = CardStart(name="ours", source="drawn", archive_sha256="a" * 64, faces=120)
SEEN = np.array([[0, 2**64 - 1], [1, 2**63]], np.uint64)


def test_weights_are_kept_exactly_and_in_half_precision_where_that_is_exact() -> None:
    fine = build_network("small", dropout=0.0).state_dict()
    halves = {name: value.half().float() if value.is_floating_point() else value for name, value in fine.items()}
    for weights in (fine, halves):
        found = load(dump(Sources(Start("small", True, weights, CARD, SEEN), Teacher("small", weights))))
        assert found.teacher is not None
        for kept in (found.start.weights, found.teacher.weights):
            assert kept is not None
            assert all(
                kept[name].dtype == value.dtype and torch.equal(kept[name], value) for name, value in weights.items()
            )
        assert found.start.seen is not None
        assert np.array_equal(found.start.seen, SEEN)
        assert (found.start.network, found.start.mirrors, found.start.card) == ("small", True, CARD)
    assert len(dump(Sources(Start("small", False, halves, CARD), None))) < 0.6 * len(
        dump(Sources(Start("small", False, fine, CARD), None))
    )


def test_the_starter_and_no_teacher_are_kept_without_weights() -> None:
    found = load(dump(Sources(Start("compact", False, None, CARD), None)))
    assert (found.start.weights, found.start.seen, found.teacher) == (None, None, None)


def test_what_is_damaged_is_said() -> None:
    data = bytearray(dump(Sources(Start("compact", False, None, CARD, SEEN), None)))
    for damaged in (b"", bytes(data[:-40]), bytes(data).replace(b"archive_sha256", b"archive_sha25x")):
        with pytest.raises(CheckpointError):
            load(damaged)
