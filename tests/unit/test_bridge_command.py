"""``earshot bridge`` tells in one line what is wrong with its arguments, and who would take part."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edge.errors import EarshotError, UnavailableError, UsageError
from rig.cli.devices.bridge import app

COMMON = ("--name", "stranger", "--broker", "mqtt://localhost")
WYOMING = ("wyoming", *COMMON)
HERMES = ("hermes", *COMMON, "--wake-word", "okay")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (WYOMING, "either --service URI"),
        ((*WYOMING, "--service", "tcp://a:1", "--events", "tcp://a:1"), "either --service URI"),
        ((*WYOMING, "--service", "tcp://a:1", "--play", "aplay"), "--play goes with --events"),
        ((*WYOMING, "--events", "tcp://127.0.0.1:1"), "needs --play"),
        ((*WYOMING, "--events", "tcp://127.0.0.1:1", "--play", "cat"), "--wake-word"),
        ((*WYOMING, "--events", "tcp://127.0.0.1:1", "--play", "", "--wake-word", "a"), "no such program"),
        ((*WYOMING, "--events", "tcp://127.0.0.1:1", "--play", "'", "--wake-word", "a"), "No closing quotation"),
        ((*WYOMING, "--service", "localhost:7"), "use tcp://HOST:PORT"),
        ((*WYOMING, "--service", "tcp://a:1", "--lead-ms", "-1"), "--lead-ms -1"),
        ((*WYOMING, "--service", "tcp://a:1", "--tail-ms", "99999"), "--tail-ms 99999"),
        ((*WYOMING, "--service", "tcp://a:1", "--window-ms", "1"), "--window-ms 1"),
        ((*WYOMING, "--service", "tcp://a:1", "--answer-timeout", "0"), "--answer-timeout 0"),
        ((*WYOMING, "--service", "tcp://a:1", "--answer-timeout", "nan"), "--answer-timeout nan"),
        ((*WYOMING, "--service", "tcp://a:1", "--connect-timeout", "-1"), "--connect-timeout -1"),
        ((*WYOMING, "--service", "tcp://a:1", "--log-level", "loud"), "--log-level 'loud'"),
        (("wyoming", "--name", "A B", "--broker", "mqtt://localhost", "--service", "tcp://a:1"), "device name"),
        (("wyoming", "--name", "a", "--broker", "localhost", "--service", "tcp://a:1"), "broker URL"),
        ((*HERMES, "--site", "a/b"), "--site 'a/b'"),
        ((*HERMES, "--site", ""), "--site ''"),
        ((*HERMES, "--service", "tcp://a"), "broker URL"),
        ((*HERMES, "--wake-word", "a\tb"), "--wake-word"),
    ],
)
def test_wrong_arguments(arguments, complaint):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UsageError), result.output
    assert complaint in str(result.exception)
    assert str(result.exception).isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        (*WYOMING, "--service", "tcp://127.0.0.1:1"),
        (*WYOMING, "--service", "unix:///nowhere/at/all"),
        ("hermes", "--name", "a", "--broker", "mqtt://127.0.0.1:1", "--wake-word", "okay"),
    ],
)
def test_nobody_there(arguments):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, EarshotError), result.output
    assert isinstance(result.exception, UnavailableError)


def test_a_dry_run_connects_to_no_broker():
    result = CliRunner().invoke(app, (*HERMES, "--event", "intent", "--dry-run", "--json"))
    assert result.exit_code == 0
    told = json.loads(result.output)
    assert (told["bundle_name"], told["labels"]) == ("hermes-okay", ["_background_", "okay"])
    assert len(told["bundle_sha256"]) == 64
