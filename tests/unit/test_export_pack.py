"""Packing: complete or not at all, checked as a device would, versions that only grow."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest

from edge.bundle.classifier import Classifier
from edge.bundle.reading import describe_untrusted, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import BundleError, DataError, ThresholdError, UsageError
from export import build, parity, source
from export.card import Facts
from export.fixed_point.number_format import NumberFormat
from export.golden import golden_pcm
from export.pack import next_version, pack
from export.source import Source


@pytest.fixture
def identity(random_lms):
    return Source.of_model(random_lms).identity(name="lms-fp32", version=1)


def test_packed_bundle(fp32_bundle, int8_bundle, keys):
    for path, bits, limit in ((fp32_bundle, 32, 2_000_000), (int8_bundle, 8, 600_000)):
        bundle = read_bundle(path, trusted=[load_public_key(keys.public)])
        assert bundle.manifest.quantisation.bits == bits
        assert path.stat().st_size <= limit
        assert path.stat().st_mode & 0o777 == 0o644
        assert Classifier(bundle).check_golden() < 1e-6
        assert "not stated" in bundle.card
        assert "log floor | 1e-06" in bundle.card
        assert str(bundle.manifest.log_floor) in bundle.card


def test_same_input_same_bytes(tmp_path, lms_graphs, identity, keys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    hashes = {pack(tmp_path / f"{n}.earshot", lms_graphs[32], identity, key=keys.signer).sha256 for n in range(2)}
    assert len(hashes) == 1
    assert describe_untrusted(tmp_path / "0.earshot").manifest.created_utc == "2023-11-14T22:13:20Z"


def test_facts_are_in_manifest_and_card(tmp_path, lms_graphs, identity, keys):
    facts = Facts(
        training={"seed": 3, "minutes": 4.5, "command": "earshot train lms --data D --out R"},
        metrics={"test_top1": 0.9375},
        notes=("Made for a test.",),
    )
    bundle = pack(tmp_path / "a.earshot", lms_graphs[32], identity, key=keys.signer, facts=facts)
    assert bundle.manifest.metrics == {"test_top1": 0.9375}
    for text in (
        "`earshot train lms --data D --out R` (seed 3, minutes 4.5)",
        "test_top1 | 0.9375",
        "Made for a test.",
    ):
        assert text in bundle.card


def test_an_ensemble_gives_probabilities(fp32_bundle):
    from edge.bundle.manifest import Ensemble, Manifest

    told = describe_untrusted(fp32_bundle).manifest.model_dump(by_alias=True, mode="json")
    told["ensemble"] = Ensemble(members=2, noise_values=3).model_dump(mode="json")
    with pytest.raises(ValueError, match="gives probabilities"):
        Manifest.model_validate_json(json.dumps(told))
    told["score_kind"] = "probabilities"
    assert Manifest.model_validate_json(json.dumps(told)).ensemble is not None


def test_golden_sounds_are_loud_faint_and_reproducible():
    pcm = golden_pcm(16_000, 16_000)
    assert pcm.shape == (1, 16_000)
    assert np.array_equal(pcm, golden_pcm(16_000, 16_000))
    peaks = np.abs(pcm.astype(int).reshape(8, 2000)).max(1)
    assert peaks.max() > 30_000
    assert 0 < peaks.min() < 150
    assert golden_pcm(4001, 8000).shape == (1, 4001)


def test_external_data_is_not_packed(tmp_path, lms_graphs, identity, keys):
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    model = onnx.ModelProto()
    model.CopyFrom(lms_graphs[32])
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    for each in model.graph.initializer:
        # What a hand-made file could claim: the data here and elsewhere.
        each.data_location = onnx.TensorProto.DEFAULT
    out = tmp_path / "a.earshot"
    with pytest.raises(BundleError, match="external data"):
        pack(out, model, identity, key=keys.signer)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_bundle(tmp_path, make_bundle, lms_graphs, identity, keys):
    path = make_bundle(tmp_path)
    before = path.read_bytes()
    broken = lms_graphs[32].__class__()
    broken.CopyFrom(lms_graphs[32])
    broken.graph.node[-1].domain = "com.example"
    broken.opset_import.add(domain="com.example", version=1)
    with pytest.raises(BundleError, match="example"):
        pack(path, broken, identity, key=keys.signer)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_folder_that_is_missing(tmp_path, lms_graphs, identity, keys):
    with pytest.raises(UsageError, match="No such file"):
        pack(tmp_path / "nowhere/a.earshot", lms_graphs[32], identity, key=keys.signer)


def test_name_that_cannot_be(tmp_path, lms_graphs, random_lms, keys):
    identity = Source.of_model(random_lms).identity(name="Not A Name", version=1)
    with pytest.raises(UsageError, match=r"bundle: name: .*got 'Not A Name'"):
        pack(tmp_path / "a.earshot", lms_graphs[32], identity, key=keys.signer)


def test_versions_only_grow(tmp_path, make_bundle):
    path = tmp_path / "lms-fp32.earshot"
    assert next_version(path, "lms-fp32", None) == 1
    assert next_version(path, "lms-fp32", 7) == 7
    make_bundle(tmp_path, version=7)
    assert next_version(path, "lms-fp32", None) == 8
    assert next_version(path, "lms-fp32", 9) == 9
    with pytest.raises(UsageError, match="use --version 8"):
        next_version(path, "lms-fp32", 7)
    with pytest.raises(UsageError, match="holds the bundle 'lms-fp32'"):
        next_version(path, "other", None)
    path.write_text("something else")
    with pytest.raises(UsageError, match="no bundle"):
        next_version(path, "lms-fp32", None)


# --- the gates ------------------------------------------------------------------------------------------------------


def test_gates_close():
    scores = np.eye(200, 4, dtype=np.float32)
    off = scores.copy()
    off[0, 0] += 2e-4
    assert parity.check_logits(scores, scores).max_abs == 0
    with pytest.raises(ThresholdError, match=r"differ by 0\.0002 over 200 clips"):
        parity.check_logits(scores, off)
    with pytest.raises(ThresholdError, match="inf"):
        parity.check_logits(scores, np.full_like(scores, np.nan))
    one, two = scores.copy(), scores.copy()
    one[:1] = two[:2] = [0, 0, 0, 9]
    assert parity.check_labels(scores, one, limit=0.995).labels_equal == 0.995
    with pytest.raises(ThresholdError, match=r"99\.00% of 200 clips"):
        parity.check_labels(scores, two, limit=0.995)
    assert parity.check_drop(0.9, 0.895, n=100, limit=0.01) == pytest.approx(0.005)
    with pytest.raises(ThresholdError, match=r"costs 1\.50 points"):
        parity.check_drop(0.9, 0.885, n=100, limit=0.01)


def test_build_packs_nothing_when_torch_disagrees(tmp_path, random_lms, lms_graphs, keys, noise_pcm, monkeypatch):
    # The gate is real: a graph with one weight changed is what an exporter's bug looks like.
    from onnx import numpy_helper

    wrong = lms_graphs[32].__class__()
    wrong.CopyFrom(lms_graphs[32])
    bias = next(each for each in wrong.graph.initializer if each.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.001), "fc.bias"))
    monkeypatch.setattr(source, "to_onnx", lambda model: wrong)
    with pytest.raises(ThresholdError, match="nothing was packed"):
        build.build(
            Source.of_model(random_lms),
            tmp_path / "a.earshot",
            form=NumberFormat(),
            name="a",
            version=1,
            key=keys.signer,
            material=build.Material(noise_pcm(16)),
            facts=Facts(),
        )
    assert list(tmp_path.iterdir()) == []


def test_build_without_labelled_clips(tmp_path, random_lms, keys, noise_pcm):
    built = build.build(
        Source.of_model(random_lms),
        tmp_path / "a.earshot",
        form=NumberFormat(),
        name="a",
        version=1,
        key=keys.signer,
        material=build.Material(noise_pcm(16)),
        facts=Facts(),
    )
    assert built.fp32.max_abs <= 1e-4
    assert built.twin.labels_equal == 1
    assert built.drop is None
    assert built.bundle.manifest.metrics["parity_max_abs"] == pytest.approx(built.fp32.max_abs)
    assert built.bundle.sha256 == hashlib.sha256((tmp_path / "a.earshot").read_bytes()).hexdigest()


def test_data_of_other_labels(tmp_path, random_lms, keys, noise_pcm):
    from firmware_models.data import Clips

    clips = Clips(
        root=tmp_path,
        split="test",
        pcm=np.zeros((1, 16_000), np.int16),
        label_index=np.zeros(1, np.int64),
        labels=("a", "b"),
        speaker=("s",),
        path=("p",),
    )
    with pytest.raises(DataError, match="labels"):
        build.build(
            Source.of_model(random_lms),
            tmp_path / "a.earshot",
            form=NumberFormat(),
            name="a",
            version=1,
            key=keys.signer,
            material=build.Material(noise_pcm(16), {"test": clips}),
            facts=Facts(),
        )


def test_read_only_folder(tmp_path, lms_graphs, identity, keys):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="Permission"):
        pack(folder / "a.earshot", lms_graphs[32], identity, key=keys.signer)
