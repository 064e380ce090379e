"""The plan view of a scene: walls, talker, attackers, devices, and where loudspeakers and microphones point."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import files
from edge.errors import UsageError
from rig.rooms import geometry
from rig.rooms.directivity import Placement
from rig.scenes.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette can be told apart by colour-blind readers, and the markers without colours.
KINDS = {"talker": ("#0072B2", "o"), "attacker": ("#D55E00", "^"), "device": ("#009E73", "s")}
FORMATS = (".png", ".svg", ".pdf")
# More names than these would cover each other.
NAMED = 12


def draw(axes: Axes, scene: Scene, *, critical_distance_m: float | None = None) -> None:
    """Draw a scene as seen from above onto matplotlib axes, in metres."""
    from matplotlib.patches import Circle, Polygon  # noqa: PLC0415 - takes half a second

    shape = scene.shape
    if shape is not None:
        (x_low, x_high), (y_low, y_high), _ = geometry.extent_m(shape)
        corners = shape.corners_m or ((x_low, y_low), (x_high, y_low), (x_high, y_high), (x_low, y_high))
        axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor="black", linewidth=2.5))
    if critical_distance_m is not None:
        centre = next(iter(scene.placements.talkers.values())).position_m[:2]
        axes.add_patch(Circle(centre, critical_distance_m, fill=False, linestyle=":", edgecolor="#777777"))
        axes.plot([], [], ":", color="#777777", label=f"critical distance {critical_distance_m:.2f} m")
    groups: dict[str, Mapping[str, Placement]] = {
        "attacker": scene.placements.attackers,
        "talker": scene.placements.talkers,
        "device": scene.placements.devices,
    }
    for kind, placements in groups.items():
        _draw_group(axes, kind, placements)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")


def save(path: Path, scene: Scene, *, title: str, critical_distance_m: float | None = None) -> None:
    """Write the plan view as PNG, SVG or PDF, by the name of the file.

    Raises:
        UsageError: another ending.
    """
    require_format(path)
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    figure = Figure(figsize=(7, 6), layout="constrained", dpi=150)
    axes = figure.subplots()
    draw(axes, scene, critical_distance_m=critical_distance_m)
    axes.set_title(textwrap.fill(title, 80), fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    buffer = io.BytesIO()
    # Without a date the same scene gives the same file.
    undated: dict[str, Any] = {".png": {"Software": "earshot"}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    kind = path.suffix.lower()
    figure.savefig(buffer, format=kind[1:], metadata=undated[kind], bbox_inches="tight")
    files.write(path, buffer.getvalue())


def require_format(path: Path) -> None:
    """Raise :class:`UsageError` if no picture can have this name."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"picture {path}: ends in {path.suffix or 'nothing'}, allowed: {', '.join(FORMATS)}")


def _draw_group(axes: Axes, kind: str, placements: Mapping[str, Placement]) -> None:
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 - takes half a second

    colour, marker = KINDS[kind]
    points = [placement.position_m for placement in placements.values()]
    many = len(points) > NAMED
    label = kind if len(points) == 1 else f"{len(points)} {kind}s"
    across, along = [x for x, _, _ in points], [y for _, y, _ in points]
    axes.scatter(across, along, s=18 if many else 60, c=colour, marker=marker, label=label, zorder=3)
    for name, placement in placements.items():
        x, y, z = placement.position_m
        if not many:
            axes.annotate(
                f"{name}, {z:.3g} m high",
                (x, y),
                xytext=(0, -16) if kind == "device" else (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                zorder=4,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
        _draw_direction(axes, placement, colour)


def _draw_direction(axes: Axes, placement: Placement, colour: str) -> None:
    if placement.directivity.omni_share == 1:
        return
    (x, y, _), (east, north, _) = placement.position_m, placement.directivity.direction
    low, high = axes.get_xlim()
    length = 0.3 if high - low < 1 else 0.08 * (high - low)
    axes.annotate(
        "",
        (x + length * east, y + length * north),
        xytext=(x, y),
        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.4},
        zorder=2,
    )
