"""Which network is exported: a checkpoint, split and retrained where that is asked, or somebody else's ONNX model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import UsageError
from rig.cli.models.export.low_rank import Factored, LowRankOptions, factor

if TYPE_CHECKING:
    from export.card import Facts
    from export.fixed_point.number_format import NumberFormat
    from export.graphs.foreign import ForeignModel
    from export.source import Source
    from firmware_models.architectures import FirmwareModel
    from firmware_models.progress import Progress
    from rig.cli.models.export.material import Sound

__all__ = ["ForeignOptions", "LowRankOptions", "Network", "read_network"]


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What a foreign file does not say of itself; ``mel`` is the front end unless ``front_end`` is a file."""

    labels: str | None
    input_kind: str | None
    front_end: Path | None
    mel: Mapping[str, Any]
    layout: str | None
    output: str | None
    rate_hz: int
    window_samples: int | None
    full_scale: float


@dataclass(frozen=True, eq=False)
class Network:
    """A network that was read: ``model`` was trained here, ``foreign`` was not."""

    path: Path
    model: FirmwareModel | None
    foreign: ForeignModel | None
    facts: Facts

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        return self._either.labels

    @property
    def window_samples(self) -> int:
        """The length of a window."""
        return self._either.window_samples

    @property
    def rate_hz(self) -> int:
        """Its rate."""
        return self._either.rate_hz

    @property
    def _either(self) -> FirmwareModel | ForeignModel:
        either = self.model if self.model is not None else self.foreign
        if either is None:
            raise ValueError("a network is trained here or foreign")
        return either

    def check(
        self,
        *,
        low_rank: LowRankOptions,
        ensemble: int | None,
        form: NumberFormat,
        calibration: Path | None,
        finish: int = 0,
    ) -> None:
        """Refuse options that this network cannot take.

        Raises:
            UsageError: there is one; the message says what to do instead.
        """
        if self.model is None and (low_rank.wanted or ensemble is not None):
            raise UsageError(f"{self.path}: layers of a foreign model are not split; train an architecture here for it")
        if calibration is None and (self.model is not None or form.quantised):
            raise UsageError("--calibration DIR is needed: ranges come from its training split, checks from the others")
        if finish and form.activation_bits == 32:
            raise UsageError(f"--finish {finish}: trains for rounded activations; add --bits 4 or leave it out")
        if ensemble is not None and form.quantised:
            raise UsageError(f"--ensemble with --bits {form.bits}: an ensemble is exported with 32 bits")

    def source(
        self,
        low_rank: LowRankOptions,
        *,
        ensemble: int | None,
        sigma: float,
        material: Sound,
        threads: int,
        progress: Progress,
    ) -> tuple[Source, Facts, Factored | None]:
        """The network as the exporter takes it, what its card says, and what became of its layers."""
        import torch

        from export.source import Source

        torch.set_num_threads(threads)
        if self.model is None:
            if self.foreign is None:
                raise ValueError("a network is trained here or foreign")
            return Source.of_foreign(self.foreign), self.facts, None
        factored = None
        model, facts = self.model, self.facts
        if low_rank.wanted:
            factored = factor(
                model,
                low_rank,
                checkpoint=self.path,
                material=material,
                training=dict(facts.training),
                progress=progress,
            )
            model = factored.model
            facts = dataclasses.replace(
                facts,
                training={**facts.training, **factored.training},
                metrics={**facts.metrics, **factored.metrics},
                notes=(*facts.notes, *factored.notes),
            )
        if ensemble is not None:
            return Source.of_ensemble(model, members=ensemble, sigma=sigma), facts, factored
        return Source.of_model(model), facts, factored


def read_network(path: Path, *, foreign: ForeignOptions, architecture: Path | None) -> Network:
    """Read a checkpoint, or a foreign model if the path ends in .onnx.

    Raises:
        UsageError: it cannot be used; one line.
    """
    if path.suffix.lower() != ".onnx":
        if foreign.labels is not None or foreign.input_kind is not None:
            raise UsageError(f"{path}: --labels and --input are for a foreign NAME.onnx; a checkpoint knows its own")
        return _read_checkpoint(path, architecture)
    if foreign.labels is None or foreign.input_kind is None:
        raise UsageError(f"{path}: a foreign model needs --labels a,b,c (or a file) and --input pcm or logmel")
    return _read_foreign(path, foreign, foreign.labels, foreign.input_kind)


def _read_checkpoint(path: Path, architecture: Path | None) -> Network:
    from export.origin import facts_of
    from firmware_models.architectures import register_file
    from firmware_models.training.checkpoint import load_checkpoint

    if architecture is not None:
        register_file(architecture)
    model, info = load_checkpoint(path)
    return Network(path, model, None, facts_of(path, info))


def _read_foreign(path: Path, options: ForeignOptions, labels: str, input_kind: str) -> Network:
    from export.card import Facts
    from export.graphs.foreign import (
        ForeignSettings,
        front_end_from_ms,
        import_foreign,
        load_front_end,
        read_labels,
    )

    if input_kind not in {"pcm", "logmel"}:
        raise UsageError(f"--input {input_kind!r}: use pcm or logmel")
    settings = ForeignSettings(
        rate_hz=options.rate_hz,
        window_samples=options.window_samples,
        layout=options.layout,
        output=options.output,
        full_scale=options.full_scale,
        front_end=(
            front_end_from_ms(options.rate_hz, **options.mel)
            if options.front_end is None
            else load_front_end(options.front_end)
        ),
    )
    model = import_foreign(path, read_labels(labels), "pcm" if input_kind == "pcm" else "logmel", settings)
    facts = Facts(training={"command": f"not trained here; brought in from {path.name}"})
    return Network(path, None, model, facts)
