"""Attacks that follow the gradient within an L-infinity ball: FGSM and PGD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rig.attacks.result import AttackResult, Model, check_inputs, measure

# The papers leave the step open; with 2.5 * eps / steps the walk can cross the ball and come back.
PGD_STEP_FACTOR = 2.5


def fgsm(model: Model, pcm: Tensor, label: Tensor, *, eps: float, target: Tensor | None = None) -> AttackResult:
    """One step of size ``eps`` along the sign of the gradient.

    Args:
        model: PCM (batch, samples) to scores (batch, classes), differentiable.
        pcm: (batch, samples) float32 in [-1, 1].
        label: (batch,) int64, the true classes.
        eps: largest magnitude of the perturbation, full scale = 1.
        target: (batch,) int64, the classes to be heard instead; without it any error will do.

    Source: Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015.
    """
    return pgd(model, pcm, label, eps=eps, steps=1, step_size=eps, target=target)


def pgd(
    model: Model,
    pcm: Tensor,
    label: Tensor,
    *,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    target: Tensor | None = None,
) -> AttackResult:
    """Projected gradient ascent from a zero perturbation, signed steps, L-infinity ball.

    Args:
        model: PCM (batch, samples) to scores (batch, classes), differentiable.
        pcm: (batch, samples) float32 in [-1, 1].
        label: (batch,) int64, the true classes.
        eps: largest magnitude of the perturbation, full scale = 1.
        steps: gradient steps.
        step_size: length of a step; :data:`PGD_STEP_FACTOR` ``* eps / steps`` when absent.
        target: (batch,) int64; the loss is then ``loss(label) - loss(target)``.

    Source: Madry et al., ICLR 2018, with the targeted loss of "Countering acoustic adversarial attacks", eq. 2.
    """
    check_inputs(pcm, label, eps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    step = PGD_STEP_FACTOR * eps / steps if step_size is None else step_size
    low, high = (pcm - eps).clamp(min=-1), (pcm + eps).clamp(max=1)
    adversarial = pcm.clone()
    for _ in range(steps):
        adversarial.requires_grad_(True)
        scores = model(adversarial)
        # Summed, not averaged: a clip's gradient must not depend on its neighbours in the batch.
        loss = functional.cross_entropy(scores, label, reduction="sum")
        if target is not None:
            loss = loss - functional.cross_entropy(scores, target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = torch.clamp(adversarial.detach() + step * gradient.sign(), low, high)
    return measure(model, pcm, adversarial, label, target, eps=eps, gradients=steps)
