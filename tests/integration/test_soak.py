"""A short soak on each broker; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.check import check
from tests.soak.run import Plan, soak

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("broker", ["sqlite", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def test_nothing_is_lost_or_misrouted_in_a_few_seconds_of_faults(broker: str, tmp_path: Path) -> None:
    plan = Plan(seconds=10, seed=1, broker=broker, trainer=False, lease_s=1.0, gaps_s=(0.1, 0.4))
    verdict = check(soak(plan, tmp_path))
    assert verdict.is_clean, verdict
    assert verdict.requests > 20
    assert verdict.jobs > 0
    assert verdict.faults.total() >= 2
