"""What a bridge makes of an assistant: each answer is the assistant's own, and what is none is told in one line."""

from __future__ import annotations

import shlex
import socket
import sys
import threading
import time

import numpy as np
import pytest

from edge.errors import DataError, UnavailableError, UsageError
from edge.mqtt.broker_url import BrokerUrl
from rig.bridges.assistant import Bridged, Description, ForeignModel, check_words
from rig.bridges.hermes import TOPICS, HermesAssistant
from rig.bridges.hermes_link import HermesLink
from rig.bridges.player import Player
from rig.bridges.utterance import Utterance
from rig.bridges.wyoming_satellite import WyomingSatellite
from rig.bridges.wyoming_service import WyomingService
from rig.bridges.wyoming_wire import Address

LEAD_MS, TAIL_MS = 1200, 480
AROUND = Utterance(lead_ms=LEAD_MS, tail_ms=TAIL_MS)


@pytest.fixture
def windows(assistant):
    """Windows of the word and of others, and what the assistant must hear in them."""
    chosen = [*assistant.windows("stop")[:3], *assistant.windows("yes")[:2], np.zeros(16000, np.int16)]
    expected = [assistant.hears(window, lead_ms=LEAD_MS, tail_ms=TAIL_MS) for window in chosen]
    assert set(expected) == {None, "okay_stop"}
    return list(zip(chosen, expected, strict=True))


def connect(make, timeout_s=20):
    """The assistant, as soon as it answers."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return make()
        except UnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


@pytest.fixture
def wyoming(assistant, free_port):
    uri = f"tcp://127.0.0.1:{free_port()}"
    assistant.start("wyoming", "--uri", uri)

    def make(**changes):
        settings = {"utterance": AROUND, "answer_timeout_s": 5.0, "stop": threading.Event(), **changes}
        return connect(lambda: WyomingService(Address("--service", uri), (), **settings))

    return make


def test_a_wyoming_service_is_heard_as_it_is(wyoming, windows):
    service = wyoming()
    assert service.description.name == "wyoming-okay_stop"
    assert [service.hear(window) for window, _ in windows] == [expected for _, expected in windows]
    service.check()


def test_the_hash_tells_services_apart(wyoming):
    one, same, slower = wyoming(), wyoming(), wyoming(utterance=AROUND.model_copy(update={"tail_ms": 960}))
    assert one.description.sha256 == same.description.sha256 != slower.description.sha256


def test_real_time_takes_the_time_of_the_sound(wyoming, windows):
    service = wyoming(utterance=Utterance(lead_ms=0, tail_ms=0, pace="real-time"))
    began_s = time.monotonic()
    service.hear(np.zeros(16000, np.int16))
    assert 1.0 <= time.monotonic() - began_s < 2.0


def test_a_service_that_dies_is_told_and_found_again(wyoming, windows, assistant):
    service = wyoming()
    word = next(window for window, expected in windows if expected)
    assert service.hear(word) == "okay_stop"
    assistant.kill()
    with pytest.raises(UnavailableError, match="cannot connect"):
        service.hear(word)
    with pytest.raises(UnavailableError):
        service.check()
    assistant.start_again()
    connect(service.check)
    assert service.hear(word) == "okay_stop"


def test_wake_words_that_a_service_lacks_are_refused(wyoming, assistant, free_port):
    service = wyoming()
    with pytest.raises(UsageError, match=r"'computer'.* knows okay_stop"):
        WyomingService(service._address, ("computer",), utterance=AROUND, answer_timeout_s=1, stop=threading.Event())


GOOD_INFO = b'{"type": "info", "data": {"wake": [{"name": "p", "models": [{"name": "w"}]}]}}\n'


@pytest.fixture
def hostile():
    """A service that answers ``describe`` with one thing and everything after with another."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def start(info, answer):
        def serve():
            while not closing.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    describing = b'"describe"' in connection.recv(1 << 16)
                    try:
                        connection.sendall(info if describing else answer)
                        while connection.recv(1 << 16):
                            pass
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        return WyomingService(
            Address("--service", f"tcp://127.0.0.1:{listener.getsockname()[1]}"),
            (),
            utterance=AROUND,
            answer_timeout_s=0.5,
            stop=threading.Event(),
        )

    yield start
    closing.set()
    listener.close()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\xff\xfe\n", "malformed"),
        (b"[1, 2]\n", "malformed"),
        (b'"detection"\n', "malformed"),
        (b"{}\n", "malformed"),
        (b'{"type": 7}\n', "malformed"),
        (b'{"type": "detection", "data": [1]}\n', "malformed"),
        (b'{"type": "detection", "data_length": "many"}\n', "malformed"),
        (b'{"type": "detection", "data_length": 3}\n[1]', "malformed"),
        (b"[" * 20_000 + b"\n", "malformed"),
        (b"x" * 400_000, "a line of over"),
        (b'{"type": "detection", "payload_length": 99999999999}\n', "a part of over"),
        (b'{"type": "detection", "data": {"name": "other"}}\n', "'other', which is none of w"),
        (b'{"type": "detection", "data": {"name": 5}}\n', "detection: name"),
        (b'{"type": "detection", "data": {"name": "w", "timestamp": "soon"}}\n', "detection: timestamp"),
        (b'{"type": "detection", "data": {"name": "w", "timestamp": 0}}\n', "silence before the window"),
        (b'{"type": "detection", "data": {"name": "w", "timestamp": -5}}\n', "not played"),
        (b'{"type": "detection", "data": {"name": "w", "timestamp": 99999999}}\n', "not played"),
        (b'{"type": "ping"}\n' * 5000, "events for one utterance"),
    ],
)
def test_malformed_events_are_refused_in_one_line(hostile, answer, complaint):
    service = hostile(GOOD_INFO, answer)
    with pytest.raises(DataError, match=complaint) as caught:
        service.hear(np.zeros(16000, np.int16))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "no answer within 0.5 s"),
        (b'{"type": "transcript"}\n', "no answer within 0.5 s"),
    ],
)
def test_no_answer_is_no_silence(hostile, answer, complaint):
    service = hostile(GOOD_INFO, answer)
    with pytest.raises(UnavailableError, match=complaint):
        service.hear(np.zeros(16000, np.int16))


@pytest.mark.parametrize(
    ("info", "error", "complaint"),
    [
        (b'{"type": "info", "data": {"wake": 3}}\n', DataError, "info: wake"),
        (b'{"type": "info", "data": {"wake": [{"name": "p", "models": [{"name": ""}]}]}}\n', DataError, "name"),
        (b'{"type": "info"}\n', UsageError, "offers no wake words"),
        (b"nonsense\n", DataError, "malformed"),
    ],
)
def test_malformed_services_are_refused_in_one_line(hostile, info, error, complaint):
    with pytest.raises(error, match=complaint):
        hostile(info, b"")


def test_a_satellite_hears_what_is_played(assistant, windows, free_port, tmp_path):
    events, microphone = f"tcp://127.0.0.1:{free_port()}", free_port()
    speaker = tmp_path / "speaker.py"
    speaker.write_text(
        "import socket, sys\n"
        f"with socket.create_connection(('127.0.0.1', {microphone})) as line:\n"
        "    while data := sys.stdin.buffer.read1(65536):\n"
        "        line.sendall(data)\n"
    )
    around = Utterance(lead_ms=160, tail_ms=TAIL_MS, pace="real-time")
    player = Player(shlex.join([sys.executable, str(speaker)]), around, threading.Event())
    satellite = WyomingSatellite(
        Address("--events", events), ("okay_stop",), utterance=around, player=player, late_s=0.3
    )
    with pytest.raises(UnavailableError, match="no satellite"):
        satellite.hear(windows[0][0])
    assistant.start("satellite", "--microphone", str(microphone), "--events", events)
    connect(satellite.check)
    chosen = [next(window for window, expected in windows if bool(expected) is wanted) for wanted in (True, False)]
    expected = [assistant.hears(window, lead_ms=160, tail_ms=TAIL_MS) for window in chosen]
    assert [satellite.hear(window) for window in chosen] == expected
    assistant.kill()
    with pytest.raises(UnavailableError):
        satellite.hear(chosen[0])


def test_a_player_that_fails_is_told(tmp_path):
    around = Utterance(lead_ms=0, tail_ms=0, pace="real-time")
    command = shlex.join([sys.executable, "-c", "import sys; sys.exit('no such card')"])
    with pytest.raises(UnavailableError, match=r"ended with 1 .*no such card"):
        Player(command, around, threading.Event()).play(np.zeros(16000, np.int16))


@pytest.fixture
def hermes(assistant, mosquitto):
    links = []

    def make(kind="hotword", words=("okay_stop",), site="kitchen", **changes):
        link = HermesLink(BrokerUrl.parse(mosquitto.url), site, TOPICS[kind], threading.Event())
        links.append(link.__enter__())
        settings = {"kind": kind, "utterance": AROUND, "answer_timeout_s": 0.4, "probe": True, **changes}
        return HermesAssistant(link, site, words, **settings)

    yield make
    for link in links:
        link.__exit__()


@pytest.mark.parametrize("kind", TOPICS)
def test_a_hermes_assistant_is_heard_as_it_is(hermes, assistant, mosquitto, windows, kind):
    assistant.start("hermes", "--broker", mosquitto.url, "--site", "kitchen")
    connect(hermes().check)
    site = hermes(kind)
    assert [site.hear(window) for window, _ in windows] == [expected for _, expected in windows]


def test_a_dead_hermes_service_is_no_silence(hermes, assistant, mosquitto):
    assistant.start("hermes", "--broker", mosquitto.url, "--site", "kitchen")
    site = hermes()
    connect(site.check)
    assert site.hear(np.zeros(16000, np.int16)) is None
    assistant.kill()
    with pytest.raises(UnavailableError, match="no wake-word service"):
        site.hear(np.zeros(16000, np.int16))


def test_other_sites_and_malformed_events(hermes, mosquitto):
    from edge.mqtt.client import new_client

    client = new_client(BrokerUrl.parse(mosquitto.url))
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    site = hermes(probe=False, utterance=AROUND.model_copy(update={"lead_ms": 0}))
    site.check()

    def hear(topic, payload):
        timer = threading.Timer(0.2, client.publish, (topic, payload, 1))
        timer.start()
        try:
            return site.hear(np.zeros(16000, np.int16))
        finally:
            timer.join()

    try:
        assert hear("hermes/hotword/okay_stop/detected", b'{"siteId": "kitchen"}') == "okay_stop"
        assert hear("hermes/hotword/default/detected", b'{"siteId": "kitchen", "modelId": "okay_stop"}') == "okay_stop"
        assert hear("hermes/hotword/okay_stop/detected", b'{"siteId": "bath"}') is None
        for payload in (b"\xff", b"[]", b"7", b'{"siteId": 5}', b'{"siteId": "' + b"x" * 300 + b'"}', b" " * 300_000):
            with pytest.raises(DataError) as caught:
                hear("hermes/hotword/okay_stop/detected", payload)
            assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match="'other', which is none of okay_stop"):
            hear("hermes/hotword/other/detected", b'{"siteId": "kitchen"}')
        mosquitto.kill()
        with pytest.raises(UnavailableError):
            site.hear(np.zeros(16000, np.int16))
    finally:
        client.loop_stop()


def test_an_assistant_as_a_model():
    description = Description("wyoming", ("okay nabu", "Hey Jarvis"), {"a": 1})
    assert description.name == "wyoming-okay-nabu-hey-jarvis"
    model = ForeignModel.of(description, 16000)
    assert model.manifest.labels == ("_background_", "okay nabu", "Hey Jarvis")

    class Echo:
        description = Description("wyoming", ("okay nabu", "Hey Jarvis"), {"a": 1})

        def hear(self, pcm):
            assert pcm.dtype == np.int16
            return {-32768: "okay nabu", 32767: "Hey Jarvis"}.get(int(pcm[0]))

    pcm = np.zeros((3, 16000), np.int16)
    pcm[0], pcm[1] = -32768, 32767
    scores = Bridged(Echo(), model).scores(pcm.astype(np.float32) / np.float32(32768))
    assert scores.argmax(axis=1).tolist() == [1, 2, 0]


@pytest.mark.parametrize("words", [(), ("",), ("a\nb",), ("_background_",), tuple(map(str, range(65)))])
def test_words_that_cannot_be_labels(words):
    with pytest.raises(UsageError, match="--wake-word"):
        check_words(words)


@pytest.mark.parametrize(
    "uri", ["", "tcp://", "tcp://host", "tcp://:7", "http://host:7", "tcp://host:99999", "tcp://h:7/x", "unix://", "x"]
)
def test_addresses_that_make_no_sense(uri):
    with pytest.raises(UsageError, match="use tcp://HOST:PORT"):
        Address("--service", uri)
