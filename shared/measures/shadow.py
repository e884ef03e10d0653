"""How a challenger does beside the champion on live traffic: `shadow.json` in the challenger's folder.

All workers add up their counts in this one file, so that what it says holds for the whole installation and outlives
every process.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.clock import now_iso
from shared.records.registry import Registry
from shared.store.base import Store


class ShadowFigures(BaseModel):
    """Counts and sums over images that champion and challenger both saw; two of them can be added.

    Attributes:
        images: that the challenger was given.
        agreed: of those, named as the champion named them.
        failed: of those, without an answer from the challenger.
        difference: sum of the absolute differences of both probabilities.
        timed: images on which both models were run one after the other in the same thread, for their times.
        challenger_s: the challenger's time for these, in seconds; on a CPU, CPU time.
        champion_s: the champion's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    images: int = 0
    agreed: int = 0
    failed: int = 0
    difference: float = 0.0
    timed: int = 0
    challenger_s: float = 0.0
    champion_s: float = 0.0

    def __add__(self, other: Self) -> Self:
        mine, theirs = self.model_dump(), other.model_dump()
        return self.model_validate({name: mine[name] + theirs[name] for name in mine})

    @property
    def agreement(self) -> float | None:
        """The share of images named alike; one without an answer counts as named otherwise."""
        return self.agreed / self.images if self.images else None

    @property
    def mean_difference(self) -> float | None:
        """The mean absolute difference of both probabilities, where the challenger had an answer."""
        answered = self.images - self.failed
        return self.difference / answered if answered else None

    @property
    def time_ratio(self) -> float | None:
        """The challenger's time in times of the champion's."""
        return self.challenger_s / self.champion_s if self.champion_s else None

    def summary(self) -> dict[str, Any]:
        """Returns what a program wants to know, for heartbeats and `--json`."""
        return {
            "images": self.images,
            "failed": self.failed,
            "agreement": _rounded(self.agreement),
            "mean_difference": _rounded(self.mean_difference),
            "time_ratio": _rounded(self.time_ratio),
        }

    def sentence(self) -> str:
        """Returns what a person wants to know, such as `agrees on 97.3 % of 12,400 images, takes 0.8 times as long`."""
        if self.agreement is None:
            return "has not seen any images yet"
        parts = [f"agrees on {100 * self.agreement:.1f} % of {self.images:,} images"]
        if self.failed:
            parts.append(f"failed on {self.failed:,} of them")
        if self.mean_difference is not None:
            parts.append(f"mean difference {self.mean_difference:.3f}")
        if self.time_ratio is not None:
            parts.append(f"takes {self.time_ratio:.2f} times as long")
        return ", ".join(parts)


def shadow_figures(store: Store, challenger: int, champion: int) -> ShadowFigures:
    """Returns how a version did so far as the challenger of another."""
    return _figures(store.find_json(_key(challenger)) or {}, champion)


def add_shadow_figures(store: Store, challenger: int, champion: int, more: ShadowFigures) -> None:
    """Adds to how a version did as the challenger of another. Against a new champion counting starts anew.

    Raises:
        Retryable: the store is away.
    """

    def change(now: dict[str, Any]) -> dict[str, Any]:
        found = _figures(now, champion) + more
        since = now["since"] if now.get("champion") == champion and "since" in now else now_iso()
        return {"champion": champion, "since": since, "updated": now_iso(), **found.model_dump(mode="json")}

    store.update_json(_key(challenger), change)


def _figures(content: dict[str, Any], champion: int) -> ShadowFigures:
    if content.get("champion") != champion:
        return ShadowFigures()
    try:
        return ShadowFigures.model_validate(content)
    except ValidationError:
        return ShadowFigures()  # somebody has spoiled the file: counting starts anew


def _key(challenger: int) -> str:
    return Registry.shadow_key(challenger)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
