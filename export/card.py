"""The model card inside a bundle: what it is, what it learned from, what was measured, what it must not be sold as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from export.fixed_point.number_format import NumberFormat

SPEECH_COMMANDS = (
    "Google Speech Commands v0.02 (Warden 2018, arXiv:1804.03209), training speakers only, CC BY 4.0: "
    "https://creativecommons.org/licenses/by/4.0/"
)
SPEECH_COMMANDS_LICENCE = "Apache-2.0 (weights); training data CC BY 4.0, see the card for attribution"

_FLOAT = "the CPU computes in 32-bit floating point"
_ROUNDED_FRONT_END = "The log-mel front end (where there is one) and the scores stay in 32-bit floating point."


def computes_in(form: NumberFormat) -> str:
    """In which width a processor really computes with a graph of this format; a sentence or two for the card."""
    if not form.quantised:
        return f"Weights and activations are 32-bit floating point, and {_FLOAT}."
    if form.profile == "storage":
        numbers = (
            f"Weights are stored in {form.bits} bits, activations are not rounded"
            if form.activation_bits == 32
            else f"Weights are rounded to {form.bits} bits and activations to {form.activation_bits}"
        )
        return (
            f"{numbers}; the arithmetic has no such width: {_FLOAT}. This bundle is smaller than FP32, not faster; it "
            f"is loaded with session.disable_quant_qdq=1. {_ROUNDED_FRONT_END}"
        )
    channels = "per output channel" if form.per_channel else "per tensor"
    if form.profile == "cpu":
        return (
            f"Weights are signed 8-bit {channels} (within +-64, so that processors with and without VNNI agree), "
            "activations unsigned 8-bit per tensor, biases 32-bit integers. onnxruntime's CPU provider multiplies "
            f"8-bit integers and adds in 32 bits. {_ROUNDED_FRONT_END}"
        )
    return (
        f"Weights are signed 8-bit {channels}, activations signed 8-bit per tensor, both symmetric, biases 32-bit "
        "floating point: the form that TensorRT takes and computes in 8 bits. onnxruntime's CPU provider does not: "
        f"there {_FLOAT}, slower than FP32. {_ROUNDED_FRONT_END}"
    )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What only the person who exports can say of a model.

    ``training`` is what the checkpoint knows of its training: seed, steps, minutes, command and the like.
    ``metrics`` go into the manifest and the card by name. ``export_command`` is what was typed to make the bundle.
    """

    training_data: str = "not stated"
    licence: str = "not stated: do not pass it on"
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    export_command: str | None = None


def render(
    facts: Facts,
    *,
    name: str,
    version: int,
    architecture: str,
    form: NumberFormat,
    score_kind: str,
    labels: Sequence[str],
    rate_hz: int,
    window_samples: int,
    log_floor: float | None,
    parameters: int,
    model_bytes: int,
) -> str:
    """The card as Markdown."""
    floor = "no log-mel front end" if log_floor is None else f"{log_floor:g} (mean square per mel band, full scale 1)"
    training = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in facts.training.items() if key != "command"
    )
    command = facts.training.get("command", f"earshot train {architecture} --data DIR --out RUN")
    lines = [
        f"# {name}, version {version}",
        "",
        f"A firmware model for earshot: architecture `{architecture}`, {form.bits} bits, profile `{form.profile}`.",
        "",
        "| | |",
        "|---|---|",
        f"| input | `pcm`, float32 (batch, {window_samples}) in [-1, 1], mono, {rate_hz} Hz |",
        f"| output | `scores`, float32 (batch, {len(labels)}), {score_kind} |",
        f"| labels | {' '.join(labels)} |",
        f"| parameters | {parameters:,} |",
        f"| size of the graph | {model_bytes / 1e6:.3f} MB |",
        f"| log floor | {floor} |",
        f"| number format | {form.scheme} |",
        "",
        "## Number format",
        "",
        computes_in(form),
        "",
        "## Training",
        "",
        f"Data: {facts.training_data}",
        "",
        f"Command: `{command}`" + (f" ({training})" if training else ""),
        "",
        *(() if facts.export_command is None else (f"Export: `{facts.export_command}`", "")),
        f"Licence: {facts.licence}",
        "",
        "## Measured",
        "",
        *_metrics(facts.metrics),
        "",
        "## Read this before you compare",
        "",
        *_warnings(log_floor),
        *(f"- {note}" for note in facts.notes),
        "",
        "The golden vectors in this bundle are synthetic sounds; no recording of a person is inside.",
        "",
    ]
    return "\n".join(lines)


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return ["Nothing was measured when this bundle was packed."]
    return ["| measure | value |", "|---|---|", *(f"| {key} | {value:.6g} |" for key, value in metrics.items())]


def _warnings(log_floor: float | None) -> list[str]:
    lines = [
        "- A model that hears well is not a model that resists: nothing here is hardened against adversarial sound.",
    ]
    if log_floor is not None:
        lines.append(
            "- The log floor moves the robustness of a log-mel model more than its size or number format does: compare "
            "models at the same floor only."
        )
    return lines
