"""Draw accuracy over size and over latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edge.errors import UsageError
from export.measurement.profile import Profile

# A colour per architecture (Okabe and Ito's, which colour-blind readers can tell apart), a marker per bundle of it.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def draw_profile(found: Sequence[Profile], path: Path) -> None:
    """Write two panels: top-1 with its 95 % interval over megabytes on disk, and over the latency, as processor time.

    Raises:
        UsageError: no bundle has an accuracy, or ``path`` cannot be written.
    """
    shown = [each for each in found if each.accuracy is not None]
    if not shown:
        raise UsageError(f"{path}: nothing to draw, no manifest tells an accuracy: measure it with --data DIR")
    figure = Figure(figsize=(11, max(4.2, 1.2 + 0.24 * len(shown))), layout="constrained")
    FigureCanvasAgg(figure)
    size, latency = figure.subplots(1, 2, sharey=True)
    families = list(dict.fromkeys(each.manifest.architecture for each in shown))
    drawn: Counter[str] = Counter()
    for each in shown:
        accuracy, family = each.accuracy, each.manifest.architecture
        if accuracy is None:
            continue
        colour = _COLOURS[families.index(family) % len(_COLOURS)]
        marker = _MARKERS[drawn[family] % len(_MARKERS)]
        drawn[family] += 1
        below, above = accuracy.top1 - accuracy.low, accuracy.high - accuracy.top1
        name = f"{each.manifest.name} ({each.kernels.computes_in})"
        for axes, across in ((size, each.file_bytes / 1e6), (latency, each.latency.processor_ms)):
            axes.errorbar(
                [across],
                [100 * accuracy.top1],
                yerr=[[100 * below], [100 * above]],
                marker=marker,
                markersize=7,
                capsize=3,
                color=colour,
                linestyle="none",
                label=name if axes is size else None,
            )
    _dress(size, "size of the bundle (MB)")
    _dress(latency, "latency of one window, one thread (ms of processor time)")
    size.set_ylabel("top-1 (%), 95 % Wilson interval")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _dress(axes: Axes, label: str) -> None:
    """A logarithmic axis that begins and ends at a number one can read."""
    axes.set_xscale("log")
    axes.margins(x=0.1)
    low, high = axes.get_xlim()
    steps = [step * 10.0**power for power in range(-5, 7) for step in (1, 2, 5)]
    shown = [max(step for step in steps if step <= low), *(step for step in steps if low < step < high)]
    shown.append(min(step for step in steps if step >= high))
    axes.set_xlim(shown[0], shown[-1])
    axes.set_xticks(shown, [f"{step:g}" for step in shown])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
