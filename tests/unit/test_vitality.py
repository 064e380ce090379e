"""Healthy is who computes; alive is who does not leave sound lying."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from edge.agent import vitality
from edge.agent.prediction import Predictor
from edge.agent.vitality import FRESH_S, STUCK_S, Vitality
from edge.sound.streams import Streams

WINDOW = 1600


class _Facts:
    name, version, labels, score_kind = "m", 1, ("a", "b"), "logits"
    rate_hz, window_samples = 16_000, WINDOW


class _Model:
    """A model that gives what it is told; not a number means that it is broken."""

    manifest, sha256, providers, members = _Facts(), "0" * 64, ("x",), None

    def __init__(self) -> None:
        self.gives = 1.0
        self.heard: list[np.ndarray] = []

    def scores(self, pcm: np.ndarray, *, noise: object = None) -> np.ndarray:
        self.heard.append(pcm[0])
        return np.full((1, 2), self.gives, np.float32)


class _World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, hop_samples: int | None) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(vitality.time, "monotonic", lambda: self.now_s)
        self.model = _Model()
        self.streams = Streams(16_000, WINDOW, lambda: None)
        self.predictor = Predictor("d", "b", self.model, self.model)  # type: ignore[arg-type]
        self.vitality = Vitality(self.streams, self.predictor, hop_samples=hop_samples)

    def sound(self, samples: int = 16_000) -> None:
        self.streams.write(np.ones(samples, np.int16), can_wait=False, stop=threading.Event())

    def window(self) -> None:
        self.predictor.try_out(np.zeros(WINDOW, np.int16))


def test_on_command_a_window_is_tried_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=None)
    assert not world.vitality.is_healthy()
    world.streams.begin("one")
    assert world.vitality.is_healthy()
    assert not world.model.heard[0].any()
    world.sound()
    for _ in range(20):
        world.now_s += 0.25
        assert world.vitality.is_healthy()
    assert len(world.model.heard) == 6
    assert world.model.heard[-1].all()
    world.streams.end("unplugged")
    assert not world.vitality.is_healthy()
    assert world.vitality.is_alive


def test_a_model_that_computes_nonsense_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=None)
    world.model.gives = float("nan")
    world.streams.begin("one")
    assert not world.vitality.is_healthy()
    world.now_s += 2
    assert not world.vitality.is_healthy()
    world.model.gives = 0.0
    world.now_s += 2
    assert world.vitality.is_healthy()


def test_listening_must_itself_make_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=160)
    world.streams.begin("one")
    assert not world.vitality.is_healthy()
    world.sound()
    world.window()
    assert world.vitality.is_healthy()
    world.now_s += FRESH_S + 0.1
    assert not world.vitality.is_healthy()
    assert len(world.model.heard) == 1


def test_a_long_hop_leaves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=60 * 16_000)
    world.streams.begin("one")
    world.sound()
    world.window()
    assert world.vitality.is_healthy()
    world.now_s += 119
    assert world.vitality.is_healthy()
    world.now_s += 2
    assert not world.vitality.is_healthy()


def test_sound_that_nobody_classifies_means_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=160)
    world.streams.begin("one")
    # A microphone that gives nothing is no fault of the agent's.
    world.now_s += 10 * STUCK_S
    assert world.vitality.is_alive
    world.sound()
    world.now_s += STUCK_S - 1
    assert world.vitality.is_alive
    world.now_s += 2
    assert not world.vitality.is_alive
    world.window()
    assert world.vitality.is_alive
    world.sound()
    world.now_s += 2 * STUCK_S
    assert not world.vitality.is_alive
    world.streams.end("unplugged")
    assert world.vitality.is_alive


def test_who_listens_on_command_is_never_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _World(monkeypatch, hop_samples=None)
    world.streams.begin("one")
    world.sound()
    world.now_s += 10 * STUCK_S
    assert world.vitality.is_alive
