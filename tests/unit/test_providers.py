from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from edge.bundle.classifier import Classifier
from edge.bundle.manifest import Quantisation
from edge.bundle.opening import open_classifier
from edge.bundle.providers import (
    CPU,
    CUDA,
    SHORT_NAMES,
    TENSORRT,
    XNNPACK,
    Provider,
    engine_cache,
    named,
    providers_for,
)
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.session import open_session
from edge.bundle.signing import load_public_key
from edge.errors import BundleError, ThresholdError, UnavailableError, UsageError

ALL = (TENSORRT, CUDA, XNNPACK, "AzureExecutionProvider", CPU)
# A provider that comes with every onnxruntime beside the CPU, and takes no operator of ours.
OTHER = "AzureExecutionProvider"


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return read_bundle(tiny_bundle.path, trusted=[load_public_key(tiny_bundle.key)])


def _with_profile(bundle: Bundle, profile: str) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"quantisation": Quantisation(bits=32, profile=profile)})
    return dataclasses.replace(bundle, manifest=manifest)


@pytest.mark.parametrize(
    ("profile", "bits", "available", "expected"),
    [
        ("cpu", 8, ALL, (CPU,)),
        ("cpu", 32, ALL, (XNNPACK, CPU)),
        ("cpu", 32, (CPU,), (CPU,)),
        ("portable", 8, ALL, (TENSORRT, CUDA, CPU)),
        ("portable", 32, (CPU, CUDA), (CUDA, CPU)),
        ("portable", 8, (CPU,), (CPU,)),
        ("storage", 4, ALL, (CPU,)),
        ("storage", 16, ALL, (CPU,)),
    ],
)
def test_the_profile_chooses_and_the_cpu_is_last(
    profile: str, bits: int, available: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert tuple(each.name for each in providers_for(profile, available, bits=bits)) == expected


def test_tensorrt_keeps_its_engines_and_computes_in_the_width_of_the_bundle(tmp_path: Path) -> None:
    narrow = providers_for("portable", ALL, bits=8, cache=tmp_path)[0].options
    assert narrow["trt_engine_cache_enable"] == narrow["trt_timing_cache_enable"] == "True"
    assert narrow["trt_engine_cache_path"] == narrow["trt_timing_cache_path"] == str(tmp_path)
    assert (narrow["trt_int8_enable"], narrow["trt_fp16_enable"]) == ("True", "False")
    wide = providers_for("portable", ALL, bits=32)[0].options
    assert (wide["trt_int8_enable"], wide["trt_fp16_enable"]) == ("False", "False")
    assert "trt_engine_cache_enable" not in wide


def test_xnnpack_has_the_threads() -> None:
    assert providers_for("cpu", ALL, bits=32, threads=3)[0] == Provider(XNNPACK, {"intra_op_num_threads": "3"})


def test_a_provider_is_named_short_or_in_full() -> None:
    assert named("cpu", ALL) == named(CPU, ALL) == (CPU,)
    assert named("CUDA", ALL) == named(CUDA, ALL) == (CUDA, CPU)
    assert named(OTHER, ALL) == (OTHER, CPU)
    for name in SHORT_NAMES:
        assert named(name, ALL)[0] == SHORT_NAMES[name]
    with pytest.raises(UnavailableError, match="provider 'tensorrt': onnxruntime has CPUExecutionProvider here"):
        named("tensorrt", (CPU,))
    with pytest.raises(UsageError, match="provider 'warp': use cpu, xnnpack, cuda, tensorrt, or one of CPU"):
        named("warp", (CPU,))


def test_engines_of_old_bundles_are_removed(tmp_path: Path) -> None:
    names = [format(number, "x") * 64 for number in range(4)]
    for number, name in enumerate(names):
        folder = engine_cache(tmp_path, name)
        (folder / "model.engine").write_bytes(b"engine")
        os.utime(folder, (1000 + number, 1000 + number))
    assert sorted(each.name for each in (tmp_path / "engines").iterdir()) == [names[2][:16], names[3][:16]]
    assert engine_cache(tmp_path, names[2]).joinpath("model.engine").is_file()
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700


def test_a_bundle_opens_on_the_cpu_and_holds_its_golden_vectors(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    for profile in ("cpu", "portable", "storage"):
        classifier, difference = open_classifier(_with_profile(bundle, profile))
        assert classifier.providers == (CPU,)
        assert difference <= 1e-4
    assert caplog.records == []


def test_a_provider_that_computes_something_else_is_left_aside(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two real sessions; the first one's scores are compared with vectors it does not meet."""
    tried = []
    check = Classifier.check_golden

    def check_strictly(classifier: Classifier) -> float:
        tried.append(classifier.providers)
        if classifier.providers[0] == OTHER:
            wrong = classifier._bundle.golden_scores + np.float32(1)
            classifier._bundle = dataclasses.replace(classifier._bundle, golden_scores=wrong)
        return check(classifier)

    monkeypatch.setattr(Classifier, "check_golden", check_strictly)
    monkeypatch.setattr("edge.bundle.opening.providers_for", lambda *_, **__: (Provider(OTHER, {}), Provider(CPU, {})))
    with caplog.at_level(logging.WARNING):
        classifier, difference = open_classifier(bundle)
    assert tried == [(OTHER, CPU), (CPU,)]
    assert (classifier.providers, difference <= 1e-4) == ((CPU,), True)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [f"{OTHER} is left aside for {CPU}"]
    with pytest.raises(ThresholdError, match="golden vectors differ"):
        open_classifier(bundle, provider=OTHER)


def test_a_provider_that_was_asked_for_is_used_or_refused(bundle: Bundle) -> None:
    assert open_classifier(bundle, provider="cpu")[0].providers == (CPU,)
    assert open_classifier(bundle, provider=OTHER)[0].providers == (OTHER, CPU)
    with pytest.raises(UnavailableError, match="onnxruntime has"):
        open_classifier(bundle, provider="cuda")


def test_onnxruntime_does_not_change_providers_by_itself(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    session = open_session(bundle.model)
    assert not session._enable_fallback
    assert session._model_bytes is None
    with pytest.raises(BundleError):
        Classifier(dataclasses.replace(bundle, model=b"no graph"))
    assert "Falling back" not in capfd.readouterr().out
