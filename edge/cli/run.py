"""``earshot-device run``: listen, classify, publish."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from dataclasses import replace
from pathlib import Path

from edge.cli.arguments import BROKER_HELP, MICROPHONE_HELP, Verbs, add_bundle, check_inference
from edge.cli.process import end_on_bugs_in_threads, save_memory, start_logging, watch_stdin
from edge.errors import EXIT_BUG, EXIT_OK, UsageError
from edge.messages import check_name
from edge.mqtt.broker_url import BrokerUrl

log = logging.getLogger(__name__)


def add(verbs: Verbs) -> None:
    """Register the command."""
    run = verbs.add_parser("run", help="listen, classify, publish", description="Listen, classify, publish.")
    add_bundle(run)
    run.add_argument("--broker", required=True, metavar="URL", help=BROKER_HELP)
    run.add_argument("--name", required=True, help="the device's name in topics: a-z 0-9 . _ -")
    run.add_argument("--microphone", required=True, metavar="SPEC", help=MICROPHONE_HELP)
    run.add_argument("--state-dir", type=Path, metavar="DIR", help="keeps the outbox (default: ~/.local/state/earshot)")
    run.add_argument("--connect-timeout", type=float, default=0.0, metavar="S", help="give up on the broker (0: never)")
    run.add_argument("--listen-continuously", type=float, metavar="HOP_MS", help="classify every HOP_MS, unasked")
    run.add_argument(
        "--log-noise-seed", action="store_true", help="publish the seed of each window's noise (ensembles)"
    )
    run.add_argument("--exit-on-stdin-eof", action="store_true", help="stop when standard input closes")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    run.set_defaults(execute=execute)


def _check(options: argparse.Namespace) -> None:
    check_inference(options)
    check_name(options.name)
    if not 0 <= options.connect_timeout <= 86_400:
        raise UsageError(f"--connect-timeout {options.connect_timeout}: use 0 to 86400 seconds")
    if options.listen_continuously is not None and not 10 <= options.listen_continuously <= 60_000:
        raise UsageError(f"--listen-continuously {options.listen_continuously}: use 10 to 60000 milliseconds")


def execute(options: argparse.Namespace) -> int:
    """Run the device until it is told to end."""
    _check(options)
    start_logging(options.log_level)
    url = BrokerUrl.parse(options.broker)
    save_memory()

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
        watch_stdin(stop)
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
        broken = end_on_bugs_in_threads(stop)
        device.run(stop, connect_timeout_s=options.connect_timeout)
    log.info("stopped")
    return EXIT_BUG if broken else EXIT_OK
