from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.faces.labels import ETHNICITIES
from shared.records.dataset import AGE_BANDS, age_band
from shared.records.evaluation import Evaluation, GroupKind
from trainer.release.evaluate import evaluate, wilson_interval


def measured(probability: list[float], labels: list[int], ages: list[int] | None = None) -> Evaluation:
    count = len(probability)
    return evaluate(
        np.array(probability, np.float32),
        np.array(labels, np.uint8),
        np.array(ages or [25] * count),
        np.zeros(count, int),
    )


def many(count: int = 3000) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Perfectly calibrated probabilities."""
    random = np.random.default_rng(0)
    probability = random.random(count).astype(np.float32)
    labels = (random.random(count) < probability).astype(np.uint8)
    return probability, labels, random.integers(0, 100, count), random.integers(0, 5, count)


def test_the_figures_of_a_small_case_are_those_worked_out_by_hand() -> None:
    result = measured([0.1, 0.4, 0.6, 0.5, 0.9], [0, 0, 0, 1, 1])
    assert result.count == 5
    assert result.accuracy == pytest.approx(4 / 5)  # at exactly 1/2 the answer is female
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert result.auc == pytest.approx(5 / 6)
    assert result.f1_female == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert result.f1_male == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert result.log_loss == pytest.approx(-np.mean(np.log([0.9, 0.6, 0.4, 0.5, 0.9])), rel=1e-6)
    assert result.brier == pytest.approx(np.mean(np.square([0.1, 0.4, 0.6, 0.5, 0.1])), rel=1e-6)
    assert result.confusion.model_dump() == {
        "male_as_male": 2,
        "male_as_female": 1,
        "female_as_male": 0,
        "female_as_female": 2,
    }


def test_recalls_are_of_each_gender_and_their_mean_is_the_balanced_accuracy() -> None:
    result = evaluate(*many())
    assert result.recall_male is not None
    assert result.recall_female is not None
    assert result.recall_male.count == result.confusion.male_as_male
    assert result.recall_female.count == result.confusion.female_as_female
    assert result.recall_male.low < result.recall_male.share < result.recall_male.high
    assert result.balanced_accuracy == pytest.approx((result.recall_male.share + result.recall_female.share) / 2)


def test_error_rates_by_group_are_those_worked_out_by_hand() -> None:
    # 20-29: of four men one is taken for a woman, of two women one for a man. 30-39: women alone, all right.
    result = measured([0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.9, 0.9], [0, 0, 0, 0, 1, 1, 1, 1], [25] * 6 + [35] * 2)
    twenties, thirties = (next(g for g in result.groups if g.name == name) for name in ("20-29", "30-39"))
    assert twenties.false_positive_rate is not None
    assert twenties.false_negative_rate is not None
    assert (twenties.false_positive_rate.share, twenties.false_positive_rate.total) == (0.25, 4)
    assert (twenties.false_negative_rate.share, twenties.false_negative_rate.total) == (0.5, 2)
    assert (twenties.false_positive_rate.low, twenties.false_positive_rate.high) == wilson_interval(1, 4)
    assert thirties.false_positive_rate is None
    assert thirties.false_negative_rate is not None
    assert thirties.false_negative_rate.share == 0
    assert result.spreads["age"].accuracy is None  # both groups are too small to be ranked


def test_error_rates_and_spreads_are_those_of_fairlearn() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics", reason="the extra `test` is not installed anew")
    probability, labels, ages, ethnicities = many()
    result = evaluate(probability, labels, ages, ethnicities)
    bands = np.array([AGE_BANDS[age_band(age)] for age in ages])
    features: dict[GroupKind, NDArray[np.str_]] = {"ethnicity": np.array(ETHNICITIES)[ethnicities], "age": bands}
    for kind, feature in features.items():
        frame = fairlearn.MetricFrame(
            metrics={
                "accuracy": lambda true, predicted: float(np.mean(true == predicted)),
                "false_positive_rate": fairlearn.false_positive_rate,
                "false_negative_rate": fairlearn.false_negative_rate,
            },
            y_true=labels,
            y_pred=(probability >= 0.5).astype(int),
            sensitive_features=feature,
        )
        groups = {group.name: group for group in result.groups if group.kind == kind}
        assert groups.keys() == set(frame.by_group.index)
        for name, expected in frame.by_group.iterrows():
            found = groups[name]
            assert found.false_positive_rate is not None
            assert found.false_negative_rate is not None
            assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-9)
            assert found.false_positive_rate.share == pytest.approx(expected["false_positive_rate"], abs=1e-9)
            assert found.false_negative_rate.share == pytest.approx(expected["false_negative_rate"], abs=1e-9)
        spread = result.spreads[kind].model_dump()
        assert spread == pytest.approx(frame.difference(method="between_groups").to_dict(), abs=1e-9)


def test_a_calibrated_model_has_a_small_calibration_error_and_an_overconfident_one_a_large() -> None:
    probability, labels, ages, ethnicities = many(30_000)
    sure = (probability > 0.5).astype(np.float32)
    assert evaluate(probability, labels, ages, ethnicities).ece < 0.02
    assert evaluate(sure, labels, ages, ethnicities).ece == pytest.approx(0.25, abs=0.02)


def test_the_calibration_error_by_chance_is_that_of_right_probabilities() -> None:
    generator = np.random.default_rng(4)
    probability = generator.beta(0.5, 0.5, 1_500).astype(np.float32)
    ages, ethnicities = np.zeros((2, 1_500), np.int64)
    results = [
        evaluate(probability, (generator.random(1_500) < probability).astype(np.uint8), ages, ethnicities)
        for _ in range(40)
    ]
    assert results[0].ece_by_chance == pytest.approx(np.mean([result.ece for result in results]), rel=0.1)


def test_reliability_bins_hold_equal_counts_by_rising_probability() -> None:
    bins = evaluate(*many()).reliability
    assert [part.count for part in bins] == [200] * 15
    assert all(left.high <= right.low for left, right in pairwise(bins))
    assert all(part.low <= part.mean_probability <= part.high for part in bins)


def test_groups_partition_the_faces_in_every_way() -> None:
    probability, labels, ages, ethnicities = many()
    result = evaluate(probability, labels, ages, ethnicities)
    for kind in ("gender", "ethnicity", "age", "intersection"):
        groups = [group for group in result.groups if group.kind == kind]
        assert sum(group.count for group in groups) == 3000
        assert sum(group.correct for group in groups) == round(result.accuracy * 3000)
        assert len({group.name for group in groups}) == len(groups)


def test_an_intersection_holds_the_faces_that_its_name_says() -> None:
    probability, labels, ages, ethnicities = many()
    members = (labels == 1) & (ethnicities == 2) & (ages >= 20) & (ages < 30)
    (group,) = (g for g in evaluate(probability, labels, ages, ethnicities).groups if g.name == "female, Asian, 20-29")
    assert group.count == members.sum()
    assert group.correct == (probability[members] >= 0.5).sum()
    assert group.low < group.accuracy < group.high


def test_the_worst_group_needs_ten_faces() -> None:
    # Nine faces of 30-39 are all wrong, ten of 40-49 half: nine are too few to be named.
    result = measured([0.1] * 10 + [0.9] * 9 + [0.1] * 5 + [0.9] * 5, [0] * 29, [25] * 10 + [35] * 9 + [45] * 10)
    assert result.worst_group is not None
    assert (result.worst_group.kind, result.worst_group.name, result.worst_group.count) == ("age", "40-49", 10)
    assert result.gap == pytest.approx(0.5)


def test_without_a_group_of_ten_none_is_the_worst() -> None:
    result = measured([0.1, 0.9], [0, 1])
    assert result.worst_group is None
    assert result.gap is None


def test_one_gender_alone_has_no_auc_and_no_curves() -> None:
    result = measured([0.1, 0.2, 0.9], [0, 0, 0])
    assert result.auc is None
    assert result.roc.x == result.precision_recall.x == []
    assert result.balanced_accuracy == pytest.approx(2 / 3)
    assert result.f1_female == 0


def test_curves_are_thinned_and_keep_both_ends() -> None:
    result = evaluate(*many(30_000))
    for curve in (result.roc, result.precision_recall):
        assert 150 < len(curve.x) == len(curve.y) <= 200
        assert curve.x == sorted(curve.x)
        assert (curve.x[0], curve.x[-1]) == (0, 1)
    assert (result.roc.y[0], result.roc.y[-1]) == (0, 1)
    area = np.trapezoid(result.roc.y, result.roc.x)
    assert area == pytest.approx(result.auc, abs=0.005)


def test_the_histogram_counts_every_face_once() -> None:
    histogram = measured([0.0, 0.04, 0.5, 1.0], [0, 0, 1, 1]).histogram
    assert len(histogram) == 20
    assert (histogram[0], histogram[10], histogram[19], sum(histogram)) == (2, 1, 1, 4)


def test_abstaining_answers_fewer_faces_more_accurately() -> None:
    rows = {row.confidence: row for row in measured([0.05, 0.35, 0.6, 0.97], [0, 1, 0, 1]).coverage}
    assert (rows[0.5].covered, rows[0.5].accuracy) == (1, 0.5)
    assert (rows[0.7].covered, rows[0.7].accuracy) == (0.5, 1)
    assert (rows[0.99].covered, rows[0.99].accuracy) == (0, None)


def test_certain_probabilities_give_finite_figures() -> None:
    result = measured([0.0, 1.0, 1.0], [1, 1, 0])
    assert np.isfinite(result.log_loss)


def test_an_evaluation_survives_json() -> None:
    result = evaluate(*many())
    assert Evaluation.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"probability outside \[0, 1\]"):
        measured([value], [1])


def test_arrays_of_no_or_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arrays of \[0\] faces"):
        measured([], [])
    with pytest.raises(ValueError, match=r"arrays of \[1, 2\] faces"):
        measured([0.5], [1, 0])


def test_wilson_intervals_are_those_of_the_textbook() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


@pytest.mark.parametrize(("correct", "count"), [(1, 0), (-1, 5), (6, 5)])
def test_a_share_of_nothing_has_no_interval(correct: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"found {correct} of {count}"):
        wilson_interval(correct, count)
