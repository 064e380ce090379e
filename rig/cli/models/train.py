"""``earshot train``: a firmware model from a recipe and recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from firmware_models.training.recipe import Recipe
    from firmware_models.training.run import Material

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command()
def train(
    name: Annotated[
        str, typer.Argument(help="A shipped recipe, e.g. lms or lm-ambient; with --recipe an architecture.")
    ],
    *,
    data: Annotated[Path, typer.Option("--data", help="Speech Commands, or any folder with a folder per class.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the run.")],
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Another recipe file for this architecture.")] = None,
    architecture: Annotated[
        Path | None,
        typer.Option("--architecture", help="A Python file that defines the architecture; it is run."),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option("--window", min=0.1, max=60, help="Seconds that the model hears.", show_default="the recipe's"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads of torch.")] = 2,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Instead of the recipe's.")] = None,
    synthetic: Annotated[
        Path | None,
        typer.Option("--synthetic", help="Synthetic speech to add (python -m firmware_models.zoo.synthesise)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train a firmware model; the run's folder holds weights, config, metrics and what --resume needs."""
    from firmware_models.training.loop import check_out

    chosen = _choose(name, recipe, architecture)
    changes = {"seed": seed, "window_s": window}
    chosen = chosen.model_copy(update={key: value for key, value in changes.items() if value is not None})
    _check_device(device)
    check_out(out, resume=resume)
    material = _read(data, synthetic, chosen, quiet=as_json)
    if dry_run:
        outline = _outline(chosen, material, out, device, threads)
        print_json(outline) if as_json else _print_outline(outline)
        return
    metrics = _run(chosen, material, out, resume=resume, device=device, threads=threads, quiet=as_json)
    if as_json:
        print_json({"run": str(out), **metrics})
        return
    found = metrics["validation"]
    say(f"validation: top-1 {found['top1']:.2%}, labels weighed equally {found['balanced']:.2%}, n {found['n']}")
    say(f"{out}/model.safetensors after {metrics['minutes']} minutes; next: earshot evaluate {out} --data {data}")


def _choose(name: str, path: Path | None, architecture: Path | None) -> Recipe:
    """The recipe of that name or in that file, when its architecture is known and has its settings."""
    from firmware_models.architectures import find, register_file
    from firmware_models.training.recipe import ANY, load_recipe

    own = register_file(architecture) if architecture is not None else []
    if name in own and path is None:
        raise UsageError(f"{name!r} is an architecture of {architecture}; name the recipe with --recipe FILE.yaml")
    recipe = load_recipe(path or name)
    if recipe.architecture != name and path is not None:
        raise UsageError(f"{path}: is a recipe for {recipe.architecture!r}, not for {name!r}")
    if recipe.architecture == ANY:
        raise UsageError(f"recipe {name!r} goes on with a trained model: earshot export CHECKPOINT --retrain {name}")
    find(recipe.architecture)
    return recipe


def _read(data: Path, synthetic: Path | None, recipe: Recipe, *, quiet: bool) -> Material:
    from firmware_models.data import RATE_HZ, load, load_noises
    from firmware_models.training.run import Material

    if recipe.sampling.synthetic_share and synthetic is None:
        raise UsageError(
            f"the recipe takes {recipe.sampling.synthetic_share:.0%} synthetic speech: make it with "
            "'python -m firmware_models.zoo.synthesise --set training --out DIR' and name it with --synthetic DIR"
        )
    window = round(recipe.window_s * RATE_HZ)
    with progress("reading clips", enabled=not quiet) as report:
        train = load(data, "train", window_samples=window, progress=report)
        more = load(synthetic, "all", window_samples=window, progress=report) if synthetic is not None else None
        if more is not None and more.labels != train.labels:
            raise UsageError(f"--synthetic {synthetic}: has other labels than {data} ({' '.join(train.labels)})")
        return Material(
            train=train,
            validation=load(data, "validation", window_samples=window, progress=report),
            noises=tuple(load_noises(data, "train", window_samples=window)),
            synthetic=more,
        )


def _run(
    recipe: Recipe, material: Material, out: Path, *, resume: bool, device: str, threads: int, quiet: bool
) -> dict[str, Any]:
    import torch

    from firmware_models.training.allocator import keep_freed_memory
    from firmware_models.training.loop import train as train_model

    keep_freed_memory()
    torch.set_num_threads(threads)
    with progress(f"training {recipe.architecture}", enabled=not quiet) as report:
        return train_model(recipe, material, out, resume=resume, device=device, progress=report)


def _outline(recipe: Recipe, material: Material, out: Path, device: str, threads: int) -> dict[str, Any]:
    from firmware_models.architectures import build
    from firmware_models.training.recipe import load_recipe

    teacher = load_recipe(recipe.distillation.recipe) if recipe.distillation else None
    window = material.train.window_samples
    model = build(recipe.architecture, labels=material.train.labels, window_samples=window, **recipe.settings)
    return {
        "recipe": recipe.model_dump(mode="json"),
        "teacher": teacher.model_dump(mode="json") if teacher else None,
        "data": material.describe(),
        "parameters": model.parameter_count(),
        "megabytes": round(model.parameter_count() * 4 / 1e6, 2),
        "device": device,
        "threads": threads,
        "out": str(out),
    }


def _print_outline(outline: dict[str, Any]) -> None:
    recipe = outline["recipe"]
    say(
        f"architecture  {recipe['architecture']}, {outline['parameters']} parameters, {outline['megabytes']} MB in FP32"
    )
    for part, found in outline["data"].items():
        say(
            f"{part:<13} {found['clips']} clips of {recipe['window_s']:g} s, {found['speakers']} speakers or recordings"
        )
    say(f"training      {recipe['steps']} steps of {recipe['batch']} clips, seed {recipe['seed']}")
    if teacher := outline["teacher"]:
        steps = f"{teacher['steps']} steps of {teacher['batch']} clips"
        say(f"teacher       {teacher['architecture']}, trained first: {steps}")
    say(f"computed on   {outline['device']} with {outline['threads']} threads")
    say(f"result        {outline['out']}/model.safetensors (nothing was written: dry run)")


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if device.split(":", maxsplit=1)[0] != "cuda":
        raise UsageError(f"device {device!r}: use cpu or cuda")
    if not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: this torch ({torch.__version__}) sees no CUDA device; use --device cpu")
