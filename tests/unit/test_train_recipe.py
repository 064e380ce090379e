from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import UsageError
from firmware_models.architectures import build
from firmware_models.data import LABELS
from firmware_models.training.recipe import ANY, SHIPPED, Recipe, load_recipe
from firmware_models.training.run import learning_rate


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_build(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe == load_recipe(path)
    build("lm" if recipe.architecture == ANY else recipe.architecture, labels=LABELS, **recipe.settings)


def test_the_floor_of_the_shipped_lms_is_stated() -> None:
    assert load_recipe("lms").settings["log_floor"] == 1e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("architecture: lms\nsteps: 10\nlerning_rate: 1", "lerning_rate.*allowed: architecture"),
        ("architecture: lms\nsteps: 10\nsampling: {weight: 2}", "sampling.weight.*unknown_weight"),
        ("architecture: lms\nsteps: 10\naugmentation: {speed: [1.2, 0.9]}", r"speed: \[1.2, 0.9\]"),
        ("architecture: lms\nsteps: 10\naugmentation: {speed: [0.1, 0.9]}", "within"),
        ("architecture: lms\nsteps: many", "steps"),
        ("architecture: lms\nsteps: 0", "steps"),
        ("architecture: lms", "steps"),
        ("steps: 10\nsettings: {log_floor: 1.0e-6}", "only with an architecture"),
        ("- architecture", "expected keys"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "absent.yaml"])
def test_a_missing_recipe_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="absent"):
        load_recipe(name)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    recipe = Recipe(architecture="lms", steps=100, warmup_steps=10, learning_rate=0.01)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[9] == max(rates) == pytest.approx(0.01)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-5
