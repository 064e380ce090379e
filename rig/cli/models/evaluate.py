"""``earshot evaluate``: how good a checkpoint or a bundle is on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from firmware_models.evaluation import Evaluation, Scorer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run's folder, a model.safetensors or a bundle.")],
    *,
    data: Annotated[Path, typer.Option("--data", help="Speech Commands, or any folder with a folder per class.")],
    split: Annotated[str, typer.Option("--split", help="train, validation, test or all.")] = "test",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the confusion matrix here (.png, .svg, .pdf).")
    ] = None,
    trust: Annotated[
        list[Path] | None,
        typer.Option("--trust", help="A public key whose bundles may be loaded.", show_default="the zoo's"),
    ] = None,
    architecture: Annotated[
        Path | None,
        typer.Option("--architecture", help="A Python file that defines the checkpoint's architecture; it is run."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print top-1, the recall of every label and the confusion matrix."""
    from firmware_models.data import load
    from firmware_models.evaluation import check_labels
    from firmware_models.evaluation import evaluate as evaluate_scorer

    if plot is not None and plot.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise UsageError(f"{plot}: a plot is written as .png, .svg or .pdf")
    if architecture is not None:
        from firmware_models.architectures import register_file

        register_file(architecture)
    opened = _open(model, trust or [], threads)
    with progress("reading clips", enabled=not as_json) as report:
        clips = load(data, split, window_samples=opened.window_samples, progress=report)
    check_labels(opened.labels, clips)
    with progress("scoring", enabled=not as_json) as report:
        found = evaluate_scorer(opened.scorer, clips, progress=report)
    if plot is not None:
        from firmware_models.confusion_plot import draw_confusion

        draw_confusion(found, plot, title=f"{model} on {split} of {data}")
    if as_json:
        about = {"model": str(model), "data": str(data), "split": split, "log_floor": opened.log_floor}
        print_json({**about, "skipped": len(clips.skipped), **found.to_json()})
        return
    _print(found, skipped=[f"{item.path}: {item.reason}" for item in clips.skipped])
    if opened.log_floor is not None:
        say(f"log floor of the model's front end: {opened.log_floor:g} (mean square per mel band)")


class _Opened(NamedTuple):
    scorer: Scorer
    labels: tuple[str, ...]
    window_samples: int
    log_floor: float | None


def _open(path: Path, trust: list[Path], threads: int) -> _Opened:
    """A scorer and what is known of its model; bundles run in onnxruntime, checkpoints in torch."""
    if path.is_file() and path.suffix == ".earshot":
        from edge.bundle.classifier import Classifier
        from edge.bundle.reading import read_bundle
        from edge.bundle.signing import load_public_key
        from firmware_models.zoo import PUBLIC_KEY

        keys = [load_public_key(key) for key in trust or [PUBLIC_KEY]]
        classifier = Classifier(read_bundle(path, trusted=keys), threads=threads)
        about = classifier.manifest
        _check_rate(path, about.rate_hz)
        return _Opened(classifier.scores, classifier.labels, about.window_samples, about.log_floor)
    if path.suffix == ".earshot":
        raise UsageError(f"{path}: no such bundle")
    import torch

    from firmware_models.scoring import torch_scorer
    from firmware_models.training.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    checkpoint, info = load_checkpoint(path)
    _check_rate(path, info.rate_hz)
    return _Opened(torch_scorer(checkpoint), info.labels, info.window_samples, checkpoint.log_floor)


def _check_rate(path: Path, rate_hz: int) -> None:
    from firmware_models.data import RATE_HZ

    if rate_hz != RATE_HZ:
        raise UsageError(f"{path}: hears sound at {rate_hz} Hz; data sets are read at {RATE_HZ} Hz")


def _print(found: Evaluation, *, skipped: list[str]) -> None:
    low, high = found.top1_interval
    say(f"top-1     {found.top1:.2%}  (95 % interval {low:.1%} to {high:.1%}, n {found.n})")
    say(f"balanced  {found.balanced:.2%}  (labels weighed equally)")
    say()
    counts: list[int] = found.confusion.sum(1).tolist()
    recalls: dict[str, Any] = found.recalls
    width = max(len(label) for label in found.labels)
    say(f"{'truth':<{width}}  recall     n   answered " + " ".join(f"{label[:5]:>5}" for label in found.labels))
    for row, label in enumerate(found.labels):
        if counts[row]:
            answers = " ".join(f"{number or '.':>5}" for number in found.confusion[row].tolist())
            say(f"{label:<{width}}  {recalls[label]:6.1%} {counts[row]:5d}            {answers}")
    if skipped:
        say()
        say(f"{len(skipped)} files of the data set were skipped, the first: {skipped[0]}")
