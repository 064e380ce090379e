from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import DataError
from edge.sound.ring import Ring


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 25), max_size=12), st.integers(1, 12))
def test_ring_holds_exactly_the_last_samples(sizes: list[int], capacity: int) -> None:
    ring = Ring(capacity)
    said = np.zeros(0, np.int16)
    for size in sizes:
        block = np.arange(len(said), len(said) + size, dtype=np.int16)
        ring.write(block)
        said = np.concatenate((said, block))
    assert ring.end == len(said)
    assert ring.begin == max(0, len(said) - capacity)
    assert np.array_equal(ring.read(ring.begin, ring.end - ring.begin), said[ring.begin :])
    for index in range(ring.begin, ring.end):
        assert ring.read(index, 1)[0] == said[index]


def test_reading_outside_is_refused_with_the_reason() -> None:
    ring = Ring(10)
    ring.write(np.arange(25, dtype=np.int16))
    with pytest.raises(DataError, match="sample 14 is overwritten: the oldest one held is 15"):
        ring.read(14, 1)
    with pytest.raises(DataError, match="not recorded yet: 25 are"):
        ring.read(20, 6)


def test_what_is_read_is_a_copy() -> None:
    ring = Ring(4)
    ring.write(np.ones(4, np.int16))
    heard = ring.read(0, 4)
    ring.write(np.zeros(4, np.int16))
    assert heard.tolist() == [1, 1, 1, 1]
