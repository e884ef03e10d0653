"""A model's card: put together for programs, and written out for people."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.clock import now_iso
from shared.faces.decode import luma_stats
from shared.params import TrainingParams
from shared.records.evaluation import MIN_GROUP, Evaluation, Group, Rate
from shared.records.model_card import (
    CONTRAST_RANGE,
    LUMA_RANGE,
    CardDataset,
    CardFile,
    CardStart,
    GateResult,
    InputStatistics,
    ModelCard,
    Variant,
    VariantPrecision,
)
from shared.records.registry import Registry
from shared.store.base import sha256_of
from trainer.training.model import Cost
from trainer.training.train import Trained

LIBRARIES: Final = ("torch", "torchvision", "numpy", "scikit-learn", "onnx", "onnxruntime", "onnxscript")
MEASURED_FACES: Final = 4096
LUMA_BINS: Final = 16
CONTRAST_BINS: Final = 32


def build_card(
    *,
    model_version: int,
    run_id: str,
    dataset: CardDataset,
    params: TrainingParams,
    start: CardStart | None,
    trained: Trained,
    val_accuracy: float,
    val_loss: float,
    evaluation: Evaluation,
    temperature: float,
    parity: float,
    model_path: Path,
    variants: dict[VariantPrecision, Variant],
    network_cost: Cost,
    inputs: InputStatistics,
    device: str,
    warnings: list[str],
    gate: GateResult,
    software: str,
) -> ModelCard:
    """Builds the card of a run's model.

    Args:
        model_version: the number the registry gave.
        run_id: the run.
        dataset: what it was trained on.
        params: with which parameters.
        start: the weights that training began from; None where they were random.
        trained: what training came to.
        val_accuracy: of the model on the validation faces.
        val_loss: its calibrated log loss on them.
        evaluation: on the held-out part.
        temperature: from `fit_temperature`.
        parity: from `verify_parity`.
        model_path: the exported file.
        variants: from `build_variants`.
        network_cost: from `measure_cost`.
        inputs: from `measure_inputs`.
        device: what it was trained on, in words.
        warnings: what the user should know about the data.
        gate: from `promotion_gate.compare`.
        software: from `describe_version`.
    """
    return ModelCard(
        version=model_version,
        run_id=run_id,
        created=now_iso(),
        dataset=dataset,
        params=params.as_dict(),
        start=start,
        metrics=headline(val_accuracy, val_loss, evaluation),
        evaluation=evaluation,
        warnings=warnings,
        gate=gate,
        temperature=temperature,
        parity=parity,
        file=CardFile(sha256=sha256_of(model_path), size_bytes=model_path.stat().st_size),
        variants=variants,
        parameters=network_cost.parameters,
        multiply_adds=network_cost.multiply_adds,
        inputs=inputs,
        best_epoch=trained.best_epoch,
        epochs=len(trained.history),
        seconds=trained.seconds,
        device=device,
        libraries={
            "genderline": software,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    )


def measure_inputs(faces: NDArray[np.uint8], indices: NDArray[np.intp]) -> InputStatistics:
    """Measures brightness and contrast of at most `MEASURED_FACES` faces, evenly chosen.

    Args:
        faces: uint8 (N, side, side), luma; may be a memory map.
        indices: which of them count: those of the training part, 1 or more.
    """
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, MEASURED_FACES).round().astype(np.intp))]
    luma = np.array([luma_stats(faces[index]) for index in chosen])
    return InputStatistics(
        faces=len(luma),
        luma_mean=float(luma[:, 0].mean()),
        luma_std=float(luma[:, 0].std()),
        contrast_mean=float(luma[:, 1].mean()),
        luma_histogram=np.histogram(luma[:, 0], bins=LUMA_BINS, range=LUMA_RANGE)[0].tolist(),
        contrast_histogram=np.histogram(luma[:, 1], bins=CONTRAST_BINS, range=CONTRAST_RANGE)[0].tolist(),
    )


def render_card(card: ModelCard) -> str:
    """Returns the card as Markdown, `card.md`; ranges in brackets are 95 % Wilson intervals."""
    evaluation, confusion, inputs = card.evaluation, card.evaluation.confusion, card.inputs
    intersections = [group for group in evaluation.groups if group.kind == "intersection" and group.count >= MIN_GROUP]
    data = _table(
        ("faces from", _text(card.dataset.name)), [(part, f"{count:,}") for part, count in card.dataset.counts.items()]
    )
    figures = _table(
        ("figure", "value"),
        [
            ("accuracy", _share(evaluation.accuracy, evaluation.accuracy_low, evaluation.accuracy_high)),
            ("balanced accuracy", _percent(evaluation.balanced_accuracy)),
            ("recall male", _rate(evaluation.recall_male)),
            ("recall female", _rate(evaluation.recall_female)),
            ("AUC", "undefined: one gender only" if evaluation.auc is None else f"{evaluation.auc:.4f}"),
            ("F1 male", f"{evaluation.f1_male:.4f}"),
            ("F1 female", f"{evaluation.f1_female:.4f}"),
            ("log loss", f"{evaluation.log_loss:.4f}"),
            ("validation accuracy", _percent(card.metrics["val_accuracy"])),
        ],
    )
    confusions = _table(
        ("label", "predicted male", "predicted female"),
        [
            ("male", f"{confusion.male_as_male:,}", f"{confusion.male_as_female:,}"),
            ("female", f"{confusion.female_as_male:,}", f"{confusion.female_as_female:,}"),
        ],
    )
    return f"""\
# {card.name}, version {card.version}

{_origin(card)}

## Model

A convolutional network ({_text(card.params["network"])}: {card.parameters:,} parameters,
{card.multiply_adds / 1e6:,.0f} million multiply-adds for a face) that reads one face, 128 by 128 pixels, grayscale, and
gives the probability that its label is *female*.

## Intended use

- For: aggregate statistics over many images, sorting and checking image collections, research and teaching, on images
  like those it was trained on.
- Not for: deciding anything about a person, identifying or verifying anyone, surveillance, or inferring how people see
  themselves.
- The labels are binary, come from file names, and say what annotators *perceived*. The model repeats that judgement: it
  does not know anyone's gender, and has no answer for people whom two labels do not describe.

## Data

Dataset `{card.dataset.sha256}`, {_edits(card)}.

{data}

{_warnings(card)}Mean luma of the training faces: {inputs.luma_mean:.0f} of 255, standard deviation
{inputs.luma_std:.0f}.

## Figures

On {evaluation.count:,} held-out faces, which neither training nor the choice of the epoch saw; ranges in brackets, here
and below, are 95 % intervals (Wilson):

{figures}

{confusions}

## Groups

{_worst(evaluation)}

The false-positive rate is the share of male faces classified as female, the false-negative rate the share of female
faces classified as male.

{_group_table(group for group in evaluation.groups if group.kind != "intersection")}

Differences between the highest and the lowest group, of those with at least {MIN_GROUP} faces:

{_spread_table(evaluation)}

Gender, ethnicity and age together, groups of at least {MIN_GROUP} faces, worst first:

{_group_table(sorted(intersections, key=lambda group: group.accuracy))}

## Comparison with the champion

{_gate(card)}

## Robustness

{_robustness_table(evaluation)}

## More faces

{_learning_curve(evaluation)}

## Calibration

Temperature {card.temperature:.3f}, fitted on validation faces and part of the model. Expected calibration error
{evaluation.ece:.4f} ({len(evaluation.reliability)} bins of equal counts; right probabilities show
{evaluation.ece_by_chance or 0:.4f} on so many faces, on average), Brier score {evaluation.brier:.4f}.

Abstaining: the faces that are answered with a confidence of at least …, and the accuracy on them.

{_coverage_table(evaluation)}

## Limits

- Faces unlike the training data (in age, ethnicity, pose, light, cropping, image quality) are predicted less well; the
  groups above show where. Small groups have wide intervals, and the worst of many groups is in part the unluckiest.
- The model expects one cropped face. Given anything else, it still answers.
- The held-out faces come from the same source as the training faces: expect less on other images.

## How it was trained

Best epoch {card.best_epoch} of {card.epochs}, {card.seconds:,.0f} s on {_text(card.device)}.

{_table(("parameter", "value"), [(_text(name), _text(value)) for name, value in card.params.items()])}

{_table(("library", "version"), list(card.libraries.items()))}

## Files

- `model.onnx`: {card.file.size_bytes:,} bytes, SHA-256 `{card.file.sha256}`. Its probabilities differ from
  torch's by at most {card.parity:.1g}.
{_variants(card)}
"""


def headline(val_accuracy: float, val_loss: float, evaluation: Evaluation) -> dict[str, float]:
    """Returns the figures that a model is listed with; those that are undefined are left out."""
    figures = {
        "val_accuracy": val_accuracy,
        "val_loss": val_loss,
        "test_accuracy": evaluation.accuracy,
        "test_balanced_accuracy": evaluation.balanced_accuracy,
        "test_recall_male": evaluation.recall_male.share if evaluation.recall_male else None,
        "test_recall_female": evaluation.recall_female.share if evaluation.recall_female else None,
        "test_auc": evaluation.auc,
        "test_log_loss": evaluation.log_loss,
        "test_ece": evaluation.ece,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _origin(card: ModelCard) -> str:
    if card.is_starter:
        return f"The starter, the weights that training begins from, imported {card.created} as a first model."
    teacher = card.params.get("distil", "none")
    taught = "" if teacher == "none" else f", taught by {_text(teacher)}"
    return f"Trained by run {_text(card.run_id)}, {card.created}, from {_start(card)}{taught}."


def _start(card: ModelCard) -> str:
    if card.start is None:
        return "random weights"
    came_from = f"weights that had seen {card.start.faces:,} faces of {_text(card.start.source)}"
    if card.start.share == 1:
        return came_from
    return f"{came_from}. The model lies {card.start.share:.0%} of the way from those to what training came to"


def _warnings(card: ModelCard) -> str:
    return "".join(f"**Warning:** {_text(warning)}\n\n" for warning in card.warnings)


def _worst(evaluation: Evaluation) -> str:
    worst, gap = evaluation.worst_group, evaluation.gap
    if worst is None or gap is None:
        return f"No group has {MIN_GROUP} held-out faces or more, so none is ranked."
    return (
        f"Worst group: **{worst.name}**, accuracy {_share(worst.accuracy, worst.low, worst.high)} on {worst.count:,} "
        f"faces, {100 * gap:.1f} points below the best group; of the groups of at least {MIN_GROUP} faces."
    )


def _spread_table(evaluation: Evaluation) -> str:
    def points(difference: float | None) -> str:
        return "fewer than two groups" if difference is None else f"{100 * difference:.1f} points"

    return _table(
        ("groups by", "accuracy", "false-positive rate", "false-negative rate"),
        [
            (kind, points(spread.accuracy), points(spread.false_positive_rate), points(spread.false_negative_rate))
            for kind, spread in evaluation.spreads.items()
        ],
    )


def _robustness_table(evaluation: Evaluation) -> str:
    if not evaluation.robustness:
        return "Not measured."
    table = _table(
        ("faces", "accuracy", "balanced accuracy"),
        [(row.change, _percent(row.accuracy), _percent(row.balanced_accuracy)) for row in evaluation.robustness],
    )
    return f"The same {evaluation.robustness[0].faces:,} held-out faces, changed:\n\n{table}"


def _learning_curve(evaluation: Evaluation) -> str:
    curve = evaluation.learning_curve
    if curve is None:
        return "Not measured, or too few training faces to tell."
    table = _table(
        ("training faces", "balanced accuracy"),
        [(f"{point.faces:,}", _percent(point.accuracy)) for point in curve.points],
    )
    return (
        f"With twice the faces about **{100 * curve.gain:+.1f} points** of balanced accuracy. That is the slope of "
        f"these accuracies on the held-out faces, of a logistic regression on the starter's features:\n\n{table}"
    )


def _coverage_table(evaluation: Evaluation) -> str:
    return _table(
        ("confidence", "faces answered", "accuracy"),
        [
            (
                f"{row.confidence:.0%}",
                _percent(row.covered),
                "no faces" if row.accuracy is None else _percent(row.accuracy),
            )
            for row in evaluation.coverage
        ],
    )


def _gate(card: ModelCard) -> str:
    gate = card.gate
    if gate is None:
        return "This version was not compared with another."
    lines = [f"{'Passed' if gate.passed else 'Not passed'}: {_text(gate.reason)}."]
    if gate.champion is not None and gate.balanced_accuracy is not None and not gate.lost_groups:
        lines.append(f"No group lost accuracy against version {gate.champion} by more than chance.")
    return "\n\n".join(lines)


def _group_table(groups: Iterable[Group]) -> str:
    return _table(
        ("group", "faces", "accuracy", "false-positive rate", "false-negative rate"),
        [
            (
                group.name,
                f"{group.count:,}",
                _share(group.accuracy, group.low, group.high),
                _rate(group.false_positive_rate),
                _rate(group.false_negative_rate),
            )
            for group in groups
        ],
    )


def _variants(card: ModelCard) -> str:
    if not card.variants:
        return "- No variants: `quantize` was off."
    return "\n".join(f"- {_variant(precision, variant)}" for precision, variant in card.variants.items())


def _variant(precision: VariantPrecision, variant: Variant) -> str:
    comparison = f"accuracy {_percent(variant.accuracy)}, {_percent(variant.accuracy_float32)} in float32"
    if variant.images_per_second is not None and variant.images_per_second_float32 is not None:
        comparison += (
            f"; {variant.images_per_second:,.0f} images/s on one CPU thread, "
            f"{variant.images_per_second_float32:,.0f} in float32"
        )
    if variant.file is None:
        return f"No {precision} variant: it lost too much accuracy ({comparison})."
    name = Registry.model_file(precision)
    return f"`{name}`: {variant.file.size_bytes:,} bytes, SHA-256 `{variant.file.sha256}`; {comparison}."


def _share(share: float, low: float, high: float) -> str:
    return f"{_percent(share)} ({_percent(low)} to {_percent(high)})"


def _rate(rate: Rate | None) -> str:
    return "no faces" if rate is None else _share(rate.share, rate.low, rate.high)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _text(value: object) -> str:
    """Keeps text from outside, such as a dataset's name, from being taken for Markdown or HTML."""
    text = " ".join(str(value).split())
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|&~" else character for character in text)


def _edits(card: ModelCard) -> str:
    if card.dataset.edits is None:
        return "with the labels of its archive"
    return f"with labels corrected by the edits `{card.dataset.edits}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))
