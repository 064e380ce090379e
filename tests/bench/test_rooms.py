"""A shoebox's responses against the simulators that there are, in turn in one run.

What is timed is the processor time of all threads, so that a busy machine does not make the longer look longer still.

``pip install rir-generator`` adds that one to the table; nothing here needs it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from time import process_time

import numpy as np
import pyroomacoustics
import pytest

from rig.rooms import Air, Placement, Space
from rig.rooms.simulate import simulate

RATE_HZ, ROUNDS = 16_000, 7
SIZE_M, RT60_S = (5.0, 4.0, 3.0), 0.6
SOURCE_M, DEVICE_M = (1.5, 2.0, 1.5), (3.7, 1.1, 0.9)
AT_LEAST = 10.0
RIR_GENERATOR = "rir-generator, the same order and length"
# Ten seconds a response: once is enough.
SLOW = {RIR_GENERATOR}
MAX_DIFFERENCE = 0.0025


def pyroom(absorption: float, order: int, **settings: object) -> np.ndarray:
    room = pyroomacoustics.ShoeBox(
        list(SIZE_M), fs=RATE_HZ, materials=pyroomacoustics.Material(absorption), max_order=order, **settings
    )
    room.add_source(list(SOURCE_M))
    room.add_microphone(list(DEVICE_M))
    room.compute_rir()
    return np.asarray(room.rir[0][0])


def earshot(space: Space) -> np.ndarray:
    sources, devices = {"talker": Placement.at(*SOURCE_M)}, {"desk": Placement.at(*DEVICE_M)}
    return simulate(space, sources, devices, RATE_HZ, keep=False).of("desk", "talker")


def rir_generator(absorption: float, order: int, samples: int) -> np.ndarray:
    generate = importlib.import_module("rir_generator").generate
    reflection = [math.sqrt(1 - absorption)] * 6
    found = generate(
        343.0, RATE_HZ, [list(DEVICE_M)], list(SOURCE_M), list(SIZE_M), beta=reflection, nsample=samples, order=order
    )
    return np.asarray(found)[:, 0]


def in_turn(candidates: dict[str, Callable[[], np.ndarray]]) -> dict[str, list[float]]:
    for name, run in candidates.items():
        if name not in SLOW:
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(ROUNDS):
        for name, run in candidates.items():
            if name in SLOW and round_ > 0:
                continue
            start = process_time()
            run()
            times[name].append(process_time() - start)
    return times


def show(title: str, times: dict[str, list[float]], base: str) -> dict[str, float]:
    """Prints medians; returns how many times longer the base takes in the same round, by name."""
    print(f"\n{title}, processor time, median of {ROUNDS} rounds in turn:")
    ratios = {
        name: float(np.median(np.array(times[base][: len(taken)]) / np.array(taken))) for name, taken in times.items()
    }
    for name, taken in times.items():
        print(f"  {name:<44} {np.median(taken) * 1e3:8.2f} ms  {ratios[name]:6.1f}x")
    return ratios


def test_a_response_at_rt60_of_600_ms() -> None:
    absorption, order = pyroomacoustics.inverse_sabine(RT60_S, list(SIZE_M))
    expected = pyroom(absorption, order)
    samples = len(expected)
    same = Space(size_m=SIZE_M, walls=absorption, order=order, length_s=samples / RATE_HZ)
    cropped = same.model_copy(update={"length_s": RT60_S})
    every = same.model_copy(update={"length_s": RT60_S, "order": None})
    found = earshot(same)
    difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    base = "pyroomacoustics, images and builder"
    candidates: dict[str, Callable[[], np.ndarray]] = {
        base: lambda: pyroom(absorption, order),
        "pyroomacoustics, 3 orders and rays": lambda: pyroom(absorption, 3, ray_tracing=True),
        "earshot, the same images": lambda: earshot(same),
        "earshot, the same cropped at RT60": lambda: earshot(cropped),
        "earshot, every image that arrives by RT60": lambda: earshot(every),
    }
    try:
        importlib.import_module("rir_generator")
        candidates[RIR_GENERATOR] = lambda: rir_generator(absorption, order, samples)
    except ImportError:
        print("\nrir-generator is not installed: left out")
    title = (
        f"{SIZE_M} m, RT60 {RT60_S} s by Sabine, order {order}, {samples / RATE_HZ:.2f} s; difference {difference:.3%}"
    )
    ratios = show(title, in_turn(candidates), base)
    assert difference < MAX_DIFFERENCE
    assert ratios["earshot, the same images"] > AT_LEAST


@pytest.mark.parametrize("kind", ["walls by octave", "air"])
def test_a_response_in_octave_bands(kind: str) -> None:
    order = 40
    if kind == "air":
        space = Space(size_m=SIZE_M, walls=0.2, order=order, air=Air(temperature_c=20, absorption=True))
        settings = {"temperature": 20, "humidity": 50, "air_absorption": True}
        materials = pyroomacoustics.Material(0.2)
    else:
        space = Space(size_m=SIZE_M, walls="carpet_thin", order=order)
        settings = {}
        materials = pyroomacoustics.Material("carpet_thin")

    def theirs() -> np.ndarray:
        room = pyroomacoustics.ShoeBox(list(SIZE_M), fs=RATE_HZ, materials=materials, max_order=order, **settings)
        room.add_source(list(SOURCE_M))
        room.add_microphone(list(DEVICE_M))
        room.compute_rir()
        return np.asarray(room.rir[0][0])

    expected = theirs()
    space = space.model_copy(update={"length_s": len(expected) / RATE_HZ})
    difference = float(np.linalg.norm(earshot(space) - expected) / np.linalg.norm(expected))
    base = "pyroomacoustics, images and builder"
    times = in_turn({base: theirs, "earshot, the same images": lambda: earshot(space)})
    ratios = show(f"{SIZE_M} m, {kind}, 7 bands, order {order}; difference {difference:.3%}", times, base)
    assert difference < MAX_DIFFERENCE
    assert ratios["earshot, the same images"] > AT_LEAST / 2
