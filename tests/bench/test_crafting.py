"""PGD on the twin of a bundle against the same loop on the trained torch module it was exported from."""

from time import perf_counter

import numpy as np
import torch

from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from export.twin import Twin
from firmware_models import zoo
from firmware_models.architectures import build
from rig.attacks import pgd

ROUNDS, CLIPS, STEPS = 5, 32, 5


def test_twin_against_the_plain_module() -> None:
    keys = [load_public_key(zoo.PUBLIC_KEY)]
    bundles = {name: read_bundle(zoo.bundle(name), trusted=keys) for name in ("lms-fp32", "lms-int8")}
    models = {name: Twin.from_bundle(bundle) for name, bundle in bundles.items()}
    labels = bundles["lms-fp32"].manifest.labels
    models["torch module"] = build("lms", labels=labels).eval().requires_grad_(requires_grad=False)
    pcm = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (CLIPS, 16000)).astype(np.float32))
    label = torch.zeros(CLIPS, dtype=torch.long)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = perf_counter()
            pgd(model, pcm, label, eps=0.005, steps=STEPS)
            times[name].append((perf_counter() - start) / CLIPS / STEPS * 1e3)
    plain = np.array(times["torch module"])
    print(f"\nPGD, batches of {CLIPS}, one thread, {ROUNDS} interleaved rounds, ms per clip and step:")
    for name, values in times.items():
        print(f"  {name}: {np.median(values):.2f}, ratio to the torch module {np.median(np.array(values) / plain):.2f}")
    assert all(value > 0 for values in times.values() for value in values)
