"""How loud sound is."""

from __future__ import annotations

import numpy as np
import pytest

from edge.sound.level import FLOOR_DBFS, level_dbfs


def test_levels_are_relative_to_full_scale() -> None:
    rms_dbfs, peak_dbfs = level_dbfs(np.full(100, 16384, np.int16))
    assert rms_dbfs == pytest.approx(-6.02, abs=0.01)
    assert peak_dbfs == pytest.approx(-6.02, abs=0.01)
    assert level_dbfs(np.full(10, -32768, np.int16)) == (0.0, 0.0)
    assert level_dbfs(np.zeros(10, np.int16)) == (FLOOR_DBFS, FLOOR_DBFS)
    assert level_dbfs(np.zeros(0, np.int16)) == (FLOOR_DBFS, FLOOR_DBFS)
