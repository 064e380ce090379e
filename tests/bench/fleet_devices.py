"""A thousand devices in one cheap process: MQTT 3.1.1 by hand on one socket each, with an outbox that repeats.

Run as a script: BROKER_PORT DEVICES RATE_HZ SECONDS OUTBOX, the last ``outbox`` or ``none``. It prints one line when
all are connected, begins when its input says so, and prints one JSON line at the end.
"""

from __future__ import annotations

import heapq
import json
import resource
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

REPEAT_S = 2.0
LONGEST_REPEAT_S = 30.0
REPEAT_ROWS = 256
DRAIN_S = 20.0
SHA256 = "0" * 64
SCORES = ",".join(f"{0.0831 + n / 977:.7f}" for n in range(12))


def length(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + length(len(body)) + body


@dataclass
class Device:
    name: str
    connection: socket.socket
    seq: int = 0
    packet_id: int = 0
    unacknowledged: dict[int, tuple[float, bytes]] = field(default_factory=dict)
    inbound: bytearray = field(default_factory=bytearray)
    outbound: bytearray = field(default_factory=bytearray)
    published: int = 0
    patience_s: float = REPEAT_S
    patient_until_s: float = 0.0
    keeps: bool = True

    def send(self, data: bytes) -> None:
        if self.outbound:
            self.outbound += data
            return
        try:
            sent = self.connection.send(data)
        except BlockingIOError:
            sent = 0
        self.outbound += data[sent:]

    def flush(self) -> None:
        try:
            del self.outbound[: self.connection.send(self.outbound)]
        except BlockingIOError:
            return

    def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self.packet_id = self.packet_id % 65_535 + 1
        topic = text(f"earshot/1/{self.name}/{kind}")
        self.send(packet(0x33 if retain else 0x32, topic + self.packet_id.to_bytes(2, "big") + payload))

    def predict(self) -> None:
        now_ns = time.monotonic_ns()
        payload = (
            f'{{"schema":1,"device":"{self.name}","boot_id":"boot-{self.name}","seq":{self.seq},"stream_id":"s",'
            f'"sample_index":{self.seq * 1600},"t_monotonic_ns":{now_ns},"t_utc_ns":{time.time_ns()},"label":"yes",'
            f'"scores":[{SCORES}],"latency_ms":1.25,"bundle_sha256":"{SHA256}","pcm_sha256":"{SHA256}","xruns":0,'
            f'"trigger":"yes"}}'
        ).encode()
        if self.keeps:
            self.unacknowledged[self.seq] = (time.monotonic(), payload)
        self.seq += 1
        self.publish("prediction", payload)

    def repeat(self, now_s: float) -> int:
        """As the outbox of a device does: the oldest first, after two seconds, none twice within two seconds."""
        repeated = 0
        if now_s < self.patient_until_s:
            return repeated
        for seq, (sent_s, payload) in list(self.unacknowledged.items()):
            if now_s - sent_s < REPEAT_S or repeated >= REPEAT_ROWS:
                break
            del self.unacknowledged[seq]
            self.unacknowledged[seq] = (now_s, payload)
            self.publish("prediction", payload)
            repeated += 1
        if repeated:
            self.patience_s = min(2 * self.patience_s, LONGEST_REPEAT_S)
            self.patient_until_s = now_s + self.patience_s
        return repeated

    def packets(self) -> list[tuple[int, bytes]]:
        found, at, data = [], 0, self.inbound
        while len(data) - at >= 2:
            size, shift, head = 0, 0, at + 1
            while head < len(data):
                size |= (data[head] & 127) << shift
                shift += 7
                head += 1
                if not data[head - 1] & 128:
                    break
            else:
                break
            if len(data) < head + size:
                break
            found.append((data[at], bytes(data[head : head + size])))
            at = head + size
        del data[:at]
        return found

    def receive(self) -> None:
        data = self.connection.recv(65_536)
        if not data:
            raise ConnectionError(f"{self.name}: the broker closed the connection")
        self.inbound += data
        for first, body in self.packets():
            if first >> 4 == 4:
                self.published += 1
            elif first >> 4 == 3:
                size = int.from_bytes(body[:2], "big")
                at = 2 + size
                if first & 6:
                    self.send(packet(0x40, body[at : at + 2]))
                    at += 2
                if body[2 : 2 + size].endswith(b"/acknowledge"):
                    command = json.loads(json.loads(body[at:])["body"])
                    self.patience_s, self.patient_until_s = REPEAT_S, 0.0
                    for seq in command["seqs"]:
                        self.unacknowledged.pop(seq, None)


def connect(name: str, port: int) -> Device:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(packet(0x10, text("MQTT") + b"\x04\x02\x00\x00" + text(name)))
    answer = connection.recv(4)
    if answer != b"\x20\x02\x00\x00":
        raise ConnectionError(f"{name}: refused with {answer!r}")
    connection.sendall(packet(0x82, b"\x00\x01" + text(f"earshot/1/{name}/command/acknowledge") + b"\x00"))
    if connection.recv(5)[:1] != b"\x90":
        raise ConnectionError(f"{name}: no subscription")
    connection.setblocking(False)
    device = Device(name, connection)
    state = {"schema": 1, "device": name, "boot_id": f"boot-{name}", "status": "online"}
    device.publish("state", json.dumps(state).encode(), retain=True)
    return device


def everybody(count: int, port: int, *, keeps: bool) -> list[Device]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    devices = [connect(f"sim-{number:04d}", port) for number in range(count)]
    for device in devices:
        device.keeps = keeps
    return devices


def serve(selector: selectors.BaseSelector, devices: list[Device], wait_s: float) -> None:
    for key, _ in selector.select(wait_s):
        key.data.receive()
    for device in devices:
        if device.outbound:
            device.flush()


def main() -> None:
    port, count, rate_hz, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    devices = everybody(count, port, keeps=sys.argv[5] == "outbox")
    selector = selectors.EpollSelector()
    for device in devices:
        selector.register(device.connection, selectors.EVENT_READ, device)
    print("connected", flush=True)
    sys.stdin.readline()
    start_s, cpu_s = time.monotonic(), time.process_time()
    # Phases are spread evenly, as those of devices that were switched on at different times are.
    agenda = [(start_s + number / count / rate_hz, number) for number in range(count)]
    late_ms: list[float] = []
    repeated = 0
    sweep_s, end_s = start_s, start_s + seconds
    while True:
        now_s = time.monotonic()
        while agenda and agenda[0][0] <= now_s:
            due_s, number = heapq.heappop(agenda)
            devices[number].predict()
            late_ms.append((now_s - due_s) * 1e3)
            if due_s + 1 / rate_hz < end_s:
                heapq.heappush(agenda, (due_s + 1 / rate_hz, number))
        if now_s - sweep_s > 0.5:
            sweep_s = now_s
            repeated += sum(device.repeat(now_s) for device in devices)
            if not agenda and (now_s > end_s + DRAIN_S or not any(device.unacknowledged for device in devices)):
                break
        serve(selector, devices, min(0.05, max(0.0, agenda[0][0] - time.monotonic())) if agenda else 0.05)
    late_ms.sort()
    told = {
        "made": sum(device.seq for device in devices),
        "published": sum(device.published for device in devices),
        "repeated": repeated,
        "unacknowledged": sum(len(device.unacknowledged) for device in devices),
        "late_p99_ms": late_ms[int(len(late_ms) * 0.99)],
        "cpu": (time.process_time() - cpu_s) / (time.monotonic() - start_s),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
