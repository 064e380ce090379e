"""Rhasspy's Hermes over MQTT: its topics, and what of its JSON decides a trial."""

from __future__ import annotations

import io
import json
import wave
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import DataError
from edge.sound.ring import Pcm16
from edge.validation import describe

MAX_PAYLOAD_BYTES = 1 << 18

HOTWORD = "hermes/hotword/+/detected"
TEXT = "hermes/asr/textCaptured"
INTENT = "hermes/intent/#"
INTENT_NOT_RECOGNISED = "hermes/dialogueManager/intentNotRecognized"
SESSION_STARTED = "hermes/dialogueManager/sessionStarted"
SESSION_ENDED = "hermes/dialogueManager/sessionEnded"
HOTWORDS = "rhasspy/hotword/hotwords"

GET_HOTWORDS = "rhasspy/hotword/getHotwords"
START_LISTENING = "hermes/asr/startListening"
STOP_LISTENING = "hermes/asr/stopListening"
START_SESSION = "hermes/dialogueManager/startSession"
END_SESSION = "hermes/dialogueManager/endSession"

_Id = Annotated[str, Field(max_length=256)]


class HermesMessage(BaseModel):
    """A payload; a service may say more than is needed here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    site: Annotated[_Id, Field(alias="siteId")] = "default"


class HotwordDetected(HermesMessage):
    """A wake word was recognised; its name is in the topic, that of its model here."""

    model: Annotated[_Id, Field(alias="modelId")] = ""


class TextCaptured(HermesMessage):
    """What was said, in words."""

    text: Annotated[str, Field(max_length=4096)]
    session: Annotated[_Id | None, Field(alias="sessionId")] = None


class _IntentName(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[_Id, Field(alias="intentName")]


class Intent(HermesMessage):
    """What was meant."""

    intent: _IntentName
    session: Annotated[_Id | None, Field(alias="sessionId")] = None


class SessionEvent(HermesMessage):
    """A dialogue began or ended, or ended in nothing."""

    session: Annotated[_Id | None, Field(alias="sessionId")] = None
    custom_data: Annotated[_Id | None, Field(alias="customData")] = None


class Hotwords(HermesMessage):
    """The answer to ``getHotwords``: the wake-word service lives."""

    request: Annotated[_Id | None, Field(alias="id")] = None


M = TypeVar("M", bound=HermesMessage)


def parse(kind: type[M], topic: str, payload: bytes) -> M:
    """Decode a payload.

    Raises:
        DataError: it is too large, not JSON, or lacks what is needed.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise DataError(f"{shown(topic)}: {len(payload)} bytes exceed the limit of {MAX_PAYLOAD_BYTES}")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise DataError(f"{shown(topic)}: {describe(error, document='payload')}") from None


def shown(topic: str) -> str:
    """A topic as a line for people can hold it."""
    return ascii(topic[:80])[1:-1]


def frame_topic(site: str) -> str:
    """Where the sound of a site goes."""
    return f"hermes/audioServer/{site}/audioFrame"


def frame(pcm: Pcm16, rate_hz: int) -> bytes:
    """Samples (n,) as the WAV file that Hermes sends per piece of sound."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm.astype("<i2").tobytes())
    return buffer.getvalue()


def encode(**fields: Any) -> bytes:
    """A JSON payload."""
    return json.dumps(fields).encode()
