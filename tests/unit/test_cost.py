from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from firmware_models.architectures import ARCHITECTURES, FirmwareModel, build
from firmware_models.cost import cost
from firmware_models.data import LABELS
from firmware_models.low_rank import folded
from firmware_models.low_rank.factorise import Ranks, factorise


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_parameter_is_counted_once(name: str) -> None:
    model = build(name, labels=LABELS)
    found = cost(model)
    assert found.parameters == model.parameter_count()
    assert found.multiply_adds > 100_000
    assert found.to_json()["multiply_adds"] == sum(layer.multiply_adds for layer in found.layers)


def test_the_counts_are_those_made_by_hand() -> None:
    found = {layer.name: layer.multiply_adds for layer in cost(build("lms", labels=LABELS)).layers}
    frames, frame, bins, bands = 98, 400, 189, 40
    assert found == {
        "frontend": frames * (2 * bins * frame + bins * bands),
        "conv1": 64 * 49 * 49 * 20,
        "bn1": 0,
        "conv2": 96 * 64 * 70 * 24,
        "bn2": 0,
        "fc": 96 * 12 * 12,
    }


def test_factored_layers_are_counted_as_they_are_computed() -> None:
    model = build("lms", labels=LABELS)
    low, _ = factorise(model, Ranks(conv=10))
    found = {layer.name: layer for layer in cost(low).layers}
    places = 24
    assert found["conv2.v"].multiply_adds == 10 * 64 * 70 * places
    assert found["conv2.u"].multiply_adds == 96 * 10 * places
    assert (found["conv2"].parameters, found["conv2"].multiply_adds) == (10, 10 * places)
    assert cost(low).inside("conv2") == (10 * (96 + 4480 + 1), 10 * (96 + 4480 + 1) * places)
    # Folded, the scaling is gone.
    assert cost(folded(low)).inside("conv2") == (10 * (96 + 4480), 10 * (96 + 4480) * places)


def test_counting_leaves_the_model_alone() -> None:
    model = build("lms", labels=LABELS).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model)
    assert model.training
    assert model.get_submodule("frontend").method == "fft"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


class Nothing(BaseModel):
    """No settings."""


class Own(FirmwareModel):
    """Layers for which torch has fused kernels."""

    name = "own"
    Settings = Nothing

    def __init__(self, settings: BaseModel, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)

    def features(self, pcm: Tensor) -> Tensor:
        return pcm.unflatten(1, (-1, 16))

    def classify(self, features: Tensor) -> Tensor:
        x, _ = self.gru(features)
        x, _ = self.lstm(x)
        return self.attention(x)[:, -1, : len(self.labels)]


def test_recurrent_layers_and_attention_are_counted() -> None:
    model = Own(Nothing(), labels=("a", "b"), window_samples=160, rate_hz=16_000)
    found = cost(model)
    frames = 10
    assert found.inside("gru")[1] == frames * 3 * 16 * 32
    assert found.inside("lstm")[1] == frames * 4 * 16 * 32
    assert found.inside("attention")[1] == frames * (4 * 16 * 16 + 2 * 16 * 32) + 2 * frames * frames * 16
