"""Options that several commands share, and what is checked about them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, TypeAlias

from edge.bundle.manifest import MAX_MEMBERS
from edge.errors import UsageError
from edge.mqtt.broker_url import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE

MICROPHONE_HELP = "sounddevice[:NAME], file:PATH[?loop], socket:HOST:PORT or socket:unix:PATH"
BROKER_HELP = f"mqtt://[USER@]HOST[:PORT] or mqtts://...; password in {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}"


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument as an error of ours, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see --help)")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - argparse names this type nowhere else


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle to run and how."""
    parser.add_argument("--bundle", required=True, type=Path, metavar="NAME.earshot", help="the model to run")
    parser.add_argument(
        "--trust", required=True, type=Path, action="append", metavar="KEY.pub", help="public key that signs bundles"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of one inference (default: 1)")
    parser.add_argument("--members", type=int, metavar="N", help="members of a stochastic ensemble (default: bundle's)")


def check_inference(options: argparse.Namespace) -> None:
    """Check the numbers of :func:`add_bundle`.

    Raises:
        UsageError: one is out of range.
    """
    if not 1 <= options.threads <= 64:
        raise UsageError(f"--threads {options.threads}: use 1 to 64")
    if options.members is not None and not 1 <= options.members <= MAX_MEMBERS:
        raise UsageError(f"--members {options.members}: use 1 to {MAX_MEMBERS}")
