"""Error over the floor plan: where an attacker's loudspeaker does harm, for each device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from rig.scenes import picture
from rig.scenes.scene import Scene
from rig.sweep.grid import Grid
from rig.sweep.pictures.charts import arms
from rig.sweep.pictures.draw import MAX_ACROSS, MAX_DOWN
from rig.sweep.pictures.tally import Counts, interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Next to each of at most so many places its n is written.
WRITTEN = 30


class Place(BaseModel):
    """An attacker's place on the floor, all heights together, and the error rate there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attackers: tuple[str, ...]
    x_m: float
    y_m: float
    n: int
    error_rate: float | None
    ci_low: float | None
    ci_high: float | None


class Map(BaseModel):
    """The places of one attack at one budget, of a bundle and a device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: str
    device: str
    attack: str
    places: tuple[Place, ...]


def maps(grid: Grid, counts: dict[str, list[Counts]]) -> list[Map]:
    """The map of every bundle, device and attack, the control first; none where nothing has a position."""
    positions = {name: place for name, place in grid.axes.attackers.items() if place is not None}
    if len(positions) != len(grid.axes.attackers):
        return []
    columns: dict[tuple[float, float], list[int]] = {}
    for number, (x, y, _) in enumerate(positions.values()):
        columns.setdefault((x, y), []).append(number)
    names = list(positions)
    return [
        Map(
            bundle=bundle,
            device=name,
            attack=arm.name,
            places=tuple(
                _place(counts["places"][arm.block], column, names, at, budget=arm.budget, device=device)
                for at, column in columns.items()
            ),
        )
        for bundle in dict.fromkeys(block.bundle for block in grid.blocks)
        for device, name in enumerate(grid.axes.devices)
        for arm in sorted(arms(grid, bundle), key=lambda arm: arm.kind != "control")
        if arm.kind != "benign"
    ]


def draw(scene: Scene, found: list[Map]) -> Figure:
    """The maps of one bundle: devices downwards, attacks across, error rate by colour."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    devices = list(dict.fromkeys(each.device for each in found))
    attacks = list(dict.fromkeys(each.attack for each in found))
    down, across = devices[:MAX_DOWN], attacks[:MAX_ACROSS]
    size = (4.0 * len(across) + 1.4, 3.6 * len(down) + 1.2)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    grid = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
    by_place = {(each.device, each.attack): each for each in found}
    shade: Any = None
    for i, device in enumerate(down):
        for j, attack in enumerate(across):
            axes = grid[i, j]
            picture.draw(axes, scene)
            # The places are drawn below by their error rates, beneath talker and devices.
            for each in [each for each in axes.collections if "attacker" in str(each.get_label())]:
                each.remove()
            here = by_place[device, attack]
            shade = _shade(axes, here)
            x, y, _ = scene.placements.devices[device].position_m
            axes.scatter([x], [y], s=170, facecolors="none", edgecolors="black", linewidths=1.6, zorder=6)
            axes.set_title(f"{attack}\ndevice {device} (ringed), n {_range(here)} per place", fontsize=9)
    # Pairs of blue and yellow are told apart by colour-blind readers, and by their lightness in print.
    figure.colorbar(shade, ax=grid, label="error rate", shrink=0.8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    left_out = [f"{most} of {len(all_)} {what}" for most, all_, what in _limits(devices, attacks) if len(all_) > most]
    told = f"{found[0].bundle}: error by place of the attacker" + ("; the first " + " and ".join(left_out)) * bool(
        left_out
    )
    figure.suptitle(told, fontsize=11)
    return figure


def _limits(devices: list[str], attacks: list[str]) -> tuple[tuple[int, list[str], str], ...]:
    return (MAX_DOWN, devices, "devices"), (MAX_ACROSS, attacks, "attacks")


def _shade(axes: Any, found: Map) -> Any:
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - takes half a second

    known = [place for place in found.places if place.error_rate is not None]
    missing = [place for place in found.places if place.error_rate is None]
    axes.scatter([p.x_m for p in missing], [p.y_m for p in missing], s=60, c="#BBBBBB", marker="x", zorder=2.5)
    shade = axes.scatter(
        [place.x_m for place in known],
        [place.y_m for place in known],
        c=[place.error_rate for place in known],
        s=130 if len(known) <= WRITTEN else max(12, 130 * WRITTEN / len(known)),
        cmap="cividis",
        vmin=0,
        vmax=1,
        edgecolors="black",
        label="loudspeaker by error rate",
        linewidths=0.6,
        zorder=2.5,
    )
    for place in known if len(known) <= WRITTEN else ():
        axes.annotate(
            f"{place.error_rate:.0%}",
            (place.x_m, place.y_m),
            xytext=(9, -4),
            textcoords="offset points",
            fontsize=7,
            zorder=7,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
    return shade


def _place(
    counts: Counts, column: list[int], names: list[str], at: tuple[float, float], *, budget: int, device: int
) -> Place:
    valid, errors = counts.pick(budget=budget, device=device, attacker=column)
    single = len(column) * counts.spread * counts.valid.shape[counts.axes.index("talker")] == 1
    rate = interval(valid, errors, valid if single else counts.clips)
    return Place(
        attackers=tuple(names[number] for number in column),
        x_m=at[0],
        y_m=at[1],
        n=valid,
        error_rate=rate.rate if valid else None,
        ci_low=rate.low if valid else None,
        ci_high=rate.high if valid else None,
    )


def _range(found: Map) -> str:
    every = [place.n for place in found.places]
    return str(min(every)) if min(every) == max(every) else f"{min(every)} to {max(every)}"
