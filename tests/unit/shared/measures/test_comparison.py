"""Two models on the same faces: the statistics."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from shared.measures.comparison import compare, mcnemar_p_value, paired_gain
from shared.measures.groups import Labels

NOBODY = Labels(np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 6), (1, 7), (6, 59), (86, 150), (150, 150)])
def test_mcnemars_p_value_is_that_of_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    tossed = only_first + only_second
    expected = binomtest(only_first, tossed).pvalue if tossed else 1.0
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected)
    assert mcnemar_p_value(only_second, only_first) == mcnemar_p_value(only_first, only_second)


def test_mcnemars_p_value_holds_for_as_many_faces_as_there_may_be() -> None:
    assert mcnemar_p_value(10_000, 10_400) == pytest.approx(binomtest(10_000, 20_400).pvalue)
    assert mcnemar_p_value(1, 30_000) == 0.0


def test_the_interval_of_a_gain_covers_the_truth_in_95_of_100_cases() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for lost, won, both in random.multinomial(80, (0.06, 0.14, 0.8), 2000):
        gain = paired_gain(int(lost), int(won), int(lost + won + both))
        covered += gain.low <= 0.08 <= gain.high
    assert 0.935 <= covered / 2000 <= 0.985


def test_each_group_gains_what_its_faces_say() -> None:
    gender = np.array([0, 0, 0, 0, 1, 1, 1, 1] * 5)
    labels = Labels(gender, np.zeros(40, np.int16), np.full(40, 25))
    first = np.where(np.arange(40) % 8 < 2, 0.9, 0.1).astype(np.float32)  # two males of four wrong, all females wrong
    second = np.where(gender == 1, 0.8, 0.2).astype(np.float32)  # all correct

    found = compare(labels, first, second, np.ones(40, bool))

    assert found is not None
    assert found.agreement.as_dict() == {"both_correct": 10, "only_first": 0, "only_second": 30, "both_wrong": 0}
    gains = {group.name: group.gain.difference for group in found.groups}
    assert (gains["male"], gains["female"]) == (0.5, 1.0)
    assert found.groups[0].gain.difference == 1.0
    assert (found.first.share, found.second.share) == (0.25, 1.0)
    assert (found.first_balanced, found.second_balanced) == (0.25, 1.0)
    assert len(found.turned_correct) == 30
    assert "Model 2 is correct on 30 faces more than model 1, of 40: more than chance explains" in found.describe(1, 2)
    assert compare(NOBODY, np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, bool)) is None
