"""What one hop costs: the agent against the loop that one writes in an afternoon, hop by hop in turn, on one core.

Run by test_hop.py in a process of its own. What is counted is the processor time of all threads of either (recorder,
inference and network thread of the agent), system calls included, from the moment the microphone has a hop of sound
until the prediction has left and all threads wait again, less what onnxruntime's ``run`` took.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from edge.agent.device import Device
from edge.bundle.classifier import Classifier
from edge.bundle.reading import read_bundle
from edge.bundle.signing import load_public_key
from edge.listening.trigger import ListeningSettings
from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from edge.sound.ring import Pcm16

HOP_MS = 100
WARM_UP = 30
REST_S = 0.003


class Timed:
    """An onnxruntime session whose ``run`` is timed by the clock of the thread that calls it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.spent_ns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *arguments: Any) -> Any:
        start_ns = time.thread_time_ns()
        result = self._session.run(*arguments)
        self.spent_ns += time.thread_time_ns() - start_ns
        return result


class HandFed:
    """A microphone that has sound when it is told."""

    name, can_wait, reopens, stream_id = "hand-fed", False, True, "s1"
    xruns = overruns = 0

    def __init__(self) -> None:
        self.blocks: queue.SimpleQueue[Pcm16] = queue.SimpleQueue()

    def open(self) -> str:
        return self.stream_id

    def read(self) -> Pcm16 | None:
        try:
            return self.blocks.get(timeout=0.5)
        except queue.Empty:
            return np.zeros(0, np.int16)

    def close(self) -> None: ...


class Departures:
    """Counts what has left: with QoS 1 when the broker has acknowledged it, with QoS 0 when it is sent."""

    def __init__(self, client: mqtt.Client) -> None:
        self._count = threading.Semaphore(0)
        client.on_publish = lambda *_: self._count.release()

    def wait(self) -> None:
        if not self._count.acquire(timeout=10):
            sys.exit("nothing left for 10 s")

    def drain(self) -> None:
        while self._count.acquire(blocking=False):
            pass


class Clocks:
    """The processor time of threads."""

    def __init__(self, names: tuple[str, ...], known: set[int]) -> None:
        new = [thread for thread in threading.enumerate() if thread.ident not in known]
        if len(new) != len(names):
            sys.exit(f"expected {names}, found {new}")
        self._clocks = [time.pthread_getcpuclockid(thread.ident) for thread in new if thread.ident is not None]

    def read_ns(self) -> np.ndarray:
        return np.array([time.clock_gettime_ns(clock) for clock in self._clocks])


def _running() -> set[int]:
    return {thread.ident for thread in threading.enumerate() if thread.ident is not None}


class Naive:
    """The audio callback puts blocks on a queue; the loop joins, classifies, describes and publishes them."""

    def __init__(self, session: Timed, device: Device, bundle: Any, url: BrokerUrl, qos: int) -> None:
        self._session, self._bundle, self._boot_id = session, bundle, device.boot_id
        self._qos = qos
        self._name, self._seq, self._at = "naive", 0, 0
        self._sound = np.zeros(0, np.float32)
        self.blocks: queue.Queue[np.ndarray] = queue.Queue()
        self.client = new_client(url)
        self.client.connect(url.host, url.port)
        threading.Thread(target=self._loop, name="loop", daemon=True).start()
        self.client.loop_start()

    def _loop(self) -> None:
        manifest = self._bundle.manifest
        while True:
            block = self.blocks.get()
            self._sound = np.concatenate((self._sound, block[:, 0].astype(np.float32) / 32768))
            self._at += len(block)
            if len(self._sound) < manifest.window_samples:
                continue
            self._sound = self._sound[-manifest.window_samples :]
            start_s = time.perf_counter()
            scores = self._session.run([manifest.output_name], {manifest.input_name: self._sound[None]})[0][0]
            latency_ms = (time.perf_counter() - start_s) * 1000
            pcm = np.round(self._sound * 32768).astype("<i2")
            said = {
                "schema": 1,
                "device": self._name,
                "boot_id": self._boot_id,
                "seq": self._seq,
                "stream_id": "s1",
                "sample_index": self._at - manifest.window_samples,
                "t_monotonic_ns": time.monotonic_ns(),
                "t_utc_ns": int(dt.datetime.now(dt.UTC).timestamp() * 1e9),
                "label": manifest.labels[int(np.argmax(scores))],
                "scores": [float(score) for score in scores],
                "latency_ms": latency_ms,
                "bundle_sha256": self._bundle.sha256,
                "pcm_sha256": hashlib.sha256(pcm.tobytes()).hexdigest(),
                "xruns": 0,
            }
            self._seq += 1
            self.client.publish(f"earshot/1/{self._name}/prediction", json.dumps(said), qos=self._qos)


def main(bundle_path: str, key_path: str, broker: str, hops: int, qos: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = read_bundle(Path(bundle_path), trusted=[load_public_key(Path(key_path))])
    classifier = Classifier(bundle)
    session = classifier._session = Timed(classifier._session)
    microphone, stop, url = HandFed(), threading.Event(), BrokerUrl.parse(broker)
    with tempfile.TemporaryDirectory() as folder:
        device = Device(
            name="agent",
            bundle=bundle,
            classifier=classifier,
            microphone=microphone,
            url=url,
            state_dir=Path(folder),
            listening=ListeningSettings(hop_ms=HOP_MS),
        )
        known = _running()
        naive = Naive(session, device, bundle, url, qos)
        clocks = {"naive": Clocks(("loop", "network"), known)}
        left = {"agent": Departures(device._link._client), "naive": Departures(naive.client)}
        known = _running()
        thread = threading.Thread(target=device.run, name="inference", args=(stop,))
        thread.start()
        hop = bundle.manifest.rate_hz * HOP_MS // 1000
        rng = np.random.default_rng(0)
        sound = rng.integers(-8000, 8000, 4 * bundle.manifest.window_samples).astype(np.int16)
        microphone.blocks.put(sound[: bundle.manifest.window_samples - hop])
        naive.blocks.put(sound[: bundle.manifest.window_samples - hop, None])
        deadline_s = time.monotonic() + 10
        while not device._link.connected or not naive.client.is_connected():
            time.sleep(0.01)
            if time.monotonic() > deadline_s:
                sys.exit("the broker does not answer")
        clocks["agent"] = Clocks(("inference", "recorder", "network"), known)
        time.sleep(0.5)

        took_ms: dict[str, list[list[float]]] = {"agent": [], "naive": []}
        for number in range(WARM_UP + hops):
            block = sound[number * hop % (len(sound) - hop) :][:hop]
            for who in rng.permutation(["agent", "naive"]).tolist():
                left[who].drain()
                session.spent_ns = 0
                start_ns = clocks[who].read_ns()
                if who == "agent":
                    microphone.blocks.put(block)
                else:
                    naive.blocks.put(block[:, None])
                left[who].wait()
                time.sleep(REST_S)
                spent_ns = clocks[who].read_ns() - start_ns
                # The first thread is the one that runs the model.
                spent_ns[0] -= session.spent_ns
                took_ms[who].append((spent_ns / 1e6).tolist())
        stop.set()
        device.wake()
        thread.join()
    print(json.dumps({who: times[WARM_UP:] for who, times in took_ms.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
