"""Continuous listening on a real model: which windows are heard, which are left out, what is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.agent.prediction import Predictor
from edge.bundle.classifier import Classifier
from edge.bundle.reading import Bundle, read_bundle
from edge.bundle.signing import load_public_key
from edge.listening.listening import Listening
from edge.listening.trigger import ListeningSettings
from edge.messages import Prediction
from edge.sound.streams import Streams

RATE_HZ, WINDOW, HOP = 16_000, 320, 160
STOP = threading.Event()


@pytest.fixture(scope="module")
def bundle(make_tiny_bundle: Callable[..., Path], keys: Any) -> Bundle:
    return read_bundle(make_tiny_bundle(window=WINDOW), trusted=[load_public_key(keys.public)])


class Ear:
    def __init__(self, bundle: Bundle, *, can_wait: bool, **settings: Any) -> None:
        self.kept: list[Prediction] = []
        self.said: list[Prediction] = []
        self.streams = Streams(RATE_HZ, WINDOW, lambda: None)
        chosen = {"hop_ms": 10, "smoothing_ms": 0, "threshold": 0.6, "release": 0.5, "refractory_ms": 0, **settings}
        self.listening = Listening(
            ListeningSettings.checked(**chosen),
            manifest=bundle.manifest,
            predictor=Predictor("d", "b", bundle, Classifier(bundle)),
            streams=self.streams,
            can_wait=can_wait,
            keep=self.kept.append,
            say=self.said.append,
        )

    def hear(self, pcm: np.ndarray) -> None:
        self.streams.write(pcm.astype(np.int16), can_wait=False, stop=STOP)

    def listen(self) -> None:
        while self.listening.step():
            pass

    @property
    def positions(self) -> list[int]:
        return sorted(each.sample_index for each in (*self.kept, *self.said))


def _quiet(hops: int) -> np.ndarray:
    return np.full(hops * HOP, 10)


def test_every_window_in_its_order_and_no_sooner_than_it_is_complete(bundle: Bundle) -> None:
    ear = Ear(bundle, can_wait=False)
    assert not ear.listening.step()
    ear.streams.begin("a")
    ear.hear(_quiet(1))
    ear.listen()
    assert ear.said == []
    assert ear.listening.due_at("a") == WINDOW
    for _ in range(5):
        ear.hear(_quiet(1))
        ear.listen()
    assert ear.positions == [0, HOP, 2 * HOP, 3 * HOP, 4 * HOP]
    assert (ear.listening.windows, ear.listening.left_out, ear.kept) == (5, 0, [])
    assert ear.listening.needed_from("a") is None


def test_a_live_microphone_leaves_out_what_is_late_and_counts_it(bundle: Bundle) -> None:
    ear = Ear(bundle, can_wait=False)
    ear.streams.begin("a")
    ear.hear(_quiet(30))
    ear.listen()
    assert ear.positions == [28 * HOP]
    assert ear.listening.left_out == 28
    ear.hear(_quiet(3))
    ear.listen()
    assert ear.positions == [28 * HOP, 31 * HOP]
    assert ear.listening.left_out == 30


def test_a_microphone_that_waits_is_heard_in_full(bundle: Bundle) -> None:
    ear = Ear(bundle, can_wait=True)
    ear.streams.begin("a")
    ear.hear(_quiet(30))
    ear.listening.step()
    assert ear.listening.needed_from("a") == HOP
    assert ear.listening.needed_from("b") is None
    ear.streams.end()
    ear.listen()
    assert ear.positions == [number * HOP for number in range(29)]
    assert ear.listening.left_out == 0


def test_what_is_overwritten_is_left_out_even_there(bundle: Bundle) -> None:
    ear = Ear(bundle, can_wait=True)
    ear.streams.begin("a")
    ear.hear(_quiet(1))
    ear.listening.step()
    ear.hear(_quiet(ear.streams.capacity_samples // HOP + 9))
    ear.listening.step()
    assert ear.positions == [10 * HOP]
    assert ear.listening.left_out == 10


def test_a_stream_that_ended_is_over_for_a_live_microphone(bundle: Bundle) -> None:
    ear = Ear(bundle, can_wait=False)
    ear.streams.begin("a")
    ear.hear(_quiet(5))
    ear.streams.end("unplugged")
    ear.listen()
    assert ear.positions == []
    ear.streams.begin("b")
    ear.hear(_quiet(2))
    ear.listen()
    assert [(each.stream_id, each.sample_index) for each in ear.said] == [("b", 0)]


@pytest.mark.parametrize("keep", ["triggered", "all"])
def test_what_fires_is_kept_and_the_rest_is_said_once(bundle: Bundle, keep: str) -> None:
    ear = Ear(bundle, can_wait=True, keep=keep)
    ear.streams.begin("a")
    loud = np.random.default_rng(0).integers(-32_768, 32_767, 4 * HOP)
    ear.hear(np.concatenate((_quiet(6), loud, _quiet(6), loud)))
    ear.listen()
    fired = [each for each in ear.kept if each.trigger is not None]
    # Half of a window of 20 ms is enough for this model.
    assert [(each.sample_index // HOP, each.trigger) for each in fired] == [(6, "loud"), (16, "loud")]
    assert ear.listening.fired == 2
    assert len(ear.kept) + len(ear.said) == 19
    assert len(ear.kept) == (2 if keep == "triggered" else 19)
