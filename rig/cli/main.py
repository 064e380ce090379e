"""The entry point of ``earshot``; the groups of commands are imported only when they are called."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from typing import Annotated, Any

import typer
import typer.main
from typer._click.exceptions import ClickException  # typer carries its own click and names its errors nowhere else
from typer.core import TyperGroup

import edge
from edge.errors import EXIT_STOPPED, EXIT_USAGE, EarshotError, refused
from rig.cli.console import open_streams, print_error, say

# What typer makes of Ctrl-C.
TYPER_INTERRUPTED = 130

# command -> (module, summary). Each module has one typer ``app``.
COMMANDS = {
    "data": ("rig.cli.models.data", "Fetch and check data sets."),
    "train": ("rig.cli.models.train", "Train a firmware model from a recipe."),
    "evaluate": ("rig.cli.models.evaluate", "Score a checkpoint or a bundle on a data set."),
    "keys": ("rig.cli.models.keys", "Make signing keys."),
    "export": ("rig.cli.models.export", "Turn a checkpoint into a signed bundle."),
    "bundle": ("rig.cli.models.bundle", "Show and verify bundles."),
    "parity": ("rig.cli.models.parity", "Hold what a bundle computes against torch, its twin and aarch64."),
    "profile": ("rig.cli.models.profile", "Measure size, speed, memory and accuracy of bundles."),
    "zoo": ("rig.cli.models.zoo", "List and compare the released models."),
    "bridge": ("rig.cli.devices.bridge", "Let an assistant that is not ours take part in a session."),
    "plan": ("rig.cli.sessions.plan", "Check a plan before it runs."),
    "room": ("rig.cli.rooms.room", "Look at the room of a plan before anything runs in it."),
    "session": ("rig.cli.sessions.session", "Run, resume and show sessions."),
    "report": ("rig.cli.sessions.report", "Write summary, results and page of finished sessions."),
    "broker": ("rig.cli.devices.broker", "Make the folder from which mosquitto serves the devices."),
    "device": ("rig.cli.devices.device", "List, watch, update, roll back and install devices."),
    "sweep": ("rig.cli.rooms.sweep", "Simulate and score every condition of a plan, here or on a cluster."),
    "demo": ("rig.cli.sessions.demo", "From shipped models and clips to a report, in one command."),
}


class _LazyGroup(TyperGroup):
    """A group that lists its commands without importing them: ``earshot --help`` never waits for torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        if ctx.resilient_parsing or _wants_root_help():
            stub = typer.Typer(help=summary)
            stub.command(name=cmd_name, help=summary)(lambda: None)
            return typer.main.get_command(stub)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command


def _wants_root_help() -> bool:
    return len(sys.argv) < 2 or sys.argv[1] in {"--help", "-h"}


app = typer.Typer(
    cls=_LazyGroup,
    help="Find out how a voice device behaves when somebody plays adversarial sound at it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"earshot {edge.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Root of all commands."""


def _stop_on_signals() -> threading.Event:
    """End in good order at Ctrl-C and when told to end: devices are taken down, unfinished files away."""
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return stopped


def main() -> None:
    """Run the command line; user errors end in one line and their exit code, bugs in a traceback."""
    open_streams()
    stopped = _stop_on_signals()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = TYPER_INTERRUPTED
    except ClickException as error:
        if message := error.format_message():
            print_error(f"{message} (see --help)")
        sys.exit(EXIT_USAGE)
    except EarshotError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        # Some libraries turn the interruption into an error of their own.
        if stopped.is_set():
            code = TYPER_INTERRUPTED
        elif isinstance(error, OSError) and (told := refused(error)) is not None:
            print_error(str(told))
            sys.exit(told.exit_code)
        else:
            raise
    if code == TYPER_INTERRUPTED:
        resume = "; it goes on with 'earshot session resume'"
        goes_on = {"session": resume, "demo": resume, "sweep": "; the same command goes on"}
        print_error("stopped by the operator" + goes_on.get("".join(sys.argv[1:2]), ""))
        sys.exit(EXIT_STOPPED)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
