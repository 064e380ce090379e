from __future__ import annotations

import pytest
import torch
from torch import nn

from edge.errors import UsageError
from firmware_models.architectures import ARCHITECTURES, build
from firmware_models.data import LABELS


def test_lms_has_the_size_and_the_layers_of_the_paper() -> None:
    model = build("lms", labels=LABELS)
    assert model.parameter_count() * 4 == pytest.approx(1.8e6, rel=0.05)
    kinds = [type(module) for module in model.modules()]
    assert [kinds.count(kind) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)] == [2, 2, 2, 1]


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
    [("lm5", {}, "use one of lms"), ("lms", {"width": 3}, "width"), ("lms", {"log_floor": -1.0}, "log_floor")],
)
def test_what_does_not_exist_is_one_line(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(name, labels=LABELS, **settings)
    assert "\n" not in str(caught.value)
