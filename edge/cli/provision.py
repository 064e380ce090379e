"""``earshot-device provision``: the first bundle and keys of an installed device."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edge.cli.arguments import STATE_HELP, Verbs
from edge.errors import EXIT_OK
from edge.messages import check_name


def add(verbs: Verbs) -> None:
    """Register the command."""
    about = "put the first bundle and keys in place"
    parser = verbs.add_parser("provision", help=about, description=f"{about.capitalize()}; the device must not run.")
    parser.add_argument("bundle", type=Path, metavar="NAME.earshot", help="the model to run")
    parser.add_argument("--name", required=True, help="the device's name")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help=STATE_HELP)
    parser.add_argument(
        "--trust", type=Path, action="append", default=[], metavar="KEY.pub", help="public key that signs bundles"
    )
    parser.add_argument(
        "--operator", type=Path, action="append", default=[], metavar="KEY.pub", help="public key that signs commands"
    )
    parser.add_argument("--force", action="store_true", help="also beside a bundle that runs, without trying it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Install, and say what the device has now."""
    # --help and wrong arguments need not wait for numpy.
    from edge.agent.state_folder import claimed, default_state_dir  # noqa: PLC0415
    from edge.update.provisioning import provision  # noqa: PLC0415

    check_name(options.name)
    with claimed(options.state_dir or default_state_dir(), options.name) as folder:
        has = provision(
            folder,
            options.bundle,
            bundle_keys=options.trust,
            operator_keys=options.operator,
            force=options.force,
        )
    if options.json:
        sys.stdout.write(json.dumps({"folder": str(folder), **asdict(has)}, indent=2) + "\n")
        return EXIT_OK
    done = "now holds" if has.changed else "held already"
    sys.stdout.write(f"{folder}: slot {has.slot} {done} {has.bundle_name} version {has.bundle_version}\n")
    sys.stdout.write(f"bundles signed by: {', '.join(has.bundle_keys)}\n")
    sys.stdout.write(f"commands signed by: {', '.join(has.operator_keys) or 'nobody'}\n")
    return EXIT_OK
