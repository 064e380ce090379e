"""One rig process that follows a fleet, and how long each prediction took to reach it.

Run as a script: WAY BROKER_URL FOLDER. WAY is ``follow`` (the code of the rig) or ``paho`` (a bare subscriber that
does nothing but decode JSON: no check, no record, no acknowledgement). It ends at the end of its input and prints one
JSON line.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from edge.messages import Prediction
from edge.mqtt.broker_url import BrokerUrl

latencies_ns: list[int] = []
seen: set[tuple[str, int]] = set()


def note(predictions: Sequence[Prediction]) -> None:
    now_ns = time.monotonic_ns()
    for prediction in predictions:
        key = (prediction.device, prediction.seq)
        if key not in seen:
            seen.add(key)
            latencies_ns.append(now_ns - prediction.t_monotonic_ns)


def follow(url: BrokerUrl, folder: Path, stop: threading.Event) -> dict[str, float]:
    from rig.devices.events import Event
    from rig.devices.link import Link
    from rig.devices.operator import Operator
    from rig.fleet.collection import Collection
    from rig.fleet.follow import Follower, tune_process

    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    link = Link(url, ["+"], events, operator=Operator.ephemeral(), reports=("prediction",))
    with link, Collection(folder / "fleet.sqlite") as collection:
        follower = Follower(link, events, collection, on_predictions=note)
        tune_process()
        print("connected", flush=True)
        follower.run(stop)
        keys = len(collection)
    return {
        "stored": keys,
        "duplicates": follower.duplicates,
        "acknowledgements": follower.acknowledgements,
        "malformed": link.malformed,
    }


def bare(url: BrokerUrl, folder: Path, stop: threading.Event) -> dict[str, float]:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    def received(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        told = json.loads(message.payload)
        now_ns = time.monotonic_ns()
        key = (told["device"], told["seq"])
        if key not in seen:
            seen.add(key)
            latencies_ns.append(now_ns - told["t_monotonic_ns"])

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = received
    client.connect(url.host, url.port)
    client.loop_start()
    client.subscribe("earshot/1/+/prediction", qos=1)
    print("connected", flush=True)
    stop.wait()
    client.disconnect()
    client.loop_stop()
    return {"stored": len(seen), "duplicates": 0}


def main() -> None:
    way, url, folder = sys.argv[1], BrokerUrl.parse(sys.argv[2]), Path(sys.argv[3])
    stop = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    start_s, cpu_s = time.monotonic(), time.process_time()
    told = {"follow": follow, "paho": bare}[way](url, folder, stop)
    latencies_ns.sort()
    told["cpu_s"] = time.process_time() - cpu_s
    told["cpu"] = told["cpu_s"] / (time.monotonic() - start_s)
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)):
        told[name] = latencies_ns[min(len(latencies_ns) - 1, int(len(latencies_ns) * share))] / 1e6
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
