import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.params import TrainingParams
from shared.records.evaluation import Evaluation, LearningCurve, LearningPoint
from shared.records.model_card import (
    CardDataset,
    CardFile,
    CardStart,
    GateResult,
    GroupLoss,
    InputStatistics,
    ModelCard,
    Variant,
    VariantPrecision,
)
from shared.records.runs import EpochRow
from trainer.release.card import build_card, measure_inputs, render_card
from trainer.release.evaluate import evaluate
from trainer.training.model import Cost
from trainer.training.train import Trained

INT8 = Variant(
    faces=500,
    accuracy_float32=0.91,
    accuracy=0.908,
    images_per_second_float32=250,
    images_per_second=700,
    file=CardFile(sha256="c" * 64, size_bytes=1234),
)
FLOAT16 = Variant(faces=500, accuracy_float32=0.91, accuracy=0.911, file=CardFile(sha256="d" * 64, size_bytes=2345))


GATE = GateResult(
    passed=True, reason="the better one", champion=2, faces=400, balanced_accuracy=0.9, champion_balanced_accuracy=0.8
)


def evaluation(count: int = 400) -> Evaluation:
    random = np.random.default_rng(0)
    probability = random.random(count).astype(np.float32)
    labels = (random.random(count) < probability).astype(np.uint8)
    return evaluate(probability, labels, random.integers(0, 90, count), random.integers(0, 5, count))


def epoch(number: int, val_accuracy: float) -> EpochRow:
    return EpochRow(
        epoch=number,
        train_loss=0.5,
        train_accuracy=0.7,
        val_loss=0.4,
        val_accuracy=val_accuracy,
        learning_rate=0.001,
        seconds=60.0,
        images_per_second=90.0,
    )


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "model.onnx").write_bytes(b"float")
    return {
        "model_version": 3,
        "run_id": "run-1",
        "dataset": CardDataset(
            sha256="a" * 64, name="faces.zip", counts={"train": 2000, "validation": 200, "test": 400}
        ),
        "params": TrainingParams(seed=42),
        "start": None,
        "trained": Trained({"w": torch.zeros(1)}, [epoch(1, 0.8), epoch(2, 0.9), epoch(3, 0.7)], 2, 1.0, 180.0),
        "val_accuracy": 0.9,
        "val_loss": 0.4,
        "evaluation": evaluation(),
        "temperature": 1.25,
        "parity": 3.2e-7,
        "model_path": tmp_path / "model.onnx",
        "variants": {"int8": INT8, "float16": FLOAT16},
        "network_cost": Cost(2_747_649, 175_787_392),
        "inputs": measure_inputs(np.full((4, 128, 128), 100, np.uint8), np.arange(4)),
        "device": "2 CPU threads",
        "warnings": [],
        "gate": GATE,
        "software": "0.1.0, commit 0123456789ab",
    }


def test_a_card_holds_what_the_run_found_out(parts: dict[str, Any]) -> None:
    card = build_card(**parts)
    assert (card.name, card.version, card.run_id) == ("gender", 3, "run-1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", card.created)
    assert card.params == TrainingParams(seed=42).as_dict()
    assert card.metrics["val_accuracy"] == 0.9
    assert card.metrics["test_accuracy"] == parts["evaluation"].accuracy
    assert (card.best_epoch, card.epochs, card.seconds) == (2, 3, 180.0)
    assert card.file.sha256 == hashlib.sha256(b"float").hexdigest()
    assert card.variants == {"int8": INT8, "float16": FLOAT16}
    assert {"python", "torch", "onnxruntime", "numpy"} <= card.libraries.keys()
    assert card.libraries["genderline"] == "0.1.0, commit 0123456789ab"


def test_a_card_survives_json(parts: dict[str, Any]) -> None:
    card = build_card(**parts)
    assert ModelCard.model_validate_json(card.model_dump_json()) == card
    assert ModelCard.model_validate(card.model_dump(mode="json")) == card


def test_what_is_undefined_is_left_out_of_the_headline_figures(parts: dict[str, Any]) -> None:
    one_gender = evaluate(np.array([0.2], np.float32), np.array([0], np.uint8), np.array([5]), np.array([0]))
    card = build_card(**parts | {"evaluation": one_gender})
    assert "test_auc" not in card.metrics
    text = render_card(card)
    assert "undefined: one gender only" in text
    assert "so none is ranked" in text


def test_the_written_card_has_the_sections_of_a_model_card(parts: dict[str, Any]) -> None:
    text = render_card(build_card(**parts))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Model",
        "Intended use",
        "Data",
        "Figures",
        "Groups",
        "Comparison with the champion",
        "Robustness",
        "More faces",
        "Calibration",
        "Limits",
        "How it was trained",
        "Files",
    ]


def test_the_written_card_says_what_more_faces_would_be_worth(parts: dict[str, Any]) -> None:
    assert "## More faces\n\nNot measured, or too few training faces to tell." in render_card(build_card(**parts))
    points = (LearningPoint(faces=1000, accuracy=0.9), LearningPoint(faces=2000, accuracy=0.909))
    measured = parts["evaluation"].changed(learning_curve=LearningCurve(points=points, gain=0.009))
    text = render_card(build_card(**parts | {"evaluation": measured}))
    assert "With twice the faces about **+0.9 points** of balanced accuracy." in text
    assert "| training faces | balanced accuracy |" in text
    assert "| 2,000 | 90.9 % |" in text


def test_the_written_card_names_the_figures_and_the_worst_group(parts: dict[str, Any]) -> None:
    card = build_card(**parts)
    text = render_card(card)
    worst = card.evaluation.worst_group
    assert worst is not None
    assert f"Worst group: **{worst.name}**, accuracy {100 * worst.accuracy:.1f} %" in text
    assert "of the groups of at least 10 faces" in text
    assert f"| accuracy | {100 * card.evaluation.accuracy:.1f} % (" in text
    for expected in ("*perceived*", "Temperature 1.250", "a" * 64, "| seed | 42 |", card.libraries["torch"], "180 s"):
        assert expected in text
    assert "best epoch 2 of 3" in text.lower()
    assert f"| 50% | 100.0 % | {100 * card.evaluation.accuracy:.1f} % |" in text


def test_the_written_card_has_recalls_error_rates_and_spreads(parts: dict[str, Any]) -> None:
    card = build_card(**parts)
    text, found = render_card(card), card.evaluation
    assert found.recall_male is not None
    assert f"| recall male | {100 * found.recall_male.share:.1f} % (" in text
    assert "| group | faces | accuracy | false-positive rate | false-negative rate |" in text
    (group,) = (line for line in text.splitlines() if line.startswith("| male |") and line.endswith("%) | no faces |"))
    assert group.count("%") == 6
    spread = found.spreads["ethnicity"].accuracy
    assert spread is not None
    assert f"| ethnicity | {100 * spread:.1f} points |" in text
    assert card.metrics["test_recall_male"] == found.recall_male.share


def test_the_written_card_tells_how_the_model_compares_with_the_champion(parts: dict[str, Any]) -> None:
    text = render_card(build_card(**parts))
    assert "Passed: the better one." in text
    assert "No group lost accuracy against version 2 by more than chance." in text
    lost = GATE.model_copy(update={"lost_groups": [GroupLoss(name="70+", count=100, champion=0.9, accuracy=0.7)]})
    assert "No group lost" not in render_card(build_card(**parts | {"gate": lost}))


def test_the_written_card_warns_of_the_data(parts: dict[str, Any]) -> None:
    assert "Warning" not in render_card(build_card(**parts))
    assert "**Warning:** few women\n" in render_card(build_card(**parts | {"warnings": ["few women"]}))


def test_every_table_of_the_written_card_is_well_formed(parts: dict[str, Any]) -> None:
    hostile = CardDataset(sha256="a" * 64, name="x | <script>\n# y`", counts={"train": 2})
    text = render_card(build_card(**parts | {"dataset": hostile}))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\n# y" not in text


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ({}, "No variants: `quantize` was off."),
        ({"int8": INT8}, "`model_int8.onnx`: 1,234 bytes"),
        ({"int8": INT8}, "accuracy 90.8 %, 91.0 % in float32; 700 images/s on one CPU thread, 250 in float32."),
        (
            {"int8": INT8.model_copy(update={"file": None})},
            "No int8 variant: it lost too much accuracy (accuracy",
        ),
        ({"float16": FLOAT16}, "`model_float16.onnx`: 2,345 bytes"),
        ({"float16": FLOAT16}, "accuracy 91.1 %, 91.0 % in float32."),
    ],
)
def test_the_written_card_describes_the_variants(
    variants: dict[VariantPrecision, Variant], expected: str, parts: dict[str, Any]
) -> None:
    text = render_card(build_card(**parts | {"variants": variants}))
    assert expected in text[text.index("## Files") :]


def test_input_statistics_are_of_the_faces_named_only() -> None:
    faces = np.zeros((4, 128, 128), np.uint8)
    faces[1], faces[2, :, ::2], faces[3] = 100, 200, 255
    found = measure_inputs(faces, np.array([1, 2]))
    assert found == InputStatistics(
        faces=2,
        luma_mean=100,
        luma_std=0,
        contrast_mean=50,
        luma_histogram=[0] * 6 + [2] + [0] * 9,
        contrast_histogram=[1] + [0] * 24 + [1] + [0] * 6,
    )


def test_input_statistics_of_many_faces_look_at_some_of_them_from_first_to_last() -> None:
    faces = np.repeat(np.linspace(0, 255, 10_000).astype(np.uint8), 4).reshape(-1, 2, 2)
    found = measure_inputs(faces, np.arange(10_000))
    assert found.faces == 4096
    assert found.luma_mean == pytest.approx(faces.mean(), abs=0.5)
    assert min(found.luma_histogram) > 200


def test_the_card_says_how_far_a_model_lies_from_its_start(parts: dict[str, Any]) -> None:
    start = CardStart(name="starter", source="photos", archive_sha256="b" * 64, faces=29_454)
    text = render_card(build_card(**parts | {"start": start.changed(share=0.25)}))
    assert "from weights that had seen 29,454 faces of photos. The model lies 25% of the way from those" in text
    assert "The model lies" not in render_card(build_card(**parts | {"start": start}))
