"""How a foreign model is fed: from the shape of its input and what its owner says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, TensorProto, ValueInfoProto
from pydantic import BaseModel, ConfigDict, Field

from edge.errors import UsageError
from export.graphs.foreign import reading
from export.graphs.foreign.layouts import (
    LOGMEL_LAYOUTS,
    PCM_LAYOUTS,
    Dimension,
    choose_layout,
    fixed_batch,
    length_of,
    shown,
)
from export.graphs.foreign.settings import FrontEndSettings

InputKind = Literal["pcm", "logmel"]

MAX_WINDOW_S = 60
_ELEMENTS = {
    "pcm": (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT16),
    "logmel": (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE),
}


class ForeignSettings(BaseModel):
    """What a file does not say of itself.

    ``layout`` names the axes of the input where its shape leaves them open, ``output`` the scores where there are
    several outputs. ``full_scale`` is what a PCM model calls the loudest sound (32768 where it was trained on 16-bit
    numbers; inputs of type int16 have it anyway). ``front_end`` goes with log-mel inputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_hz: int = Field(default=16_000, ge=1000, le=192_000)
    window_samples: int | None = Field(default=None, ge=16)
    layout: str | None = None
    output: str | None = None
    full_scale: float = Field(default=1.0, gt=0, le=1e6)
    front_end: FrontEndSettings = FrontEndSettings()


@dataclass(frozen=True)
class Wiring:
    """What lies between ``pcm`` (batch, window_samples) and the input of a foreign model.

    ``element`` is the input's ONNX element type, ``sizes`` the lengths of the axes that ``layout`` names.
    """

    input_kind: InputKind
    rate_hz: int
    window_samples: int
    layout: str
    sizes: dict[str, int]
    element: int
    full_scale: float
    front_end: FrontEndSettings


def only_input(model: ModelProto, input_kind: InputKind) -> ValueInfoProto:
    """The one input of a selected model.

    Raises:
        UsageError: there are none or several, or it is of a type that cannot be fed.
    """
    inputs = reading.real_inputs(model)
    if len(inputs) != 1:
        listed = ", ".join(f"{each.name} ({reading.describe(each)})" for each in inputs) or "none"
        raise UsageError(
            f"it takes {len(inputs)} inputs, {listed}: a bundle's model takes one window of sound and keeps no state"
        )
    given = inputs[0]
    element = given.type.tensor_type.elem_type
    if not given.type.HasField("tensor_type") or element not in _ELEMENTS[input_kind]:
        allowed = ", ".join(TensorProto.DataType.Name(each).lower() for each in _ELEMENTS[input_kind])
        raise UsageError(f"its input {given.name!r} is {reading.describe(given)}: --input {input_kind} takes {allowed}")
    return given


def wire(
    given: ValueInfoProto, input_kind: InputKind, settings: ForeignSettings
) -> tuple[Wiring, Dimension, list[str]]:
    """How the input is to be fed, the batch size it insists on, and notes of what was decided on the way.

    Raises:
        UsageError: its shape fits no layout, or several, or leaves the length of the window open.
    """
    features, window, notes = settings.front_end, settings.window_samples, []
    sizes: dict[str, int] = {"bands": features.width} if input_kind == "logmel" else {}
    if window is not None:
        sizes |= {"frames": features.frames(window)} if input_kind == "logmel" else {"samples": window}
    known = LOGMEL_LAYOUTS if input_kind == "logmel" else PCM_LAYOUTS
    what, name = f"its input {given.name!r}", "frames" if input_kind == "logmel" else "samples"
    shape = reading.shape_of(given)
    if shape is None:
        if settings.layout is None or settings.layout not in known:
            raise UsageError(f"{what} states no shape: say its axes with --layout, one of {' '.join(known)}")
        shape = [None] * len(settings.layout.split(","))
    hint = _hint(shape, settings, known) if input_kind == "logmel" else ""
    layout = choose_layout(shape, sizes, known=known, wanted=settings.layout, what=what, hint=hint)
    if window is None:
        length = length_of(name, layout, shape, sizes)
        if length is None:
            raise UsageError(f"{what} is {shown(shape)} and leaves the {name} free: give --window-samples")
        sizes[name], window = length, length
        if input_kind == "logmel":
            one_second = features.frames(settings.rate_hz) == length
            window = settings.rate_hz if one_second else features.samples(length)
            notes.append(f"Its {length} frames are taken from windows of {window} samples.")
    if not 16 <= window <= MAX_WINDOW_S * settings.rate_hz:
        raise UsageError(f"{window} samples at {settings.rate_hz} Hz: a window has 16 samples to {MAX_WINDOW_S} s")
    wiring = Wiring(
        input_kind=input_kind,
        rate_hz=settings.rate_hz,
        window_samples=window,
        layout=layout,
        sizes=sizes,
        element=given.type.tensor_type.elem_type,
        full_scale=settings.full_scale,
        front_end=features,
    )
    return wiring, fixed_batch(layout, shape), notes


def _hint(shape: Sequence[Dimension], settings: ForeignSettings, known: Sequence[str]) -> str:
    """Which window would give the number of frames that the model wants."""
    features = settings.front_end
    try:
        layout = choose_layout(shape, {"bands": features.width}, known=known, wanted=settings.layout, what="")
        frames = length_of("frames", layout, shape, {"bands": features.width})
    except UsageError:
        return f" (--mel-bands {features.bands} as in the model?)"
    if frames is None:
        return ""
    return f"; {frames} frames are {features.samples(frames)} samples, or other --frame-ms, --hop-ms or padding"
