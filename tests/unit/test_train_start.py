from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edge.errors import UsageError
from firmware_models.architectures import build
from firmware_models.data import Clips, load
from firmware_models.data.silence import Noise
from firmware_models.low_rank.factorise import Ranks, factorise
from firmware_models.training.checkpoint import load_checkpoint
from firmware_models.training.loop import train
from firmware_models.training.recipe import ANY, Augmentation, Distillation, Recipe, load_recipe
from firmware_models.training.run import Material
from firmware_models.training.start import Start
from firmware_models.zoo import CLIPS, FOLDER

CALM = Augmentation(speed_probability=0, noise_probability=0, shift_ms=20, time_masks=0, band_masks=0)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EARSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        clips = load(CLIPS, "all")
    return Material(train=clips, validation=clips, noises=())


@pytest.fixture(scope="module")
def start() -> Start:
    torch.set_num_threads(1)
    whole, info = load_checkpoint(FOLDER / "lms.safetensors")
    low, _ = factorise(whole, Ranks(fc=3, conv=5))
    return Start(low, whole, info.training)


def again(**changes: object) -> Recipe:
    settings = {"batch": 16, "warmup_steps": 2, "validate_every": 4, "ema_decay": 0.9, "learning_rate": 1e-3}
    taught = {"distillation": {"recipe": "start"}, "augmentation": CALM}
    return Recipe.model_validate({"steps": 12, **settings, **taught, **changes})


def test_training_wins_back_what_the_split_lost(material: Material, start: Start, tmp_path: Path) -> None:
    untouched = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    metrics = train(again(steps=30, validate_every=30), material, tmp_path / "run", start=start)
    before = metrics["before"]
    assert before["whole"]["top1"] >= 0.9
    assert before["start"]["top1"] < before["whole"]["top1"] - 0.1
    assert metrics["validation"]["top1"] > before["start"]["top1"] + 0.1
    assert [row["step"] for row in metrics["history"]] == [30.0]
    model, info = load_checkpoint(tmp_path / "run")
    conv = {"rank": 5, "reshape": "channels"}
    assert info.low_rank == {"conv1": conv, "conv2": conv, "fc": {"rank": 3}}
    assert model.parameter_count() == start.model.parameter_count()
    assert info.settings["log_floor"] == 1e-6
    assert info.metrics["whole_validation_top1"] == before["whole"]["top1"]
    assert info.metrics["start_validation_top1"] == before["start"]["top1"]
    assert info.training["start"]["seed"] == start.training["seed"]
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in start.model.state_dict().items())


def test_the_result_is_never_worse_than_the_start(material: Material, start: Start, tmp_path: Path) -> None:
    assert start.whole is not None
    good = replace(start, model=factorise(start.whole, Ranks(conv=40))[0])
    metrics = train(again(learning_rate=1.0, steps=4, ema_decay=0.0), material, tmp_path / "run", start=good)
    assert metrics["history"][-1]["top1"] < metrics["before"]["start"]["top1"]
    assert metrics["validation"]["top1"] == metrics["before"]["start"]["top1"]
    model, _ = load_checkpoint(tmp_path / "run")
    assert all(torch.equal(tensor, good.model.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("killed_at", [2, 10], ids=["before the first validation", "after it"])
def test_an_interrupted_run_ends_with_the_same_weights(
    material: Material, start: Start, tmp_path: Path, killed_at: int
) -> None:
    train(again(), material, tmp_path / "whole", start=start)

    def kill(done: int, total: int, note: str = "") -> None:
        if done == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        train(again(), material, tmp_path / "cut", start=start, progress=kill)
    train(again(), material, tmp_path / "cut", start=start, resume=True)
    whole, cut = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut")]
    assert found[0]["before"] == found[1]["before"]
    assert found[0]["history"] == found[1]["history"]


def test_a_teacher_that_is_there_teaches(material: Material, start: Start, tmp_path: Path) -> None:
    shipped = again(steps=4, distillation={"recipe": "residual"}, learning_rate=0.01)
    with torch.random.fork_rng(devices=[]):
        one, other = (build("residual", labels=material.train.labels).eval() for _ in range(2))
    info = replace(load_checkpoint(FOLDER / "lms.safetensors")[1], training={"minutes": 4.5})
    weights = {}
    for name, teacher in (("one", one), ("other", other)):
        taught = replace(start, teacher=(teacher, info))
        metrics = train(shipped, material, tmp_path / name, start=taught)
        assert not (tmp_path / name / "teacher").exists()
        assert metrics["teacher_minutes"] == 4.5
        weights[name] = load_file(tmp_path / name / "state.safetensors")["model.fc.u.weight"]
    assert not torch.equal(weights["one"], weights["other"])
    with pytest.raises(UsageError, match="begun with another"):
        train(shipped, material, tmp_path / "one", start=replace(start, teacher=(other, info)), resume=True)
    for recipe, teacher, message in (
        (again(), one, "taught by the whole network itself"),
        (again(distillation=None), one, "taught by nobody"),
        (shipped, start.model, "is a 'lms', the recipe asks for a 'residual'"),
        (shipped, build("residual", labels=("a", "b")), "tells 2 labels in 16000 samples at 16000 Hz, the model 12"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            train(recipe, material, tmp_path / "none", start=replace(start, teacher=(teacher, info)))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_a_run_goes_on_only_with_what_it_started_from(material: Material, start: Start, tmp_path: Path) -> None:
    train(again(steps=4), material, tmp_path / "run", start=start)
    assert start.whole is not None
    other = factorise(start.whole, Ranks(fc=3, conv=6))[0]
    with pytest.raises(UsageError, match="begun with another"):
        train(again(steps=4), material, tmp_path / "run", start=replace(start, model=other), resume=True)
    assert train(again(steps=4), material, tmp_path / "run", start=start, resume=True)["finished"]


def test_a_recipe_that_does_not_fit_is_one_line(material: Material, start: Start, tmp_path: Path) -> None:
    long = np.concatenate([material.train.pcm, material.train.pcm], 1)
    labels = ("x", *material.train.labels[1:])
    for recipe, begin, clips, message in (
        (again(), None, None, "names no architecture"),
        (again(architecture="lms"), None, None, "'start' is only for"),
        (again(architecture="ete"), start, None, "is for 'ete', the model is 'lms'"),
        (again(architecture="lms", settings={"log_floor": 1e-8}), start, None, "sets log_floor to 1e-08"),
        (again(), replace(start, whole=None), None, "the whole network .* is not given"),
        (again(), start, replace(material.train, labels=labels), "not those of"),
        (again(), start, replace(material.train, pcm=long), "hears 16000 samples at 16000 Hz, the clips .* have 32000"),
    ):
        some = material if clips is None else Material(train=clips, validation=clips, noises=())
        with pytest.raises(UsageError, match=message) as caught:
            train(recipe, some, tmp_path / "run", start=begin)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["low-rank", "low-rank-ete", "low-rank-lms"])
def test_the_shipped_recipes_take_every_model(material: Material, start: Start, tmp_path: Path, name: str) -> None:
    shipped = load_recipe(name)
    assert shipped.architecture == ANY
    # Another teacher would be trained for minutes first.
    taught = Distillation(recipe="start")
    recipe = shipped.model_copy(update={"steps": 2, "batch": 4, "distillation": taught})
    train(recipe, material, tmp_path / "lms", start=start)
    whole = build("ete", labels=material.train.labels)
    low, _ = factorise(whole, Ranks(fc=16, conv=64))
    assert train(recipe, material, tmp_path / "ete", start=Start(low, whole))["finished"]


def test_the_model_hears_as_long_as_the_clips_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pcm = rng.integers(-9000, 9000, (12, 48_000)).astype(np.int16)
    names = tuple(map(str, range(12)))
    clips = Clips(tmp_path, "train", pcm, np.arange(12) % 3, ("drill", "dog", "_silence_"), names, names)
    # Noise shorter than the window is repeated.
    material = Material(clips, clips, noises=(Noise("tap", 0, pcm[0, :20_000]),))
    recipe = Recipe(
        architecture="lms", steps=2, batch=4, warmup_steps=1, augmentation=Augmentation(noise_probability=1)
    )
    train(recipe, material, tmp_path / "run")
    model, info = load_checkpoint(tmp_path / "run")
    assert info.window_samples == 48_000
    assert model(torch.zeros(1, 48_000)).shape == (1, 3)
