"""Charts as numbers: error rate over one quantity, a panel per bundle and device, a series per attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from firmware_models.statistics import Rate
from rig.sweep.grid import Block, Grid
from rig.sweep.pictures.tally import BUDGET, SNR, SNR_BINS, Counts, interval, snr_centre_db

CONTROL, BENIGN = "random-sign", "benign"
Kind = Literal["attack", "control", "benign"]
# Positions at more distances or angles than these are put together, as many to each point.
MAX_POINTS = 12

VIEWS: dict[str, tuple[str, ...]] = {
    "places": (BUDGET, "talker", "device", "attacker"),
    "delay": (BUDGET, "device", "delay"),
    "level": (BUDGET, "device", "level"),
    "rt60": (BUDGET, "device", "room"),
    "snr": (BUDGET, "device", SNR),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Frozen):
    """An error rate with its 95 % interval over ``n`` conditions that count; ``x`` None for a level line."""

    x: float | None
    n: int
    error_rate: float
    ci_low: float
    ci_high: float


class Series(_Frozen):
    """One attack at one budget, or at all of them."""

    name: str
    kind: Kind
    points: tuple[Point, ...]


class Panel(_Frozen):
    """What one device hears with one bundle."""

    bundle: str
    device: str
    series: tuple[Series, ...]


class Chart(_Frozen):
    """One picture."""

    name: str
    title: str
    label: str
    panels: tuple[Panel, ...]


class Arm(_Frozen):
    """One attack at one budget: the number of its block and the place of eps there."""

    block: int
    budget: int
    name: str
    kind: Kind


def charts(grid: Grid, counts: dict[str, list[Counts]]) -> Iterator[Chart]:
    """Every chart that the axes of a sweep allow; ``counts`` of :data:`VIEWS`."""
    axes = grid.axes
    placed = all(
        place is not None for places in (axes.talkers, axes.devices, axes.attackers) for place in places.values()
    )
    if placed and len(axes.attackers) * len(axes.talkers) > 1:
        yield _over_places(grid, counts, "distance", "attacker to device (m)", _distance_m)
        yield _over_places(grid, counts, "angle", "attacker off the talker, seen from the device (degrees)", _angle_deg)
    if len(axes.delays_ms) > 1:
        yield _over_axis(grid, counts, "delay", axes.delays_ms, "attacker's delay (ms)")
    if len(axes.levels_db) > 1:
        yield _over_axis(grid, counts, "level", axes.levels_db, "attacker's level (dB)")
    if any(block.family is not None for block in grid.blocks):
        yield _over_snr(grid, counts)


def over_rt60(parts: Sequence[tuple[Grid, dict[str, list[Counts]], Sequence[float | None]]]) -> Chart | None:
    """Error over the measured reverberation time of the rooms of one or more sweeps; None where there is one only.

    Args:
        parts: of each sweep its grid, counts, and the RT60 of its rooms in seconds, None for unknown.
    """
    gathered: dict[tuple[str, str], dict[tuple[str, Kind], list[Point]]] = {}
    for grid, counts, rt60_s in parts:
        for bundle, place, device in _panels(grid):
            panel = gathered.setdefault((bundle, device), {})
            for arm in arms(grid, bundle):
                here = [
                    _point(counts["rt60"][arm.block], float(seconds), budget=arm.budget, device=place, room=room)
                    for room, seconds in enumerate(rt60_s)
                    if seconds is not None
                ]
                panel.setdefault((arm.name, arm.kind), []).extend(point for point in here if point is not None)
    panels = [
        Panel(
            bundle=bundle,
            device=device,
            series=tuple(
                Series(name=name, kind=kind, points=tuple(sorted(points, key=lambda point: point.x or 0.0)))
                for (name, kind), points in series.items()
                if points
            ),
        )
        for (bundle, device), series in gathered.items()
    ]
    seen = {point.x for panel in panels for series in panel.series for point in series.points}
    if len(seen) < 2:
        return None
    return Chart(name="rt60", title="Error over reverberation time", label="RT60 (s)", panels=tuple(panels))


def arms(grid: Grid, bundle: str) -> list[Arm]:
    """Of each attack on a bundle the largest budget that the control has as well, the control there, and benign."""
    blocks = [(number, block) for number, block in enumerate(grid.blocks) if block.bundle == bundle]
    controlled = {eps for _, block in blocks if block.attack == CONTROL for eps in block.eps}
    attacked = [(number, block) for number, block in blocks if block.family is not None and block.attack != CONTROL]
    chosen = {number: max(controlled & set(block.eps) or set(block.eps)) for number, block in attacked}
    compared = set(chosen.values()) & controlled or ({max(controlled)} if controlled else set())
    found = []
    for number, block in blocks:
        if block.family is None:
            found.append(Arm(block=number, budget=0, name=BENIGN, kind="benign"))
        for place, eps in enumerate(block.eps):
            if block.attack == CONTROL and eps in compared:
                found.append(Arm(block=number, budget=place, name=f"{CONTROL} eps {eps:g} (control)", kind="control"))
            elif chosen.get(number) == eps:
                found.append(Arm(block=number, budget=place, name=f"{title(block)} eps {eps:g}", kind="attack"))
    return found


def title(block: Block) -> str:
    """An attack as pictures name it."""
    name = block.attack if block.on in {None, block.bundle} else f"{block.attack} from {block.on}"
    return f"{name} to {block.target}" if block.target else name


def _over_axis(grid: Grid, counts: dict[str, list[Counts]], axis: str, values: Sequence[float], label: str) -> Chart:
    def points(arm: Arm, device: int) -> list[Point | None]:
        here = counts[axis][arm.block]
        return [
            _point(here, value, **{BUDGET: arm.budget, "device": device, axis: place})
            for place, value in sorted(enumerate(values), key=lambda pair: pair[1])
        ]

    return _chart(grid, counts, axis, f"Error over {axis}", label, points=points)


def _over_places(
    grid: Grid, counts: dict[str, list[Counts]], name: str, label: str, quantity: Callable[..., float]
) -> Chart:
    axes = grid.axes
    talkers, devices, attackers = ([*each.values()] for each in (axes.talkers, axes.devices, axes.attackers))

    def points(arm: Arm, device: int) -> list[Point | None]:
        here = counts["places"][arm.block]
        pairs = [
            (round(quantity(talker, devices[device], attacker), 2), i, j)
            for i, talker in enumerate(talkers)
            for j, attacker in enumerate(attackers)
        ]
        found = []
        for group in _grouped(sorted(pairs)):
            picked = [here.pick(budget=arm.budget, device=device, talker=i, attacker=j) for _, i, j in group]
            valid, errors = (sum(column) for column in zip(*picked, strict=True))
            single = len(group) * here.spread == 1
            rate = interval(valid, errors, valid if single else here.clips)
            found.append(_made(float(np.mean([value for value, _, _ in group])), valid, rate))
        return found

    return _chart(grid, counts, name, f"Error over {name}", label, points=points)


def _over_snr(grid: Grid, counts: dict[str, list[Counts]]) -> Chart:
    """Every budget of an attack together, since the SNR is what budgets, distances and levels come to."""
    panels = []
    for bundle, device, name in _panels(grid):
        series = []
        for number, block in enumerate(grid.blocks):
            if block.bundle != bundle or block.family is None:
                continue
            here = counts["snr"][number]
            found = [_point(here, snr_centre_db(place), device=device, snr=place) for place in range(SNR_BINS)]
            kind: Kind = "control" if block.attack == CONTROL else "attack"
            called = f"{title(block)}, all eps" + (" (control)" if kind == "control" else "")
            series.append(Series(name=called, kind=kind, points=tuple(point for point in found if point is not None)))
        series += _benign(grid, counts, bundle, device)
        panels.append(Panel(bundle=bundle, device=name, series=tuple(each for each in series if each.points)))
    label = "talker over attacker at the device, SNR (dB)"
    return Chart(name="snr", title="Error over SNR", label=label, panels=tuple(panels))


def _chart(
    grid: Grid,
    counts: dict[str, list[Counts]],
    name: str,
    heading: str,
    label: str,
    *,
    points: Callable[[Arm, int], list[Point | None]],
) -> Chart:
    panels = []
    for bundle, device, called in _panels(grid):
        series = [
            Series(
                name=arm.name,
                kind=arm.kind,
                points=tuple(point for point in points(arm, device) if point is not None),
            )
            for arm in arms(grid, bundle)
            if arm.kind != "benign"
        ]
        series += _benign(grid, counts, bundle, device)
        panels.append(Panel(bundle=bundle, device=called, series=tuple(each for each in series if each.points)))
    return Chart(name=name, title=heading, label=label, panels=tuple(panels))


def _benign(grid: Grid, counts: dict[str, list[Counts]], bundle: str, device: int) -> list[Series]:
    found = []
    for arm in arms(grid, bundle):
        if arm.kind == "benign":
            point = _point(counts["delay"][arm.block], None, device=device)
            found.append(Series(name=BENIGN, kind="benign", points=() if point is None else (point,)))
    return found


def _panels(grid: Grid) -> Iterator[tuple[str, int, str]]:
    for bundle in dict.fromkeys(block.bundle for block in grid.blocks):
        for place, device in enumerate(grid.axes.devices):
            yield bundle, place, device


def _grouped(pairs: list[tuple[float, int, int]]) -> list[list[tuple[float, int, int]]]:
    values = list(dict.fromkeys(value for value, _, _ in pairs))
    if len(values) <= MAX_POINTS:
        return [[pair for pair in pairs if pair[0] == value] for value in values]
    return [[pairs[i] for i in part] for part in np.array_split(np.arange(len(pairs)), MAX_POINTS)]


def _point(counts: Counts, x: float | None, **places: Any) -> Point | None:
    rate, n = counts.rate(**places)
    return _made(x, n, rate)


def _made(x: float | None, n: int, rate: Rate) -> Point | None:
    if not n:
        return None
    return Point(x=x, n=n, error_rate=rate.rate, ci_low=rate.low, ci_high=rate.high)


def _distance_m(talker: Any, device: Any, attacker: Any) -> float:
    del talker
    return math.dist(device, attacker)


def _angle_deg(talker: Any, device: Any, attacker: Any) -> float:
    """Between the directions in which the device has talker and attacker, 0 to 180 degrees."""
    one, other = (np.subtract(place, device) for place in (talker, attacker))
    cosine = np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other))
    return math.degrees(math.acos(float(np.clip(cosine, -1, 1))))
