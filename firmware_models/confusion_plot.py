"""Draw a confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edge.errors import UsageError
from firmware_models.evaluation import Evaluation


def draw_confusion(found: Evaluation, path: Path, *, title: str) -> None:
    """Write the matrix as an image; shade is the share of the truth's clips, numbers are clips.

    Raises:
        UsageError: ``path`` cannot be written.
    """
    shown = [row for row, count in enumerate(found.confusion.sum(1)) if count]
    shares = found.confusion[shown] / found.confusion[shown].sum(1, keepdims=True)
    figure = Figure(figsize=(1.5 + 0.55 * len(found.labels), 1.8 + 0.45 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(np.arange(len(found.labels)), found.labels, rotation=60, ha="right")
    axes.set_yticks(np.arange(len(shown)), [found.labels[row] for row in shown])
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(f"{title}\ntop-1 {found.top1:.1%}, balanced {found.balanced:.1%}, n {found.n}", fontsize=9)
    for line, row in enumerate(shown):
        for column, number in enumerate(found.confusion[row].tolist()):
            if number:
                colour = "white" if shares[line, column] > 0.5 else "black"
                axes.text(column, line, str(number), ha="center", va="center", fontsize=8, color=colour)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
