"""``earshot-device doctor``: check this machine."""

from __future__ import annotations

import argparse
import json
import sys

from edge.cli.arguments import BROKER_HELP, MICROPHONE_HELP, Verbs, add_bundle, check_inference
from edge.cli.process import save_memory


def add(verbs: Verbs) -> None:
    """Register the command."""
    doctor = verbs.add_parser("doctor", help="check this machine", description="Check this machine, line by line.")
    add_bundle(doctor)
    doctor.add_argument("--broker", metavar="URL", help=BROKER_HELP)
    doctor.add_argument("--microphone", metavar="SPEC", help=MICROPHONE_HELP)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Look at everything that was named, print a line for each."""
    check_inference(options)
    save_memory()

    # --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.doctor.examine import examine, exit_code  # noqa: PLC0415

    findings = examine(
        bundle_path=options.bundle,
        key_paths=options.trust,
        threads=options.threads,
        members=options.members,
        broker=options.broker,
        microphone_spec=options.microphone,
    )
    if options.json:
        sys.stdout.write(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(finding.line() + "\n")
    return exit_code(findings)
