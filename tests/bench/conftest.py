"""What benchmarks share: graphs of random weights, and times taken in turn on one thread.

The weights are random because how long a network takes does not depend on them; it does depend on the shapes. What
is timed is the processor time of the thread, so that a busy machine does not make the longer of two look longer still.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import thread_time_ns
from typing import Any

import numpy as np
import pytest

SEED = 3
WARM_UP = 10


def random_model(name: str) -> Any:
    """An architecture with random weights, and batch norm statistics that differ from their start values."""
    import torch

    from firmware_models.architectures import build
    from firmware_models.data import LABELS

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build(name, labels=LABELS)
        for module in model.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def session(graph: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The graph in onnxruntime as a device runs it: one thread, CPU."""
    from edge.bundle.session import open_session

    loaded = open_session(graph.SerializeToString())
    (sound,) = loaded.get_inputs()
    return lambda pcm: loaded.run(None, {sound.name: pcm})[0]


def in_turn_ms(ways: Mapping[str, Callable[[np.ndarray], Any]], pcm: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of processor time of every way in every round; in a round the order is random: noise hits all."""
    rng = np.random.default_rng(SEED)
    names = list(ways)
    times_ms = {name: np.zeros(rounds) for name in names}
    for name in names:
        for _ in range(WARM_UP):
            ways[name](pcm[:1])
    for number in range(rounds):
        clip = pcm[number % len(pcm)][None]
        for name in rng.permutation(names).tolist():
            began_ns = thread_time_ns()
            ways[name](clip)
            times_ms[name][number] = (thread_time_ns() - began_ns) / 1e6
    return times_ms


@pytest.fixture(scope="session", name="random_model")
def _random_model() -> Callable[[str], Any]:
    return random_model


@pytest.fixture(scope="session", name="session")
def _session() -> Callable[[Any], Callable[[np.ndarray], np.ndarray]]:
    return session


@pytest.fixture(scope="session", name="in_turn_ms")
def _in_turn_ms() -> Callable[..., dict[str, np.ndarray]]:
    return in_turn_ms
