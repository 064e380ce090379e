"""The recipe of a training run: a YAML file, checked before anything is read or computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import UsageError

# The architecture of a recipe that goes on with a trained model, and the teacher that this model may have.
ANY, START = "any", "start"
SHIPPED = Path(__file__).resolve().parents[1] / "recipes"

Probability = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(_Frozen):
    """What happens to a training clip before the front end, and to the features after it.

    Ranges are drawn from evenly. ``speed`` is a factor on tempo and pitch; ``noise_snr_db`` is the level of the clip
    over that of the noise added; ``room_*`` make a decaying noise tail as a simple room (``room_rt60_s`` its decay
    time, ``room_drr_db`` the direct sound over the tail). Masks are stripes of features set to their floor.
    """

    speed: Range = (0.88, 1.12)
    speed_probability: Probability = 0.7
    shift_ms: Annotated[float, Field(ge=0, le=500)] = 100.0
    gain_db: Range = (-12.0, 6.0)
    noise_probability: Probability = 0.7
    noise_snr_db: Range = (0.0, 35.0)
    room_probability: Probability = 0.0
    room_rt60_s: Range = (0.1, 0.5)
    room_drr_db: Range = (0.0, 15.0)
    time_masks: Annotated[int, Field(ge=0, le=8)] = 2
    time_mask_frames: Annotated[int, Field(ge=0, le=64)] = 12
    band_masks: Annotated[int, Field(ge=0, le=8)] = 2
    band_mask_bands: Annotated[int, Field(ge=0, le=64)] = 5

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("speed", "gain_db", "noise_snr_db", "room_rt60_s", "room_drr_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: [{low}, {high}] must be [low, high]")
        if not 0.5 <= self.speed[0] <= self.speed[1] <= 2.0:
            raise ValueError(f"speed: {list(self.speed)} must lie within [0.5, 2.0]")
        if self.room_rt60_s[0] <= 0:
            raise ValueError("room_rt60_s: must be above 0")
        return self


class Sampling(_Frozen):
    """How often a label is drawn, relative to the other labels' 1, and how much of it is synthetic speech.

    ``synthetic_share`` is the part of a label's draws that come from the folder given with ``--synthetic``.
    """

    unknown_weight: Annotated[float, Field(gt=0, le=100)] = 2.0
    silence_weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    synthetic_share: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Distillation(_Frozen):
    """Learn from a teacher, too: its soft answers on the very clips of a step tell how sure one may be.

    ``recipe`` trains the teacher, or is ``start``: the whole network that a low-rank one was split from. ``weight`` is
    the part of the loss that is the distance (Kullback-Leibler at ``temperature``, times its square) to the teacher's
    answers; the rest is the usual loss on the labels.
    """

    recipe: str
    weight: Annotated[float, Field(gt=0, le=1)] = 0.7
    temperature: Annotated[float, Field(ge=1, le=20)] = 2.0


class Recipe(_Frozen):
    """Everything that decides what a training run does, apart from the data and the seed of a repetition.

    ``settings`` go to the architecture, which hears ``window_s`` seconds at a time. The learning rate rises for
    ``warmup_steps``, then follows a cosine to 0. ``ema_decay`` smooths the weights that are validated and kept.
    ``mixup`` is the alpha of its Beta distribution, 0 is off. ``keep`` is which weights become the result: the best
    on the validation split or the last.

    ``architecture`` is ``any`` in a recipe that goes on with a trained model; the model brings its settings and window.
    """

    architecture: str = ANY
    settings: dict[str, Any] = {}
    window_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 1
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    batch: Annotated[int, Field(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.02
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    gradient_clip: Annotated[float, Field(gt=0)] = 5.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    bf16: bool = True
    validate_every: Annotated[int, Field(ge=1)] = 500
    keep: Literal["best", "last"] = "best"
    distillation: Distillation | None = None
    sampling: Sampling = Sampling()
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _any_has_no_settings(self) -> Self:
        if self.architecture == ANY and self.settings:
            raise ValueError("settings: only with an architecture; a recipe for any goes on with the model's own")
        return self


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe file, or one of the shipped recipes by its name, e.g. ``lms``.

    Raises:
        UsageError: no such recipe, not YAML, an unknown key or a value that is not allowed; one line.
    """
    path = Path(name_or_path)
    # A run's folder may well be called like the recipe.
    if isinstance(name_or_path, str) and (SHIPPED / f"{name_or_path}.yaml").is_file():
        path = SHIPPED / f"{name_or_path}.yaml"
    if path.suffix not in {".yaml", ".yml"} and not path.exists():
        path = SHIPPED / f"{name_or_path}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
            raise UsageError(f"recipe {str(name_or_path)!r}: give a .yaml file or one of {names}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys and values such as 'architecture: lms'")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        got = f" (got {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        hint = f"; allowed: {', '.join(_keys(first['loc']))}" if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"{path}: {where}: {first['msg']}{got}{hint}") from None


def _keys(location: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[_Frozen]] = {"sampling": Sampling, "distillation": Distillation, "augmentation": Augmentation}
    model: type[_Frozen] = Recipe
    for part in location[:-1]:
        model = parts.get(str(part), Recipe)
    return sorted(model.model_fields)
