"""A little of `make fuzz`, and all that it ever found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.targets import TARGETS, mutate, seeds

CORPUS = sorted(Path(targets.__file__).with_name("corpus").glob("*.bin"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_was_found_once_is_answered_now(path: Path) -> None:
    TARGETS[path.name.partition("-")[0]](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_give_a_result_or_one_of_our_errors(name: str) -> None:
    rng = random.Random(7)
    for data in seeds(name):
        TARGETS[name](data)
    for _ in range(60):
        TARGETS[name](mutate(rng.choice(seeds(name)), rng, seeds(name)))
