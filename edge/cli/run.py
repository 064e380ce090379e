"""``earshot-device run``: listen, classify, publish."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from dataclasses import replace

from edge.cli.arguments import Verbs, add_listening, add_model, add_place, add_surroundings
from edge.cli.process import end_on_bugs_in_threads, save_memory, start_logging, watch_stdin
from edge.errors import EXIT_BUG, EXIT_OK, UsageError

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
    run.add_argument("--exit-on-stdin-eof", action="store_true", help="stop when standard input closes")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="(default: info)")
    run.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the device until it is told to end."""
    save_memory()

    # Imported late: --help and wrong arguments need not wait for numpy and onnxruntime.
    from edge.agent.device import Device  # noqa: PLC0415
    from edge.agent.memory import give_back_code  # noqa: PLC0415
    from edge.agent.state_folder import claimed, default_state_dir  # noqa: PLC0415
    from edge.bundle.classifier import Classifier  # noqa: PLC0415
    from edge.bundle.reading import read_bundle  # noqa: PLC0415
    from edge.bundle.signing import fingerprint, load_public_key  # noqa: PLC0415
    from edge.cli.settings import from_options  # noqa: PLC0415
    from edge.sound.microphones.opening import microphone  # noqa: PLC0415

    settings = from_options(options)
    start_logging(settings.log_level)
    settings.set_environment()
    url = settings.url
    name = settings.need("name", settings.name)
    spec = settings.need("microphone", settings.microphone)
    path = settings.need("bundle", settings.bundle)
    operators = [load_public_key(key) for key in settings.operator]

    bundle = read_bundle(path, trusted=[load_public_key(key) for key in settings.trust])
    if settings.log_noise_seed and bundle.manifest.ensemble is None:
        raise UsageError(f"--log-noise-seed: {bundle.manifest.name} is no stochastic ensemble, it has no noise")
    stop = threading.Event()
    if options.exit_on_stdin_eof:
        watch_stdin(stop)
    give_back_code()
    classifier = Classifier(bundle, threads=settings.threads, members=settings.members)
    difference = classifier.check_golden()
    # onnxruntime has made its own of the graph.
    bundle = replace(bundle, model=b"")
    give_back_code()
    manifest = bundle.manifest
    log.info(
        "bundle %s version %d (%s), signed by %s, golden vectors within %.2g",
        *(manifest.name, manifest.version, bundle.sha256[:12], bundle.key, difference),
    )
    if classifier.members is not None:
        log.info("stochastic ensemble of %d members, fresh noise for every window", classifier.members)
    for key in operators:
        log.info("obeys operator %s", fingerprint(key))
    source = microphone(spec, manifest.rate_hz)
    with claimed(settings.state_dir or default_state_dir(), name) as folder:
        device = Device(
            name=name,
            bundle=bundle,
            classifier=classifier,
            microphone=source,
            url=url,
            state_dir=folder,
            operators=operators,
            listening=settings.listening,
            home_assistant=settings.home_assistant,
            publish_noise_seed=settings.log_noise_seed,
        )
        log.info("device %s, boot %s, microphone %s", name, device.boot_id, source.name)

        def end(*_: object) -> None:
            stop.set()
            device.wake()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        broken = end_on_bugs_in_threads(stop)
        device.run(stop, connect_timeout_s=settings.connect_timeout_s)
    log.info("stopped")
    return EXIT_BUG if broken else EXIT_OK
