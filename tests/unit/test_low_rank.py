from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from edge.errors import DataError, UsageError
from firmware_models.architectures import FirmwareModel, build
from firmware_models.data import LABELS, Clips
from firmware_models.low_rank import Factored, FactoredConv, FactoredLinear, Reshape, folded
from firmware_models.low_rank.factorise import Ranks, factorise, largest_rank
from firmware_models.low_rank.factors import Layer, decompose, matrix
from firmware_models.low_rank.search import search
from firmware_models.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors

LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (3, 7)),
    "linear without bias, more axes": (nn.Linear(5, 9, bias=False), (3, 4, 5)),
    "1d": (nn.Conv1d(3, 6, 4, stride=2, padding=3, dilation=2), (2, 3, 40)),
    "1d, same": (nn.Conv1d(3, 6, 4, padding="same", bias=False), (2, 3, 40)),
    "2d": (nn.Conv2d(3, 6, (5, 4), stride=(2, 3), padding=(3, 1), dilation=(1, 2)), (2, 3, 40, 30)),
    "2d, same": (nn.Conv2d(3, 6, (4, 3), padding="same"), (2, 3, 20, 10)),
    "2d, reflected": (nn.Conv2d(3, 6, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 20, 10)),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def split(layer: Layer, rank: int, reshape: Reshape) -> Factored:
    if isinstance(layer, nn.Linear):
        return FactoredLinear.split(layer, rank)
    return FactoredConv.split(layer, rank, reshape)


@pytest.mark.parametrize("reshape", ["channels", "spatial"])
@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_nothing_changes(name: str, reshape: Reshape) -> None:
    layer, shape = LAYERS[name]
    full = min(matrix(layer, reshape).shape)
    factored, x = split(layer, full, reshape), torch.randn(shape)
    expected = layer(x)
    for found in (factored(x), factored.folded()(x), factored.second(factored.scale(factored.first(x), factored.s))):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # One rank less and it is another layer: the comparison above can fail.
    assert (split(layer, full - 1, reshape)(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["linear", "1d", "2d"])
def test_the_error_is_what_the_singular_values_left_out_say(name: str) -> None:
    layer, _ = LAYERS[name]
    found = decompose(layer)
    factored = split(layer, 2, "channels")
    product = factored.u.weight.flatten(1) @ torch.diag(factored.s) @ factored.v.weight.flatten(1)
    product = product.detach()
    wrong = torch.linalg.norm(product - matrix(layer)) / torch.linalg.norm(matrix(layer))
    assert found.relative_error(2) == pytest.approx(float(wrong), rel=1e-4)
    assert found.relative_error(found.rank) < 1e-6


def test_the_reshapes_have_the_kernels_they_say() -> None:
    conv = nn.Conv2d(4, 6, (5, 3))
    assert matrix(conv, "channels").shape == (6, 60)
    assert matrix(conv, "spatial").shape == (30, 12)
    shapes = {}
    for reshape in ("channels", "spatial"):
        made = FactoredConv.split(conv, 3, reshape)
        shapes[reshape] = tuple(made.v.weight.shape), tuple(made.u.weight.shape)
    assert shapes == {"channels": ((3, 4, 5, 3), (6, 3, 1, 1)), "spatial": ((3, 4, 1, 3), (6, 3, 5, 1))}
    upright = FactoredConv.split(nn.Conv1d(4, 6, 5), 3, "spatial")
    assert (tuple(upright.v.weight.shape), tuple(upright.u.weight.shape)) == ((3, 4, 1), (6, 3, 5))


@pytest.mark.parametrize("name", ["linear", "linear without bias, more axes", "1d", "2d"])
def test_noise_moves_the_singular_values(name: str) -> None:
    layer, shape = LAYERS[name]
    factored, x = split(layer, 3, "channels"), torch.randn(shape)
    calm = factored(x)
    noise = torch.randn(shape[0], 3)
    factored.noise = noise
    per_row = factored(x)
    for row in range(shape[0]):
        factored.noise = noise[row]
        torch.testing.assert_close(factored(x)[row], per_row[row], atol=1e-5, rtol=0)
    factored.noise = -factored.s.detach()
    bias = factored.u.bias
    expected = torch.zeros_like(calm) if bias is None else torch.zeros_like(calm) + split_bias(bias, calm, layer)
    torch.testing.assert_close(factored(x), expected, atol=1e-6, rtol=0)
    factored.noise = None
    assert torch.equal(factored(x), calm)


def split_bias(bias: Tensor, like: Tensor, layer: Layer) -> Tensor:
    return bias.detach() if isinstance(layer, nn.Linear) else bias.detach().view(-1, *[1] * (like.ndim - 2))


def test_the_large_model_at_the_papers_ranks() -> None:
    model = build("lm", labels=LABELS).eval()
    low, report = factorise(model, Ranks(fc=16, conv=64))
    rows = {row.name: row for row in report.layers}
    ranks = {"conv1": None, "conv2": 64, "conv3": 64, "fc1": 16, "fc2": None}
    assert {name: row.rank for name, row in rows.items()} == ranks
    assert rows["conv1"].note == (
        "rank 64 capped at 49, the rank of its weights; left whole: rank 49 would not make it smaller"
    )
    assert rows["fc2"].rank_asked == 16
    assert rows["conv3"].shape == (512, 176, 7, 5)
    assert rows["conv3"].parameters_before == 512 * 176 * 35
    assert rows["conv3"].parameters_after == 64 * (512 + 176 * 35) + 64
    assert report.parameters_before == model.parameter_count()
    assert report.parameters_after == low.parameter_count() == 609_468
    assert report.multiply_adds_after < report.multiply_adds_before / 2
    assert json.loads(json.dumps(report.to_json()))["parameters_after"] == 609_468
    pcm = torch.rand(3, 16_000) - 0.5
    plain = folded(low)
    assert not any(isinstance(module, Factored) for module in plain.modules())
    torch.testing.assert_close(plain(pcm), low(pcm), atol=1e-5, rtol=0)
    # The model that was handed over is as it was.
    assert isinstance(model.conv2, nn.Conv2d)
    assert isinstance(low.conv2, FactoredConv)
    assert isinstance(plain.conv2, nn.Sequential)


def test_single_layers_can_be_given_another_rank_or_left_whole() -> None:
    model = build("lms", labels=LABELS)
    _, report = factorise(model, Ranks(fc=4, conv=8, layers={"conv2": 20, "fc": None}, larger_too=True))
    assert {row.name: row.rank for row in report.layers} == {"conv1": 8, "conv2": 20, "fc": None}
    assert [row.note for row in report.layers] == ["", "", "no rank asked"]
    exact, report = factorise(model.eval(), Ranks(fc=999, conv=999, larger_too=True))
    assert {row.name: row.rank for row in report.layers} == {"conv1": 49, "conv2": 96, "fc": 12}
    pcm = torch.rand(2, 16_000) - 0.5
    torch.testing.assert_close(exact(pcm), model(pcm), atol=1e-5, rtol=0)


class Settings(BaseModel):
    size: int = 24


class Own(FirmwareModel):
    """Somebody's own architecture, with layers that cannot be split and one that is used twice."""

    name = "own"
    Settings = Settings

    def __init__(self, settings: Settings, *, labels: Sequence[str], window_samples: int, rate_hz: int) -> None:
        super().__init__(settings, labels=labels, window_samples=window_samples, rate_hz=rate_hz)
        size = settings.size
        self.blocks = nn.ModuleList([nn.Linear(window_samples, size), nn.Linear(size, size)])
        self.again = self.blocks[1]
        self.grouped = nn.Conv1d(size, size, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose1d(size, size, 3, padding=1)
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)
        self.out = nn.Linear(size, len(labels))

    def features(self, pcm: Tensor) -> Tensor:
        return pcm

    def classify(self, features: Tensor) -> Tensor:
        x = torch.tanh(self.blocks[0](features))
        x = torch.tanh(self.again(torch.tanh(self.blocks[1](x))))
        x = self.back(self.grouped(x.unsqueeze(2)))
        x, _ = self.attention(x.mT, x.mT, x.mT)
        return self.out(x[:, 0])


class Peeking(Own):
    """An architecture that uses a layer's weights without calling the layer."""

    def classify(self, features: Tensor) -> Tensor:
        return self.out(torch.tanh(features @ self.blocks[0].weight.T))


def own(kind: type[Own] = Own, window: int = 60) -> Own:
    return kind(Settings(), labels=("a", "b", "c"), window_samples=window, rate_hz=16_000).eval()


def test_an_architecture_of_ones_own_is_split_where_it_can_be() -> None:
    model = own()
    low, report = factorise(model, Ranks(fc=3, conv=3))
    notes = {row.name: (row.rank, row.note) for row in report.layers}
    assert notes["blocks.0"] == notes["blocks.1"] == (3, "")
    assert notes["grouped"] == (None, "left whole: a convolution of 2 groups has a matrix per group")
    assert notes["back"] == (None, "left whole: a ConvTranspose1d is not split")
    assert notes["attention.out_proj"] == (None, "left whole: a NonDynamicallyQuantizableLinear is not split")
    assert notes["out"] == (None, "left whole: rank 3 would not make it smaller")
    assert low.again is low.blocks[1]
    assert isinstance(low.again, FactoredLinear)
    assert low(torch.rand(2, 60)).shape == (2, 3)
    assert folded(low).again is not None
    torch.testing.assert_close(folded(low)(torch.ones(1, 60)), low(torch.ones(1, 60)), atol=1e-5, rtol=0)


def test_the_rank_is_capped_at_that_of_the_weights() -> None:
    model = own()
    with torch.no_grad():
        model.blocks[0].weight.copy_(torch.randn(24, 2) @ torch.randn(2, 60))
    low, report = factorise(model, Ranks(fc=5))
    row = report.layers[0]
    assert (row.rank_asked, row.rank, row.note) == (5, 2, "rank 5 capped at 2, the rank of its weights")
    assert row.relative_error < 1e-6
    assert low.blocks[0].rank == 2
    with torch.no_grad():
        model.blocks[0].weight.zero_()
    _, report = factorise(model, Ranks(fc=5))
    assert report.layers[0].note == "left whole: all its weights are 0"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = build("lms", labels=LABELS)
    with torch.no_grad():
        model.get_submodule("conv2").weight[0, 0, 0, 0] = value  # type: ignore[operator, index]
    with pytest.raises(UsageError, match=r"layer 'conv2': its weight holds NaN"):
        factorise(model, Ranks(fc=16, conv=64))


def test_wrong_ranks_are_one_line() -> None:
    model = build("lms", labels=LABELS)
    for make, message in (
        (lambda: Ranks(fc=0), "rank 0 for fully connected"),
        (lambda: Ranks(conv=-3), "rank -3 for convolutions"),
        (lambda: Ranks(layers={"conv2": 0}), "rank 0 for conv2"),
        (lambda: factorise(model, Ranks(layers={"conv9": 3})), "'conv9': no such layer; use one of conv1, conv2, fc"),
        (lambda: factorise(model, Ranks()), "no layer of lms would be split .*no rank asked"),
        (lambda: factorise(model, Ranks(fc=500, conv=500)), "would not make it smaller.*use smaller ranks"),
        (lambda: factorise(own(), Ranks(layers={"grouped": 3})), "'grouped': left whole: a convolution of 2 groups"),
        (lambda: factorise(own(Peeking), Ranks(fc=3)), "does not work with factored layers"),
        (lambda: factorise(factorise(model, Ranks(conv=8))[0], Ranks(conv=4)), "low rank already"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [nn.Linear(100, 40), nn.Conv2d(8, 30, 3), nn.Conv1d(20, 30, 9)])
def test_the_largest_rank_is_the_last_that_saves(layer: Layer) -> None:
    rank = largest_rank(layer, "channels")
    whole, rows = layer.weight.numel(), sum(matrix(layer).shape)
    assert rank * (rows + 1) < whole <= (rank + 1) * (rows + 1)


@pytest.mark.parametrize("reshape", ["channels", "spatial"])
def test_a_checkpoint_keeps_the_factors(tmp_path: Path, reshape: Reshape) -> None:
    ranks = Ranks(fc=8, conv=12, layers={"fc2": None}, reshape=reshape)
    low, _ = factorise(build("ete", labels=LABELS), ranks)
    save_checkpoint(tmp_path / "low.safetensors", low)
    before = torch.random.get_rng_state()
    found, info = load_checkpoint(tmp_path / "low.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert info.low_rank is not None
    assert info.low_rank["conv3"] == {"rank": 12, "reshape": reshape}
    assert info.low_rank["fc1"] == {"rank": 8}
    assert "fc2" not in info.low_rank
    for name, tensor in low.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])
    pcm = torch.rand(2, 16_000) - 0.5
    torch.testing.assert_close(found(pcm), low.eval()(pcm))


@pytest.mark.parametrize(
    ("low_rank", "message"),
    [
        ({"conv9": {"rank": 3}}, "no such layer"),
        ({"bn1": {"rank": 3}}, "no such layer"),
        ({"conv2": {"rank": 0}}, "no rank of 1"),
        ({"conv2": {"rank": "many"}}, "no rank of 1"),
        ({"conv2": 3}, "no rank of 1"),
        ({"conv2": {"rank": 3, "reshape": "round"}}, "use one of channels, spatial"),
        ({"conv2": {"rank": 3}}, "do not fit"),
    ],
)
def test_a_wrong_description_of_factors_is_one_line(tmp_path: Path, low_rank: object, message: str) -> None:
    model = build("lms", labels=LABELS)
    about = {"schema": 1, "architecture": "lms", "labels": LABELS, "window_samples": 16_000, "rate_hz": 16_000}
    save_tensors(tmp_path / "a.safetensors", model.state_dict(), about | {"settings": {}, "low_rank": low_rank})
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


class Planted(Own):
    """Two layers, nothing else between the sound and the answer."""

    def __init__(self, *arguments: BaseModel, **settings: object) -> None:
        super().__init__(*arguments, **settings)  # type: ignore[arg-type]
        del self.grouped, self.back, self.attention, self.again

    def classify(self, features: Tensor) -> Tensor:
        return self.out(torch.tanh(self.blocks[1](torch.tanh(self.blocks[0](features)))))


def planted(ranks: tuple[int, int], falling: float = 1.0) -> tuple[Planted, Clips]:
    """A model whose layers have singular values 1, ``falling``, its square, ... and clips that it answers rightly."""
    model = Planted(Settings(), labels=tuple("abcdefgh"), window_samples=80, rate_hz=16_000).eval()
    with torch.no_grad():
        for layer, rank in zip(model.blocks, ranks, strict=True):
            rows, columns = layer.weight.shape
            u, _ = torch.linalg.qr(torch.randn(rows, rank))
            v, _ = torch.linalg.qr(torch.randn(columns, rank))
            layer.weight.copy_(u @ torch.diag(falling ** torch.arange(rank)) @ v.T)
            layer.bias.zero_()
        model.out.bias.zero_()
    pcm = np.random.default_rng(0).integers(-32768, 32768, (400, 80)).astype(np.int16)
    return model, answered(model, pcm)


def answered(model: FirmwareModel, pcm: np.ndarray) -> Clips:
    with torch.no_grad():
        truth = model(torch.from_numpy(pcm.astype(np.float32) / 32768)).argmax(1).numpy()
    names = tuple(map(str, range(len(pcm))))
    return Clips(Path("memory"), "validation", pcm, truth, model.labels, names, names)


def test_the_search_finds_the_ranks_that_were_planted() -> None:
    model, clips = planted((5, 4))
    found = search(model, clips, max_drop=0.0)
    assert found.ranks.layers == {"blocks.0": 5, "blocks.1": 4}
    assert found.top1 == found.top1_full == 1.0
    assert found.clips == 400
    assert not found.trials[0].ranks
    assert json.loads(json.dumps(found.to_json()))["ranks"]["layers"]["blocks.0"] == 5


def test_the_search_uses_the_loss_it_may_make_and_no_more() -> None:
    model, clips = planted((12, 6), falling=0.7)
    seen: list[tuple[int, int]] = []
    strict = search(model, clips, max_drop=0.0, progress=lambda done, total, note="": seen.append((done, total)))
    loose = search(model, clips, max_drop=0.1)
    assert loose == search(model, clips, max_drop=0.1)
    assert 0.9 <= loose.top1 < strict.top1
    assert loose.ranks.layers["blocks.0"] < strict.ranks.layers["blocks.0"]
    low, report = factorise(model, loose.ranks)
    kept = [trial for trial in loose.trials if trial.kept]
    assert report.parameters_after == min(trial.parameters for trial in kept) == low.parameter_count()
    assert all(trial.top1 >= 0.9 for trial in kept)
    assert all(trial.top1 < 0.9 for trial in loose.trials if not trial.kept)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)


def test_a_search_that_makes_no_sense_is_one_line() -> None:
    # Of 24 equal singular values none can be spared.
    model, clips = planted((24, 24))
    none = Clips(clips.root, "validation", clips.pcm[:0], clips.label_index[:0], clips.labels, (), ())
    others = Clips(
        *(clips.root, "validation", clips.pcm, clips.label_index, tuple("stuvwxyz"), clips.speaker, clips.path)
    )
    for drop, some, message in (
        (1.0, clips, "loss 1: use"),
        (-0.1, clips, "loss -0.1: use"),
        (0.02, none, "no clips to search"),
        (0.02, others, "not those of"),
        (0.0, clips, r"no layer can be split within an accuracy loss of 0\.0%"),
    ):
        with pytest.raises((UsageError, DataError), match=message) as caught:
            search(model, some, max_drop=drop)
        assert "\n" not in str(caught.value)
