"""What device and rig say to each other over MQTT 3.1.1: topics and JSON payloads.

Every payload is one JSON object. QoS is 1 unless said; duplicates are expected and the receiver drops
them by ``(device, boot_id, seq)``.

======================================  =====================  ==========================================
topic                                   payload                remarks
======================================  =====================  ==========================================
``earshot/1/<device>/state``            :class:`State`         retained; the will says ``lost``
``earshot/1/<device>/info``             :class:`Info`          retained
``earshot/1/<device>/prediction``       :class:`Prediction`    repeated until acknowledged; benign ones QoS 0
``earshot/1/<device>/level``            :class:`Level`         QoS 0
``earshot/1/<device>/health``           :class:`Health`        QoS 0, every 10 s
``earshot/1/<device>/update``           :class:`UpdateStatus`  retained; the last update and how far it came
``earshot/1/<device>/clock``            :class:`Clock`         QoS 0, answer to ``echo``
``earshot/1/<device>/command/<verb>``   :class:`Envelope`      rig to device
``earshot/1/<device>/reply``            :class:`Reply`         answer to a command
======================================  =====================  ==========================================

A command travels in an :class:`Envelope` signed by an operator's key that the device trusts. What is inside:

===============  ====================  ==========================================================
verb             body                  asks to
===============  ====================  ==========================================================
``listen``       :class:`Listen`       classify one exact window of the microphone's stream
``acknowledge``  :class:`Acknowledge`  forget predictions that the rig has stored
``echo``         :class:`Echo`         say at once what time it is, on ``clock``
``update``       :class:`Update`       pull a bundle, try it, and run it from now on
``rollback``     :class:`Rollback`     run the bundle of the other slot
``rotate``       :class:`Rotate`       trust a new key instead of an old one
===============  ====================  ==========================================================
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import UsageError
from edge.validation import describe

SCHEMA: Literal[1] = 1
TOPIC_PREFIX = "earshot/1"
MAX_PAYLOAD_BYTES = 1 << 20

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Counter = Annotated[int, Field(ge=0, lt=1 << 63)]
Slot = Literal["a", "b"]
Role = Literal["bundle", "operator"]
PublicKeyHex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Message(BaseModel):
    """A payload: frozen; unknown keys and numbers that are not finite are rejected."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
    )

    # "schema" shadows a deprecated pydantic method, so the attribute has another name than the key.
    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    device: Name

    def to_json(self) -> bytes:
        """Encode as UTF-8 JSON without the fields that are absent."""
        return self.model_dump_json(exclude_none=True, by_alias=True).encode()


class State(Message):
    """Whether the device is there. ``lost`` is only ever said by the broker, as the will."""

    boot_id: Identifier
    status: Literal["online", "stopped", "lost"]


class SlotContent(BaseModel):
    """The bundle that lies in a slot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: Counter
    sha256: Sha256


class Info(Message):
    """What runs on the device: bundle, versions, microphone. Sent at start and when it changes.

    ``members`` is the number of members where the model is a stochastic ensemble. ``slot`` and ``confirmed`` are
    absent where the device runs a file it was given instead of its slots, and so is ``spare``, what the other slot
    holds; ``operators`` are the keys whose commands it obeys.
    """

    boot_id: Identifier
    version: str
    bundle_name: str
    bundle_version: Counter
    bundle_sha256: Sha256
    labels: tuple[str, ...]
    rate_hz: Annotated[int, Field(gt=0)]
    window_samples: Annotated[int, Field(gt=0)]
    microphone: str
    stream_id: Identifier | None = None
    providers: tuple[str, ...] = ()
    members: Annotated[int, Field(gt=0)] | None = None
    slot: Slot | None = None
    confirmed: bool | None = None
    spare: SlotContent | None = None
    operators: tuple[Fingerprint, ...] = ()


class Prediction(Message):
    """One inference. ``session_id``, ``trial_id`` and ``attempt`` are absent when nobody asked for it.

    Asked for, or where ``trigger`` names the label that a continuously listening device has just recognised, it is
    kept and repeated until it is acknowledged; otherwise it is benign: said once, and first to go where all are kept.

    ``sample_index`` is the first sample of the window, counted from the start of ``stream_id``;
    ``scores`` has one number per label, as the model gives them; ``pcm_sha256`` is the hash of the window
    as little-endian signed 16-bit samples, so that the rig can prove what was heard. ``noise_seed`` is what the noise
    of a stochastic ensemble was drawn from for this window, where the device was told to publish it; with the
    ``members`` of :class:`Info` it makes the scores again, see :func:`edge.bundle.noise.standard_normal`.
    """

    boot_id: Identifier
    seq: Counter
    session_id: Identifier | None = None
    trial_id: Identifier | None = None
    attempt: Counter | None = None
    stream_id: Identifier
    sample_index: Counter
    t_monotonic_ns: Counter
    t_utc_ns: Counter
    label: str
    scores: Annotated[tuple[float, ...], Field(min_length=1, max_length=4096)]
    latency_ms: Annotated[float, Field(ge=0)]
    bundle_sha256: Sha256
    pcm_sha256: Sha256
    xruns: Counter
    noise_seed: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    trigger: str | None = None


class Level(Message):
    """Loudness of the last second at the microphone, in dB relative to full scale.

    ``clipped_samples`` are those of that second at either end of the range; ``silent_s`` is for how long nothing but
    digital silence has come (a muted or broken microphone).
    """

    boot_id: Identifier
    rms_dbfs: float
    peak_dbfs: float
    xruns: Counter
    clipped_samples: Counter = 0
    silent_s: Annotated[float, Field(ge=0)] = 0.0


class Health(Message):
    """How the device is. What the system does not tell is absent.

    ``throttled`` names what holds the processor back (``under-voltage``, ``frequency-capped``, ``throttled``,
    ``soft-temperature-limit``); latencies are of the last 1,000 windows; ``overruns`` counts blocks of sound that
    found the queue full, ``reopened`` how often the microphone was lost and came back; ``rejected_commands`` those
    that were malformed, unsigned, replayed or for somebody else.
    """

    boot_id: Identifier
    uptime_s: Annotated[float, Field(ge=0)]
    cpu_temperature_c: float | None = None
    throttled: tuple[str, ...] | None = None
    load_1min: float | None = None
    memory_rss_mb: Annotated[float, Field(ge=0)] | None = None
    memory_available_mb: Annotated[float, Field(ge=0)] | None = None
    disk_free_mb: Annotated[float, Field(ge=0)] | None = None
    windows: Counter = 0
    latency_p50_ms: Annotated[float, Field(ge=0)] | None = None
    latency_p95_ms: Annotated[float, Field(ge=0)] | None = None
    latency_p99_ms: Annotated[float, Field(ge=0)] | None = None
    xruns: Counter = 0
    overruns: Counter = 0
    reopened: Counter = 0
    outbox_depth: Counter = 0
    outbox_dropped: Counter = 0
    rejected_commands: Counter = 0


class UpdateStatus(Message):
    """How far the last update came. ``running`` is not confirmed yet; ``reverted`` went back by itself."""

    boot_id: Identifier
    stage: Literal["downloading", "verifying", "testing", "installed", "running", "confirmed", "reverted", "failed"]
    bundle_name: str
    bundle_version: Counter
    bundle_sha256: Sha256
    slot: Slot | None = None
    done_bytes: Counter = 0
    total_bytes: Counter = 0
    detail: str = ""


class Clock(Message):
    """The device's clocks when ``echo`` arrived and when this was sent."""

    boot_id: Identifier
    nonce: Identifier
    received_monotonic_ns: Counter
    received_utc_ns: Counter
    sent_monotonic_ns: Counter
    sent_utc_ns: Counter


class Envelope(Message):
    """A command under an operator's signature.

    The Ed25519 ``signature`` is over :meth:`signed_bytes`: device, boot, verb, counter and body. ``boot_id`` is the
    one that the device announced last, so that nothing recorded before a restart is obeyed after it; ``counter`` is the
    operator's UTC clock in nanoseconds, each one used once.
    """

    boot_id: Identifier
    verb: Name
    operator: Fingerprint
    counter: Counter
    body: Annotated[str, Field(max_length=1 << 16)]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        head = f"earshot command 1\n{self.device}\n{self.boot_id}\n{self.verb}\n{self.operator}\n{self.counter}\n"
        return (head + self.body).encode()


class Listen(Message):
    """Classify the window that starts at ``sample_index`` of ``stream_id`` and belongs to this trial.

    The window may lie in the future or, as far as the device still remembers, in the past. With
    ``return_audio`` the reply carries what the device heard.
    """

    session_id: Identifier
    trial_id: Identifier
    attempt: Counter
    stream_id: Identifier
    sample_index: Counter
    return_audio: bool = False


class Acknowledge(Message):
    """The rig has stored these predictions of ``boot_id``; the device may forget them."""

    boot_id: Identifier
    seqs: Annotated[tuple[Counter, ...], Field(min_length=1, max_length=1024)]


class Echo(Message):
    """Say what time it is."""

    nonce: Identifier


class Update(Message):
    """Pull the bundle from ``url``, verify and try it, run it from the other slot.

    ``downgrade`` allows a version below the highest that this device has run under that name.
    """

    url: Annotated[str, Field(pattern=r"^https?://[!-~]{1,2000}$")]
    bundle_name: Name
    bundle_version: Annotated[int, Field(ge=1, lt=1 << 31)]
    bundle_sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, lt=1 << 30)]
    downgrade: bool = False


class Rollback(Message):
    """Run the bundle of the other slot, which must be this one."""

    bundle_sha256: Sha256


class Rotate(Message):
    """Trust ``new_key`` instead of ``old_key`` for ``role``; both are 32 raw bytes in hex.

    The envelope's signature is not enough: ``signature`` is the old key's own over :meth:`signed_bytes`, and names
    no device, so that one statement serves a fleet.
    """

    role: Role
    old_key: PublicKeyHex
    new_key: PublicKeyHex
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def signed_bytes(self) -> bytes:
        """What the old key signs."""
        return f"earshot key rotation 1\n{self.role}\n{self.old_key}\n{self.new_key}\n".encode()


class Reply(Message):
    """The answer to a command. ``audio`` is base64 of little-endian signed 16-bit samples."""

    boot_id: Identifier
    verb: Name
    ok: bool
    detail: str = ""
    session_id: Identifier | None = None
    trial_id: Identifier | None = None
    attempt: Counter | None = None
    audio: Annotated[str, Field(max_length=MAX_PAYLOAD_BYTES)] | None = None


M = TypeVar("M", bound=Message)


def parse(kind: type[M], payload: bytes | bytearray) -> M:
    """Decode a payload that came from the network.

    Raises:
        UsageError: it is too large, not JSON, or not a valid ``kind``; the message is one line.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise UsageError(f"{kind.__name__}: {len(payload)} bytes exceed the limit of {MAX_PAYLOAD_BYTES}")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise UsageError(f"{kind.__name__}: {describe(error, document='payload')}") from None


def check_name(device: str) -> str:
    """Return ``device`` if it can stand in a topic.

    Raises:
        UsageError: it has other characters than a-z, 0-9, dot, dash and underscore, or is too long.
    """
    if not re.fullmatch(NAME_PATTERN, device):
        raise UsageError(f"device name {device!r}: use 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit")
    return device


def topic(device: str, *parts: str) -> str:
    """The topic of a device, e.g. ``topic("kitchen", "command", "listen")``; ``+`` names all devices."""
    return "/".join((TOPIC_PREFIX, device, *parts))
