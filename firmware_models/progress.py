"""How long work tells a person that it moves, without printing itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is done out of ``total``; the commands draw a bar with the time left."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report ``done`` of ``total`` steps and, if there is one, a short note."""


def silent(done: int, total: int, note: str = "") -> None:
    """The :class:`Progress` that says nothing."""
