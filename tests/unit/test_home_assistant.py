"""What Home Assistant is told about a device, with its templates rendered by the engine that it uses itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge.bridges.home_assistant import announcements, config_topic, discovery, removal
from edge.errors import UsageError
from edge.messages import Health, Level, Prediction, State


def components(device: str = "kitchen") -> dict:
    return json.loads(discovery(device, bundle_name="lms-int8", bundle_version=3)[1])["components"]


def rendered(template: str, payload: bytes, **this: object) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    value = json.loads(payload)
    return ImmutableSandboxedEnvironment().from_string(template).render(value_json=value, this=SimpleNamespace(**this))


def prediction(trigger: str | None, t_utc_ns: int) -> bytes:
    return Prediction(
        device="kitchen",
        boot_id="b",
        seq=0,
        stream_id="x",
        sample_index=0,
        t_monotonic_ns=0,
        t_utc_ns=t_utc_ns,
        label="yes",
        scores=(0.5,),
        latency_ms=1.0,
        bundle_sha256="0" * 64,
        pcm_sha256="0" * 64,
        xruns=0,
        trigger=trigger,
    ).to_json()


def test_the_message_has_what_home_assistant_demands() -> None:
    topic, payload = discovery("kitchen", bundle_name="lms-int8", bundle_version=3)
    assert topic == "homeassistant/device/earshot-kitchen/config"
    told = json.loads(payload)
    assert told["origin"]["name"] == "earshot"
    assert told["device"]["identifiers"] == ["earshot-kitchen"]
    assert told["device"]["model"] == "lms-int8 version 3"
    assert set(told["components"]) == {"connectivity", "trigger", "level", "temperature", "outbox"}
    for component in told["components"].values():
        assert component["platform"] in {"sensor", "binary_sensor"}
        assert component["unique_id"].startswith("earshot-kitchen-")
        assert component["state_topic"].startswith("earshot/1/kitchen/")
    assert "availability" not in told["components"]["connectivity"], "it must be able to say that the device is away"


def test_names_with_dots_get_ids_of_their_own() -> None:
    names = ["a.b", "a_b", "a-b", "ab", "a..b"]
    topics = {config_topic(name) for name in names}
    assert len(topics) == len(names)
    assert not any("." in topic for topic in topics)


@pytest.mark.parametrize("prefix", ["", "a b", "#", "home/+/x", "/a", "a/", "a" * 65])
def test_a_prefix_cannot_hold_wildcards(prefix: str) -> None:
    with pytest.raises(UsageError, match="prefix"):
        config_topic("kitchen", prefix)


@pytest.mark.parametrize(
    ("status", "on", "there"), [("online", "ON", "online"), ("lost", "OFF", "offline"), ("stopped", "OFF", "offline")]
)
def test_state_becomes_connectivity_and_availability(status: str, on: str, there: str) -> None:
    state = State.model_validate({"device": "kitchen", "boot_id": "b", "status": status}).to_json()
    told = components()
    assert rendered(told["connectivity"]["value_template"], state) == on
    (availability,) = told["level"]["availability"]
    assert rendered(availability["value_template"], state) == there


def test_the_last_trigger_is_the_newest_and_no_repeated_one() -> None:
    told = components()["trigger"]
    state, attributes = "unknown", SimpleNamespace()
    for trigger, t_utc_ns, shown in (
        (None, 10, "unknown"),
        ("yes", 2**60 + 1, "yes"),
        (None, 2**60 + 2, "yes"),
        ("no", 2**60 + 3, "no"),
        ("yes", 2**60 + 1, "no"),
        ("up", 2**60 + 4, "up"),
    ):
        payload = prediction(trigger, t_utc_ns)
        new = rendered(told["value_template"], payload, state=state, attributes=attributes)
        kept = rendered(told["json_attributes_template"], payload, state=state, attributes=attributes)
        state, attributes = new, SimpleNamespace(**json.loads(kept))
        assert state == shown
    assert told["json_attributes_topic"] == told["state_topic"]


def test_level_temperature_and_outbox_are_read_from_our_messages() -> None:
    told = components()
    level = Level(device="kitchen", boot_id="b", rms_dbfs=-31.26, peak_dbfs=-3.0, xruns=0).to_json()
    health = Health(device="kitchen", boot_id="b", uptime_s=1.0, cpu_temperature_c=51.5, outbox_depth=7).to_json()
    bare = Health(device="kitchen", boot_id="b", uptime_s=1.0).to_json()
    assert rendered(told["level"]["value_template"], level) == "-31.3"
    assert rendered(told["temperature"]["value_template"], health) == "51.5"
    assert rendered(told["temperature"]["value_template"], bare) == "None"
    assert rendered(told["outbox"]["value_template"], health) == "7"


def test_it_is_taken_away_where_it_is_no_longer_wanted(tmp_path: Path) -> None:
    memory = tmp_path / "home-assistant"
    assert announcements(memory, "kitchen", prefix=None) == []
    assert not memory.exists()
    assert announcements(memory, "kitchen", prefix="homeassistant") == [discovery("kitchen")]
    assert announcements(memory, "kitchen", prefix="homeassistant") == [discovery("kitchen")]
    assert announcements(memory, "kitchen", prefix="other") == [
        removal("kitchen"),
        discovery("kitchen", prefix="other"),
    ]
    gone = announcements(memory, "kitchen", prefix=None)
    assert gone == [removal("kitchen"), removal("kitchen", prefix="other")]
    assert {payload for _, payload in gone} == {b""}
    memory.write_bytes(b"home/#\n\xff")
    assert announcements(memory, "kitchen", prefix=None) == []
