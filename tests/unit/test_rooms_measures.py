"""Measures of a response against decays that are known exactly, and against pyroomacoustics."""

import math

import numpy as np
import pyroomacoustics
import pytest

from rig.rooms import Placement, Responses, Space
from rig.rooms.measures import critical_distance_m, decay_db, decay_time_s, describe, direct_amplitude, measure
from rig.rooms.simulate import simulate

RATE_HZ = 16_000


def exponential(time_s: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Falls by 60 dB in ``time_s``; long enough that its end does not count."""
    return np.exp(-3 * math.log(10) / time_s * np.arange(int(3 * time_s * rate_hz)) / rate_hz)


@pytest.mark.parametrize("time_s", [0.15, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_an_exponential_decay_is_measured_exactly(time_s: float, rate_hz: int) -> None:
    found = measure(exponential(time_s, rate_hz), rate_hz, 0.0)
    rate = 6 * math.log(10) / time_s
    assert found.t30_s == pytest.approx(time_s, rel=1e-4)
    assert found.t20_s == pytest.approx(time_s, rel=1e-4)
    assert found.edt_s == pytest.approx(time_s, rel=1e-3)
    assert found.c50_db == pytest.approx(10 * math.log10(math.expm1(rate * 0.05)), abs=0.01)
    assert found.d50 == pytest.approx(-math.expm1(-rate * 0.05), abs=1e-4)
    assert found.drr_db == pytest.approx(10 * math.log10(math.expm1(rate * 0.0025)), abs=0.05)
    assert math.isclose(float(decay_db(exponential(time_s, rate_hz))[rate_hz // 10]), -6 / time_s, rel_tol=1e-3)


@pytest.mark.parametrize("range_db", [20.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
def test_decay_times_agree_with_pyroomacoustics(range_db: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    decay = exponential(generator.uniform(0.2, 1.0))
    response = decay * generator.standard_normal(len(decay))
    expected = pyroomacoustics.experimental.measure_rt60(response, fs=RATE_HZ, decay_db=range_db)
    assert decay_time_s(response, RATE_HZ, range_db) == pytest.approx(float(expected), rel=1e-6)


def test_two_decays_are_told_apart() -> None:
    late = exponential(1.2)
    early = np.pad(exponential(0.2), (0, len(late)))[: len(late)]
    found = measure(early + 0.02 * late, RATE_HZ, 0.0)
    assert found.edt_s < 0.25
    assert found.t30_s > 1.5 * found.edt_s


def test_what_cannot_be_measured_is_not_a_number() -> None:
    for response in (np.zeros(1000), np.ones(1), np.zeros(0), np.r_[np.ones(100), np.zeros(10)]):
        if len(response):
            found = measure(response.astype(np.float32), RATE_HZ, 0.0)
            assert math.isnan(found.t30_s) or found.t30_s > 0
        assert math.isnan(decay_time_s(np.zeros(10), RATE_HZ))
    one = np.zeros(400, dtype=np.float32)
    one[40] = 1.0
    dry = measure(one, RATE_HZ, 40.0)
    assert dry.drr_db == math.inf
    assert dry.d50 == 1.0
    responses = Responses(one[None, None], np.array([[40.0]]), RATE_HZ, ("d",), ("s",))
    row = describe(responses)[0]
    assert row["drr_db"] is None
    assert row["t30_s"] is None
    assert row["d50"] == 1.0


def test_a_room_is_described_pair_by_pair() -> None:
    space = Space(size_m=(6, 5, 3), walls=0.3)
    sources = {"near": Placement.at(1, 1, 1.5), "far": Placement.at(5, 4, 1.5)}
    responses = simulate(space, sources, {"desk": Placement.at(1.6, 1.4, 1)}, RATE_HZ, keep=False)
    near, far = describe(responses)
    assert (near["device"], near["source"], far["source"]) == ("desk", "near", "far")
    assert near["distance_m"] == pytest.approx(math.dist((1, 1, 1.5), (1.6, 1.4, 1)), abs=1e-3)
    assert near["drr_db"] > far["drr_db"] + 6
    assert near["c50_db"] > far["c50_db"]
    for row in (near, far):
        assert row["t30_s"] == pytest.approx(responses.facts["eyring_rt60_s"][0], rel=0.5)
    near_amplitude = direct_amplitude(responses.of("desk", "near"), RATE_HZ, responses.onset("desk", "near"))
    assert near_amplitude == pytest.approx(1 / near["distance_m"], rel=0.1)


def test_critical_distance_is_where_direct_and_reverberant_sound_are_equal() -> None:
    assert critical_distance_m(100.0, 1.0) == pytest.approx(0.057 * 10, rel=0.01)
    assert critical_distance_m(100.0, 1.0, 3.0) == pytest.approx(critical_distance_m(100.0, 1.0) * math.sqrt(3))
    space = Space(size_m=(7, 5.5, 4), rt60_s=0.8)
    distances = []
    for x in (1.5, 2.0, 2.5):
        sources, devices = {"s": Placement.at(x, 2, 1.5)}, {"d": Placement.at(x + 2, 3.2, 2.1)}
        responses = simulate(space, sources, devices, RATE_HZ, keep=False)
        row = describe(responses)[0]
        distances.append(row["distance_m"] * 10 ** (row["drr_db"] / 20))
    assert np.mean(distances) == pytest.approx(responses.facts["critical_distance_m"], rel=0.35)
