"""How much of a small machine the agent takes, with the released INT8 model, MQTT, an operator and a file to hear."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from edge.mqtt.broker_url import BrokerUrl
from edge.mqtt.client import new_client
from firmware_models import zoo

ROOT = Path(__file__).resolve().parents[2]
LIMIT_BYTES = 85_000_000


def test_resident_memory_stays_below_its_limit(
    mosquitto: Any, operator_keys: Any, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "sound.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 16_000)
    heard = threading.Semaphore(0)
    broker = BrokerUrl.parse(mosquitto.url)
    client = new_client(broker)
    client.on_message = lambda *_: heard.release()
    client.connect(broker.host, broker.port)
    client.subscribe("earshot/1/small/prediction")
    client.loop_start()
    command = [sys.executable, "-m", "edge.cli", "run", "--name", "small", "--bundle", str(zoo.bundle("lms-int8"))]
    command += ["--trust", str(zoo.PUBLIC_KEY), "--operator", str(operator_keys.public), "--broker", mosquitto.url]
    command += ["--microphone", f"file:{tmp_path / 'sound.wav'}?loop", "--state-dir", str(tmp_path / "state")]
    log = tmp_path / "device.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--hop", "100"], stderr=output, cwd=ROOT)
    try:
        for _ in range(40):
            assert heard.acquire(timeout=30), log.read_text()
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.kill()
        process.wait()
        client.disconnect()
        client.loop_stop()
    now, peak = (1024 * int(status.split(f"{key}:")[1].split()[0]) for key in ("VmRSS", "VmHWM"))
    assert now < LIMIT_BYTES, f"{now / 1e6:.1f} MB"
    assert peak < LIMIT_BYTES, f"{peak / 1e6:.1f} MB at its peak"
    # What only the start needs was given back.
    assert now < peak
