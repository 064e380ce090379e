"""The command ``earshot-device``: run a device, or find out why it does not run."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import edge
from edge.bundle.manifest import MAX_MEMBERS
from edge.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, EarshotError, UsageError, refused
from edge.messages import check_name
from edge.mqtt.broker_url import PASSWORD_FILE_VARIABLE, PASSWORD_VARIABLE, BrokerUrl

log = logging.getLogger(__name__)

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MICROPHONE_HELP = "sounddevice[:NAME], file:PATH[?loop], socket:HOST:PORT or socket:unix:PATH"
_BROKER_HELP = f"mqtt://[USER@]HOST[:PORT] or mqtts://...; password in {PASSWORD_VARIABLE} or {PASSWORD_FILE_VARIABLE}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; user errors end in one line and their exit code, bugs in a traceback."""
    try:
        options = _parser().parse_args(arguments)
        code = _doctor(options) if options.command == "doctor" else _run(options)
    except KeyboardInterrupt:
        sys.stderr.write("earshot-device: stopped by the operator\n")
        sys.exit(EXIT_STOPPED)
    except EarshotError as error:
        sys.stderr.write(f"earshot-device: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        told = refused(error)
        if told is None:
            raise
        sys.stderr.write(f"earshot-device: {' '.join(str(told).split())}\n")
        sys.exit(told.exit_code)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="earshot-device", description="The device behind the microphone.")
    parser.add_argument("--version", action="version", version=f"earshot-device {edge.__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="listen, classify, publish", description="Listen, classify, publish.")
    _add_bundle(run)
    run.add_argument("--broker", required=True, metavar="URL", help=_BROKER_HELP)
    run.add_argument("--name", required=True, help="the device's name in topics: a-z 0-9 . _ -")
    run.add_argument("--microphone", required=True, metavar="SPEC", help=_MICROPHONE_HELP)
    run.add_argument("--state-dir", type=Path, metavar="DIR", help="keeps the outbox (default: ~/.local/state/earshot)")
    run.add_argument("--connect-timeout", type=float, default=0.0, metavar="S", help="give up on the broker (0: never)")
    run.add_argument("--listen-continuously", type=float, metavar="HOP_MS", help="classify every HOP_MS, unasked")
    run.add_argument(
        "--log-noise-seed", action="store_true", help="publish the seed of each window's noise (ensembles)"
    )
    run.add_argument("--exit-on-stdin-eof", action="store_true", help="stop when standard input closes")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")

    doctor = verbs.add_parser("doctor", help="check this machine", description="Check this machine, line by line.")
    _add_bundle(doctor)
    doctor.add_argument("--broker", metavar="URL", help=_BROKER_HELP)
    doctor.add_argument("--microphone", metavar="SPEC", help=_MICROPHONE_HELP)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, metavar="NAME.earshot", help="the model to run")
    parser.add_argument(
        "--trust", required=True, type=Path, action="append", metavar="KEY.pub", help="public key that signs bundles"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of one inference (default: 1)")
    parser.add_argument("--members", type=int, metavar="N", help="members of a stochastic ensemble (default: bundle's)")


def _check(options: argparse.Namespace) -> None:
    if not 1 <= options.threads <= 64:
        raise UsageError(f"--threads {options.threads}: use 1 to 64")
    if options.members is not None and not 1 <= options.members <= MAX_MEMBERS:
        raise UsageError(f"--members {options.members}: use 1 to {MAX_MEMBERS}")
    if options.command != "run":
        return
    check_name(options.name)
    if not 0 <= options.connect_timeout <= 86_400:
        raise UsageError(f"--connect-timeout {options.connect_timeout}: use 0 to 86400 seconds")
    if options.listen_continuously is not None and not 10 <= options.listen_continuously <= 60_000:
        raise UsageError(f"--listen-continuously {options.listen_continuously}: use 10 to 60000 milliseconds")


def _run(options: argparse.Namespace) -> int:
    _check(options)
    _start_logging(options.log_level)
    url = BrokerUrl.parse(options.broker)
    _save_memory()

    # Imported late: --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.agent.device import Device  # noqa: PLC0415
    from edge.agent.state_folder import claimed, default_state_dir  # noqa: PLC0415
    from edge.bundle.apart import apart  # noqa: PLC0415
    from edge.bundle.classifier import Classifier  # noqa: PLC0415
    from edge.bundle.reading import Bundle, read_bundle  # noqa: PLC0415
    from edge.sound.microphones.opening import microphone  # noqa: PLC0415

    def verified() -> Bundle:
        from edge.bundle.signing import load_public_key  # noqa: PLC0415

        return read_bundle(options.bundle, trusted=[load_public_key(path) for path in options.trust])

    bundle = apart(verified)
    if options.log_noise_seed and bundle.manifest.ensemble is None:
        raise UsageError(f"--log-noise-seed: {bundle.manifest.name} is no stochastic ensemble, it has no noise")
    stop = threading.Event()
    if options.exit_on_stdin_eof:
        _watch_stdin(stop)
    classifier = Classifier(bundle, threads=options.threads, members=options.members)
    difference = classifier.check_golden()
    # onnxruntime has made its own of the graph.
    bundle = replace(bundle, model=b"")
    manifest = bundle.manifest
    log.info(
        "bundle %s version %d (%s), signed by %s, golden vectors within %.2g",
        *(manifest.name, manifest.version, bundle.sha256[:12], bundle.key, difference),
    )
    if classifier.members is not None:
        log.info("stochastic ensemble of %d members, fresh noise for every window", classifier.members)
    source = microphone(options.microphone, manifest.rate_hz)
    with claimed(options.state_dir or default_state_dir(), options.name) as folder:
        device = Device(
            name=options.name,
            bundle=bundle,
            classifier=classifier,
            microphone=source,
            url=url,
            state_dir=folder,
            hop_ms=options.listen_continuously,
            publish_noise_seed=options.log_noise_seed,
        )
        log.info("device %s, boot %s, microphone %s", options.name, device.boot_id, source.name)

        def end(*_: object) -> None:
            stop.set()
            device.wake()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        _end_on_bugs_in_threads(stop)
        device.run(stop, connect_timeout_s=options.connect_timeout)
    log.info("stopped")
    return EXIT_BUG if _broken_threads else EXIT_OK


def _save_memory() -> None:
    """Settings that must be made before numpy and onnxruntime are imported."""
    # numpy's BLAS would start a thread per core and is not used.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # glibc keeps a heap per thread, and what was needed only to start; other C libraries have no such setting.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 64 << 10)
        mallopt(_M_TRIM_THRESHOLD, 128 << 10)


_broken_threads: list[str] = []


def _end_on_bugs_in_threads(stop: threading.Event) -> None:
    """A thread that dies of a bug must end the process: a device that only seems to live misleads a session."""

    def report(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread else "?"
        log.critical("bug in thread %s", name, exc_info=failure.exc_value)
        _broken_threads.append(name)
        stop.set()

    threading.excepthook = report


def _watch_stdin(stop: threading.Event) -> None:
    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        stop.set()

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def _start_logging(level: str) -> None:
    # journald writes the time itself.
    time_of_day = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(
        level=level.upper(),
        format=f"{time_of_day}earshot-device: %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )


def _doctor(options: argparse.Namespace) -> int:
    _check(options)
    _save_memory()

    from edge.doctor import examine, exit_code  # noqa: PLC0415 - as above

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


if __name__ == "__main__":
    main()
