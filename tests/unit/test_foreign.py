"""Models of other people: what is made of them, and what is said of those that cannot be used."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge.errors import UsageError
from export.graphs.foreign import (
    ForeignSettings,
    FrontEndSettings,
    front_end,
    front_end_from_ms,
    import_foreign,
    load_front_end,
    read_labels,
)

torch.set_num_threads(1)

LABELS = tuple(f"word{index}" for index in range(5))
SHARED = Path(__file__).resolve().parents[2].parent / "shared/data/models"


def session(model: ModelProto | bytes):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = model.SerializeToString() if isinstance(model, ModelProto) else model
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def steps(samples: int = 16_000) -> np.ndarray:
    """Two clips of 16-bit numbers: loud noise that fades out, and a tone in faint noise."""
    noise = np.random.default_rng(0).normal(0, 1, (2, samples))
    fading = 9000 * noise[0] * np.linspace(1, 0, samples) ** 2
    tone = 300 * np.sin(np.arange(samples) * 0.3) + 30 * noise[1]
    return np.stack((fading, tone)).clip(-32768, 32767).astype(np.int16)


def clips(samples: int = 16_000) -> np.ndarray:
    return steps(samples).astype(np.float32) / np.float32(32768)


def scores(model: ModelProto, pcm: np.ndarray) -> np.ndarray:
    return session(model).run(["scores"], {"pcm": pcm})[0]


class Net(torch.nn.Module):
    """What people export: convolution, batch norm, pooling, a linear layer; (N, 1, frames, bands)."""

    def __init__(self, *, softmax: bool = False, view: bool = False) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.bn = torch.nn.BatchNorm2d(6)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.drop = torch.nn.Dropout(0.3)
        self.fc = torch.nn.Linear(6, len(LABELS))
        self.softmax, self.view = softmax, view
        self.bn.running_mean.normal_(0, 0.3)
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn(self.conv(x))))
        x = x.view(x.size(0), -1) if self.view else torch.flatten(x, 1)
        x = self.fc(self.drop(x))
        return torch.softmax(x, 1) if self.softmax else x


def net(**options: bool) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Net(**options).eval()


def exported(model: torch.nn.Module, path: Path, *, opset: int, dynamic: bool, example: torch.Tensor) -> Path:
    """As torch's old exporter writes it."""
    buffer = io.BytesIO()
    axes = {"x": {0: "n"}, "y": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    path.write_bytes(buffer.getvalue())
    return path


def made(
    nodes: list,
    constants: dict[str, np.ndarray],
    path: Path,
    *,
    shape: list | None,
    element: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    domains: tuple[str, ...] = (),
    **fields: object,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=8, **fields).SerializeToString())
    return path


def mlp(path: Path, *, nodes: tuple = (), shape: tuple = ("n", 1600), rng: int = 0, **options: object) -> Path:
    """A perceptron over raw sound, as converters of scikit-learn write it."""
    random = np.random.default_rng(rng)
    constants = {
        "w1": random.normal(0, 0.05, (1600, 8)).astype(np.float32),
        "b1": random.normal(0, 0.1, 8).astype(np.float32),
        "w2": random.normal(0, 0.5, (8, len(LABELS))).astype(np.float32),
    }
    hidden = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["y"], name="last"),
    ]
    return made([*(nodes or hidden)], constants, path, shape=list(shape), **options)


# --- the front end --------------------------------------------------------------------------------------------------


def expected_features(pcm: np.ndarray, s: FrontEndSettings, rate_hz: int = 16_000) -> np.ndarray:
    """The same in float64 with numpy's FFT, one frame and one band at a time."""
    dft = s.dft_samples or s.frame_samples
    period = s.frame_samples - (1 if s.window.endswith("symmetric") else 0)
    turn = 2 * np.pi * np.arange(s.frame_samples) / period
    window = {"hann": 0.5 - 0.5 * np.cos(turn), "hamm": 0.54 - 0.46 * np.cos(turn), "rect": np.ones(len(turn))}[
        s.window[:4]
    ]
    energy = np.sum(window**2)
    scale = {"none": 1.0, "dft": 1 / dft, "window": 1 / energy, "mean_square": 2 / dft / energy}[s.scaling]
    missing = dft - s.frame_samples
    left = missing // 2 if s.window_at == "centre" else 0
    window = np.pad(window, (left, missing - left))
    sound = pcm.astype(np.float64) * s.full_scale
    if s.padding != "none":
        sound = np.pad(sound, dft // 2, mode={"zero": "constant", "reflect": "reflect"}[s.padding])
    needed = dft if s.window_at == "centre" else s.frame_samples
    sound = np.pad(sound, (0, dft - needed))
    starts = range(0, len(sound) - dft + 1, s.hop_samples)
    power = np.array([np.abs(np.fft.rfft(sound[at : at + dft] * window)) ** 2 for at in starts]) * scale
    power = power if s.spectrum == "power" else np.sqrt(power)

    def mel(f):
        if s.mel_scale == "htk":
            return 1127.010480 * np.log1p(f / 700)
        return 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    grid_hz = np.linspace(0, rate_hz / 2, 200_001)
    grid_mel = np.array([mel(f) for f in grid_hz])
    high_hz = s.high_hz or min(7600, rate_hz / 2)
    edges_mel = np.linspace(mel(s.low_hz), mel(high_hz), s.bands + 2)
    edges = edges_mel if s.triangles_over == "mel" else np.interp(edges_mel, grid_mel, grid_hz)
    edges_hz = np.interp(edges_mel, grid_mel, grid_hz)
    bins = np.arange(dft // 2 + 1) * rate_hz / dft
    bins = np.array([mel(f) for f in bins]) if s.triangles_over == "mel" else bins
    bands = []
    for low, mid, high, low_hz, top_hz in zip(edges, edges[1:], edges[2:], edges_hz, edges_hz[2:], strict=False):
        weight = np.interp(bins, [low, mid, high], [0, 1, 0], left=0, right=0)
        bands.append(power @ (weight * (2 / (top_hz - low_hz) if s.filter_norm == "area" else 1)))
    x = np.array(bands).T
    if s.log == "ln1p":
        x = np.log1p(x / s.log_floor)
    elif s.log != "none":
        x = np.maximum(x, s.log_floor) if s.floor == "clip" else x + s.log_floor
        unit = 10 if s.spectrum == "power" else 20
        x = {"ln": np.log(x), "log10": np.log10(x), "db": unit * np.log10(x)}[s.log]
    if s.relative_to_peak:
        x = x - x.max()
    if s.range_db is not None:
        x = np.maximum(x, x.max() - s.range_db)
    if s.cepstra:
        import scipy.fft

        x = scipy.fft.dct(x, type=2, norm="ortho", axis=1)[:, : s.cepstra]
    return (x - np.asarray(s.mean)) / np.asarray(s.deviation)


LIBROSA = {
    "frame_samples": 512,
    "hop_samples": 256,
    "padding": "zero",
    "scaling": "none",
    "mel_scale": "slaney",
    "filter_norm": "area",
    "log": "db",
    "floor": "clip",
    "log_floor": 1e-10,
    "range_db": 80,
    "low_hz": 0,
    "high_hz": 8000,
}
FRONT_ENDS = {
    "earshot": {},
    "librosa": LIBROSA,
    "librosa, peak": {**LIBROSA, "relative_to_peak": True},
    "torchaudio": {
        "padding": "reflect",
        "scaling": "none",
        "log": "db",
        "floor": "clip",
        "log_floor": 1e-10,
        "low_hz": 0,
        "high_hz": 8000,
        "bands": 32,
        "hop_samples": 200,
    },
    "tensorflow": {
        "frame_samples": 640,
        "hop_samples": 320,
        "dft_samples": 1024,
        "window_at": "start",
        "spectrum": "magnitude",
        "scaling": "none",
        "triangles_over": "mel",
        "log": "ln",
        "low_hz": 125,
        "high_hz": 7500,
    },
    "odd centre": {
        "frame_samples": 399,
        "dft_samples": 512,
        "window": "hamming_symmetric",
        "log": "ln",
        "scaling": "dft",
    },
    "16 bit": {"full_scale": 32768, "log": "log10", "log_floor": 1.0, "window": "rectangular", "scaling": "window"},
    "mfcc": {"log": "ln", "cepstra": 13, "mean": [1.0] * 13, "deviation": 2.5},
    "normalised": {"mean": 3.5, "deviation": [2.0 + band / 40 for band in range(40)]},
    "magnitude in dB": {"spectrum": "magnitude", "log": "db", "log_floor": 1e-3, "window": "hann_symmetric"},
    "plain": {"log": "none", "spectrum": "magnitude"},
}


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_end_is_the_one_that_was_described(name):
    from export.graphs.foreign.joining import front_only
    from export.graphs.foreign.wiring import Wiring

    settings = front_end(FRONT_ENDS[name])
    frames = settings.frames(16_000)
    wiring = Wiring(
        input_kind="logmel",
        rate_hz=16_000,
        window_samples=16_000,
        layout="batch,frames,bands",
        sizes={"frames": frames, "bands": settings.width},
        element=TensorProto.FLOAT,
        full_scale=1.0,
        front_end=settings,
    )
    like = helper.make_model(
        helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    model = front_only(wiring, like)
    found = session(model).run(None, {"pcm": clips()})[0]
    expected = np.stack([expected_features(clip, settings) for clip in clips()])
    assert found.shape == expected.shape == (2, frames, settings.width)
    # float32 against float64; a decibel or e is about the unit of all of them.
    unit = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 2e-5 * unit
    assert settings.frames(settings.samples(frames)) == frames
    assert settings.frames(settings.samples(frames) - 1) == frames - 1


@pytest.mark.filterwarnings("ignore")  # torch's old exporter warns that it is old
def test_default_front_end_is_our_own(tmp_path):
    from firmware_models.frontend import LogMel, LogMelSettings

    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(1)[:, :5]

    buffer = io.BytesIO()
    torch.onnx.export(Mean(), (torch.zeros(1, 98, 40),), buffer, dynamo=False, input_names=["x"], output_names=["y"])
    path = tmp_path / "mean.onnx"
    path.write_bytes(buffer.getvalue())
    found = import_foreign(path, LABELS, "logmel")
    with torch.no_grad():
        expected = LogMel(LogMelSettings(), rate_hz=16_000)(torch.from_numpy(clips())).mean(1)[:, :5].numpy()
    assert np.abs(scores(found.graph, clips()) - expected).max() < 5e-5
    assert found.log_floor == pytest.approx(1e-6)


def test_slaney_scale_has_librosas_values():
    from export.graphs.foreign.front_end import _hz, _mel

    settings = front_end({"mel_scale": "slaney"})
    # From librosa's documentation of hz_to_mel and mel_to_hz.
    hz = np.array([60.0, 110.0, 220.0, 440.0, 11025.0])
    assert _mel(settings, hz) == pytest.approx([0.9, 1.65, 3.3, 6.6, 49.91059448015905])
    assert _hz(settings, np.array([1.0, 2.0, 3.0, 5.0])) == pytest.approx([66.667, 133.333, 200.0, 333.333], rel=1e-5)
    assert _hz(settings, _mel(settings, hz)) == pytest.approx(hz)


def test_floor_in_our_units():
    from export.graphs.foreign.front_end import visible_floor

    assert visible_floor(front_end({"log": "ln", "log_floor": 1e-7})) == pytest.approx(1e-7)
    # A Hann window of 400: energy 150, so |X|^2 is 400 * 150 / 2 = 30,000 mean squares.
    assert visible_floor(front_end({"log": "ln", "log_floor": 3e-3, "scaling": "none"})) == pytest.approx(1e-7)
    assert visible_floor(front_end({"log": "ln", "log_floor": 2.0**30, "full_scale": 2.0**15})) == pytest.approx(1.0)
    assert visible_floor(front_end({"spectrum": "magnitude"})) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"band": 40}, "band: Extra inputs are not permitted.*allowed: bands, frame_samples"),
        ({"bands": 0}, "bands: Input should be greater than or equal to 1 .got 0."),
        ({"dft_samples": 256}, "dft_samples 256 is less than frame_samples 400"),
        ({"range_db": 80}, "range_db and relative_to_peak go with log db"),
        ({"mean": [1.0, 2.0]}, "mean has 2 numbers: give one, or one for each of 40"),
        ({"deviation": 0}, "deviation must be larger than 0"),
        ({"cepstra": 41}, "cepstra 41 exceed bands 40"),
        ({"window_at": "start", "padding": "zero"}, "window_at start goes with padding none"),
    ],
)
def test_wrong_front_ends(content, said):
    with pytest.raises(UsageError, match=f"^front end: {said}") as told:
        front_end(content)
    assert "\n" not in str(told.value)


def test_front_end_files(tmp_path):
    path = tmp_path / "front.yaml"
    path.write_text("bands: 64\nlog: db\nfloor: clip\nlog_floor: 1.0e-10\n")
    assert load_front_end(path) == front_end({"bands": 64, "log": "db", "floor": "clip", "log_floor": 1e-10})
    path.write_text("- a\n")
    with pytest.raises(UsageError, match="expected keys and values"):
        load_front_end(path)
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        load_front_end(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_front_end(tmp_path / "absent.yaml")
    assert front_end_from_ms(8000, bands=20, frame_ms=32, hop_ms=16).frame_samples == 256
    with pytest.raises(UsageError, match=r"--frame-ms 0.03 is 0.48 samples at 16000 Hz"):
        front_end_from_ms(16_000, frame_ms=0.03)


# --- models that become bundles -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch's old exporter warns that it is old
@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("dynamic", [True, False])
def test_torch_cnn_over_logmel(tmp_path, opset, dynamic):
    model = net()
    path = exported(model, tmp_path / "cnn.onnx", opset=opset, dynamic=dynamic, example=torch.zeros(1, 1, 98, 40))
    found = import_foreign(path, LABELS, "logmel")
    features = torch.from_numpy(np.stack([expected_features(clip, FrontEndSettings()) for clip in clips()])).float()
    with torch.no_grad():
        expected = model(features.unsqueeze(1)).numpy()
    assert np.abs(scores(found.graph, clips()) - expected).max() < 1e-4
    assert (found.window_samples, found.rate_hz, found.score_kind, found.batch) == (16_000, 16_000, "logits", None)
    assert found.log_floor == pytest.approx(1e-6)
    assert {each.version for each in found.graph.opset_import} == {21}
    assert found.twin_lacks is None
    batch = () if dynamic else ("The file insists on a batch of 1; the bundle takes any.",)
    assert found.notes == ("Its 98 frames are taken from windows of 16000 samples.", *batch)
    # Without batch norm, which is in the convolution, and without dropout.
    kinds = {node.op_type for node in found.graph.graph.node}
    assert not kinds & {"BatchNormalization", "Dropout"}
    assert any(node.name.startswith("frontend/") for node in found.graph.graph.node)


def test_torch_dynamo_export_with_bands_first(tmp_path):
    class Sideways(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(softmax=True)

        def forward(self, x):
            return self.net(x.transpose(1, 2).unsqueeze(1))

    path = tmp_path / "d.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Sideways().eval(),
            (torch.zeros(2, 40, 98),),
            path,
            dynamo=True,
            opset_version=18,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},),
            verbose=False,
        )
    found = import_foreign(path, LABELS, "logmel", ForeignSettings(window_samples=16_000))
    features = torch.from_numpy(np.stack([expected_features(clip, FrontEndSettings()) for clip in clips()])).float()
    with torch.no_grad():
        expected = net(softmax=True)(features.unsqueeze(1)).numpy()
    assert np.abs(scores(found.graph, clips()) - expected).max() < 1e-4
    assert found.score_kind == "probabilities"
    assert any("Softmax" in note for note in found.notes)


def test_perceptron_over_sound(tmp_path):
    path = mlp(tmp_path / "mlp.onnx")
    found = import_foreign(path, LABELS, "pcm")
    pcm = clips(1600)
    expected = session(path.read_bytes()).run(None, {"x": pcm})[0]
    assert np.abs(scores(found.graph, pcm) - expected).max() < 1e-5
    assert found.window_samples == 1600
    assert found.parameters == 1600 * 8 + 8 + 8 * len(LABELS)
    assert found.twin_lacks is None
    assert found.log_floor is None
    assert [each.name for each in found.graph.graph.input] == ["pcm"]


def test_a_bundle_of_it_runs_on_a_device(tmp_path, keys):
    from edge.bundle.classifier import Classifier
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from export.pack import pack
    from export.source import Source

    path = exported(net(view=True), tmp_path / "c.onnx", opset=13, dynamic=True, example=torch.zeros(1, 1, 98, 40))
    found = import_foreign(path, LABELS, "logmel")
    identity = Source.of_foreign(found).identity(name="f", version=1)
    pack(tmp_path / "f.earshot", found.graph, identity, key=keys.signer)
    bundle = read_bundle(tmp_path / "f.earshot", trusted=[load_public_key(keys.public)])
    classifier = Classifier(bundle)
    assert classifier.check_golden() < 1e-4
    assert classifier.scores(clips()).shape == (2, len(LABELS))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        (("n", 1, 1600), "batch,1,samples"),
        (("n", 1600, 1), "batch,samples,1"),
        ((1600,), "samples"),
        ((4, 1600), "batch,samples"),
    ],
)
def test_layouts_of_sound(tmp_path, shape, layout):
    rest = [helper.make_node("MatMul", ["flat", "w1"], ["c"]), helper.make_node("MatMul", ["c", "w2"], ["y"])]
    sizes = [1600] if layout == "samples" else [0, 1600]
    constants = {
        "shape": np.array(sizes, np.int64),
        "w1": np.random.default_rng(0).normal(0, 0.1, (1600, 8)).astype(np.float32),
        "w2": np.random.default_rng(1).normal(0, 1, (8, 5)).astype(np.float32),
    }
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["flat"]), *rest]
    found = import_foreign(made(nodes, constants, tmp_path / "m.onnx", shape=list(shape)), LABELS, "pcm")
    pcm = clips(1600)
    # Those that insist on a batch are fed so.
    step = found.batch or 2
    fed = np.repeat(pcm[:1], step, axis=0) if found.batch else pcm
    expected = fed @ constants["w1"] @ constants["w2"]
    assert np.abs(scores(found.graph, fed) - expected).max() < 1e-4
    assert found.batch == {"samples": 1, "batch,samples": 4}.get(layout)


def test_sound_in_16_bit_numbers(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["float", "w"], ["y"]),
    ]
    weight = np.random.default_rng(0).normal(0, 1e-4, (1600, 5)).astype(np.float32)
    path = made(nodes, {"w": weight}, tmp_path / "i.onnx", shape=["n", 1600], element=TensorProto.INT16)
    found = import_foreign(path, LABELS, "pcm")
    exact = steps(1600)
    expected = session(path.read_bytes()).run(None, {"x": exact})[0]
    assert np.abs(scores(found.graph, clips(1600)) - expected).max() < 1e-4
    # The loudest sound does not wrap around.
    assert np.abs(scores(found.graph, np.ones((1, 1600), np.float32)) - 32767 * weight.sum(0)).max() < 0.01
    # The same model in floating point, trained on 16-bit numbers.
    scaled = made(nodes[1:], {"w": weight}, tmp_path / "f.onnx", shape=["n", 1600])
    scaled_nodes = onnx.load(scaled)
    scaled_nodes.graph.node[0].input[0] = "x"
    scaled.write_bytes(scaled_nodes.SerializeToString())
    also = import_foreign(scaled, LABELS, "pcm", ForeignSettings(full_scale=32768))
    assert np.abs(scores(also.graph, clips(1600)) - expected).max() < 1e-4


def test_half_precision(tmp_path):
    weight = np.random.default_rng(0).normal(0, 0.1, (1600, 5)).astype(np.float16)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    path = made(nodes, {"w": weight}, tmp_path / "h.onnx", shape=["n", 1600], element=TensorProto.FLOAT16)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    path.write_bytes(model.SerializeToString())
    found = import_foreign(path, LABELS, "pcm")
    expected = session(path.read_bytes()).run(None, {"x": clips(1600).astype(np.float16)})[0]
    result = scores(found.graph, clips(1600))
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-3
    assert found.score_kind == "probabilities"


def test_quantised_models_stay_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.01),
        "zero": np.int8(0),
        "w": rng.integers(-127, 127, (1600, 5)).astype(np.int8),
        "w_scale": np.float32(0.003),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["weight"]),
        helper.make_node("MatMul", ["rounded", "weight"], ["y"]),
    ]
    path = made(nodes, constants, tmp_path / "q.onnx", shape=["n", 1600])
    found = import_foreign(path, LABELS, "pcm")
    expected = session(path.read_bytes()).run(None, {"x": clips(1600)})[0]
    assert np.array_equal(scores(found.graph, clips(1600)), expected)
    assert [node.op_type for node in found.graph.graph.node] == [node.op_type for node in nodes]
    assert found.parameters == 8000


def test_old_files_list_weights_as_inputs(tmp_path):
    path = mlp(tmp_path / "old.onnx")
    model = onnx.load(path)
    for each in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(each.name, each.data_type, list(each.dims)))
    path.write_bytes(model.SerializeToString())
    assert import_foreign(path, LABELS, "pcm").parameters == 1600 * 8 + 8 + 8 * len(LABELS)


def test_local_functions_are_written_out(tmp_path):
    layer = helper.make_function(
        "their.own",
        "Layer",
        ["X", "W"],
        ["Y"],
        [helper.make_node("MatMul", ["X", "W"], ["T"]), helper.make_node("Relu", ["T"], ["Y"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = (
        helper.make_node("Layer", ["x", "w1"], ["h"], domain="their.own"),
        helper.make_node("MatMul", ["h", "w2"], ["y"]),
    )
    path = mlp(tmp_path / "f.onnx", nodes=nodes, domains=("their.own",), functions=[layer])
    found = import_foreign(path, LABELS, "pcm")
    assert (
        np.abs(scores(found.graph, clips(1600)) - session(path.read_bytes()).run(None, {"x": clips(1600)})[0]).max()
        < 1e-5
    )


def test_branches_keep_their_names(tmp_path):
    def branch(weight: str):
        return helper.make_graph(
            [helper.make_node("MatMul", ["h", weight], ["out"])],
            "branch",
            [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        )

    nodes = (
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "b0"], ["loud"]),
        helper.make_node("If", ["loud"], ["y"], then_branch=branch("w2"), else_branch=branch("w3")),
    )
    random = np.random.default_rng(5)
    constants = {
        "w1": random.normal(0, 0.05, (1600, 8)).astype(np.float32),
        "w2": random.normal(0, 1, (8, 5)).astype(np.float32),
        "w3": random.normal(0, 1, (8, 5)).astype(np.float32),
        "b0": np.float32(0.9),
    }
    # Its answer depends on the whole batch, so it is only right one clip at a time.
    found = import_foreign(made(list(nodes), constants, tmp_path / "if.onnx", shape=["n", 1600]), LABELS, "pcm")
    assert found.batch == 1
    for clip in (clips(1600), 0.5 * clips(1600)):
        weight = constants["w2"] if clip[:1].max() > 0.9 else constants["w3"]
        assert np.abs(scores(found.graph, clip[:1]) - clip[:1] @ constants["w1"] @ weight).max() < 1e-4
    assert found.twin_lacks == "the twin does not know the operator If"


# --- models that do not ---------------------------------------------------------------------------------------------


def refused(path: Path, kind: str = "pcm", labels: tuple[str, ...] = LABELS, **settings: object) -> str:
    with pytest.raises(UsageError) as told:
        import_foreign(path, labels, kind, ForeignSettings.model_validate(settings))
    message = str(told.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_no_models(tmp_path):
    path = tmp_path / "m.onnx"
    assert "No such file" in refused(path)
    path.write_text("import torch\nprint('not a model')\n")
    assert "no ONNX model" in refused(path)
    path.write_bytes(b"")
    assert "no ONNX model" in refused(path)
    good = mlp(tmp_path / "good.onnx").read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert "no ONNX model (truncated" in refused(path)
    path.write_bytes(good.replace(b"MatMul", b"\xff\xfetMul"))
    assert "no ONNX model (damaged" in refused(path)
    assert "Is a directory" in refused(tmp_path)


def test_operators_that_are_not_standard(tmp_path):
    own = (helper.make_node("Fancy", ["x"], ["y"], name="their/fancy", domain="com.example"),)
    told = refused(mlp(tmp_path / "o.onnx", nodes=own, domains=("com.example",)))
    assert "node 'their/fancy' (Fancy)" in told
    assert "'com.example'" in told
    gelu = (helper.make_node("Gelu", ["x"], ["y"], name="act", domain="com.microsoft"),)
    assert "onnxruntime's own" in refused(mlp(tmp_path / "g.onnx", nodes=gelu, domains=("com.microsoft",)))
    unknown = (helper.make_node("Teleport", ["x"], ["y"], name="t"),)
    assert "node 't' (Teleport) is not in standard ONNX" in refused(mlp(tmp_path / "u.onnx", nodes=unknown))
    new = (helper.make_node("Gelu", ["x"], ["y"]),)
    assert "a node without name (Gelu) does not exist in opset 17" in refused(mlp(tmp_path / "n.onnx", nodes=new))
    noise = (helper.make_node("RandomNormalLike", ["x"], ["y"], name="r"),)
    assert "node 'r' (RandomNormalLike) draws random numbers" in refused(mlp(tmp_path / "r.onnx", nodes=noise))


def test_operator_that_onnxruntime_lacks(tmp_path):
    # Standard, but onnxruntime's CPU provider has it for other types only.
    nodes = (
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Selu", ["h"], ["s"], name="their_selu"),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    )
    told = refused(mlp(tmp_path / "s.onnx", nodes=nodes, opset=22))
    assert "onnxruntime cannot load it" in told
    assert "their_selu" in told
    assert "Selu" in told


def test_weights_in_another_file(tmp_path):
    model = onnx.load(mlp(tmp_path / "m.onnx"))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    told = refused(path)
    assert "weight 'w1' lies in another file" in told
    assert "save_as_external_data=False" in told


def test_weights_that_are_no_numbers(tmp_path):
    model = onnx.load(mlp(tmp_path / "m.onnx"))
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[0, 0], weight[1, 1] = np.nan, np.inf
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w2"))
    path = tmp_path / "nan.onnx"
    path.write_bytes(model.SerializeToString())
    assert "weight 'w2' holds 2 of 40 numbers that are NaN or infinite" in refused(path)


def test_labels_that_do_not_match(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    assert "output 'y' has 5 scores per clip, --labels names 3 (a, b, c)" in refused(path, labels=("a", "b", "c"))


def test_outputs(tmp_path):
    nodes = (
        helper.make_node("MatMul", ["x", "w1"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["y"]),
        # As converters of scikit-learn write it; nothing of it is needed for the scores.
        helper.make_node("ZipMap", ["y"], ["named"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3, 4]),
    )
    path = mlp(tmp_path / "two.onnx", nodes=nodes, outputs=("y", "named", "hidden"), domains=("ai.onnx.ml",))
    told = refused(path)
    assert "it has 3 outputs, y (float), named (float), hidden (float): choose" in told
    assert "--output 'z': its outputs are y, named, hidden" in refused(path, output="z")
    assert "ZipMap" in refused(path, output="named")
    assert import_foreign(path, LABELS, "pcm", ForeignSettings(output="y")).window_samples == 1600


def test_inputs(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[1].input[1] = "state"
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [8]))
    two = tmp_path / "two.onnx"
    two.write_bytes(model.SerializeToString())
    assert "it takes 2 inputs, x (float ?x1600), state (float 8)" in refused(two)
    ints = mlp(tmp_path / "i.onnx", element=TensorProto.INT8)
    assert "input 'x' is int8 ?x1600: --input pcm takes float, float16, double, int16" in refused(ints)


def test_shapes_that_need_an_option(tmp_path):
    path = exported(net(), tmp_path / "c.onnx", opset=13, dynamic=True, example=torch.zeros(1, 1, 101, 40))
    # Given a window, the frames are counted and do not fit.
    told = refused(path, "logmel", window_samples=16_000)
    assert "is (?, 1, 101, 40)" in told
    assert "98 frames" in told.replace("40 bands and ", "")
    assert "101 frames are 16400 samples" in told
    found = import_foreign(path, LABELS, "logmel")
    assert found.window_samples == 16_400
    assert "Its 101 frames are taken from windows of 16400 samples." in found.notes
    padded = import_foreign(path, LABELS, "logmel", ForeignSettings(front_end=front_end({"padding": "zero"})))
    assert padded.window_samples == 16_000
    wide = {"front_end": {"bands": 64}}
    assert "--mel-bands 64 as in the model?" in refused(path, "logmel", **wide)
    assert "which does not fit any of batch,samples" in refused(path, "pcm")


def test_ambiguous_layouts(tmp_path):
    weight = np.random.default_rng(0).normal(0, 0.01, (40 * 98, 5)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = made(nodes, {"w": weight}, tmp_path / "flat.onnx", shape=["n", 40 * 98])
    assert "may mean batch,frames*bands or batch,bands*frames: say which with --layout" in refused(path, "logmel")
    assert "--layout 'x': use one of" in refused(path, "logmel", layout="x")
    features = np.stack([expected_features(clip, FrontEndSettings()) for clip in clips()])
    for layout, values in (("batch,frames*bands", features), ("batch,bands*frames", features.transpose(0, 2, 1))):
        found = import_foreign(path, LABELS, "logmel", ForeignSettings(layout=layout))
        assert np.abs(scores(found.graph, clips()) - values.reshape(2, -1) @ weight).max() < 1e-3
    free = exported(net(), tmp_path / "c.onnx", opset=13, dynamic=True, example=torch.zeros(1, 1, 98, 40))
    model = onnx.load(free)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "t"
    free.write_bytes(model.SerializeToString())
    assert "is (?, 1, ?, 40) and leaves the frames free: give --window-samples" in refused(free, "logmel")
    found = import_foreign(free, LABELS, "logmel", ForeignSettings(window_samples=8000))
    assert scores(found.graph, clips(8000)).shape == (2, 5)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    free.write_bytes(model.SerializeToString())
    assert "states no shape: say its axes with --layout" in refused(free, "logmel")
    named = ForeignSettings(window_samples=8000, layout="batch,1,frames,bands")
    assert scores(import_foreign(free, LABELS, "logmel", named).graph, clips(8000)).shape == (2, 5)


def test_scores_that_are_not_finite(tmp_path):
    nodes = (
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Log", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    )
    assert "NaN or infinite for noise" in refused(mlp(tmp_path / "m.onnx", nodes=nodes))


def test_labels(tmp_path):
    assert read_labels("yes, no,up") == ("yes", "no", "up")
    path = tmp_path / "labels.txt"
    path.write_text("yes\nno\n\n")
    assert read_labels(str(path)) == ("yes", "no")
    for given, said in (
        ("yes,yes", "'yes' is there twice"),
        ("yes,,no", "label 2 is ''"),
        ("absent.txt", "No such file or directory; give a file or a list"),
    ):
        with pytest.raises(UsageError, match=said):
            read_labels(given)
    path.write_text("yes\n")
    with pytest.raises(UsageError, match="1 labels; a classifier has 2"):
        read_labels(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_labels(str(path))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("breizhn__DTLN/model_1.onnx", "2 inputs, input_2 (float 1x1x257), input_3 (float 1x2x128x2)"),
        ("breizhn__DTLN/model_2.onnx", "2 inputs, input_4"),
        ("Xiaobin-Rong__gtcrn/gtcrn.onnx", "4 inputs, mix (float 1x257x1x2)"),
        ("Xiaobin-Rong__gtcrn/gtcrn_simple.onnx", "4 inputs, mix"),
    ],
)
def test_real_denoisers_are_refused_for_what_they_are(name, inputs):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    told = refused(path)
    assert "outputs" in told
    outputs = onnx.load(path).graph.output
    assert f"it takes {inputs}" in refused(path, output=outputs[0].name)
