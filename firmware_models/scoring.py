"""Scores by a torch model, for whoever takes any callable from sound to scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from firmware_models.architectures import FirmwareModel
from firmware_models.evaluation import Scorer


def torch_scorer(model: FirmwareModel) -> Scorer:
    """Scores by a torch model: PCM float32 (b, samples) in, logits float32 (b, labels) out."""
    model.eval()
    device = next(model.parameters()).device

    def score(pcm: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.inference_mode():
            scores: np.ndarray[Any, np.dtype[np.float32]] = model(torch.from_numpy(pcm).to(device)).cpu().numpy()
        return scores

    return score
