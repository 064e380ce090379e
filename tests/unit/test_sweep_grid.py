from itertools import product
from pathlib import Path

import numpy as np
import pytest

from edge.errors import PlanError, UsageError
from rig.sweep.estimate import Load, cluster_need
from rig.sweep.grid import BATCH, Axes, Block, Clip, Grid, chunk_size
from rig.sweep.settings import SweepChoice


def axes(clips=3, attackers=2, delays=2, levels=2, repeats=2, rooms=(None,)):
    return Axes(
        clips=[Clip(path=str(i), label="yes", sha256="") for i in range(clips)],
        rt60_s=rooms,
        talkers={"talker": (1, 1, 1)},
        devices={"a": (2, 2, 1), "b": (3, 2, 1)},
        attackers={f"x{i}": (1, i, 1) for i in range(attackers)},
        delays_ms=[float(i) for i in range(delays)],
        levels_db=[float(i) for i in range(levels)],
        talker_levels_db=(0.0,),
        repeats=repeats,
    )


def block(eps=(0.0,), *, family=None, scaled=False, clips=(0, 1, 2), attack="benign"):
    return Block(
        bundle="m", attack=attack, on=None, target=None, steps=0, eps=eps, scaled=scaled, family=family, clips=clips
    )


def small():
    attacked = [
        block((0.1, 0.2), family=0, scaled=True, attack="fgsm"),
        block((0.1, 0.2), family=1, clips=(0, 2), attack="pgd-2"),
    ]
    return Grid(axes=axes(), blocks=[block(), *attacked], chunk=BATCH)


def test_indices_count_through_the_axes_in_their_order():
    grid = small()
    assert [grid.size(i) for i in range(3)] == [3 * 2 * 2, 3 * 2 * 2 * 2 * 2 * 2 * 2, 2 * 2 * 2 * 2 * 2 * 2 * 2]
    assert grid.total == sum(grid.size(i) for i in range(3))
    for number in range(3):
        radices = grid.radices(number)
        expected = list(product(*(range(size) for size in radices.values())))
        places = grid.places(number, np.arange(grid.size(number)))
        assert list(places) == list(reversed(radices))
        assert list(zip(*(places[axis].tolist() for axis in radices), strict=True)) == expected


def test_chunks_cover_every_condition_once_and_keep_batches_whole():
    for chunk in (BATCH, 2 * BATCH, 512):
        grid = small().model_copy(update={"chunk": chunk})
        grid = Grid.model_validate(grid.model_dump())
        seen = []
        for number in range(grid.chunks):
            span = grid.span(number)
            assert span.start % BATCH == 0
            assert span.first == grid.firsts[span.block] + span.start
            assert 0 < span.stop - span.start <= chunk
            seen += range(span.first, span.first + span.stop - span.start)
        assert seen == list(range(grid.total))
    with pytest.raises(UsageError, match="chunks 0 to"):
        grid.span(grid.chunks)


def test_a_cell_is_a_condition_but_for_clip_and_repeat():
    grid = small()
    for number in range(3):
        offsets = np.arange(grid.size(number))
        cells = grid.cell_of(number, offsets)
        assert np.bincount(cells, minlength=grid.cells(number)).tolist() == [
            len(grid.blocks[number].clips) * grid.axes.repeats
        ] * grid.cells(number)
        places = grid.places(number, offsets)
        for offset in offsets.tolist():
            words = grid.describe(number, {axis: int(place[offset]) for axis, place in places.items()})
            assert words == grid.cell(number, int(cells[offset]))
    assert grid.cell(1, 1)["eps"] == 0.2
    assert grid.cell(0, 0)["attacker_position"] is None


def test_a_hundred_million_conditions_are_as_quick_as_a_hundred():
    huge = Grid(
        axes=axes(clips=1000, attackers=50, delays=50, levels=5, repeats=1),
        blocks=[block((0.1, 0.2, 0.3, 0.4), family=0, scaled=True, clips=tuple(range(1000)), attack="fgsm")],
        chunk=8192,
    )
    assert huge.total == 100_000_000
    span = huge.span(huge.chunks - 1)
    assert huge.firsts[-1] == span.first + span.stop - span.start
    last = {axis: int(place[0]) for axis, place in huge.places(0, np.array([huge.total - 1])).items()}
    assert last == {axis: size - 1 for axis, size in huge.radices(0).items()}
    assert huge.locate(12_345_678) == (0, 12_345_678)
    with pytest.raises(UsageError, match="conditions 0 to 99999999"):
        huge.locate(huge.total)


def test_a_chunk_never_needs_more_sounds_than_fit():
    many = Grid(
        axes=axes(clips=5000, attackers=1, delays=1, levels=1, repeats=1),
        blocks=[block(clips=tuple(range(5000))), block((0.1, 0.2, 0.3), family=0, clips=tuple(range(5000)))],
        chunk=1 << 20,
    )
    for number, sounds in ((0, 1), (1, 4)):
        per_clip = many.size(number) // 5000
        assert many.rows_per_chunk(number) // per_clip * sounds <= 512


def test_chunk_sizes():
    assert chunk_size(None, 10) == 512
    assert chunk_size(None, 10**9) == 8192
    assert chunk_size(33, 10) == 2 * BATCH
    with pytest.raises(PlanError, match="--chunk 2000000: allowed"):
        chunk_size(2_000_000, 10)


@pytest.mark.parametrize(
    "wrong",
    [{"levels_db": []}, {"levels_db": [0, 0]}, {"levels_db": [float("nan")]}, {"rt60_s": [0]}, {"level_db": [0]}],
)
def test_axes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SweepChoice.model_validate(wrong)


def test_what_a_cluster_needs_is_computed():
    need = cluster_need(
        Load(conditions=100_000_000, responses=100, taps=8000, bundle_bytes=500_000),
        nodes=100,
        workers_per_node=8,
        rate_per_s=500,
        efficiency=0.8,
        file_bytes_per_row=20,
        worker_bytes=5e8,
        chunk_s=0.01,
    )
    assert need.bound_by == "workers"
    assert need.hours == pytest.approx(100e6 / (800 * 500 * 0.8) / 3600)
    assert need.chunks == 12_208
    assert need.equipment_bytes == 800 * (100 * 8000 * 4 + 500_000)
    assert need.sounds_bytes == 12_208 * 2 * 2 * 32_000
    assert need.rows_bytes == 2e9
    assert need.worker_bytes == 5e8 + 3.2e6
    assert need.scheduler_bytes_per_s == pytest.approx(
        (need.equipment_bytes + need.sounds_bytes + need.rows_bytes) / (need.hours * 3600)
    )


def test_one_process_that_writes_can_be_what_everybody_waits_for():
    many = cluster_need(Load(conditions=100_000_000), nodes=100, workers_per_node=8, rate_per_s=1600, chunk_s=0.012)
    assert (many.bound_by, many.hours) == ("writer", pytest.approx(12_208 * 0.012 / 3600))


def test_the_document_says_what_is_computed():
    text = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    load = Load(conditions=100_000_000, chunk=65_536, clips_per_chunk=4, responses=110, taps=9_600)
    for rate_per_s in (1600, 160):
        need = cluster_need(load, nodes=100, workers_per_node=8, rate_per_s=rate_per_s)
        assert need.bound_by == "workers"
        row = (
            f"| {rate_per_s:,} | {need.hours * 60:.1f} min | {need.chunks:,} | {need.equipment_bytes / 1e9:.1f} GB"
            f" | {need.sounds_bytes / 1e9:.1f} GB | {need.rows_bytes / 1e9:.1f} GB"
            f" | {need.scheduler_bytes_per_s / 1e6:.0f} MB/s | {need.worker_bytes / 1e6:.0f} MB |"
        )
        assert row in text, row
