"""The control of every table: noise with the budget of an attack and none of its knowledge."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rig.attacks.result import AttackResult, Model, check_inputs, measure


def random_sign(
    model: Model,
    pcm: Tensor,
    label: Tensor,
    *,
    eps: float,
    generators: list[np.random.Generator],
    target: Tensor | None = None,
) -> AttackResult:
    """Every sample moves by ``+eps`` or ``-eps`` at random: the power of FGSM without the gradient.

    Args:
        model: only asked whether it errs afterwards.
        pcm: (batch, samples) float32 in [-1, 1].
        label: (batch,) int64, the true classes.
        eps: magnitude, full scale = 1.
        generators: one per clip, so that a clip's noise does not depend on its neighbours in the batch.
        target: (batch,) int64, counts as success when given.
    """
    check_inputs(pcm, label, eps)
    if len(generators) != len(pcm):
        raise ValueError(f"need one generator per clip, not {len(generators)} for {len(pcm)}")
    signs = np.stack([generator.integers(0, 2, pcm.shape[1], dtype=np.int8) for generator in generators])
    noise = torch.from_numpy(signs).to(pcm) * 2 - 1
    adversarial = (pcm + eps * noise).clamp(-1, 1)
    return measure(model, pcm, adversarial, label, target, eps=eps, gradients=0)
