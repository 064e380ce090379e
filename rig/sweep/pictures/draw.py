"""From charts to files: a grid of panels, the same scale in all, told apart without colours too."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import files
from edge.errors import UsageError
from rig.sweep.pictures.charts import Chart, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito's palette can be told apart by colour-blind readers.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "^", "D", "v", "P", "X")
CONTROL_COLOUR, BENIGN_COLOUR = "#666666", "#000000"
# More panels than these nobody can read; figures.json has them all.
MAX_ACROSS, MAX_DOWN = 4, 4


def draw(chart: Chart) -> Figure:
    """A chart as a matplotlib figure, bundles downwards and devices across."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    bundles = list(dict.fromkeys(panel.bundle for panel in chart.panels))
    devices = list(dict.fromkeys(panel.device for panel in chart.panels))
    down, across = bundles[:MAX_DOWN], devices[:MAX_ACROSS]
    figure = Figure(figsize=(3.6 * len(across) + 1.2, 3.0 * len(down) + 1.6), layout="constrained", dpi=150)
    grid = figure.subplots(len(down), len(across), sharex=True, sharey=True, squeeze=False)
    by_place = {(panel.bundle, panel.device): panel for panel in chart.panels}
    names = list(dict.fromkeys(series.name for panel in chart.panels for series in panel.series if _is_attack(series)))
    for i, bundle in enumerate(down):
        for j, device in enumerate(across):
            axes: Axes = grid[i, j]
            if (bundle, device) in by_place:
                _draw_panel(axes, by_place[bundle, device], names)
            axes.set_title(f"{bundle}, device {device}, n {_range(by_place.get((bundle, device)))}", fontsize=9)
            axes.set_ylim(-0.03, 1.03)
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", nbins=6)
        grid[i, 0].set_ylabel("error rate")
    for axes in grid[-1]:
        axes.set_xlabel(chart.label, fontsize=9)
    unique = {
        name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    told = f"{chart.title}; n per point, bars are 95 % intervals{_left_out(len(bundles), len(devices))}"
    figure.suptitle(textwrap.fill(told, 30 + 40 * len(across)), fontsize=10)
    return figure


def save(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the file's name; the same figure gives the same file."""
    undated: dict[str, Any] = {"png": {"Software": "earshot"}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix[1:]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=undated[kind], bbox_inches="tight")
    files.write(path, buffer.getvalue())


def require_format(kind: str) -> None:
    """Raise :class:`UsageError` for a format that pictures cannot have."""
    if kind not in FORMATS:
        raise UsageError(f"--format {kind}: allowed: {', '.join(FORMATS)}")


def _left_out(bundles: int, devices: int) -> str:
    parts = []
    if bundles > MAX_DOWN:
        parts.append(f"{MAX_DOWN} of {bundles} bundles")
    if devices > MAX_ACROSS:
        parts.append(f"{MAX_ACROSS} of {devices} devices")
    return f"; the first {' and '.join(parts)}" if parts else ""


def _draw_panel(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    for series in panel.series:
        point = series.points[0]
        if point.x is None:
            axes.axhline(point.error_rate, linestyle=":", color=BENIGN_COLOUR, label=series.name)
            axes.axhspan(point.ci_low, point.ci_high, color=BENIGN_COLOUR, alpha=0.06, linewidth=0)
            continue
        place = names.index(series.name) if _is_attack(series) else 0
        look: dict[str, Any] = {"color": CONTROL_COLOUR, "marker": "s", "linestyle": "--"}
        if series.kind == "benign":
            look = {"color": BENIGN_COLOUR, "marker": ".", "linestyle": ":"}
        if _is_attack(series):
            look = {
                "color": COLOURS[place % len(COLOURS)],
                "marker": MARKERS[place % len(MARKERS)],
                "linestyle": "-" if place < len(COLOURS) else "-.",
            }
        rates = [point.error_rate for point in series.points]
        bars = [
            [max(0.0, point.error_rate - point.ci_low) for point in series.points],
            [max(0.0, point.ci_high - point.error_rate) for point in series.points],
        ]
        across = [point.x or 0.0 for point in series.points]
        axes.errorbar(across, rates, yerr=bars, capsize=3, markersize=5, label=series.name, **look)


def _is_attack(series: Series) -> bool:
    return series.kind == "attack"


def _range(panel: Panel | None) -> str:
    every = [point.n for series in panel.series for point in series.points] if panel is not None else []
    if not every:
        return "0"
    return str(min(every)) if min(every) == max(every) else f"{min(every)} to {max(every)}"
