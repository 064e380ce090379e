"""The entry point of ``earshot-device``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import edge
from edge.cli import doctor, provision, run, status
from edge.cli.arguments import Parser
from edge.errors import EXIT_STOPPED, EarshotError, refused

# Each has ``add(verbs)``, which registers a parser whose default ``execute`` is ``(options) -> exit code``.
_COMMANDS = (run, doctor, provision, status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors end in one line and their exit code, bugs in a traceback."""
    _open_streams()
    try:
        options = parser().parse_args(arguments)
        code: int = options.execute(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("earshot-device: stopped by the operator\n")
        sys.exit(EXIT_STOPPED)
    except EarshotError as error:
        sys.stderr.write(f"earshot-device: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Who read along has gone; what is still in the buffer must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        told = refused(error)
        if told is None:
            raise
        sys.stderr.write(f"earshot-device: {' '.join(str(told).split())}\n")
        sys.exit(told.exit_code)
    sys.exit(code)


def _open_streams() -> None:
    """Let output never fail for a stream that was closed before the start."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as above


def parser() -> Parser:
    """Every command and option."""
    root = Parser(prog="earshot-device", description="The device behind the microphone.")
    root.add_argument("--version", action="version", version=f"earshot-device {edge.__version__}")
    verbs = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(verbs)
    return root
