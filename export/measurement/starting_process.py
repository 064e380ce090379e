# ruff: noqa: PLC0415 - the imports are what is timed
"""Start cold as a device does, in a process that has nothing but ``edge``: a script, not a module to import.

``starting_process.py BUNDLE BEGAN_NS KEY...`` imports, reads and verifies the bundle, loads it and scores
one window. It prints as JSON what each step took since BEGAN_NS (monotonic clock, when the process
was started) and the memory that it holds then.
"""

from __future__ import annotations

import json
import sys
import time

_FIRST_LINE_NS = time.monotonic_ns()


def main(bundle: str, began_ns: int, keys: list[str]) -> None:
    """Do what the module says; the arguments come from this project."""
    from pathlib import Path

    from edge.bundle.classifier import Classifier
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key

    imported_ns = time.monotonic_ns()
    found = read_bundle(Path(bundle), trusted=[load_public_key(Path(key)) for key in keys])
    verified_ns = time.monotonic_ns()
    classifier = Classifier(found)
    window = found.golden_pcm[:1]
    # The agent keeps the graph's bytes no longer either.
    del found
    loaded_ns = time.monotonic_ns()
    classifier.scores(window)
    scored_ns = time.monotonic_ns()
    steps_ns = {
        "interpreter": _FIRST_LINE_NS - began_ns,
        "import": imported_ns - _FIRST_LINE_NS,
        "verify": verified_ns - imported_ns,
        "load": loaded_ns - verified_ns,
        "first_window": scored_ns - loaded_ns,
        "total": scored_ns - began_ns,
    }
    memory = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmHWM", "VmRSS"}:
            memory[name] = 1024 * int(value.split()[0])
    steps_ms = {key: value / 1e6 for key, value in steps_ns.items()}
    sys.stdout.write(json.dumps({"ms": steps_ms, "bytes": memory}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
