"""Attacks on a waveform: a callable model goes in, adversarial sound within a stated budget comes out.

Nothing here knows the project's models. A model is any callable that maps PCM ``(batch, samples)`` float32 in
[-1, 1] to scores ``(batch, classes)`` and lets gradients through where the attack needs them.
"""

from rig.attacks.gradient import fgsm, pgd
from rig.attacks.random_sign import random_sign
from rig.attacks.result import AttackResult, Model

__all__ = ["AttackResult", "Model", "fgsm", "pgd", "random_sign"]
