"""The released bundles with their public key, and the synthetic clips of the demo."""

from __future__ import annotations

from pathlib import Path

from edge.errors import UsageError

FOLDER = Path(__file__).resolve().parent
PUBLIC_KEY = FOLDER / "zoo.pub"
CLIPS = FOLDER / "clips"


def bundle(name: str) -> Path:
    """The file of a released bundle.

    Raises:
        UsageError: none of that name is released.
    """
    path = FOLDER / f"{name}.earshot"
    if not path.is_file():
        released = ", ".join(sorted(entry.stem for entry in FOLDER.glob("*.earshot"))) or "none"
        raise UsageError(f"zoo:{name}: no such bundle, released are: {released}")
    return path
