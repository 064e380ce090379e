"""The pictures of a report, as inline SVG so that the page needs no other file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle

from rig.report.summary import Row

# Okabe and Ito's palette can be told apart by colour-blind readers.
COLOURS = {"random-sign": "#777777", "fgsm": "#E69F00"}
MORE_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def error_over_eps(rows: Sequence[Row]) -> str | None:
    """Error rate over eps at the smallest delay, a panel per air and bundle, a line per attack with its interval."""
    attacked = [row for row in rows if row.eps > 0 and row.error_rate is not None]
    if not attacked:
        return None
    nearest = min((row.delay_ms for row in attacked), key=abs)
    return _panels(
        [row for row in attacked if row.delay_ms == nearest],
        [row for row in rows if row.attack == "benign"],
        horizontal="eps",
        title=f"Error over budget (delay {nearest:g} ms)",
        label="eps (L∞, full scale = 1)",
        logarithmic=True,
    )


def error_over_delay(rows: Sequence[Row]) -> str | None:
    """Error rate over the delay at the largest eps; None when the plan has one delay."""
    attacked = [row for row in rows if row.eps > 0 and row.error_rate is not None]
    if len({row.delay_ms for row in attacked}) < 2:
        return None
    largest = max(row.eps for row in attacked)
    return _panels(
        [row for row in attacked if row.eps == largest],
        [row for row in rows if row.attack == "benign"],
        horizontal="delay_ms",
        title=f"Error over delay (eps {largest:g})",
        label="attacker's delay (ms)",
        logarithmic=False,
    )


def _panels(rows: list[Row], benign: list[Row], *, horizontal: str, title: str, label: str, logarithmic: bool) -> str:
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second; `session show` needs no pictures

    panels = list(dict.fromkeys((row.air, row.bundle) for row in rows))
    told = _told_apart_by(rows)
    colours = _colours(rows, told)
    height = max(3.4, 0.6 + 0.2 * len(colours))
    figure = Figure(figsize=(3.4 * len(panels) + 1.2, height), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (air, bundle) in zip(axes, panels, strict=True):
        here = [row for row in rows if (row.air, row.bundle) == (air, bundle)]
        series = list(dict.fromkeys(_series(row, told) for row in here))
        for name in series:
            points = sorted(
                (row for row in here if _series(row, told) == name),
                key=lambda row: getattr(row, horizontal),
            )
            across = [getattr(row, horizontal) for row in points]
            rate = [row.error_rate or 0.0 for row in points]
            below = [max(0.0, r - (row.ci_low or 0.0)) for r, row in zip(rate, points, strict=True)]
            above = [max(0.0, (row.ci_high or 0.0) - r) for r, row in zip(rate, points, strict=True)]
            axis.errorbar(across, rate, yerr=[below, above], marker="o", capsize=3, color=colours[name], label=name)
        for row in benign:
            if (row.air, row.bundle) == (air, bundle) and row.error_rate is not None:
                axis.axhline(row.error_rate, linestyle=":", color="black", label="benign")
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xticks(
                sorted({row.eps for row in here}), [f"{eps:g}" for eps in sorted({row.eps for row in here})]
            )
            axis.minorticks_off()
        axis.set_title(f"{air} air, {bundle}", fontsize=10)
        axis.set_xlabel(label)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error rate, 95 % Wilson")
    # A series may be in one panel only: positions mean something in the room alone.
    unique = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(unique.values(), unique.keys(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _colours(rows: Sequence[Row], told: Sequence[str]) -> dict[str, str]:
    """A colour per series, the same in every panel; attacks without further distinction keep theirs."""
    names = dict.fromkeys(_series(row, told) for row in rows)
    others = cycle(MORE_COLOURS)
    return {name: COLOURS.get(name) or next(others) for name in names}


def _told_apart_by(rows: Sequence[Row]) -> list[str]:
    """The kinds of position of which there are several, so that a name without them would be of two series."""
    kinds = ("attacker_position", "device_position")
    return [kind for kind in kinds if len({getattr(row, kind) for row in rows} - {None}) > 1]


def _series(row: Row, told: Sequence[str]) -> str:
    name = row.attack if row.crafted_on in {None, row.bundle} else f"{row.attack} from {row.crafted_on}"
    if row.target:
        name += f" → {row.target}"
    places = [str(getattr(row, kind)) for kind in told if getattr(row, kind)]
    return f"{name} @ {' to '.join(places)}" if places else name
