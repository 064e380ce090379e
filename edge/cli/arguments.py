"""Options that several commands share; each is None where it was not given, so that a settings file can say it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, TypeAlias

from edge.errors import UsageError
from edge.mqtt.broker_url import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE

MICROPHONE_HELP = (
    "sounddevice[:NAME], file:PATH[?loop], socket:HOST:PORT or socket:unix:PATH; a card or a file may have"
    " ?channel=N&gain_db=DB"
)
BROKER_HELP = f"mqtt://[USER@]HOST[:PORT] or mqtts://...; password in {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}"
STATE_HELP = "keeps outbox, slots and keys, below NAME (default: ~/.local/state/earshot)"


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument as an error of ours, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see --help)")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - argparse names this type nowhere else


def add_place(parser: argparse.ArgumentParser) -> None:
    """Which device this is, and where its state lies."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings file; options win over it")
    parser.add_argument("--name", help="the device's name in topics: a-z 0-9 . _ -")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help=STATE_HELP)


def add_model(parser: argparse.ArgumentParser) -> None:
    """What is computed and how."""
    parser.add_argument(
        "--bundle", type=Path, metavar="NAME.earshot", help="run this file (default: the slots in the state folder)"
    )
    parser.add_argument(
        "--trust", type=Path, action="append", metavar="KEY.pub", help="public key that signs bundles (with --bundle)"
    )
    parser.add_argument(
        "--operator", type=Path, action="append", metavar="KEY.pub", help="public key whose commands are obeyed"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of one inference (default: 1)")
    parser.add_argument("--members", type=int, metavar="N", help="members of a stochastic ensemble (default: bundle's)")
    parser.add_argument(
        "--provider",
        metavar="NAME",
        help="what computes: auto, cpu, xnnpack, cuda or tensorrt (default: by the bundle's profile)",
    )


def add_surroundings(parser: argparse.ArgumentParser) -> None:
    """What the device hears with and speaks to."""
    parser.add_argument("--broker", metavar="URL", help=BROKER_HELP)
    parser.add_argument("--microphone", metavar="SPEC", help=MICROPHONE_HELP)


def add_listening(parser: argparse.ArgumentParser) -> None:
    """How the device listens without being asked."""
    group = parser.add_argument_group(
        "continuous listening", "On when one of these is given, and on a device that obeys no operator."
    )
    group.add_argument(
        "--hop", "--listen-continuously", dest="hop_ms", type=float, metavar="MS", help="classify every MS milliseconds"
    )
    group.add_argument("--smoothing", dest="smoothing_ms", type=float, metavar="MS", help="average over so long")
    group.add_argument("--threshold", type=float, metavar="P", help="averaged probability at which a label fires")
    group.add_argument("--release", type=float, metavar="P", help="below which it may fire again")
    group.add_argument("--refractory", dest="refractory_ms", type=float, metavar="MS", help="no label fires twice in")
    group.add_argument("--keep", choices=("triggered", "all"), help="predictions repeated until acknowledged")
