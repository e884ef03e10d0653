"""The least that makes a model's card."""

from __future__ import annotations

import hashlib

from shared.clock import now_iso
from shared.records.evaluation import Confusion, Curve, Evaluation
from shared.records.model_card import CardDataset, CardFile, InputStatistics, ModelCard


def card_of(version: int, run_id: str, model: bytes = b"onnx") -> ModelCard:
    """Returns a card without any figures, for a version whose `model.onnx` holds these bytes."""
    nothing = Curve(x=[], y=[])
    return ModelCard(
        version=version,
        run_id=run_id,
        created=now_iso(),
        dataset=CardDataset(sha256="0" * 64, name="none", counts={}),
        start=None,
        params={},
        metrics={},
        evaluation=Evaluation(
            count=0,
            accuracy=0,
            accuracy_low=0,
            accuracy_high=0,
            balanced_accuracy=0,
            recall_male=None,
            recall_female=None,
            spreads={},
            auc=None,
            f1_male=0,
            f1_female=0,
            log_loss=0,
            brier=0,
            ece=0,
            reliability=[],
            confusion=Confusion(male_as_male=0, male_as_female=0, female_as_male=0, female_as_female=0),
            roc=nothing,
            precision_recall=nothing,
            groups=[],
            worst_group=None,
            gap=None,
            histogram=[],
        ),
        temperature=1,
        parity=0,
        file=CardFile(sha256=hashlib.sha256(model).hexdigest(), size_bytes=len(model)),
        variants={},
        parameters=0,
        multiply_adds=0,
        inputs=InputStatistics(faces=0, luma_mean=0, luma_std=0, contrast_mean=0, luma_histogram=[]),
        best_epoch=1,
        epochs=1,
        seconds=0,
        device="none",
        libraries={},
    )
