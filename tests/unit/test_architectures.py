from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edge.errors import UsageError
from firmware_models.architectures import ARCHITECTURES, build
from firmware_models.data import LABELS

SCENES = tuple(f"scene-{number}" for number in range(19))


@pytest.mark.parametrize(
    ("name", "window_samples", "labels", "megabytes"),
    [
        ("ete", 16_000, LABELS, 11.7),
        ("lm", 16_000, LABELS, 20.2),
        ("lms", 16_000, LABELS, 1.8),
        ("ete", 48_000, SCENES, 19.7),
        ("lm", 48_000, SCENES, 33.3),
    ],
)
def test_models_have_the_size_of_the_paper(
    name: str, window_samples: int, labels: tuple[str, ...], megabytes: float
) -> None:
    model = build(name, labels=labels, window_samples=window_samples)
    assert model.parameter_count() * 4 == pytest.approx(megabytes * 1e6, rel=0.05)
    assert model.eval()(torch.zeros(1, window_samples)).shape == (1, len(labels))


@pytest.mark.parametrize(("name", "layers"), [("ete", (5, 3, 5, 2)), ("lm", (3, 3, 3, 2)), ("lms", (2, 2, 2, 1))])
def test_models_have_the_layers_of_the_paper(name: str, layers: tuple[int, ...]) -> None:
    model = build(name, labels=LABELS).eval()
    ran = Counter[str]()

    def count(module: nn.Module, _inputs: object, _output: object) -> None:
        ran[re.sub(r"[123]d$", "", type(module).__name__)] += 1

    for module in model.modules():
        module.register_forward_hook(count)
    model(torch.zeros(1, 16_000))
    assert (ran["Conv"], ran["MaxPool"], ran["BatchNorm"], ran["Linear"]) == layers


def test_networks_to_compare_with_have_the_widths_of_their_papers() -> None:
    widths = [module.out_channels for module in build("m5", labels=LABELS).modules() if isinstance(module, nn.Conv1d)]
    assert widths == [128, 128, 256, 512]
    assert 0.5e6 <= build("m5", labels=LABELS).parameter_count() <= 0.6e6
    # 38.6 kB of 8 bit weights and activations.
    small = build("ds_cnn", labels=LABELS)
    assert 20_000 <= small.parameter_count() <= 25_000
    groups = [module.groups for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert groups == [1, 64, 1, 64, 1, 64, 1, 64, 1]


@pytest.mark.parametrize("name", ["ete", "lm", "m5", "ds_cnn"])
def test_models_export_and_run_in_onnxruntime(name: str, noise_pcm: Callable[..., np.ndarray]) -> None:
    import onnxruntime

    from export.graphs.from_torch import to_onnx

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build(name, labels=LABELS).eval()
    graph = to_onnx(model)
    # Batch norm was folded into the convolutions.
    assert not [node.name for node in graph.graph.node if node.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pcm = noise_pcm(3)
    (scores,) = session.run(None, {"pcm": pcm})
    with torch.inference_mode():
        np.testing.assert_allclose(scores, model(torch.from_numpy(pcm)).numpy(), atol=1e-4)


@pytest.mark.parametrize(("name", "window_samples"), [("lm", 1_600), ("m5", 800)])
def test_a_window_too_short_is_one_line(name: str, window_samples: int, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(UsageError, match=rf"{name}: a window of {window_samples} samples is"):
        build(name, labels=LABELS, window_samples=window_samples)
    assert not recwarn.list


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_take_pcm_and_give_a_score_per_label(name: str) -> None:
    model = build(name, labels=LABELS).eval()
    assert model(torch.zeros(3, 16_000)).shape == (3, len(LABELS))
    assert model.labels == LABELS


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, labels=LABELS).eval()
    pcm = 0.1 * torch.randn(4, 16_000)
    torch.testing.assert_close(model(pcm)[2:3], model(pcm[2:3]), atol=1e-5, rtol=0)


def test_checkpoints_carry_no_front_end() -> None:
    assert not [name for name in build("lms", labels=LABELS).state_dict() if name.startswith("frontend")]


def test_the_log_floor_is_a_setting() -> None:
    assert build("lms", labels=LABELS, log_floor=1e-8).log_floor == 1e-8


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lm5", {}, "use one of .*lms.*--architecture FILE.py"),
        ("lms", {"width": 3}, "width"),
        ("lms", {"log_floor": -1.0}, "log_floor"),
    ],
)
def test_what_does_not_exist_is_one_line(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(name, labels=LABELS, **settings)
    assert "\n" not in str(caught.value)
