"""``earshot-device run``: listen, classify, publish."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edge.cli.arguments import Verbs, add_listening, add_model, add_place, add_surroundings
from edge.cli.process import end_on_bugs_in_threads, run_again, save_memory, start_logging, watch_stdin
from edge.errors import EXIT_BUG, EXIT_OK

if TYPE_CHECKING:
    from edge.agent.device import Device
    from edge.cli.settings import DeviceSettings

log = logging.getLogger(__name__)


def add(verbs: Verbs) -> None:
    """Register the command."""
    run = verbs.add_parser("run", help="listen, classify, publish", description="Listen, classify, publish.")
    add_place(run)
    add_model(run)
    add_surroundings(run)
    add_listening(run)
    run.add_argument(
        "--home-assistant",
        nargs="?",
        const="homeassistant",
        metavar="PREFIX",
        help="let Home Assistant discover this device below this topic (default PREFIX: homeassistant)",
    )
    run.add_argument(
        "--connect-timeout", dest="connect_timeout_s", type=float, metavar="S", help="give up on the broker (0: never)"
    )
    run.add_argument(
        "--log-noise-seed",
        action="store_true",
        default=None,
        help="publish the seed of each window's noise (ensembles)",
    )
    # Whoever tries an update cannot wait for a minute.
    run.add_argument("--confirm-after", dest="confirm_after_s", type=float, help=argparse.SUPPRESS)
    run.add_argument("--exit-on-stdin-eof", action="store_true", help="stop when standard input closes")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="(default: info)")
    run.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the device until it is told to end; after an update, run the new bundle in its place."""
    save_memory()

    # Imported late: --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.agent.memory import give_back_code  # noqa: PLC0415
    from edge.cli.settings import from_options  # noqa: PLC0415
    from edge.cli.starting import start  # noqa: PLC0415

    settings = from_options(options)
    start_logging(settings.log_level)
    settings.set_environment()
    stop = threading.Event()
    with ExitStack() as stack:
        device, updates = start(settings, stack)
        # Loading a model runs megabytes of code that listening does not.
        give_back_code()
        told_to_end = _run(device, settings, stop, watch=options.exit_on_stdin_eof)
        again = updates.wants_restart and not told_to_end
    if again:
        log.info("starting again with the other bundle")
        run_again()
    log.info("stopped")
    return EXIT_OK


def _run(device: Device, settings: DeviceSettings, stop: threading.Event, *, watch: bool) -> bool:
    """Work until the end; true when that was asked for from outside."""
    told: list[bool] = []

    def end(*_: object) -> None:
        told.append(True)
        stop.set()
        device.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if watch:
        watch_stdin(end)
    broken = end_on_bugs_in_threads(stop)
    device.run(stop, connect_timeout_s=settings.connect_timeout_s)
    if broken:
        raise SystemExit(EXIT_BUG)
    return bool(told)
