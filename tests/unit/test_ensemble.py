"""The ensemble graph: equal to its members one by one, any number of them; the classifier that feeds it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from edge.bundle.classifier import Classifier
from edge.bundle.noise import fresh_seed, standard_normal
from edge.bundle.onnx_wire import check_self_contained
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import BundleError, ThresholdError, UsageError
from export.graphs.ensemble import ensemble_graph, ensemble_of
from firmware_models.architectures import build
from firmware_models.low_rank.ensemble import StochasticEnsemble, relative_sigma
from firmware_models.low_rank.factorise import Ranks, factorise
from firmware_models.low_rank.factors import Factored

SEED = bytes(16)


def run(graph, pcm, noise):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"pcm": pcm, "noise": noise})[0]


def noise_for(graph, rows: int, seed: bytes = SEED) -> np.ndarray:
    return standard_normal(seed, rows, ensemble_of(graph, members=1).noise_values)


def softmax(model, pcm) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pcm)).softmax(-1).numpy()


@pytest.fixture(scope="module")
def graph(low_rank_lms):
    return ensemble_graph(low_rank_lms, sigma=0.5)


@pytest.fixture
def bundle(ensemble_bundle, keys) -> Bundle:
    return read_bundle(ensemble_bundle, trusted=[load_public_key(keys.public)])


@pytest.mark.parametrize("members", [1, 3, 8])
def test_equal_to_its_members_one_by_one(graph, low_rank_lms, noise_pcm, members):
    pcm = noise_pcm(2)
    noise = noise_for(graph, 2 * members)
    scores = run(graph, pcm, noise)
    rows = noise.reshape(2, members, -1)
    for clip in range(2):
        single = [run(graph, pcm[clip : clip + 1], row[None])[0] for row in rows[clip]]
        assert np.abs(scores[clip] - np.mean(single, axis=0)).max() <= 1e-6
    if members > 1:
        assert np.ptp(single, axis=0).max() > 1e-3, "the noise does nothing"
    assert np.allclose(scores.sum(1), 1, atol=1e-6)
    # The torch module that is trained and attacked.
    ensemble = StochasticEnsemble(low_rank_lms, sigma=0.5)
    with torch.inference_mode():
        assert np.abs(ensemble(torch.from_numpy(pcm), torch.from_numpy(noise)).numpy() - scores).max() <= 1e-6
    assert all(layer.noise is None for layer in low_rank_lms.modules() if isinstance(layer, Factored))
    # A member is the network with other singular values, written into it by hand.
    by_hand = copy.deepcopy(low_rank_lms)
    start = 0
    for layer in (each for each in by_hand.modules() if isinstance(each, Factored)):
        layer.s.data += 0.5 * torch.from_numpy(rows[0, 0, start : start + layer.rank])
        start += layer.rank
    assert start == noise.shape[1]
    assert np.abs(softmax(by_hand, pcm[:1]) - run(graph, pcm[:1], rows[0, :1])).max() <= 1e-6


def test_without_sigma_it_is_the_plain_network(low_rank_lms, noise_pcm):
    pcm = noise_pcm(3)
    still = ensemble_graph(low_rank_lms, sigma=0.0)
    scores = [run(still, pcm, noise_for(still, 3 * members, fresh_seed())) for members in (1, 4)]
    assert np.array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - softmax(low_rank_lms, pcm)).max() <= 1e-6


def test_mu_and_sigma_of_each_layer(low_rank_lms, noise_pcm):
    pcm = noise_pcm(2)
    graph = ensemble_graph(low_rank_lms, sigma={"fc": 1.0, "conv2": 0.0}, mu={"conv1": 0.3, "fc": -0.2})
    ensemble = StochasticEnsemble(low_rank_lms, sigma={"fc": 1.0}, mu={"conv1": 0.3, "fc": -0.2})
    noise = noise_for(graph, 6)
    with torch.inference_mode():
        expected = ensemble(torch.from_numpy(pcm), torch.from_numpy(noise)).numpy()
    assert np.abs(run(graph, pcm, noise) - expected).max() <= 1e-6
    assert np.abs(expected - softmax(low_rank_lms, pcm)).max() > 1e-3
    # Only the last layer differs between members: nothing before it is computed twice.
    assert not [node for node in graph.graph.node if "conv" in node.name and node.op_type == "Mul"]


def test_sigma_as_a_share_of_the_singular_values(low_rank_lms):
    sigma = relative_sigma(low_rank_lms, 0.25)
    assert list(sigma) == ["conv1", "conv2", "fc"]
    assert sigma["fc"] == pytest.approx(0.25 * float(low_rank_lms.fc.s.detach().square().mean().sqrt()))
    assert StochasticEnsemble(low_rank_lms, sigma=sigma).deviation[-1] == pytest.approx(sigma["fc"])


def test_what_goes_around_a_noisy_layer(noise_pcm):
    # A short cut carries what no noise has touched past a layer with noise.
    torch.manual_seed(3)
    plain = build("residual", labels=("a", "b", "c"), channels=8).eval()
    layers = {"blocks.0.conv2": 4, "blocks.2.conv1": 3}
    model, _ = factorise(plain, Ranks(layers=layers, larger_too=True))
    graph = ensemble_graph(model.eval(), sigma=2.0)
    pcm, noise = noise_pcm(2), noise_for(graph, 6)
    with torch.inference_mode():
        expected = StochasticEnsemble(model, sigma=2.0)(torch.from_numpy(pcm), torch.from_numpy(noise)).numpy()
    assert np.abs(run(graph, pcm, noise) - expected).max() <= 1e-6
    assert np.abs(expected - softmax(model, pcm)).max() > 1e-4


def test_settings_that_make_no_sense(low_rank_lms, random_lms, graph, lms_graphs):
    for model, sigma, mu, complaint in (
        (random_lms, 0.1, 0.0, "no layer is factored"),
        (low_rank_lms, -0.1, 0.0, "sigma -0.1"),
        (low_rank_lms, float("nan"), 0.0, "sigma nan"),
        (low_rank_lms, 0.1, float("inf"), "mu inf"),
        (low_rank_lms, {"conv9": 0.1}, 0.0, "conv9.*conv1, conv2, fc"),
    ):
        with pytest.raises(UsageError, match=complaint):
            ensemble_graph(model, sigma=sigma, mu=mu)
    for members in (0, 257):
        with pytest.raises(UsageError, match="use 1 to 256"):
            ensemble_of(graph, members=members)
    with pytest.raises(UsageError, match="takes no noise"):
        ensemble_of(lms_graphs[32], members=2)
    with pytest.raises(UsageError, match="noise of shape"):
        StochasticEnsemble(low_rank_lms, sigma=0.1)(torch.zeros(2, 16_000), torch.zeros(3, 52))


def test_a_device_takes_it(graph):
    check_self_contained(graph.SerializeToString())


def test_fresh_noise_for_every_window(bundle):
    classifier = Classifier(bundle)
    assert classifier.members == 4
    assert classifier.check_golden() < 1e-6
    assert classifier.check_golden() == Classifier(bundle, members=9).check_golden()
    pcm = np.repeat(bundle.golden_pcm[:1], 6, axis=0)
    scores = np.concatenate([classifier.scores(pcm), classifier.scores(pcm)])
    assert len(np.unique(scores, axis=0)) == 12
    assert np.allclose(scores.sum(1), 1, atol=1e-6)


def test_more_members_differ_less(bundle):
    pcm = np.repeat(bundle.golden_pcm[:1], 40, axis=0)
    few, many = (Classifier(bundle, members=members).scores(pcm).std(0).max() for members in (1, 16))
    # A mean of 16 has a quarter of the deviation.
    assert 0.1 < many / few < 0.5


def test_a_seed_replays_a_window(bundle, graph):
    classifier = Classifier(bundle, members=3)
    seed, pcm = fresh_seed(), bundle.golden_pcm
    noise = classifier.noise(seed)
    assert noise.shape == (3, bundle.manifest.ensemble.noise_values)
    scores = classifier.scores(pcm, noise=noise)
    assert np.array_equal(scores, Classifier(bundle, members=3).scores(pcm, noise=noise))
    assert np.array_equal(scores, Classifier(bundle).scores(pcm, noise=noise)), "noise brings its own members"
    assert np.abs(scores - run(graph, pcm, np.tile(noise, (2, 1)))).max() < 1e-6
    assert not np.array_equal(scores, classifier.scores(pcm, noise=classifier.noise(fresh_seed())))


def test_noise_and_members_that_do_not_fit(bundle, tiny_bundle):
    classifier = Classifier(bundle)
    values = bundle.manifest.ensemble.noise_values
    for wrong in (
        np.zeros((4, values + 1), np.float32),
        np.zeros((4, values)),
        np.zeros(values, np.float32),
        np.zeros((0, values), np.float32),
    ):
        with pytest.raises(UsageError, match=rf"takes float32 \(members, {values}\)"):
            classifier.scores(bundle.golden_pcm, noise=wrong)
    for members in (0, 257):
        with pytest.raises(UsageError, match="use 1 to 256"):
            Classifier(bundle, members=members)
    other = read_bundle(tiny_bundle.path, trusted=[load_public_key(tiny_bundle.key)])
    with pytest.raises(UsageError, match="no stochastic ensemble"):
        Classifier(other, members=2)
    plain = Classifier(other)
    assert plain.members is None
    with pytest.raises(UsageError, match="no stochastic ensemble"):
        plain.noise(SEED)
    with pytest.raises(UsageError, match="no stochastic ensemble"):
        plain.scores(other.golden_pcm, noise=np.zeros((1, 1), np.float32))


def test_a_manifest_that_does_not_fit_the_graph(bundle):
    import onnx

    ensemble = bundle.manifest.ensemble
    for change, complaint in (
        ({"ensemble": None}, "the manifest says otherwise"),
        ({"ensemble": ensemble.model_copy(update={"noise_name": "hiss"})}, "the manifest says otherwise"),
        ({"ensemble": ensemble.model_copy(update={"noise_values": 7})}, "instead of float"),
    ):
        with pytest.raises(BundleError, match=complaint):
            Classifier(dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update=change)))
    model = onnx.load_from_string(bundle.model)
    noise = next(each for each in model.graph.input if each.name == "noise")
    noise.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(BundleError, match="fixed number of rows"):
        Classifier(dataclasses.replace(bundle, model=model.SerializeToString()))


def test_golden_scores_of_other_noise_are_noticed(bundle):
    # The golden scores are those of the documented noise, so another draw must not pass for them.
    classifier = Classifier(bundle)
    scores = classifier.scores(bundle.golden_pcm, noise=classifier.noise(SEED))
    with pytest.raises(ThresholdError, match="golden vectors differ"):
        Classifier(dataclasses.replace(bundle, golden_scores=scores)).check_golden()
