"""What a bundle can be made from: a trained model, a stochastic ensemble of one, or somebody else's graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto
from torch import Tensor

from edge.bundle.manifest import Ensemble
from edge.bundle.noise import standard_normal
from edge.errors import UsageError
from export.fixed_point.number_format import NumberFormat
from export.graphs.ensemble import ensemble_graph, ensemble_of
from export.graphs.foreign import ForeignModel
from export.graphs.from_torch import to_onnx
from export.pack import Identity, ScoreKind
from firmware_models.architectures import FirmwareModel
from firmware_models.low_rank.ensemble import StochasticEnsemble, relative_sigma

_NOISE_SEED = b"earshot parity 1"
_ENSEMBLE_NOTE = (
    "Stochastic: the mean of {members} networks whose singular values (layers {layers}) are drawn anew for each "
    "window, sigma {sigma:g} times the RMS of a layer's. Two runs on the same sound differ; golden scores are those "
    "under fixed noise. Attack it with expectation over the randomness, fresh members in every step, and compare "
    "with sigma 0 at the same ranks: what that resists, the noise did not bring about."
)
# TensorRT wants the sizes of everything beforehand; a device listens to one window at a time.
PORTABLE_BATCH = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A network before its number format is chosen.

    ``graph`` gives the FP32 graph for a format; ``reference`` computes the same scores in torch, where there is a
    network in torch. ``noise`` (members, values) is what an ensemble is compared and measured with. ``twin_lacks`` is
    why a foreign graph has no twin.
    """

    architecture: str
    labels: tuple[str, ...]
    rate_hz: int
    window_samples: int
    log_floor: float | None
    parameters: int
    graph: Callable[[NumberFormat], ModelProto]
    reference: Callable[[Tensor], Tensor] | None = None
    score_kind: ScoreKind = "logits"
    ensemble: Ensemble | None = None
    noise: npt.NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    twin_lacks: str | None = None

    @classmethod
    def of_model(cls, model: FirmwareModel) -> Source:
        """A trained model, factored or not."""
        model.eval()

        def graph(form: NumberFormat) -> ModelProto:
            if form.profile == "portable":
                return to_onnx(model, batch=PORTABLE_BATCH, compute_kernel=False)
            return to_onnx(model)

        return cls(
            architecture=model.name,
            labels=model.labels,
            rate_hz=model.rate_hz,
            window_samples=model.window_samples,
            log_floor=model.log_floor,
            parameters=model.parameter_count(),
            graph=graph,
            reference=model,
        )

    @classmethod
    def of_ensemble(cls, model: FirmwareModel, *, members: int, sigma: float) -> Source:
        """A stochastic ensemble of a factored model; ``sigma`` is a share of the RMS of each layer's singular values.

        Raises:
            UsageError: no layer of the model is factored, or members or sigma are out of range.
        """
        model.eval()
        by_layer = relative_sigma(model, sigma)
        whole = StochasticEnsemble(model, sigma=by_layer)
        stated = ensemble_of(ensemble_graph(model, sigma=by_layer), members=members)
        noise = standard_normal(_NOISE_SEED, members, whole.noise_values)

        def graph(form: NumberFormat) -> ModelProto:
            if form.quantised or form.profile != "cpu":
                raise UsageError(
                    f"an ensemble is exported as FP32 for profile cpu, not as {form.scheme} for {form.profile}"
                )
            return ensemble_graph(model, sigma=by_layer)

        return cls(
            architecture=model.name,
            labels=model.labels,
            rate_hz=model.rate_hz,
            window_samples=model.window_samples,
            log_floor=model.log_floor,
            parameters=model.parameter_count(),
            graph=graph,
            reference=lambda pcm: whole(pcm, torch.from_numpy(noise).repeat(len(pcm), 1)),
            score_kind="probabilities",
            ensemble=stated,
            noise=noise,
            notes=(_ENSEMBLE_NOTE.format(members=members, sigma=sigma, layers=", ".join(by_layer)),),
        )

    @classmethod
    def of_foreign(cls, model: ForeignModel) -> Source:
        """Somebody else's graph, brought into a bundle's form."""

        def graph(form: NumberFormat) -> ModelProto:
            if form.profile == "portable":
                raise UsageError(
                    "--profile portable: only models trained here can be exported for it; use cpu or storage"
                )
            return model.graph

        return cls(
            architecture="foreign",
            labels=model.labels,
            rate_hz=model.rate_hz,
            window_samples=model.window_samples,
            log_floor=model.log_floor,
            parameters=model.parameters,
            graph=graph,
            score_kind=model.score_kind,
            notes=tuple(model.notes),
            twin_lacks=model.twin_lacks,
        )

    def identity(self, *, name: str, version: int, form: NumberFormat | None = None) -> Identity:
        """What the bundle says it is; FP32 by default."""
        return Identity(
            name=name,
            version=version,
            architecture=self.architecture,
            labels=self.labels,
            rate_hz=self.rate_hz,
            window_samples=self.window_samples,
            log_floor=self.log_floor,
            parameters=self.parameters,
            form=form or NumberFormat(),
            score_kind=self.score_kind,
            ensemble=self.ensemble,
        )
