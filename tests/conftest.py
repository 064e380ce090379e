"""What several tests share: small real bundles, random models, real recordings where there are any, a real broker."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from nacl.signing import SigningKey

RATE_HZ = 16_000
WINDOW = 16_000
LABELS = ("quiet", "loud")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI=true, a test that misses a program or library fails instead of hiding in the skips."""
    report = yield
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if os.environ.get("CI") == "true" and re.search(r"\b(missing|not installed|needs)\b", reason):
        report.outcome, report.longrepr = "failed", f"{reason} (CI=true: everything must be there)"
    return report


@dataclass(frozen=True)
class TinyBundle:
    """A signed bundle whose model tells loud sound (mean magnitude over 0.05) from quiet sound."""

    path: Path
    key: Path


def _level_model(window: int) -> bytes:
    from onnx import TensorProto, checker, helper

    nodes = [
        helper.make_node("Abs", ["pcm"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["mean", "threshold"], ["over"]),
        helper.make_node("Neg", ["over"], ["under"]),
        helper.make_node("Concat", ["under", "over"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "level",
        [helper.make_tensor_value_info("pcm", TensorProto.FLOAT, ["batch", window])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("threshold", TensorProto.FLOAT, [1], [0.05]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checker.check_model(model)
    return model.SerializeToString()


def _golden(bias: float, window: int) -> bytes:
    pcm = np.random.default_rng(0).uniform(-10_000, 10_000, (2, window)).astype("<i2")
    pcm[1] //= 100
    over = np.abs(pcm.astype(np.float32) / 32768).mean(axis=1, keepdims=True) - np.float32(0.05 - bias)
    file = io.BytesIO()
    np.savez(file, pcm=pcm, scores=np.concatenate((-over, over), axis=1).astype(np.float32))
    return file.getvalue()


def _pack_tiny(
    path: Path, key: SigningKey, *, name: str, version: int, card: bytes, bias: float, window: int = WINDOW
) -> Path:
    from edge.bundle import container, signing
    from edge.bundle.manifest import CARD, GOLDEN, MANIFEST, MODEL, SIGNATURE, Manifest, Member, Quantisation, Tolerance

    members = {MODEL: _level_model(window), GOLDEN: _golden(bias, window), CARD: card}
    manifest = Manifest(
        name=name,
        version=version,
        architecture="level",
        labels=LABELS,
        rate_hz=RATE_HZ,
        window_samples=window,
        quantisation=Quantisation(bits=32),
        golden_tolerance=Tolerance(max_abs=1e-4),
        members={
            name: Member(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            for name, data in members.items()
        },
        training_data="none",
        licence="Apache-2.0",
        created_utc="2025-01-01T00:00:00Z",
        earshot_version="0.1.0",
    )
    members[MANIFEST] = manifest.model_dump_json(by_alias=True).encode()
    members[SIGNATURE] = signing.sign(key, members[MANIFEST])
    with path.open("wb") as file:
        for chunk in container.chunks(members):
            file.write(chunk)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    from edge.bundle import signing

    folder = tmp_path_factory.mktemp("bundle")
    private_path, public_path = signing.write_key_pair(folder / "test")
    key = signing.load_private_key(private_path)
    path = _pack_tiny(folder / "level.earshot", key, name="level", version=1, card=b"# level\n", bias=0.0)
    return TinyBundle(path, public_path)


@pytest.fixture(scope="session")
def make_tiny_bundle(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Packs the model of ``tiny_bundle``, by default signed with ``keys``: ``make_tiny_bundle(version=2)``.

    A ``bias`` makes its golden scores wrong; another ``card`` makes other bytes of the same version.
    """

    def make(
        *,
        name: str = "level",
        version: int = 1,
        key: Keys = keys,
        card: bytes = b"# level\n",
        bias: float = 0.0,
        window: int = WINDOW,
    ) -> Path:
        path = tmp_path_factory.mktemp("bundle") / f"{name}-{version}.earshot"
        return _pack_tiny(path, key.signer, name=name, version=version, card=card, bias=bias, window=window)

    return make


class Mosquitto:
    """A real broker on a loopback port, which can be killed and started again."""

    def __init__(self, program: str, folder: Path, extra: str = "") -> None:
        self.port = free_port()
        self._program = program
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        user = "user root\n" if os.geteuid() == 0 else ""
        access = "" if "allow_anonymous" in extra else "allow_anonymous true\n"
        self._config.write_text(f"{user}{access}listener {self.port} 127.0.0.1\n{extra}")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        wait_until(self._answers, 10, lambda: f"mosquitto does not listen: {self._log.read_text()}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], timeout_s: float, complaint: Callable[[], str] | str = "timed out") -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            pytest.fail(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.02)


@pytest.fixture(name="free_port", scope="session")
def _free_port() -> Callable[[], int]:
    return free_port


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def mosquitto_program() -> str:
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        complaint = "mosquitto is missing: apt-get install mosquitto"
        if os.environ.get("CI") == "true":
            pytest.fail(complaint)
        pytest.skip(complaint)
    return program


@pytest.fixture
def make_mosquitto(mosquitto_program: str, tmp_path: Path) -> Iterator[Callable[[str], Mosquitto]]:
    """Makes running brokers; the argument holds more lines for the configuration file."""
    brokers: list[Mosquitto] = []

    def make(extra: str = "") -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(brokers)}"
        folder.mkdir()
        brokers.append(Mosquitto(mosquitto_program, folder, extra))
        brokers[-1].start()
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.kill()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[[str], Mosquitto]) -> Mosquitto:
    return make_mosquitto("")


@dataclass(frozen=True)
class Keys:
    """A key pair on disk."""

    private: Path
    public: Path

    @property
    def signer(self) -> SigningKey:
        from edge.bundle.signing import load_private_key

        return load_private_key(self.private)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    from edge.bundle.signing import write_key_pair

    return Keys(*write_key_pair(tmp_path_factory.mktemp("keys") / "test"))


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A key pair that signed nothing."""
    from edge.bundle.signing import write_key_pair

    return Keys(*write_key_pair(tmp_path_factory.mktemp("keys") / "other"))


@pytest.fixture(scope="session")
def operator_keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A key pair that signs commands."""
    from edge.bundle.signing import write_key_pair

    return Keys(*write_key_pair(tmp_path_factory.mktemp("keys") / "operator"))


@pytest.fixture(scope="session")
def speech_commands() -> Path:
    """The real recordings; skips where they are absent (mark the test ``shared_data`` too)."""
    folder = Path(__file__).resolve().parents[2] / "shared/data/speech_commands"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def noise_pcm(n: int, samples: int = WINDOW, seed: int = 0) -> np.ndarray:
    """Noise at many levels, float32 (n, samples)."""
    rng = np.random.default_rng(seed)
    levels = 10 ** rng.uniform(-3, -0.7, (n, 1))
    return (rng.normal(size=(n, samples)) * levels).clip(-1, 1).astype(np.float32)


@pytest.fixture(name="noise_pcm", scope="session")
def _noise_pcm() -> Callable[..., np.ndarray]:
    return noise_pcm


@pytest.fixture(scope="session")
def random_lms():
    """An LMS with random weights, and batch norm statistics that differ from their start values."""
    import torch

    from firmware_models.architectures import build
    from firmware_models.data import LABELS as WORDS

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build("lms", labels=WORDS)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def lms_graphs(random_lms) -> dict:
    """The FP32 and the INT8 graph of ``random_lms``, by bits."""
    from export.fixed_point.number_format import number_format
    from export.fixed_point.quantise import quantise
    from export.graphs.from_torch import to_onnx

    fp32 = to_onnx(random_lms)
    return {32: fp32, 8: quantise(fp32, noise_pcm(64), number_format(8))}


@pytest.fixture(scope="session")
def make_bundle(random_lms, lms_graphs, keys: Keys) -> Callable[..., Path]:
    """Packs a bundle of random weights signed with ``keys``: ``make_bundle(folder, bits=8, name=..., version=2)``."""

    def make(folder: Path, *, bits: int = 32, name: str | None = None, version: int = 1) -> Path:
        from export.fixed_point.number_format import number_format
        from export.pack import pack
        from export.source import Source

        name = name or ("lms-fp32" if bits == 32 else "lms-int8")
        identity = Source.of_model(random_lms).identity(name=name, version=version, form=number_format(bits))
        return pack(folder / f"{name}.earshot", lms_graphs[bits], identity, key=keys.signer).path

    return make


@pytest.fixture(scope="session")
def fp32_bundle(make_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP32 bundle of random weights, trusted with ``keys.public``."""
    return make_bundle(tmp_path_factory.mktemp("bundles"), bits=32)


@pytest.fixture(scope="session")
def int8_bundle(make_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of random weights, trusted with ``keys.public``."""
    return make_bundle(tmp_path_factory.mktemp("bundles"), bits=8)


@pytest.fixture(scope="session")
def zoo_bundle() -> Callable[[str], tuple[Path, Path]]:
    """A released bundle and its public key: ``zoo_bundle("lms-int8")``."""

    def find(name: str) -> tuple[Path, Path]:
        from firmware_models import zoo

        return zoo.bundle(name), zoo.PUBLIC_KEY

    return find


@pytest.fixture(scope="session")
def low_rank_lms(random_lms):
    """``random_lms`` with every layer in three factors."""
    from firmware_models.low_rank.factorise import Ranks, factorise

    return factorise(random_lms, Ranks(fc=8, conv=32, larger_too=True))[0].eval()


@pytest.fixture(scope="session")
def ensemble_bundle(low_rank_lms, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stochastic ensemble of four members with random weights, trusted with ``keys.public``."""
    import dataclasses

    from export.graphs.ensemble import ensemble_graph, ensemble_of
    from export.pack import pack
    from export.source import Source

    graph = ensemble_graph(low_rank_lms, sigma=0.5)
    identity = dataclasses.replace(
        Source.of_model(low_rank_lms).identity(name="lms-ensemble", version=1),
        score_kind="probabilities",
        ensemble=ensemble_of(graph, members=4),
    )
    return pack(tmp_path_factory.mktemp("bundles") / "lms-ensemble.earshot", graph, identity, key=keys.signer).path
