import numpy as np
import pytest
import torch
from torch import nn

from rig.attacks import fgsm, pgd, random_sign

SAMPLES, CLASSES, EPS = 400, 5, 0.01


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(SAMPLES, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    return network.eval()


@pytest.fixture
def clips(model):
    pcm = torch.rand(12, SAMPLES, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    pcm[0, :10] = 1.0
    return pcm, model(pcm).argmax(dim=1)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_budget_is_kept_on_what_is_delivered(model, clips, attack):
    pcm, label = clips
    result = attack(model, pcm, label, eps=EPS)
    assert result.linf.max() <= EPS + 1e-7
    assert result.adversarial.abs().max() <= 1
    assert torch.equal(result.perturbation, result.adversarial - pcm)
    assert not result.adversarial.requires_grad
    expected = 10 * torch.log10((pcm**2).mean(1) / (result.perturbation**2).mean(1))
    torch.testing.assert_close(result.snr_db, expected)


def test_fgsm_is_the_sign_of_the_gradient(model, clips):
    pcm, label = clips
    pcm = pcm.clamp(-0.9, 0.9).requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(pcm), label), pcm)
    result = fgsm(model, pcm.detach(), label, eps=EPS)
    torch.testing.assert_close(result.perturbation, EPS * gradient.sign())


def test_more_steps_are_never_weaker(model, clips):
    pcm, label = clips

    def loss(result):
        return nn.functional.cross_entropy(model(result.adversarial), label).item()

    one, twenty = (loss(pgd(model, pcm, label, eps=EPS, steps=steps)) for steps in (1, 20))
    assert twenty >= one


def test_an_unbounded_attack_always_wins(model, clips):
    pcm, label = clips
    assert pgd(model, pcm, label, eps=1.0, steps=50).success.all()


def test_a_target_is_reached_and_counted(model, clips):
    pcm, label = clips
    target = (label + 1) % CLASSES
    result = pgd(model, pcm, label, eps=0.3, steps=40, target=target)
    assert torch.equal(result.success, model(result.adversarial).argmax(1) == target)
    assert result.success.float().mean() > 0.8


def test_a_clip_does_not_depend_on_its_neighbours(model, clips):
    pcm, label = clips
    together = pgd(model, pcm, label, eps=EPS).adversarial[3]
    alone = pgd(model, pcm[3:4], label[3:4], eps=EPS).adversarial[0]
    torch.testing.assert_close(together, alone)


def test_the_control_has_the_budget_and_knows_nothing(model, clips):
    pcm, label = clips

    def generators():
        return [np.random.default_rng(i) for i in range(len(pcm))]

    result = random_sign(model, pcm, label, eps=EPS, generators=generators())
    inside = pcm.abs() < 1 - EPS
    torch.testing.assert_close(result.perturbation[inside].abs(), torch.full_like(pcm, EPS)[inside])
    assert abs(result.perturbation.sign().mean()) < 0.05
    again = random_sign(model, pcm, label, eps=EPS, generators=generators())
    assert torch.equal(result.adversarial, again.adversarial)


@pytest.mark.parametrize("fault", ["loud", "nan", "shape", "eps", "steps"])
def test_what_cannot_be_attacked_is_refused(model, clips, fault):
    pcm, label = clips
    settings = {"eps": EPS}
    if fault == "loud":
        pcm = pcm * 2
    if fault == "nan":
        pcm = pcm * torch.nan
    if fault == "shape":
        label = label[:3]
    if fault == "eps":
        settings = {"eps": -1}
    if fault == "steps":
        settings["steps"] = 0
    with pytest.raises(ValueError, match=r"must|need"):
        pgd(model, pcm, label, **settings)
