"""Finishing: a few steps of training with rounded activations, so that the network gets used to them.

In 4 bits a grid has 16 values for the quietest and the loudest clip alike; what that loses, no choice of grid can give
back, but weights can learn to live with it. The graph is run with its activations rounded and its weights not, the
gradient passes straight through every rounding (:mod:`export.twin`), and the scores are drawn to those of the FP32
graph on the same sound. No label is needed, and the weights are rounded afterwards, as ever.

Sources: quantisation-aware training by straight-through gradients (Jacob et al. 2018, arXiv:1712.05877); the
network's own answers as the teacher (Mishra and Marr 2018, arXiv:1711.05852).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from export.fixed_point import writing
from export.fixed_point.layers import Layer, arrays_of, store
from export.twin import Twin
from firmware_models.progress import Progress, silent

Floats = npt.NDArray[np.float32]

_SEED = 20_250_103
_BATCH, _WARM_UP, _GRADIENT_CLIP, _TEMPERATURE = 64, 20, 5.0, 2.0
# The learning rate of a weight, as a share of the root mean square of all weights of its tensor, or of the least.
_LEARNING_RATE, _LEAST = 0.004, 0.02
# Louder or quieter by up to this, and earlier or later by up to this part of the window: calibration clips are few.
_GAIN_DB, _SHIFT = 6.0, 0.1


def finished(
    exact: ModelProto,
    start: ModelProto,
    rounded: ModelProto,
    layers: Sequence[Layer],
    pcm: Floats,
    *,
    steps: int,
    progress: Progress = silent,
) -> ModelProto:
    """The graph ``rounded`` with float weights and biases that make its scores those of ``exact``.

    Args:
        exact: the FP32 graph, prepared.
        start: the same with the weights to begin with.
        rounded: the same with Q/DQ nodes, whose activation grids are kept.
        layers: those of ``exact``; their weights and biases are trained.
        pcm: clips float32 (n, samples); they are changed a little in every step.
        steps: how many batches of 64 clips.
        progress: told once per step.

    Raises:
        UsageError: the graph has an operator that the twin does not know; the message names it.
    """
    soft = _with_float_weights(start, rounded, layers)
    teacher, pupil = Twin(exact), Twin(soft, simulated=True)
    learnt = pupil.trainable([name for layer in layers for name in (layer.weight, layer.bias) if name is not None])
    sizes = [max(_LEAST, float(each.detach().square().mean().sqrt())) for each in learnt.values()]
    optimizer = torch.optim.Adam([{"params": [each]} for each in learnt.values()])
    for step in range(steps):
        for group, size in zip(optimizer.param_groups, sizes, strict=True):
            group["lr"] = size * _learning_rate(step, steps)
        sound = torch.from_numpy(_batch(pcm, step))
        with torch.no_grad():
            wanted = torch.log_softmax(teacher(sound) / _TEMPERATURE, 1)
        given = torch.log_softmax(pupil(sound) / _TEMPERATURE, 1)
        loss = _TEMPERATURE**2 * nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(learnt.values(), _GRADIENT_CLIP)
        optimizer.step()
        progress(step + 1, steps, f"finishing, {float(loss.detach()):.3f} from FP32")
    for name, parameter in learnt.items():
        store(soft, name, parameter.detach().numpy())
    return soft


def _with_float_weights(start: ModelProto, rounded: ModelProto, layers: Sequence[Layer]) -> ModelProto:
    """A copy of a quantised graph in which layers have the weights and biases of another graph."""
    soft = ModelProto()
    soft.CopyFrom(rounded)
    arrays = arrays_of(start)
    there = {each.name for each in soft.graph.initializer}
    nodes = {node.name: node for node in soft.graph.node}
    for layer in layers:
        for place, name in ((1, layer.weight), (2, layer.bias)):
            if name is None:
                continue
            nodes[layer.name].input[place] = name
            if name not in there:
                soft.graph.initializer.append(numpy_helper.from_array(arrays[name], name))
            else:
                store(soft, name, arrays[name])
    # The quantiser gives a bias of whole numbers, dequantised, the name of the bias that it was.
    floats = {name for layer in layers for name in (layer.weight, layer.bias)}
    for node in [node for node in soft.graph.node if node.op_type == "DequantizeLinear" and node.output[0] in floats]:
        soft.graph.node.remove(node)
    writing.drop_unused(soft)
    return soft


def _learning_rate(step: int, steps: int) -> float:
    return _LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batch(pcm: Floats, step: int) -> Floats:
    rng = np.random.default_rng((_SEED, step))
    clips = pcm[rng.integers(len(pcm), size=_BATCH)]
    gains = 10.0 ** (rng.uniform(-_GAIN_DB, _GAIN_DB, (_BATCH, 1)) / 20)
    most = round(_SHIFT * pcm.shape[1])
    shifts = rng.integers(-most, most + 1, _BATCH)
    moved = np.stack([np.roll(clip, int(shift)) for clip, shift in zip(clips, shifts, strict=True)])
    changed: Floats = (moved * gains).clip(-1, 1).astype(np.float32)
    return changed
