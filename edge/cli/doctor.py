"""``earshot-device doctor``: check this machine."""

from __future__ import annotations

import argparse
import json
import sys

from edge.cli.arguments import Verbs, add_model, add_place, add_surroundings
from edge.cli.process import save_memory


def add(verbs: Verbs) -> None:
    """Register the command."""
    doctor = verbs.add_parser("doctor", help="check this machine", description="Check this machine, line by line.")
    add_place(doctor)
    add_model(doctor)
    add_surroundings(doctor)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Look at everything that was named, print a line for each."""
    save_memory()

    # --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.cli.settings import from_options  # noqa: PLC0415
    from edge.doctor.examine import examine, exit_code  # noqa: PLC0415

    settings = from_options(options)
    settings.set_environment()
    findings = examine(
        bundle_path=settings.need("bundle", settings.bundle),
        key_paths=settings.trust,
        threads=settings.threads,
        members=settings.members,
        broker=settings.broker,
        microphone_spec=settings.microphone,
    )
    if options.json:
        sys.stdout.write(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(finding.line() + "\n")
    return exit_code(findings)
