"""A voice assistant that is not ours, for tests: it hears wake words with the model of a bundle.

    assistant_process.py wyoming --uri tcp://127.0.0.1:PORT ...     a wake-word service, with wyoming's own server
    assistant_process.py satellite --microphone PORT --events URI   raw samples in, events out
    assistant_process.py hermes --broker mqtt://... --site SITE     wake word, speech and dialogue over MQTT

with ``--bundle FILE --trust KEY.pub`` and any number of ``--word LABEL=NAME``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import socket
import sys
import wave
from functools import partial
from pathlib import Path

import numpy as np

STEP = 1280
# Two seconds after a wake word no other one is heard, as in openWakeWord.
REFRACTORY = 32_000


class Detector:
    """Slides the model's window over a stream, a step of 80 ms at a time."""

    def __init__(self, bundle: Path, trust: Path, words: dict[str, str]) -> None:
        from edge.bundle.classifier import Classifier
        from edge.bundle.reading import read_bundle
        from edge.bundle.signing import load_public_key

        self._classifier = Classifier(read_bundle(bundle, trusted=[load_public_key(trust)]))
        self._words = words
        self.reset()

    def reset(self) -> None:
        self._heard = np.zeros(self._classifier.manifest.window_samples, np.int16)
        self._waiting = np.zeros(0, np.int16)
        self._deaf = 0

    def feed(self, pcm: np.ndarray) -> list[str]:
        """The wake words in the next samples."""
        found = []
        self._waiting = np.concatenate((self._waiting, pcm))
        while len(self._waiting) >= STEP:
            self._heard = np.concatenate((self._heard[STEP:], self._waiting[:STEP]))
            self._waiting = self._waiting[STEP:]
            self._deaf = max(0, self._deaf - STEP)
            scores = self._classifier.scores(self._heard[np.newaxis].astype(np.float32) / np.float32(32768))[0]
            chances = np.exp(scores - scores.max())
            best = int(scores.argmax())
            word = self._words.get(self._classifier.labels[best])
            if word is not None and not self._deaf and chances[best] / chances.sum() > 0.7:
                self._deaf = REFRACTORY
                found.append(word)
        return found


def serve_wyoming(uri: str, detector: Detector, words: list[str]) -> None:
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.event import Event
    from wyoming.info import Attribution, Describe, Info, WakeModel, WakeProgram
    from wyoming.server import AsyncEventHandler, AsyncServer
    from wyoming.wake import Detection, NotDetected

    author = Attribution(name="earshot", url="https://example.org")
    models = [
        WakeModel(
            name=word, attribution=author, installed=True, description=None, version="1", languages=["en"], phrase=word
        )
        for word in words
    ]
    program = WakeProgram(name="fake", attribution=author, installed=True, description=None, version="1", models=models)

    class Handler(AsyncEventHandler):
        detected = False

        async def handle_event(self, event: Event) -> bool:
            if Describe.is_type(event.type):
                await self.write_event(Info(wake=[program]).event())
            elif AudioStart.is_type(event.type):
                detector.reset()
                self.detected = False
            elif AudioChunk.is_type(event.type):
                chunk = AudioChunk.from_event(event)
                assert (chunk.rate, chunk.width, chunk.channels) == (16_000, 2, 1)
                for word in detector.feed(np.frombuffer(chunk.audio, "<i2")):
                    self.detected = True
                    await self.write_event(Detection(name=word, timestamp=chunk.timestamp).event())
            elif AudioStop.is_type(event.type) and not self.detected:
                await self.write_event(NotDetected().event())
            return True

    asyncio.run(AsyncServer.from_uri(uri).run(partial(Handler)))


def run_satellite(port: int, events: str, detector: Detector) -> None:
    from urllib.parse import urlsplit

    from wyoming.event import write_event
    from wyoming.wake import Detection

    place = urlsplit(events)
    connection = socket.create_connection((place.hostname, place.port))
    with socket.create_server(("127.0.0.1", port)) as microphone, connection, connection.makefile("wb") as out:
        while True:
            sound, _ = microphone.accept()
            detector.reset()
            with sound:
                while data := sound.recv(2 * STEP, socket.MSG_WAITALL):
                    for word in detector.feed(np.frombuffer(data[: len(data) // 2 * 2], "<i2")):
                        write_event(Detection(name=word).event(), out)


class HermesServices:
    """Wake word, speech recogniser and dialogue manager of one site."""

    def __init__(self, client, site: str, detector: Detector) -> None:
        self._client, self._site, self._detector = client, site, detector
        self._listening = self._dialogue = None
        self._said = ""
        client.on_connect = lambda *_: client.subscribe([("hermes/#", 1), ("rhasspy/#", 1)])
        client.on_message = self._receive

    def _say(self, topic: str, **fields) -> None:
        self._client.publish(topic, json.dumps({"siteId": self._site, **fields}), qos=1)

    def _receive(self, _client, _data, message) -> None:
        topic = message.topic
        if topic == f"hermes/audioServer/{self._site}/audioFrame":
            with wave.open(io.BytesIO(message.payload)) as file:
                assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
                self._hear(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
            return
        if not topic.startswith(("hermes/asr/", "hermes/dialogueManager/", "rhasspy/")):
            return
        asked = json.loads(message.payload)
        if topic == "rhasspy/hotword/getHotwords":
            self._say("rhasspy/hotword/hotwords", models=[], id=asked["id"])
        elif topic == "hermes/asr/startListening":
            self._listen(asked["sessionId"])
        elif topic == "hermes/asr/stopListening":
            self._conclude(asked["sessionId"])
        elif topic == "hermes/dialogueManager/startSession":
            self._dialogue = "dialogue-of-" + asked["customData"]
            self._say("hermes/dialogueManager/sessionStarted", sessionId=self._dialogue, customData=asked["customData"])
            self._listen(self._dialogue)
        elif topic == "hermes/dialogueManager/endSession" and asked["sessionId"] == self._dialogue:
            self._say("hermes/dialogueManager/sessionEnded", sessionId=self._dialogue)
            self._dialogue = None

    def _listen(self, session: str) -> None:
        self._listening, self._said = session, ""
        self._detector.reset()

    def _hear(self, pcm: np.ndarray) -> None:
        for word in self._detector.feed(pcm):
            self._said = word
            if self._listening is None and self._dialogue is None:
                self._say(f"hermes/hotword/{word}/detected", modelId=f"{word}.model", currentSensitivity=0.5)
                # A wake word opens a dialogue, which ends when somebody ends it.
                self._dialogue = "dialogue-of-wake-word"
                self._say("hermes/dialogueManager/sessionStarted", sessionId=self._dialogue)

    def _conclude(self, session: str) -> None:
        if session != self._listening:
            return
        self._listening = None
        if session != self._dialogue:
            self._say(
                "hermes/asr/textCaptured", text=self._said.upper(), likelihood=1.0, seconds=1.0, sessionId=session
            )
        elif self._said:
            meant = {"intentName": self._said, "confidenceScore": 1.0}
            self._say(f"hermes/intent/{self._said}", input=self._said, intent=meant, slots=[], sessionId=session)
        else:
            self._say("hermes/dialogueManager/intentNotRecognized", input="", sessionId=session)


def run_hermes(broker: str, site: str, detector: Detector) -> None:
    from edge.mqtt.broker_url import BrokerUrl
    from edge.mqtt.client import new_client

    url = BrokerUrl.parse(broker)
    client = new_client(url)
    HermesServices(client, site, detector)
    client.reconnect_delay_set(1, 1)
    client.connect(url.host, url.port)
    client.loop_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("wyoming", "satellite", "hermes"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trust", type=Path, required=True)
    parser.add_argument("--word", action="append", required=True)
    parser.add_argument("--uri")
    parser.add_argument("--microphone", type=int)
    parser.add_argument("--events")
    parser.add_argument("--broker")
    parser.add_argument("--site", default="default")
    options = parser.parse_args()
    words = dict(word.split("=") for word in options.word)
    detector = Detector(options.bundle, options.trust, words)
    if options.kind == "wyoming":
        serve_wyoming(options.uri, detector, list(words.values()))
    elif options.kind == "satellite":
        run_satellite(options.microphone, options.events, detector)
    else:
        run_hermes(options.broker, options.site, detector)


if __name__ == "__main__":
    sys.exit(main())
