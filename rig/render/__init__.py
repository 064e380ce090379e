"""Rendering: what a device hears of talker and attacker, in thousands of conditions or with a gradient.

``conditions`` is the table of conditions, ``material`` what they are mixed from, ``linear`` renders them on a
processor, ``torch_linear`` on a GPU, ``differentiable`` lets a gradient through.
"""

from __future__ import annotations

from typing import Any

from edge.errors import UsageError
from rig.render.conditions import SILENT, Conditions
from rig.render.material import Material
from rig.render.renderer import Block, Levels, Renderer, Stage

__all__ = [
    "SILENT",
    "Block",
    "Conditions",
    "Levels",
    "Material",
    "Renderer",
    "Stage",
    "open_renderer",
]


def open_renderer(material: Material, *, device: str = "cpu", **settings: Any) -> Renderer:
    """The renderer for a device: ``cpu``, or ``cuda`` (also ``cuda:1``); settings as of :class:`Renderer`.

    Raises:
        UsageError: another device, or settings that make no sense.
        UnavailableError: there is no such GPU.
    """
    if device == "cpu":
        from rig.render.linear import LinearRenderer  # noqa: PLC0415 - numba takes a second

        return LinearRenderer(material, **settings)
    if device.partition(":")[0] != "cuda":
        raise UsageError(f"device {device!r}: use cpu or cuda")
    from rig.render.torch_linear import TorchRenderer  # noqa: PLC0415 - torch takes seconds

    return TorchRenderer(material, device=device, **settings)
