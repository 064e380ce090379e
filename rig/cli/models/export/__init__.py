"""``earshot export``: a checkpoint, or somebody else's ONNX model, becomes a signed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.bundle.manifest import MAX_VERSION
from rig.cli.console import progress
from rig.cli.models.export import telling

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Turn a network into a signed bundle.")

_LOW_RANK, _NUMBERS, _FOREIGN, _ENSEMBLE = "Low rank", "Number format", "ONNX models of others", "Stochastic ensemble"


@app.command(no_args_is_help=True)
def export(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="model.safetensors, the folder of a run, or a foreign NAME.onnx.")],
    key: Annotated[Path, typer.Option("--key", help="Private key (NAME.pem of earshot keys new).")],
    out: Annotated[Path, typer.Option("--out", help="The bundle, NAME.earshot.")],
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Data set: ranges from train, checks on validation and test."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name in the manifest.", show_default="NAME of --out")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            "--version", help="It only grows.", show_default="one more than in --out, or 1", min=1, max=MAX_VERSION
        ),
    ] = None,
    bits: Annotated[int, typer.Option("--bits", help="32, 16, 8 or 4.", rich_help_panel=_NUMBERS)] = 32,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            "--activation-bits",
            help="Of what flows between the layers; 32 rounds the weights only.",
            show_default="as --bits",
            rich_help_panel=_NUMBERS,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help="cpu, portable (TensorRT) or storage.",
            show_default="cpu for 32 and 8 bits, storage for 16 and 4",
            rich_help_panel=_NUMBERS,
        ),
    ] = None,
    per_tensor: Annotated[
        bool,
        typer.Option(
            "--per-tensor", help="One scale per weight instead of one per output channel.", rich_help_panel=_NUMBERS
        ),
    ] = False,
    power_of_two: Annotated[
        bool, typer.Option("--power-of-two", help="Scales that are powers of two.", rich_help_panel=_NUMBERS)
    ] = False,
    clips: Annotated[
        int, typer.Option("--clips", help="Calibration clips.", min=16, max=100_000, rich_help_panel=_NUMBERS)
    ] = 1024,
    method: Annotated[
        str | None, typer.Option("--method", help="How ranges are chosen.", rich_help_panel=_NUMBERS)
    ] = None,
    finish: Annotated[
        int,
        typer.Option(
            "--finish",
            help="Steps of training for rounded activations; 200 help 4 bits.",
            min=0,
            max=100_000,
            rich_help_panel=_NUMBERS,
        ),
    ] = 0,
    accept_drop: Annotated[
        str | None,
        typer.Option(
            "--accept-drop",
            help="Top-1 that rounding may cost, e.g. 3%.",
            show_default="0.5 % for 16 bits, 1 % for 8, 5 % for 4",
            rich_help_panel=_NUMBERS,
        ),
    ] = None,
    rank_fc: Annotated[
        int | None,
        typer.Option("--rank-fc", help="Factor fully connected layers to this rank.", rich_help_panel=_LOW_RANK),
    ] = None,
    rank_conv: Annotated[
        int | None, typer.Option("--rank-conv", help="Factor convolutions to this rank.", rich_help_panel=_LOW_RANK)
    ] = None,
    reshape: Annotated[
        str,
        typer.Option("--reshape", help="Filters as a matrix: channels or spatial.", rich_help_panel=_LOW_RANK),
    ] = "channels",
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="Find the smallest ranks that lose at most this part of the accuracy, e.g. 2%.",
            rich_help_panel=_LOW_RANK,
        ),
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option("--retrain", help="Recipe to retrain the factors with, e.g. low-rank.", rich_help_panel=_LOW_RANK),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of the retraining; a started one goes on.", rich_help_panel=_LOW_RANK),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            help="Checkpoint that teaches the factors.",
            show_default="CHECKPOINT/teacher, or one is trained",
            rich_help_panel=_LOW_RANK,
        ),
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option("--ensemble", help="Members of a stochastic ensemble.", min=1, max=256, rich_help_panel=_ENSEMBLE),
    ] = None,
    sigma: Annotated[
        float,
        typer.Option(
            "--sigma", help="Noise on the singular values, as a share of their RMS.", min=0.0, rich_help_panel=_ENSEMBLE
        ),
    ] = 0.2,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="The classes in order: a,b,c or a file, one a line.", rich_help_panel=_FOREIGN),
    ] = None,
    input_kind: Annotated[
        str | None, typer.Option("--input", help="What the model takes: pcm or logmel.", rich_help_panel=_FOREIGN)
    ] = None,
    frontend: Annotated[
        Path | None,
        typer.Option(
            "--frontend", help="YAML with all log-mel settings, instead of the four below.", rich_help_panel=_FOREIGN
        ),
    ] = None,
    mel_bands: Annotated[
        int, typer.Option("--mel-bands", help="Log-mel bands.", min=1, max=512, rich_help_panel=_FOREIGN)
    ] = 40,
    frame_ms: Annotated[float, typer.Option("--frame-ms", help="Length of a frame.", rich_help_panel=_FOREIGN)] = 25.0,
    hop_ms: Annotated[float, typer.Option("--hop-ms", help="Time between frames.", rich_help_panel=_FOREIGN)] = 10.0,
    log_floor: Annotated[
        float,
        typer.Option("--log-floor", help="Mean square per band added before the logarithm.", rich_help_panel=_FOREIGN),
    ] = 1e-6,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="Axes of its input, e.g. batch,1,frames,bands.", rich_help_panel=_FOREIGN),
    ] = None,
    full_scale: Annotated[
        float,
        typer.Option("--full-scale", help="The loudest PCM it knows, e.g. 32768.", rich_help_panel=_FOREIGN),
    ] = 1.0,
    output: Annotated[
        str | None,
        typer.Option("--output", help="The output with the scores, where there are several.", rich_help_panel=_FOREIGN),
    ] = None,
    rate: Annotated[
        int, typer.Option("--rate", help="Sample rate in Hz.", min=1000, max=192_000, rich_help_panel=_FOREIGN)
    ] = 16_000,
    window_samples: Annotated[
        int | None,
        typer.Option(
            "--window-samples",
            help="Samples that the model hears.",
            show_default="from the model",
            min=16,
            rich_help_panel=_FOREIGN,
        ),
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option("--architecture", help="Python file of your own architecture; its code is run.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=256, help="CPU threads of torch.")] = 1,
    training_data: Annotated[
        str | None, typer.Option("--training-data", help="Data and licence for manifest and card.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence for manifest and card.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compress, export, hold against torch, and sign; nothing is written when a gate is missed."""
    from edge.bundle.signing import load_private_key
    from export import build, pack
    from export.fixed_point.number_format import number_format
    from firmware_models.training.allocator import keep_freed_memory
    from rig.cli.models.export.material import read_material
    from rig.cli.models.export.network import ForeignOptions, LowRankOptions, read_network
    from rig.cli.models.export.values import calibration_settings, check_out, command_line, share

    form = number_format(
        bits,
        activation_bits=activation_bits,
        profile=profile,
        per_channel=not per_tensor,
        power_of_two=power_of_two,
    )
    settings = calibration_settings(method, finish_steps=finish)
    accepted = None if accept_drop is None else share("--accept-drop", accept_drop)
    signer = load_private_key(key)
    check_out(out)
    name = name or out.stem
    chosen_version = pack.next_version(out, name, version)
    low_rank = LowRankOptions.of(
        rank_fc=rank_fc,
        rank_conv=rank_conv,
        reshape=reshape,
        max_drop=None if max_drop is None else share("--max-drop", max_drop),
        recipe=retrain,
        run=run,
        teacher=teacher,
    )
    foreign = ForeignOptions(
        labels=labels,
        input_kind=input_kind,
        front_end=frontend,
        mel={"bands": mel_bands, "frame_ms": frame_ms, "hop_ms": hop_ms, "log_floor": log_floor},
        layout=layout,
        output=output,
        rate_hz=rate,
        window_samples=window_samples,
        full_scale=full_scale,
    )
    if finish:
        keep_freed_memory()
    network = read_network(model, foreign=foreign, architecture=architecture)
    network.check(low_rank=low_rank, ensemble=ensemble, form=form, calibration=calibration, finish=finish)
    with progress("export", enabled=not as_json) as report:
        material = read_material(network, calibration, clips, progress=report)
        if dry_run:
            telling.outline(out, name, chosen_version, form, network, material, low_rank, as_json=as_json)
            return
        source, facts, factored = network.source(
            low_rank, ensemble=ensemble, sigma=sigma, material=material, threads=threads, progress=report
        )
        built = build.build(
            source,
            out,
            name=name,
            version=chosen_version,
            key=signer,
            material=material.for_build,
            facts=telling.stated(
                facts, training_data=training_data, licence=licence, command=command_line(context, name=name)
            ),
            form=form,
            calibration=settings,
            accept_drop=accepted,
            progress=report,
        )
    telling.built(built, factored, as_json=as_json)
