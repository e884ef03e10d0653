"""The promotion gate: compares a new model with the champion, on faces that neither of them has learned from.

Both genders count alike: the gate compares balanced accuracy, the mean of both genders' recall. A model that is right
about nine men in ten and wrong about every woman is right about most faces of an archive of men, and of no use.
"""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import Retryable
from shared.faces.labels import GENDERS
from shared.measures.comparison import paired_gain
from shared.records.evaluation import MIN_GROUP, Evaluation
from shared.records.model_card import GateResult, GroupLoss
from shared.records.registry import Registry
from shared.store.base import Store
from trainer.data.dataset import Dataset, open_dataset
from trainer.release.evaluate import group_members
from trainer.release.export import predict_onnx
from trainer.release.lineage import Origin, find_alike, find_inherited, find_learned, has_other_faces, open_other

MIN_OF_GENDER: Final = MIN_GROUP
"""Faces of either gender that a comparison needs: with fewer, chance decides."""
MIN_LOST_GROUP: Final = 100
"""Faces of a group that is tested for a loss."""
CHANCE: Final = 0.025
"""A fall is beyond chance where chance alone gives one as large less often than this."""
Z_99: Final = 2.575829
_LOG = logging.getLogger(__name__)


def compare(
    store: Store,
    dataset: Dataset,
    name: str,
    model: Path,
    evaluation: Evaluation,
    origin: Origin,
    *,
    champion: int | None,
) -> GateResult:
    """Compares a new model with the champion on the held-out faces of both their datasets.

    Faces that either model, its start or its teacher was trained or validated on are left out, and so are faces that
    look like one of them: a dataset that has grown is split anew, and a model knows its training faces by heart. The
    champion's held-out faces count as long as its dataset is in the store.

    Args:
        store: holds models and datasets.
        dataset: of the new model.
        name: of that dataset, for the reason.
        model: the new model's ONNX file.
        evaluation: of the new model on its held-out faces.
        origin: of the new model. It has learned from none of the held-out faces of the model's own dataset: a run makes
            sure of that before it trains.
        champion: the version to compare with; None where there is none.
    """
    confusion = evaluation.confusion
    predicted = (
        confusion.male_as_male + confusion.female_as_male,
        confusion.male_as_female + confusion.female_as_female,
    )
    if champion is None:
        if evaluation.count in predicted:
            gender = GENDERS[predicted.index(evaluation.count)]
            return GateResult(passed=False, reason=_one_answer(gender, evaluation.count), champion=None)
        return GateResult(passed=True, reason="the first model", champion=None)
    try:
        return _compare(store, dataset, name, model, origin, champion)
    except Retryable:
        raise
    except Exception as error:  # a champion that cannot be run, for example, which is not the new model's fault
        _LOG.exception("the model cannot be compared with version %d", champion)
        reason = f"it cannot be compared with version {champion}: {error}"
        return GateResult(passed=False, reason=reason, champion=champion)


def compare_registered(store: Store, version: int) -> GateResult:
    """Compares a registered version with the champion of now, as `compare` does before a model is registered."""
    registry = Registry(store)
    champion = registry.aliases().champion
    if champion == version:
        return GateResult(passed=True, reason="it is the champion already", champion=champion)
    card = registry.card(version)
    if card.gate is not None and card.gate.champion == champion:
        return card.gate  # no other version became the champion meanwhile
    with (
        open_dataset(store, card.dataset.sha256, card.dataset.edits) as dataset,
        store.local(Registry.model_key(version)) as model,
    ):
        if champion is not None and has_other_faces(card.dataset, dataset):
            return _made_again(card.dataset.name, version, champion)
        origin = Origin.of(store, card)
        return compare(store, dataset, card.dataset.name, model, card.evaluation, origin, champion=champion)


@dataclass(frozen=True, slots=True)
class GateOutcome:
    """The place of a version after the gate.

    Attributes:
        promoted: whether it is the champion now.
        challenges: whether it is the challenger now.
        reason: why, in a sentence.
    """

    promoted: bool
    challenges: bool
    reason: str


def pass_gate(store: Store, version: int, *, promote: bool) -> GateOutcome:
    """Promotes a registered version that is better than the champion; makes any other version the challenger.

    Args:
        store: holds models and datasets.
        version: a registered version.
        promote: False leaves the promotion to a person: a better version becomes the challenger.
    """
    registry = Registry(store)
    gate = compare_registered(store, version)
    while promote and gate.passed:
        if registry.promote_over(gate.champion, version, f"gate: {gate.reason}"):
            return GateOutcome(promoted=True, challenges=False, reason=f"gate: {gate.reason}")
        gate = compare_registered(store, version)  # another version has become the champion meanwhile
    reason = f"gate: a person has to promote it; {gate.reason}" if gate.passed else f"gate: {gate.reason}"
    if gate.champion in {None, version}:
        return GateOutcome(promoted=False, challenges=False, reason=reason)
    challenger = registry.challenge(version, reason, by="gate").challenger
    return GateOutcome(promoted=False, challenges=challenger == version, reason=reason)


@dataclass(frozen=True, slots=True)
class _Examined:
    """Both models' answers on the same faces.

    Attributes:
        labels: uint8 (N,), 1 where the label is female.
        new: uint8 (N,), 1 where the new model predicts female.
        champion: the same of the champion.
    """

    labels: NDArray[np.uint8]
    new: NDArray[np.uint8]
    champion: NDArray[np.uint8]


def _compare(store: Store, dataset: Dataset, name: str, model: Path, origin: Origin, champion: int) -> GateResult:
    card = Registry(store).card(champion)
    held_out = dataset.part("test")
    if has_other_faces(card.dataset, dataset):
        return _made_again(name, champion, champion)
    with ExitStack() as stack:
        champion_model = stack.enter_context(store.local(Registry.model_key(champion)))
        answers = _predict(champion_model, dataset, held_out)
        if (reason := _reversed(dataset.labels[held_out], answers, name, champion)) is not None:
            return GateResult(passed=False, reason=reason, champion=champion, labels_reversed=True)
        fair = [(dataset, name, held_out[~find_learned(store, card, dataset, held_out)])]
        # The same dataset holds the same faces out.
        other = None if card.dataset.sha256 == dataset.sha256 else open_other(stack, store, card.dataset)
        if other is not None and not has_other_faces(card.dataset, other):
            theirs = other.part("test")
            # A face that is held out of both counts once.
            known = find_alike(dataset, np.arange(len(dataset.rows)), other, theirs)
            known |= find_inherited(store, origin, other, theirs)
            fair.append((other, card.dataset.name, theirs[~known]))
        examined = _Examined(
            np.concatenate([part.labels[faces] for part, _, faces in fair]),
            np.concatenate([_predict(model, part, faces) for part, _, faces in fair]),
            np.concatenate([_predict(champion_model, part, faces) for part, _, faces in fair]),
        )
        rows = [part.rows[index] for part, _, faces in fair for index in faces]
    groups = {
        name: members
        for _, name, members in group_members(
            examined.labels, np.array([row.age for row in rows]), np.array([row.ethnicity for row in rows])
        )
    }
    where = " and ".join(f"{len(faces)} held-out faces of {title}" for _, title, faces in fair if len(faces))
    return _decide(examined, groups, where or f"0 held-out faces of {name}", champion)


def _decide(examined: _Examined, groups: dict[str, NDArray[np.intp]], where: str, champion: int) -> GateResult:
    """Decides by both models' answers.

    Args:
        examined: the answers.
        groups: the members of each group of faces, by its name.
        where: describes the faces.
        champion: the version that was compared with.
    """

    def result(passed: bool, reason: str, **figures: float) -> GateResult:
        lost = lost_groups(examined.labels, examined.new, examined.champion, groups)
        if lost:
            reason += "; groups that lost accuracy: " + ", ".join(
                f"{group.name} ({group.count} faces: {group.champion:.1%} → {group.accuracy:.1%})" for group in lost
            )
        return GateResult(
            passed=passed, reason=reason, champion=champion, faces=len(examined.labels), lost_groups=lost, **figures
        )

    counts = np.bincount(examined.labels, minlength=len(GENDERS))
    if counts.min() < MIN_OF_GENDER:
        found = " and ".join(f"{count} {gender}" for gender, count in zip(GENDERS, counts, strict=True))
        return result(
            False,
            f"found {found} faces that neither model has learned from ({where}), "
            f"expected {MIN_OF_GENDER} or more of each gender to compare on",
        )
    if len(answer := np.unique(examined.new)) == 1:
        return result(False, _one_answer(GENDERS[answer[0]], len(examined.new)))
    right, right_before = examined.new == examined.labels, examined.champion == examined.labels
    accuracy = _balanced_accuracy(examined.labels, right)
    before = _balanced_accuracy(examined.labels, right_before)
    low, high = difference_interval(examined.labels, right, right_before)
    reason = (
        f"balanced accuracy {accuracy:.1%} against {before:.1%} of version {champion} "
        f"(difference {100 * (accuracy - before):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}) "
        f"on {where}, which neither has learned from"
    )
    figures = {
        "balanced_accuracy": accuracy,
        "champion_balanced_accuracy": before,
        "difference_low": low,
        "difference_high": high,
    }
    for number, gender in enumerate(GENDERS):
        members = examined.labels == number
        if is_beyond_chance(right[members], right_before[members]):
            recall, recall_before = right[members].mean(), right_before[members].mean()
            fall = f"recall of {gender} faces falls from {recall_before:.1%} to {recall:.1%} on {members.sum()} faces"
            return result(False, f"{fall}, more than chance explains; {reason}", **figures)
    return result(accuracy > before, reason, **figures)


def _made_again(name: str, version: int, champion: int) -> GateResult:
    """Returns the result where a version was trained on faces that its dataset had before it was submitted again."""
    reason = (
        f"it cannot be compared with version {champion}: {name} was submitted again after version {version} was "
        "trained on it, and has other faces or another split now, so that version may have learned from any of them"
    )
    return GateResult(passed=False, reason=reason, champion=champion)


def _one_answer(gender: str, count: int) -> str:
    return f"the model predicts {gender} for all of {count} held-out faces: it gives one answer only"


def _reversed(labels: NDArray[np.uint8], champion: NDArray[np.uint8], name: str, version: int) -> str | None:
    """Returns the reason for calling the labels reversed: the champion is far worse on them than a guess would be."""
    recalls, variance = [], 0.0
    for gender in range(len(GENDERS)):
        right = champion[labels == gender] == gender
        recalls.append(float(right.mean()) if len(right) else 0.5)
        smoothed = (right.sum() + 1) / (len(right) + 2)  # so that a handful of faces is never certain
        variance += smoothed * (1 - smoothed) / (4 * max(1, len(right)))
    accuracy = sum(recalls) / len(recalls)
    if accuracy + Z_99 * math.sqrt(variance) >= 0.5:
        return None
    return (
        f"the labels of {name} look reversed: version {version} has a balanced accuracy of {accuracy:.1%} on its "
        f"{len(labels)} held-out faces, far below the 50 % of a guess; check which gender is 0 and which is 1"
    )


def _balanced_accuracy(labels: NDArray[np.uint8], right: NDArray[np.bool_]) -> float:
    return float(np.mean([right[labels == gender].mean() for gender in range(len(GENDERS))]))


def difference_interval(
    labels: NDArray[np.uint8], right: NDArray[np.bool_], right_before: NDArray[np.bool_]
) -> tuple[float, float]:
    """Returns the 95 % interval of the difference of two balanced accuracies on the same faces.

    It is that of `paired_gain`, which holds for few faces too, with the variances of both genders added up.

    Args:
        labels: uint8 (N,), both genders.
        right: bool (N,), whether the one model predicts correctly.
        right_before: the same of the other.
    """
    middle = half_squared = 0.0
    for gender in range(len(GENDERS)):
        now, before = right[labels == gender], right_before[labels == gender]
        gain = paired_gain(int((before & ~now).sum()), int((now & ~before).sum()), len(now))
        middle += (gain.low + gain.high) / 4
        half_squared += ((gain.high - gain.low) / 4) ** 2
    half = math.sqrt(half_squared)
    return middle - half, middle + half


def is_beyond_chance(right: NDArray[np.bool_], right_before: NDArray[np.bool_], chance: float = CHANCE) -> bool:
    """Returns whether a model is worse than another on the same faces by more than chance: McNemar's exact test.

    Only the faces count on which one of the two is right. Were both as good, each would be right on half of them.
    """
    # It takes a second to load, which a trainer that starts should not wait for.
    from scipy.stats import binomtest  # noqa: PLC0415

    lost, won = int((right_before & ~right).sum()), int((right & ~right_before).sum())
    return lost > won and bool(binomtest(lost, lost + won, alternative="greater").pvalue < chance)


def lost_groups(
    labels: NDArray[np.uint8],
    new: NDArray[np.uint8],
    champion: NDArray[np.uint8],
    groups: dict[str, NDArray[np.intp]],
) -> list[GroupLoss]:
    """Returns the groups of `MIN_LOST_GROUP` faces or more that lost accuracy by more than chance, worst first.

    Of many groups one is always unlucky, so chance is shared among all that are tested (Bonferroni).

    Args:
        labels: uint8 (N,).
        new: the new model's answers, uint8 (N,).
        champion: the champion's answers, uint8 (N,).
        groups: the members of each group, by its name.
    """
    tested = {name: members for name, members in groups.items() if len(members) >= MIN_LOST_GROUP}
    right, right_before = new == labels, champion == labels
    lost = [
        GroupLoss(
            name=name,
            count=len(members),
            champion=float(right_before[members].mean()),
            accuracy=float(right[members].mean()),
        )
        for name, members in tested.items()
        if is_beyond_chance(right[members], right_before[members], CHANCE / len(tested))
    ]
    return sorted(lost, key=lambda group: group.accuracy - group.champion)


def _predict(model: Path, dataset: Dataset, faces: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Returns 1 where the model predicts female: uint8 (n,)."""
    if not len(faces):
        return np.empty(0, np.uint8)
    return (predict_onnx(model, dataset.faces, faces) >= 0.5).astype(np.uint8)
