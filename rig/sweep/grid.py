"""The conditions of a sweep as numbers: nothing is listed, every condition is worked out from its index.

A grid is a row of blocks, one per attack and bundle. Within a block an index is a number of mixed radix whose digits
are places on the axes; the clip is the slowest digit, so that neighbours share clip, perturbation and positions, and
the repeat the fastest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from edge.errors import PlanError, UsageError

Integers = npt.NDArray[np.int64]
Position = tuple[float, float, float]

# From slow to fast. ``scale`` is eps where budgets differ only in the gain of one perturbation, ``eps`` otherwise.
AXES = (
    *("clip", "room", "eps", "talker", "device", "attacker"),
    *("delay", "level", "talker_level", "scale", "repeat"),
)
# Conditions are scored so many at once, always the same together: what a graph computes of one may depend, in the last
# bit, on how many it is given.
BATCH = 32
MAX_CONDITIONS = 1 << 40
# Clips and perturbations that a chunk may need: about 50 MB of them, however few conditions each clip has.
MAX_SOUNDS = 512


class Clip(BaseModel):
    """One recording of the talker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    label: str
    sha256: str


class Axes(BaseModel):
    """The values along every axis but clip and eps, which differ by attack.

    Positions are in metres, None where there is no room; ``rt60_s`` has the reverberation times wanted, None for the
    room as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clips: tuple[Clip, ...]
    rt60_s: tuple[float | None, ...]
    talkers: dict[str, Position | None]
    devices: dict[str, Position | None]
    attackers: dict[str, Position | None]
    delays_ms: tuple[float, ...]
    levels_db: tuple[float, ...]
    talker_levels_db: tuple[float, ...]
    repeats: int


class Block(BaseModel):
    """One attack on one bundle, at all its budgets.

    Attributes:
        bundle: that scores.
        attack: as tables name it, ``benign`` for none.
        on: the bundle whose gradient is followed, None where none is.
        target: the label to be heard, None where any error counts.
        steps: of the gradient.
        eps: budgets; (0,) without an attack.
        scaled: whether all budgets are one perturbation at different gains.
        family: number of the first row of perturbations per clip, None without an attack.
        clips: which clips are played; without those that say the target already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    attack: str
    on: str | None
    target: str | None
    steps: int
    eps: tuple[float, ...]
    scaled: bool
    family: Annotated[int, Field(ge=0)] | None
    clips: tuple[int, ...]


class Span(NamedTuple):
    """Consecutive conditions of one block: the block's number, and first and last + 1 within the block."""

    number: int
    block: int
    start: int
    stop: int
    first: int  # index in the whole grid of ``start``


class Grid(BaseModel):
    """All conditions of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    axes: Axes
    blocks: tuple[Block, ...]
    chunk: Annotated[int, Field(ge=BATCH, le=1 << 20)]
    order: Literal["clip-slowest-1"] = "clip-slowest-1"

    def radices(self, block: int) -> dict[str, int]:
        """How many places there are on every axis of a block, from slow to fast."""
        here, axes = self.blocks[block], self.axes
        attacked = here.family is not None
        sizes = {
            "clip": len(here.clips),
            "room": len(axes.rt60_s),
            "eps": 1 if here.scaled else len(here.eps),
            "talker": len(axes.talkers),
            "device": len(axes.devices),
            "attacker": len(axes.attackers) if attacked else 1,
            "delay": len(axes.delays_ms) if attacked else 1,
            "level": len(axes.levels_db) if attacked else 1,
            "talker_level": len(axes.talker_levels_db),
            "scale": len(here.eps) if here.scaled else 1,
            "repeat": axes.repeats,
        }
        return {axis: sizes[axis] for axis in AXES}

    def size(self, block: int) -> int:
        """Number of conditions of a block."""
        return prod(self.radices(block).values())

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """Index of the first condition of each block, and at last the number of all conditions."""
        return _cumulated(self.size(block) for block in range(len(self.blocks)))

    def rows_per_chunk(self, block: int) -> int:
        """How many conditions of a block make a chunk: ``chunk``, or fewer where these would need too many sounds."""
        radices = self.radices(block)
        per_clip = self.size(block) // radices["clip"]
        sounds = 1 + (radices["eps"] if self.blocks[block].family is not None else 0)
        return max(BATCH, min(self.chunk, MAX_SOUNDS * per_clip // sounds) // BATCH * BATCH)

    @cached_property
    def _first_chunks(self) -> tuple[int, ...]:
        return _cumulated(-(-self.size(block) // self.rows_per_chunk(block)) for block in range(len(self.blocks)))

    @property
    def total(self) -> int:
        """Number of all conditions."""
        return self.firsts[-1]

    @property
    def chunks(self) -> int:
        """Number of chunks; a chunk never spans two blocks."""
        return self._first_chunks[-1]

    def span(self, number: int) -> Span:
        """The conditions of a chunk."""
        if not 0 <= number < self.chunks:
            raise UsageError(f"chunk {number}: the sweep has chunks 0 to {self.chunks - 1}")
        block = bisect_right(self._first_chunks, number) - 1
        rows = self.rows_per_chunk(block)
        start = (number - self._first_chunks[block]) * rows
        return Span(number, block, start, min(start + rows, self.size(block)), first=self.firsts[block] + start)

    def places(self, block: int, offsets: Integers) -> dict[str, Integers]:
        """The place on every axis of conditions, given by their offsets within a block; int64 of the same shape."""
        rest, found = offsets, {}
        for axis, size in reversed(self.radices(block).items()):
            rest, found[axis] = np.divmod(rest, size)
        return found

    def cells(self, block: int) -> int:
        """Number of cells of a block: conditions but for clips and repeats, which are what a rate counts over."""
        return self.size(block) // (len(self.blocks[block].clips) * self.axes.repeats)

    def cell_of(self, block: int, offsets: Integers) -> Integers:
        """The cell of conditions, given by their offsets within the block."""
        # The clip is the slowest digit and the repeat the fastest.
        return offsets // self.axes.repeats % self.cells(block)

    def locate(self, index: int) -> tuple[int, int]:
        """Block and offset within it of one condition.

        Raises:
            UsageError: there is no such condition.
        """
        if not 0 <= index < self.total:
            raise UsageError(f"condition {index}: the sweep has conditions 0 to {self.total - 1}")
        block = bisect_right(self.firsts, index) - 1
        return block, index - self.firsts[block]

    def describe(self, block: int, places: Mapping[str, int]) -> dict[str, Any]:
        """A condition, or a cell, in words: names and values by the columns of the rows."""
        here, axes = self.blocks[block], self.axes
        attacked = here.family is not None
        eps = here.eps[places["scale" if here.scaled else "eps"]]
        return {
            "bundle": here.bundle,
            "attack": here.attack,
            "crafted_on": here.on,
            "target": here.target,
            "eps": eps,
            "delay_ms": axes.delays_ms[places["delay"]] if attacked else 0.0,
            "level_db": axes.levels_db[places["level"]] if attacked else 0.0,
            "talker_level_db": axes.talker_levels_db[places["talker_level"]],
            "rt60_s": axes.rt60_s[places["room"]],
            "talker_position": list(axes.talkers)[places["talker"]],
            "attacker_position": list(axes.attackers)[places["attacker"]] if attacked else None,
            "device_position": list(axes.devices)[places["device"]],
        }

    def cell(self, block: int, number: int) -> dict[str, Any]:
        """A cell in words."""
        offset = np.array([number * self.axes.repeats], np.int64)
        return self.describe(block, {axis: int(place[0]) for axis, place in self.places(block, offset).items()})


def chunk_size(wanted: int | None, total: int) -> int:
    """Conditions per chunk: as wanted, or few enough for progress and many enough for files; whole batches.

    Raises:
        PlanError: no chunk, or one that would not fit into memory.
    """
    if wanted is not None and not 1 <= wanted <= 1 << 20:
        raise PlanError(f"--chunk {wanted}: allowed 1 to {1 << 20} conditions")
    size = wanted or min(max(total // 32, 512), 8192)
    return -(-size // BATCH) * BATCH


def _cumulated(sizes: Any) -> tuple[int, ...]:
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    return tuple(sums)
