"""Find out whether this machine can be a device, line by line and with the fix for what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edge.bundle.classifier import Classifier
from edge.bundle.opening import open_classifier
from edge.bundle.reading import Bundle
from edge.doctor import machine
from edge.doctor import model as models
from edge.doctor.broker import broker
from edge.doctor.clock import clock_of_this_machine
from edge.doctor.finding import Finding, attempt, wrong
from edge.doctor.microphone import PORTAUDIO_FIX, RECORD_S, microphone, portaudio
from edge.doctor.slots import installed
from edge.errors import EarshotError
from edge.health.throttling import ThrottlingReader
from edge.mqtt.broker_url import BrokerUrl

_DEFAULT_RATE_HZ = 16_000
_BROKER_FIX = "systemctl status mosquitto on its machine; earshot broker makes users, passwords and certificates"
_OPERATOR_FIX = "earshot keys new --out operator on the workstation, then copy operator.pub"
_MICROPHONE_FIX = "python3 -m sounddevice lists the inputs; fuser -v /dev/snd/* tells who uses them"


@dataclass(frozen=True)
class Patient:
    """What to look at; what is None is not looked at."""

    state_dir: Path
    name: str | None = None
    bundle: Path | None = None
    trust: Sequence[Path] = ()
    operators: Sequence[Path] = ()
    threads: int = 1
    members: int | None = None
    provider: str | None = None
    hop_ms: float = 100.0
    broker: str | None = None
    microphone: str | None = None
    record_s: float = RECORD_S


def examine(patient: Patient) -> list[Finding]:
    """Look at everything that was named; one thing being broken does not hide the next."""
    findings = [machine.system(), machine.python()]
    bundle = _bundle(patient, findings)
    if bundle is not None:
        _model(patient, bundle, findings)
    if patient.microphone is None or patient.microphone.partition(":")[0] == "sounddevice":
        findings.append(attempt("PortAudio", portaudio, PORTAUDIO_FIX))
    if patient.microphone is not None:
        spec, rate_hz = patient.microphone, _DEFAULT_RATE_HZ if bundle is None else bundle.manifest.rate_hz
        findings.append(attempt("microphone", lambda: microphone(spec, rate_hz, patient.record_s), _MICROPHONE_FIX))
    if patient.broker is not None:
        url = patient.broker
        findings.append(attempt("broker", lambda: broker(BrokerUrl.parse(url), patient.name), _BROKER_FIX))
    findings.append(clock_of_this_machine(None if bundle is None else _packed(bundle)))
    findings.append(machine.disk(patient.state_dir))
    findings.append(machine.temperature())
    findings.append(machine.throttling(ThrottlingReader.of_this_machine().read()))
    return findings


def _bundle(patient: Patient, findings: list[Finding]) -> Bundle | None:
    operators = attempt("operators", lambda: models.operators(patient.operators), _OPERATOR_FIX)
    if patient.bundle is None:
        if patient.name is None:
            return None
        added = [models.fingerprint_of(path) for path in patient.operators] if operators.ok else []
        bundle, found = installed(patient.state_dir / patient.name, added)
        findings += found if operators.ok else [*found, operators]
        return bundle
    try:
        bundle, finding = models.given_bundle(patient.bundle, patient.trust)
    except EarshotError as error:
        fix = f"earshot bundle verify {patient.bundle} on the workstation, then copy it and its KEY.pub again"
        finding = wrong("bundle", " ".join(str(error).split()), fix, exit_code=error.exit_code)
        bundle = None
    findings += [finding, operators]
    return bundle


def _model(patient: Patient, bundle: Bundle, findings: list[Finding]) -> None:
    made: list[Classifier] = []

    def look() -> Finding:
        classifier, difference = open_classifier(
            bundle, threads=patient.threads, members=patient.members, provider=patient.provider
        )
        made.append(classifier)
        return models.model(classifier, difference, bundle.golden_pcm[:1], patient.threads, patient.hop_ms)

    fix = "pip install --force-reinstall earshot, or another bundle or --provider"
    findings.append(attempt("model", look, fix))
    if made:
        findings.append(attempt("providers", lambda: models.providers(made[0])))


def _packed(bundle: Bundle) -> datetime | None:
    try:
        return datetime.fromisoformat(bundle.manifest.created_utc)
    except ValueError:
        return None
