"""A line of the results: what was measured, what it is held against, and whether that was reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.bare import Lap


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        name: what was measured.
        figure: in words and units.
        ratio: to what it is compared with, where it is compared.
        target: what is to be reached, in words.
        met: whether it is; None where there is nothing to reach.
    """

    name: str
    figure: str
    ratio: float | None
    target: str
    met: bool | None


@dataclass(frozen=True)
class Pairs:
    """Laps of ours, each right after one of the bare loops: what disturbs the machine disturbs both."""

    bare: list[Lap]
    ours: list[Lap]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(ours.rate / bare.rate for ours, bare in zip(self.ours, self.bare, strict=True))

    @property
    def figure(self) -> str:
        """Both speeds, as medians."""
        return f"{_median_rate(self.ours):,.0f} images/s, bare loop {_median_rate(self.bare):,.0f}"


def at_least(name: str, figure: str, ratio: float, least: float) -> Row:
    """Returns a row whose ratio is to reach `least`."""
    return Row(name, figure, ratio, f"≥ {least:g}", ratio >= least)


def at_most(name: str, figure: str, ratio: float, most: float) -> Row:
    """Returns a row whose ratio is to stay below `most`."""
    return Row(name, figure, ratio, f"≤ {most:g}", ratio <= most)


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _median_rate(laps: Sequence[Lap]) -> float:
    return statistics.median(lap.rate for lap in laps)
