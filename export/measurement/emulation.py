"""What a bundle computes on aarch64: the device's own code under an emulator."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import edge
from edge.errors import BundleError, UnavailableError
from export.measurement.userland import Userland
from firmware_models.progress import Progress, silent

_SCRIPT = Path(__file__).with_name("scoring_process.py")

Floats = npt.NDArray[np.float32]


def emulated_scores(
    userland: Userland, bundle: Path, keys: Sequence[Path], pcm: Floats, *, progress: Progress = silent
) -> Floats:
    """Scores on an emulated Cortex-A76 of clips given one at a time, by ``edge`` as it stands in this installation.

    Args:
        userland: from :func:`export.measurement.userland.prepare`.
        bundle: read and verified there again.
        keys: public keys; one of them signed the bundle.
        pcm: float32 (n, samples) in [-1, 1].
        progress: told once per clip.

    Returns:
        float32 (n, classes).

    Raises:
        BundleError: the bundle was refused there.
        UnavailableError: the emulated process ended without scores; one line with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="earshot-aarch64-") as name:
        folder = Path(name)
        # Only edge may be seen inside: beside it lie packages compiled for this machine.
        (folder / "code").mkdir()
        (folder / "code/edge").symlink_to(Path(edge.__file__).resolve().parent)
        np.save(folder / "pcm.npy", pcm)
        arguments = [_SCRIPT, bundle.resolve(), folder / "pcm.npy", folder / "scores.npy"]
        command = userland.command(
            ["-B", *map(str, arguments), *(str(key.resolve()) for key in keys)], python_path=[folder / "code"]
        )
        with (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=userland.environment())
            try:
                for line in process.stdout or ():
                    progress(int(line), len(pcm), f"{bundle.name} on aarch64")
            finally:
                if process.poll() is None:
                    process.terminate()
                code = process.wait()
        if code == 0:
            scores: Floats = np.load(folder / "scores.npy")
            return scores
        lines = [line.strip() for line in (folder / "errors").read_text(errors="replace").splitlines() if line.strip()]
    words = lines[-1] if lines else f"ended with code {code}"
    if code == 1 and "Traceback" not in "".join(lines):
        raise BundleError(f"on aarch64: {words}")
    raise UnavailableError(f"{bundle}: no scores on aarch64: {words[:300]}")
