"""Score clips as a device does, in a process that has nothing but ``edge``: a script, not a module to import.

``scoring_process.py BUNDLE PCM SCORES KEY...`` reads clips (PCM, float32 (n, samples), .npy) and writes SCORES (.npy).
They are given to the model one at a time, as a device listens; a stochastic ensemble gets the noise of its golden
vectors. The number of every clip done is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.bundle.classifier import Classifier
from edge.bundle.noise import GOLDEN_SEED
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.errors import EarshotError


def main(bundle: str, pcm: str, scores: str, *keys: str) -> None:
    """Do what the module says; the arguments are paths and come from this project."""
    found = read_bundle(Path(bundle), trusted=[load_public_key(Path(key)) for key in keys])
    classifier = Classifier(found)
    noise = None if classifier.members is None else classifier.noise(GOLDEN_SEED)
    clips = np.load(pcm)
    rows = []
    for number, clip in enumerate(clips, start=1):
        rows.append(classifier.scores(clip[np.newaxis], noise=noise))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
    np.save(scores, np.concatenate(rows))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except EarshotError as error:
        sys.exit(str(error))
