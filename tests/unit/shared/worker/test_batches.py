"""Batches by size."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shared.worker.batches import batch_by_size


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 300))
def test_batches_keep_all_items_in_order_and_only_a_lone_one_is_above_the_limit(sizes: list[int], limit: int) -> None:
    batches = list(batch_by_size(sizes, lambda size: size, limit))
    assert [size for batch in batches for size in batch] == sizes
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)
    assert all(sum(left) + right[0] > limit for left, right in itertools.pairwise(batches))
