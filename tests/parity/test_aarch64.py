"""The released bundles compute on (emulated) aarch64 what they compute here, by the device's own code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge.bundle.classifier import Classifier
from edge.bundle.reading import describe_untrusted, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import BundleError
from export.measurement import userland
from export.measurement.emulation import emulated_scores
from export.measurement.parity_report import gate_of
from firmware_models import zoo
from firmware_models.data import load

pytestmark = pytest.mark.aarch64
CLIPS = 40
FEW = 4
# The one that every user runs first.
FIRST = "lms-int8"


def _released() -> list[object]:
    """The bundles that must be bit-identical, with all clips; the others with a few, since emulation takes its time."""
    found: list[object] = [("lms-fp32", FEW)]
    for path in sorted(zoo.FOLDER.glob("*.earshot")):
        gate = gate_of(describe_untrusted(path).manifest, "onnxruntime-aarch64")
        if gate is None or not gate.bit_identical:
            continue
        if path.stem == FIRST:
            found.append((path.stem, CLIPS))
        else:
            found += [(path.stem, FEW), pytest.param(path.stem, CLIPS, marks=pytest.mark.soak)]
    return found


@pytest.fixture(scope="module")
def aarch64() -> userland.Userland:
    plan = userland.outline()
    if plan.missing:
        if os.environ.get("CI") == "true":
            pytest.fail(plan.missing)
        pytest.skip(plan.missing)
    return userland.prepare()


@pytest.fixture(scope="module")
def pcm() -> np.ndarray:
    """Real speech where there is any, else the synthetic words of the demo."""
    recordings = Path(__file__).resolve().parents[3] / "shared/data/speech_commands"
    clips = load(recordings, "test") if recordings.is_dir() else load(zoo.CLIPS, "all")
    return clips.float_pcm(np.linspace(0, len(clips) - 1, CLIPS).astype(np.intp))


@pytest.mark.parametrize(("name", "count"), _released())
def test_scores_are_those_of_this_machine(name: str, count: int, aarch64: userland.Userland, pcm: np.ndarray) -> None:
    bundle = read_bundle(zoo.bundle(name), trusted=[load_public_key(zoo.PUBLIC_KEY)])
    few = pcm[:: len(pcm) // count]
    classifier = Classifier(bundle)
    here = np.concatenate([classifier.scores(clip[np.newaxis]) for clip in few])
    there = emulated_scores(aarch64, bundle.path, [zoo.PUBLIC_KEY], few)
    assert there.shape == (count, len(bundle.manifest.labels))
    # The labels of the clips differ, so this compares something.
    assert len(set(here.argmax(1).tolist())) > 1
    gate = gate_of(bundle.manifest, "onnxruntime-aarch64")
    assert gate is not None
    if gate.bit_identical:
        assert there.tobytes() == here.tobytes()
    else:
        assert np.abs(there - here).max() <= (gate.max_abs or 0)


def test_a_bundle_that_a_device_refuses(aarch64: userland.Userland, tmp_path: Path, pcm: np.ndarray) -> None:
    content = bytearray(zoo.bundle("lms-int8").read_bytes())
    content[len(content) // 2] ^= 1
    altered = tmp_path / "altered.earshot"
    altered.write_bytes(content)
    with pytest.raises(BundleError, match=r"on aarch64: .*altered") as caught:
        emulated_scores(aarch64, altered, [zoo.PUBLIC_KEY], pcm[:1])
    assert "\n" not in str(caught.value)
