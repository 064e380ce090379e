"""The released bundles keep what their cards promise, where real recordings are at hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from export import parity
from export.twin import Twin
from firmware_models import zoo

NAMES = ("lms-fp32", "lms-int8")


@pytest.fixture(scope="module")
def released(zoo_bundle) -> dict:
    key = load_public_key(zoo.PUBLIC_KEY)
    return {name: read_bundle(zoo_bundle(name)[0], trusted=[key]) for name in NAMES}


@pytest.fixture(scope="module")
def test_list(speech_commands):
    from firmware_models.data import load

    return load(speech_commands, "test")


@pytest.fixture(scope="module")
def scores(released, test_list) -> dict:
    pcm = test_list.float_pcm(slice(None))
    return {name: Classifier(bundle).scores(pcm) for name, bundle in released.items()}


def test_golden_vectors_and_sizes(released):
    for bundle in released.values():
        assert Classifier(bundle).check_golden() <= bundle.manifest.golden_tolerance.max_abs
        assert "CC BY 4.0" in bundle.card
        assert bundle.manifest.log_floor is not None
    # The paper's LMS has 1.8 MB.
    assert len(released["lms-fp32"].model) == pytest.approx(1.8e6, rel=0.05)
    assert released["lms-int8"].path.stat().st_size <= 600_000


def test_golden_vectors_hold_no_recording(released):
    from export.golden import golden_pcm

    expected = golden_pcm(16_000, 16_000).astype(np.float32) / 32768
    for bundle in released.values():
        assert np.array_equal(bundle.golden_pcm, expected)


@pytest.mark.shared_data
def test_accuracy(released, scores, test_list):
    truth = test_list.label_index
    top1 = {name: float((found.argmax(1) == truth).mean()) for name, found in scores.items()}
    recalls = [(scores["lms-fp32"].argmax(1) == truth)[truth == label].mean() for label in np.unique(truth)]
    assert top1["lms-fp32"] >= 0.94
    assert np.mean(recalls) >= 0.95
    assert abs(top1["lms-fp32"] - top1["lms-int8"]) <= 0.01
    for name, bundle in released.items():
        assert bundle.manifest.metrics["test_top1"] == pytest.approx(top1[name], abs=1e-3)


@pytest.mark.shared_data
def test_twins(released, scores, test_list):
    pcm = test_list.float_pcm(slice(None))
    by_twin = {name: parity.torch_scores(Twin.from_bundle(bundle), pcm) for name, bundle in released.items()}
    assert parity.agreement(scores["lms-fp32"], by_twin["lms-fp32"]).max_abs <= 1e-4
    assert parity.agreement(scores["lms-int8"], by_twin["lms-int8"]).labels_equal >= 0.995
