"""From settings to a device that is ready to run: its bundle, its model, its keys, its microphone."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from nacl.signing import VerifyKey

from edge.agent.device import Device
from edge.agent.memory import give_back_code
from edge.agent.state_folder import claimed, default_state_dir
from edge.agent.updates import NoUpdates, Updates
from edge.bundle.classifier import Classifier
from edge.bundle.opening import open_classifier
from edge.bundle.providers import engine_cache
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import fingerprint, load_public_key
from edge.cli.settings import DeviceSettings
from edge.errors import UsageError
from edge.listening.trigger import ListeningSettings
from edge.messages import Slot
from edge.sound.microphones.opening import microphone
from edge.update.pointer import Pointer

log = logging.getLogger(__name__)

# A device that is about to end waits for broker and microphone for a few seconds.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class _Running:
    """What is to run, and where it came from; ``pointer`` is None for a file that was given."""

    bundle: Bundle
    slot: Slot | None = None
    pointer: Pointer | None = None


def start(settings: DeviceSettings, stack: ExitStack) -> tuple[Device, Updates]:
    """Verify, load and try the bundle, claim the state folder until ``stack`` ends, and put the device together.

    Returns:
        the device, and its updates, which say after its run whether it is to start again.

    Raises:
        UsageError: a setting is missing or wrong.
        BundleError: the bundle, or both slots, cannot be trusted.
        ThresholdError: this machine computes something else than the bundle was tested for.
        UnavailableError: sound card or provider is not there, or another process runs this device.
    """
    url = settings.url
    name, spec = settings.need("name", settings.name), settings.need("microphone", settings.microphone)
    given = [load_public_key(path) for path in settings.operator]
    if settings.bundle is not None:
        # What is wrong with a file that was given is told before anything is made on disk.
        running = _Running(_given(settings))
        folder = stack.enter_context(claimed(settings.state_dir or default_state_dir(), name, patience_s=_PATIENCE_S))
    else:
        folder = stack.enter_context(claimed(settings.state_dir or default_state_dir(), name, patience_s=_PATIENCE_S))
        running = _chosen(folder)
    operators = given if running.pointer is None else _trusted(folder, given)
    listening = settings.listening or (None if operators else ListeningSettings())
    classifier, bundle = _load(settings, running.bundle, folder)
    for key in operators:
        log.info("obeys operator %s", fingerprint(key))
    source = microphone(spec, bundle.manifest.rate_hz)
    updates = _updates(settings, running, folder, listening)
    device = Device(
        name=name,
        bundle=bundle,
        classifier=classifier,
        microphone=source,
        url=url,
        state_dir=folder,
        operators=operators,
        listening=listening,
        updates=updates,
        home_assistant=settings.home_assistant,
        publish_noise_seed=settings.log_noise_seed,
    )
    log.info("device %s, boot %s, microphone %s", name, device.boot_id, source.name)
    return device, updates


def _given(settings: DeviceSettings) -> Bundle:
    path = settings.need("bundle", settings.bundle)
    return read_bundle(path, trusted=[load_public_key(key) for key in settings.trust])


def _chosen(folder: Path) -> _Running:
    from edge.update.slots import Slots  # noqa: PLC0415 - needed once, in a process of its own

    choice = Slots(folder).choose()
    return _Running(choice.bundle, choice.slot, choice.pointer)


def _trusted(folder: Path, given: list[VerifyKey]) -> list[VerifyKey]:
    """The operators of the trust store and those given, without the ones that were replaced there."""
    from edge.update.trust import TrustStore  # noqa: PLC0415 - a device without slots has none

    store = TrustStore(folder / "trust")
    stored = store.keys("operator")
    return [*stored, *(key for key in given if key not in stored and not store.is_retired("operator", key))]


def _load(settings: DeviceSettings, bundle: Bundle, folder: Path) -> tuple[Classifier, Bundle]:
    manifest = bundle.manifest
    if settings.log_noise_seed and manifest.ensemble is None:
        raise UsageError(f"--log-noise-seed: {manifest.name} is no stochastic ensemble, it has no noise")
    portable = manifest.quantisation.profile == "portable"
    # Before the model is loaded, so that the peak is lower too.
    give_back_code()
    classifier, difference = open_classifier(
        bundle,
        threads=settings.threads,
        members=settings.members,
        provider=settings.provider,
        cache=engine_cache(folder, bundle.sha256) if portable else None,
    )
    log.info(
        "bundle %s version %d (%s), signed by %s, golden vectors within %.2g",
        *(manifest.name, manifest.version, bundle.sha256[:12], bundle.key, difference),
    )
    if classifier.members is not None:
        log.info("stochastic ensemble of %d members, fresh noise for every window", classifier.members)
    # onnxruntime has made its own of the graph.
    return classifier, replace(bundle, model=b"")


def _updates(settings: DeviceSettings, running: _Running, folder: Path, listening: ListeningSettings | None) -> Updates:
    if running.pointer is None:
        return NoUpdates()
    from edge.update.manager import SlotUpdates, latency_budget_ms  # noqa: PLC0415 - a given file is never updated

    log.info("slot %s, %s", running.slot, "confirmed" if running.pointer.confirmed else "to be confirmed")
    return SlotUpdates(
        device=settings.need("name", settings.name),
        folder=folder,
        pointer=running.pointer,
        budget_ms=latency_budget_ms(None if listening is None else listening.hop_ms),
        threads=settings.threads,
        members=settings.members,
        provider=settings.provider,
        healthy_s=settings.confirm_after_s,
    )
