"""What every attack returns, and the budget measured on what it delivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """Adversarial sound and what it cost.

    ===================  ======================  ==================================================
    field                shape, dtype            meaning
    ===================  ======================  ==================================================
    ``adversarial``      (batch, samples) f32    in [-1, 1]
    ``perturbation``     (batch, samples) f32    ``adversarial - pcm``, after clipping to [-1, 1]
    ``linf``             (batch,) f32            largest magnitude delivered
    ``l2``               (batch,) f32            Euclidean norm delivered
    ``snr_db``           (batch,) f32            power of the clip over power of the perturbation
    ``success``          (batch,) bool           the model errs (untargeted) or says the target
    ===================  ======================  ==================================================

    ``eps`` is the budget that was asked for, ``gradients`` the number of backward passes per clip.
    """

    adversarial: Tensor
    perturbation: Tensor
    eps: float
    linf: Tensor
    l2: Tensor
    snr_db: Tensor
    success: Tensor
    gradients: int


def measure(
    model: Model, pcm: Tensor, adversarial: Tensor, label: Tensor, target: Tensor | None, *, eps: float, gradients: int
) -> AttackResult:
    """Measure budget and success on ``adversarial`` itself, whatever the attack believes it did."""
    perturbation = adversarial - pcm
    power = perturbation.square().mean(dim=1)
    with torch.no_grad():
        decided = model(adversarial).argmax(dim=1)
    return AttackResult(
        adversarial=adversarial,
        perturbation=perturbation,
        eps=eps,
        linf=perturbation.abs().amax(dim=1),
        l2=perturbation.square().sum(dim=1).sqrt(),
        snr_db=10 * torch.log10(pcm.square().mean(dim=1) / power),
        success=decided != label if target is None else decided == target,
        gradients=gradients,
    )


def check_inputs(pcm: Tensor, label: Tensor, eps: float) -> None:
    """Refuse what an attack cannot use.

    Raises:
        ValueError: shapes do not match, PCM leaves [-1, 1] or is not finite, or ``eps`` is negative.
    """
    if pcm.ndim != 2 or label.shape != pcm.shape[:1]:
        raise ValueError(f"need pcm (batch, samples) and label (batch,), not {tuple(pcm.shape)}, {tuple(label.shape)}")
    if not torch.isfinite(pcm).all() or pcm.abs().max() > 1:
        raise ValueError("pcm must be finite and lie in [-1, 1]")
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, not {eps}")
