"""Thousands of conditions by linearity against each of them convolved by scipy in 64 bits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import oaconvolve

from edge.errors import UnavailableError, UsageError
from rig.render import SILENT, Conditions, Material, Renderer, open_renderer
from rig.render.kernels import compiled
from rig.render.rows import RowStore, distinct
from rig.render.spectra import FRACTIONS, TAPS
from rig.render.torch_linear import TorchRenderer

CLIPS, PERTURBATIONS, RESPONSES = 5, 6, 7


def opened(name: str, material: Material, **settings: Any) -> Renderer:
    if name == "torch on the processor":
        return TorchRenderer(material, device="cpu", **settings)
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU here")
    return open_renderer(material, device=name, **settings)


RENDERERS = ("cpu", "torch on the processor", "cuda")


def sounds(seed: int, rows: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (rows, samples)).astype(np.float32)


def material(samples: int = 500, other: int = 400, taps: int = 300) -> Material:
    decay = np.exp(-np.arange(taps) / (taps / 5)).astype(np.float32)
    return Material(sounds(1, CLIPS, samples), sounds(2, PERTURBATIONS, other) / 8, sounds(3, RESPONSES, taps) * decay)


def conditions(count: int, *, seed: int = 0, reach: int = 300, silent: bool = True) -> Conditions:
    draw = np.random.default_rng(seed)
    return Conditions(
        clip=draw.integers(0, CLIPS, count),
        talker=draw.integers(0, RESPONSES, count),
        talker_gain=draw.uniform(-1, 2, count).astype(np.float32),
        perturbation=draw.integers(SILENT if silent else 0, PERTURBATIONS, count),
        attacker=draw.integers(0, RESPONSES, count),
        attacker_gain=draw.uniform(-1, 2, count).astype(np.float32),
        delay=draw.integers(-reach, reach, count).astype(np.float64),
        start=draw.integers(-50, 200, count),
    )


def cut(sound: np.ndarray, start: int, window: int) -> np.ndarray:
    padded = np.zeros(window)
    low, high = max(start, 0), min(start + window, len(sound))
    if low < high:
        padded[low - start : high - start] = sound[low:high]
    return padded


def by_scipy(source: Material, table: Conditions, row: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """What talker and attacker each bring to the window."""
    clip, response = source.clips[table.clip[row]], source.responses[table.talker[row]]
    talker = oaconvolve(clip.astype(np.float64), response.astype(np.float64)) * float(table.talker_gain[row])
    talker = cut(talker, int(table.start[row]), window)
    if table.perturbation[row] == SILENT:
        return talker, np.zeros(window)
    step = int(np.floor(table.delay[row] * FRACTIONS + 0.5))
    whole, fraction = divmod(step, FRACTIONS)
    perturbation = source.perturbations[table.perturbation[row]].astype(np.float64)
    attacker = oaconvolve(perturbation, source.responses[table.attacker[row]].astype(np.float64))
    if fraction:
        at = np.arange(-40, 41) - fraction / FRACTIONS
        inside = np.abs(at) < TAPS / 2
        attacker = np.convolve(attacker, np.sinc(at) * (0.5 + 0.5 * np.cos(2 * np.pi * at / TAPS)) * inside)
        whole -= 40
    return talker, cut(attacker * float(table.attacker_gain[row]), int(table.start[row]) - whole, window)


def agree(heard: np.ndarray, wanted: np.ndarray, loudest: float = 0.0) -> bool:
    """Within 1e-5, or within 1e-6 of the loudest sample of the convolution where only its tail is heard."""
    allowed = max(1e-5 * np.linalg.norm(wanted), 1e-6 * loudest * np.sqrt(len(wanted)))
    return bool(np.linalg.norm(heard - wanted) <= allowed)


@pytest.mark.parametrize("name", RENDERERS)
@pytest.mark.parametrize("window", [1, 63, 400, 1500])
def test_every_condition_is_what_scipy_convolves(name: str, window: int) -> None:
    source, table = material(), conditions(150)
    renderer = opened(name, source, window=window, block=16)
    heard, levels = renderer.render(table)
    for row in range(len(table)):
        talker, attacker = by_scipy(source, table, row, window)
        assert agree(heard[row], talker + attacker, loudest=0.1), row
        assert levels.linf[row] == pytest.approx(np.abs(attacker).max(), rel=1e-4, abs=1e-6)
        assert levels.talker_rms[row] == pytest.approx(np.sqrt(np.mean(talker**2)), rel=1e-4, abs=1e-6)
        assert levels.attacker_rms[row] == pytest.approx(np.sqrt(np.mean(attacker**2)), rel=1e-4, abs=1e-6)
        if np.sqrt(np.mean(attacker**2)) > 1e-4 and np.sqrt(np.mean(talker**2)) > 1e-4:
            snr_db = 10 * np.log10(np.mean(talker**2) / np.mean(attacker**2))
            assert levels.snr_db[row] == pytest.approx(snr_db, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 300),
    other=st.integers(1, 300),
    taps=st.integers(1, 300),
    window=st.integers(1, 400),
    reach=st.integers(1, 2000),
    block=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_any_shape(samples: int, other: int, taps: int, window: int, reach: int, block: int, seed: int) -> None:
    source, table = material(samples, other, taps), conditions(20, seed=seed, reach=reach)
    heard, _ = open_renderer(source, window=window, block=block).render(table)
    for row in range(len(table)):
        everything = by_scipy(source, replace(table, start=np.full(20, -3000)), row, 8000)
        loudest = max(np.abs(each).max() for each in everything)
        assert agree(heard[row], sum(by_scipy(source, table, row, window)), loudest), row


@pytest.mark.parametrize("name", RENDERERS)
def test_delays_between_samples(name: str) -> None:
    source, table = material(), conditions(60, silent=False)
    table = replace(table, delay=np.random.default_rng(5).uniform(-200, 200, 60))
    heard, _ = opened(name, source, window=700, fractional=True).render(table)
    for row in range(len(table)):
        assert agree(heard[row], sum(by_scipy(source, table, row, 700))), row
    with pytest.raises(UsageError, match=r"delay of condition 0 is -?\d+\.\d+ samples: round it"):
        opened(name, source, window=700).render(table)


def test_a_condition_has_the_same_samples_in_every_block() -> None:
    source, table = material(), conditions(300)
    whole, levels = open_renderer(source, window=700, block=64).render(table)
    for block, cache_bytes in ((1, 1), (7, 1), (300, 1_000_000)):
        renderer = open_renderer(source, window=700, block=block, cache_bytes=cache_bytes)
        tables = (table[at : at + 37] for at in range(0, 300, 37))
        seen = 0
        for part in renderer.blocks(tables, first=1000):
            rows = part.indices - 1000
            assert len(rows) <= block
            assert np.array_equal(part.pcm, whole[rows])
            assert np.array_equal(part.levels.snr_db, levels.snr_db[rows])
            assert np.array_equal(rows, np.arange(seen, seen + len(rows)))
            seen += len(rows)
        assert seen == 300


def test_two_streams_of_one_renderer_do_not_disturb_each_other() -> None:
    source, table = material(), conditions(200)
    renderer = open_renderer(source, window=700, block=8, cache_bytes=1)
    whole = renderer.render(table)[0].copy()
    backwards = table[::-1]
    for one, other in zip(renderer.blocks(table), renderer.blocks(backwards), strict=False):
        assert np.array_equal(one.pcm, whole[one.indices])
        assert np.array_equal(other.pcm, whole[::-1][other.indices])


def test_columns_that_are_views_are_taken_as_they_are() -> None:
    source, table = material(), conditions(40)
    whole = open_renderer(source, window=700).render(table)[0]
    assert np.array_equal(open_renderer(source, window=700).render(table[::-2])[0], whole[::-2])
    one = np.broadcast_to(np.float32(0.5), 40)
    half = open_renderer(source, window=700).render(replace(table, talker_gain=one, attacker_gain=one))[0]
    same = open_renderer(source, window=700).render(replace(table, talker_gain=one.copy(), attacker_gain=one.copy()))[0]
    assert np.array_equal(half, same)


def test_a_kernel_without_a_place_for_its_code_is_compiled_all_the_same() -> None:
    scope: dict[str, Any] = {}
    exec("def add(a, b):\n    return a + b", scope)  # of no file, so that there is no cache for it
    assert compiled(scope["add"])(1, 2) == 3


class Counting:
    """Adds the number of the condition."""

    def apply(self, block: np.ndarray, indices: np.ndarray) -> None:
        block += indices[:, None].astype(np.float32)


class Doubling:
    def apply(self, block: np.ndarray, indices: np.ndarray) -> None:
        block *= 2


def test_stages_come_after_the_sum_in_their_order() -> None:
    source, table = material(), conditions(50)
    renderer = open_renderer(source, window=700, block=8)
    plain = renderer.render(table)[0]
    for part in renderer.blocks(table, stages=(Counting(), Doubling())):
        assert np.allclose(part.pcm, 2 * (plain[part.indices] + part.indices[:, None]), atol=1e-4)


def test_silence() -> None:
    source, table = material(), conditions(4)
    zeros = np.zeros(4, np.float32)
    table = replace(table, perturbation=np.array([SILENT, 0, 0, SILENT]), delay=np.array([0.0, 1e9, -1e9, 0]))
    table = replace(table, talker_gain=np.array([1, 1, 0, 0], np.float32), start=np.zeros(4, np.int64))
    renderer = open_renderer(source, window=300)
    heard, levels = renderer.render(table)
    assert np.array_equal(levels.linf, zeros)
    assert np.array_equal(levels.snr_db, np.full(4, np.inf))
    assert not heard[2:].any()
    assert heard[:2].any(axis=1).all()
    aloud = replace(table, perturbation=np.zeros(4, np.int64), delay=np.zeros(4), attacker_gain=zeros + 1)
    assert np.array_equal(renderer.levels(aloud).snr_db[2:], [-np.inf, -np.inf])


def test_levels_without_rendering_are_those_of_rendering() -> None:
    source, table = material(), conditions(80)
    rendered = open_renderer(source, window=700).render(table)[1]
    alone = open_renderer(source, window=700).levels(table)
    for name in ("linf", "snr_db", "talker_rms", "attacker_rms"):
        assert np.array_equal(getattr(rendered, name), getattr(alone, name))


def test_nothing_to_attack_with_and_nothing_to_render() -> None:
    source = replace(material(), perturbations=np.empty((0, 0), np.float32))
    table = replace(conditions(9), perturbation=np.full(9, SILENT))
    renderer = open_renderer(source, window=100)
    assert agree(renderer.render(table)[0][3], by_scipy(source, table, 3, 100)[0])
    assert renderer.render(table[:0])[0].shape == (0, 100)
    assert not list(renderer.blocks(iter(())))
    with pytest.raises(UsageError, match=r"perturbation of condition 2 is 0: there is none to choose, or -1 for none"):
        renderer.render(replace(table, perturbation=np.where(np.arange(9) == 2, 0, SILENT)))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("talker_gain", np.float32(np.nan), "talker_gain of condition 3 is nan: must be a finite number"),
        ("attacker_gain", np.float32(np.inf), "attacker_gain of condition 3 is inf: must be a finite number"),
        ("delay", np.nan, "delay of condition 3 is nan: must be a number within"),
        ("delay", 1e300, "delay of condition 3 is 1e\\+300: must be a number within"),
        ("start", 1 << 62, "start of condition 3 is 4611686018427387904: must be within"),
        ("clip", CLIPS, "clip of condition 3 is 5: must be a row from 0 to 4"),
        ("clip", -1, "clip of condition 3 is -1: must be a row from 0 to 4"),
        ("talker", 7, "talker of condition 3 is 7: must be a row from 0 to 6"),
        ("attacker", -1, "attacker of condition 3 is -1: must be a row from 0 to 6"),
        ("perturbation", -2, "perturbation of condition 3 is -2: must be a row from 0 to 5, or -1 for none"),
    ],
)
def test_impossible_conditions_are_one_line(column: str, value: Any, message: str) -> None:
    table = conditions(10, silent=False)
    changed = getattr(table, column).copy()
    changed[3] = value
    with pytest.raises(UsageError, match=f"^conditions: {message}[^\n]*$"):
        open_renderer(material(), window=100).render(replace(table, **{column: changed}))


def test_impossible_material_is_one_line() -> None:
    good = material()
    bad = good.responses.copy()
    bad[2, 17] = np.nan
    with pytest.raises(UsageError, match=r"^responses: row 2 holds nan at sample 17, only finite numbers are sound$"):
        replace(good, responses=bad)
    bad[2, 17] = -np.inf
    with pytest.raises(UsageError, match=r"perturbations: row 2 holds -inf at sample 17"):
        replace(good, perturbations=bad)
    for wrong in (good.clips.astype(np.float64), good.clips[0], [[1.0]]):
        with pytest.raises(UsageError, match=r"clips: .+ instead of float32 \(rows, samples\)"):
            replace(good, clips=wrong)
    with pytest.raises(UsageError, match="clips: the shape"):
        replace(good, clips=good.clips[:0])


def test_impossible_settings_are_one_line() -> None:
    table = conditions(3)
    for name in ("window", "block", "cache_bytes"):
        with pytest.raises(UsageError, match=f"{name} 0: must be at least 1"):
            open_renderer(material(), **({"window": 100} | {name: 0}))
    with pytest.raises(UsageError, match="device 'tpu': use cpu or cuda"):
        open_renderer(material(), device="tpu", window=100)
    with pytest.raises(UnavailableError, match="device 'cuda:99': torch sees"):
        open_renderer(material(), device="cuda:99", window=100)
    with pytest.raises(UsageError, match=r"out is float64 \(3, 100\), must be float32 \(3, 100\)"):
        open_renderer(material(), window=100).render(table, np.empty((3, 100)))
    with pytest.raises(UsageError, match=r"must be float32 \(3, 100\), in one piece and writable"):
        open_renderer(material(), window=100).render(table, np.empty((100, 3), np.float32).T)
    with pytest.raises(UsageError, match=r"conditions: delay is float32 \(3,\), must be float64 \(3,\)"):
        replace(table, delay=table.delay.astype(np.float32))
    with pytest.raises(UsageError, match=r"conditions: start is int64 \(2,\), must be int64 \(3,\)"):
        replace(table, start=table.start[:2])


def test_blocks_that_stay_on_the_device() -> None:
    source, table = material(), conditions(50)
    wanted, levels = open_renderer(source, window=700).render(table)
    renderer = TorchRenderer(source, device="cpu", window=700, block=16)
    for indices, heard, delivered in renderer.tensors(table, first=7):
        assert np.allclose(heard.numpy(), wanted[indices - 7], atol=1e-6)
        assert np.allclose(delivered.talker_rms, levels.talker_rms[indices - 7], rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), max_size=30))
def test_a_store_holds_what_was_claimed(capacity: int, claims: list[list[int]]) -> None:
    store, table = RowStore(capacity, few=3), {}
    for keys in claims:
        if len(keys) > capacity:
            with pytest.raises(ValueError, match="rows at once"):
                store.claim(keys)
            continue
        slots, missing = store.claim(keys)
        assert len(set(slots.tolist())) == len(keys)
        assert all(0 <= slot < store.in_use <= capacity for slot in slots.tolist())
        for position in missing:
            table[int(slots[position])] = keys[position]
        assert [table[slot] for slot in slots.tolist()] == keys


@given(st.lists(st.integers(-5, 5), max_size=40))
def test_distinct(values: list[int]) -> None:
    if values:
        different, where = distinct(np.array(values))
        assert sorted(different.tolist()) == sorted(set(values))
        assert different[where].tolist() == values


def test_words_about_rendering_cost_neither_numba_nor_torch() -> None:
    script = "import sys, rig.render; print([name for name in ('numba', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
