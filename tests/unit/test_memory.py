"""Code that is given back: it still works afterwards, and the process is smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from firmware_models import zoo

ROOT = Path(__file__).resolve().parents[2]
_SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from edge.agent.memory import give_back_code
from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
def resident_kib():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
bundle = read_bundle(Path(sys.argv[1]), trusted=[load_public_key(Path(sys.argv[2]))])
classifier = Classifier(bundle)
first = classifier.scores(bundle.golden_pcm[:1])
before = resident_kib()
given_back = [give_back_code() for _ in range(3)]
after = resident_kib()
again = classifier.scores(bundle.golden_pcm[:1])
difference = classifier.check_golden()
answer = [before, after, resident_kib(), min(given_back), bool(np.array_equal(first, again)), difference]
print(json.dumps(answer))
"""


def test_what_only_the_start_needed_is_given_back() -> None:
    command = [sys.executable, "-c", _SCRIPT, str(zoo.bundle("lms-int8")), str(zoo.PUBLIC_KEY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    before, after, later, given_back, same, difference = json.loads(done.stdout)
    assert after < before - 15_000
    assert later < before - 8_000
    assert given_back > 10_000_000
    assert same
    assert difference < 1e-3
