"""Make spoken words with espeak-ng: ``python -m firmware_models.zoo.synthesise --out DIR [--set clips|training]``.

The clips in the repository (``firmware_models/zoo/clips``) are the set ``clips``. The set ``training`` has other
voices, speeds and pitches, and other words too, and may be added to recorded speech with
``earshot train lms --synthetic DIR``. Both have the layout of Speech Commands, so the same reader takes them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from edge.errors import EarshotError, UnavailableError, UsageError
from firmware_models.data import COMMANDS, RATE_HZ, WINDOW_SAMPLES
from firmware_models.progress import Progress, silent

OTHER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "bed", "bird", "cat", "dog"),
    *("happy", "house", "marvin", "sheila", "tree", "wow", "backward", "forward", "follow", "learn", "visual"),
)
# Accent and variant of espeak-ng. No variant is in both sets.
CLIP_VOICES = (
    ("en-us", "m3"),
    ("en-gb", "m1"),
    ("en-us", "f3"),
    ("en-gb-x-rp", "f2"),
    ("en-us", "Andy"),
    ("en-gb-scotland", "m7"),
    ("en-us", "Annie"),
    ("en-029", "m5"),
    ("en-gb", "steph"),
    ("en-us", "Michael"),
)
TRAINING_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
TRAINING_VARIANTS = (
    *(
        "m2",
        "m4",
        "m6",
        "m8",
        "f1",
        "f4",
        "f5",
        "adam",
        "anika",
        "announcer",
        "antonio",
        "belinda",
        "benjamin",
        "boris",
    ),
    *(
        "caleb",
        "david",
        "ed",
        "edward",
        "iven",
        "iven2",
        "john",
        "klatt",
        "klatt2",
        "klatt3",
        "linda",
        "marcelo",
        "max",
    ),
    *("michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "shelby", "steph2", "steph3"),
    *(
        "travis",
        "victor",
        "zac",
        "Alex",
        "Alicia",
        "Andrea",
        "Denis",
        "Diogo",
        "Gene",
        "Gene2",
        "Henrique",
        "Hugo",
        "Jacky",
    ),
    *("Lee", "Marco", "Mario", "Mike", "Nguyen"),
)
TRAINING_TAKES = 2
PEAK_DBFS = -6.0
_SEED = 7


@dataclass(frozen=True, slots=True)
class Take:
    """One word said once: ``speed`` in words per minute, ``pitch`` 0..99 as espeak-ng counts."""

    word: str
    accent: str
    variant: str
    number: int
    speed: int = 150
    pitch: int = 50

    @property
    def path(self) -> str:
        """Where the clip lies below the folder of its set."""
        return f"{self.word}/{self.accent}-{self.variant.lower()}_nohash_{self.number}.flac"


def takes(set_name: str) -> Iterator[Take]:
    """All takes of the set ``clips`` or ``training``; the same at every call."""
    if set_name == "clips":
        for accent, variant in CLIP_VOICES:
            for word in COMMANDS:
                yield Take(word, accent, variant, 0)
        return
    rng = np.random.default_rng(_SEED)
    for variant in TRAINING_VARIANTS:
        for number in range(TRAINING_TAKES):
            accent = TRAINING_ACCENTS[int(rng.integers(len(TRAINING_ACCENTS)))]
            for word in (*COMMANDS, *OTHER_WORDS):
                speed, pitch = int(rng.integers(115, 190)), int(rng.integers(30, 71))
                yield Take(word, accent, variant, number, speed, pitch)


def synthesise(out: Path, set_name: str, *, progress: Progress = silent) -> int:
    """Write all clips of a set below ``out``: FLAC, 16 kHz, mono, 16 bit, one second, peak at -6 dBFS.

    Returns:
        the number of clips.

    Raises:
        UsageError: ``out`` exists and is not empty.
        UnavailableError: espeak-ng is missing or fails.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise UnavailableError("espeak-ng is missing; install it with: apt-get install espeak-ng")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not empty; name a new folder")
    wanted = list(takes(set_name))
    for done, take in enumerate(wanted, 1):
        path = out / take.path
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(path), _speak(program, take), RATE_HZ, subtype="PCM_16", format="FLAC")
        progress(done, len(wanted), take.word)
    return len(wanted)


def _speak(program: str, take: Take) -> npt.NDArray[np.float32]:
    """The word in the middle of one second, float32 (16000,)."""
    with tempfile.TemporaryDirectory(prefix="earshot-") as folder:
        path = Path(folder) / "word.wav"
        voice = f"{take.accent}+{take.variant}"
        command = [program, "-v", voice, "-s", str(take.speed), "-p", str(take.pitch), "-w", str(path), take.word]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if result.returncode or not path.is_file():
            raise UnavailableError(f"espeak-ng failed for voice {voice}: {' '.join(result.stderr.split())}")
        sound, rate_hz = soundfile.read(str(path), dtype="float32")
    resampled = soxr.resample(sound, rate_hz, RATE_HZ)
    loud = np.flatnonzero(np.abs(resampled) > 0.02 * np.abs(resampled).max())
    # Some 30 ms of what lies before and behind keep soft beginnings and ends.
    first, last = max(loud[0] - 480, 0), min(loud[-1] + 480, resampled.size)
    word = resampled[first:last][:WINDOW_SAMPLES]
    before = (WINDOW_SAMPLES - word.size) // 2
    word = word * (10.0 ** (PEAK_DBFS / 20.0) / np.abs(word).max())
    padded: npt.NDArray[np.float32] = np.pad(word, (before, WINDOW_SAMPLES - word.size - before)).astype(np.float32)
    return padded


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Make spoken words with espeak-ng.")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--set", choices=("clips", "training"), default="clips", help="which voices and words")
    arguments = parser.parse_args()
    try:
        count = synthesise(arguments.out, arguments.set, progress=_report)
    except EarshotError as error:
        sys.stderr.write(f"synthesise: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{count} clips in {arguments.out}\n")
    return 0


def _report(done: int, total: int, note: str = "") -> None:
    if done % 100 == 0 or done == total:
        sys.stderr.write(f"\r{done}/{total} {note:<12}" + ("\n" if done == total else ""))


if __name__ == "__main__":
    sys.exit(main())
