"""``earshot-device doctor``: check this machine."""

from __future__ import annotations

import argparse
import json
import sys

from edge.cli.arguments import Verbs, add_model, add_place, add_surroundings
from edge.cli.process import save_memory
from edge.errors import UsageError


def add(verbs: Verbs) -> None:
    """Register the command."""
    doctor = verbs.add_parser("doctor", help="check this machine", description="Check this machine, line by line.")
    add_place(doctor)
    add_model(doctor)
    add_surroundings(doctor)
    doctor.add_argument("--hop", dest="hop_ms", type=float, metavar="MS", help="time between windows (default: 100)")
    doctor.add_argument("--seconds", type=float, default=5.0, metavar="S", help="how long to record (default: 5)")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Look at everything that was named, print a line for each."""
    save_memory()

    # --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.agent.state_folder import default_state_dir  # noqa: PLC0415
    from edge.cli.settings import from_options  # noqa: PLC0415
    from edge.doctor.examine import Patient, examine  # noqa: PLC0415
    from edge.doctor.finding import exit_code  # noqa: PLC0415
    from edge.listening.trigger import ListeningSettings  # noqa: PLC0415

    settings = from_options(options)
    settings.set_environment()
    if not 0.5 <= options.seconds <= 600:
        raise UsageError(f"--seconds {options.seconds:g}: record for 0.5 to 600")
    patient = Patient(
        state_dir=settings.state_dir or default_state_dir(),
        name=settings.name,
        bundle=settings.bundle,
        trust=settings.trust,
        operators=settings.operator,
        threads=settings.threads,
        members=settings.members,
        provider=settings.provider,
        hop_ms=(settings.listening or ListeningSettings()).hop_ms,
        broker=settings.broker,
        microphone=settings.microphone,
        record_s=options.seconds,
    )
    findings = examine(patient)
    if options.json:
        sys.stdout.write(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(finding.line() + "\n")
    return exit_code(findings)
