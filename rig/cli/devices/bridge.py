"""``earshot bridge``: a voice assistant that is not ours takes part in a session as a device."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import UnavailableError, UsageError
from rig.cli.console import print_json, say

if TYPE_CHECKING:
    from rig.bridges.assistant import Assistant
    from rig.bridges.run import BridgeSettings
    from rig.bridges.utterance import Utterance

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Let a voice assistant that is not ours take part in a session."
)


class Pace(StrEnum):
    """How fast an assistant is given its sound."""

    FAST = "fast"
    REAL_TIME = "real-time"


class EventKind(StrEnum):
    """What an assistant says when it heard something."""

    HOTWORD = "hotword"
    TEXT = "text"
    INTENT = "intent"


NameOption = Annotated[str, typer.Option("--name", help="The device's name in topics: a-z 0-9 . _ -")]
BrokerOption = Annotated[
    str, typer.Option("--broker", metavar="URL", help="earshot's broker, mqtt://[USER@]HOST[:PORT].")
]
MicrophoneOption = Annotated[
    str, typer.Option("--microphone", metavar="SPEC", help="Where the session's sound comes from: socket:HOST:PORT.")
]
OperatorOption = Annotated[
    list[Path] | None, typer.Option("--operator", metavar="KEY.pub", help="Whose commands are obeyed; repeatable.")
]
StateOption = Annotated[
    Path | None, typer.Option("--state-dir", help="Keeps the outbox.", show_default="~/.local/state/earshot")
]
WindowOption = Annotated[int, typer.Option("--window-ms", help="Length of a trial's window.")]
LeadOption = Annotated[int, typer.Option("--lead-ms", help="Silence before a window.")]
TailOption = Annotated[int, typer.Option("--tail-ms", help="Silence after a window.")]
ConnectOption = Annotated[float, typer.Option("--connect-timeout", help="Give up on the broker after S s; 0: never.")]
EofOption = Annotated[bool, typer.Option("--exit-on-stdin-eof", help="Stop when standard input closes.")]
LogOption = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Only tell who would take part.")]
JsonOption = Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")]


@app.callback()
def group() -> None:
    """Let a voice assistant that is not ours take part in a session."""


@app.command()
def wyoming(
    name: NameOption,
    broker: BrokerOption,
    service: Annotated[
        str | None, typer.Option("--service", metavar="URI", help="Wake-word service: tcp://HOST:PORT or unix:///PATH.")
    ] = None,
    events: Annotated[
        str | None,
        typer.Option("--events", metavar="URI", help="Instead: where a satellite with a microphone sends its events."),
    ] = None,
    play: Annotated[
        str | None,
        typer.Option("--play", metavar="COMMAND", help="With --events: plays raw s16le mono 16 kHz from its input."),
    ] = None,
    wake_word: Annotated[
        list[str] | None,
        typer.Option("--wake-word", help="Listen for this one; repeatable.", show_default="all of the service"),
    ] = None,
    microphone: MicrophoneOption = "socket:127.0.0.1:7000",
    operator: OperatorOption = None,
    state_dir: StateOption = None,
    window_ms: WindowOption = 1000,
    lead_ms: LeadOption = 2000,
    tail_ms: TailOption = 1000,
    pace: Annotated[Pace, typer.Option("--pace", help="How fast the service is given its sound.")] = Pace.FAST,
    answer_timeout: Annotated[
        float, typer.Option("--answer-timeout", help="How many seconds after the sound an answer may come.")
    ] = 10.0,
    connect_timeout: ConnectOption = 0.0,
    exit_on_stdin_eof: EofOption = False,
    log_level: LogOption = "info",
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bridge to a Wyoming wake-word service, or to a satellite that has a microphone of its own."""
    _need_wyoming()
    from rig.bridges.assistant import check_words
    from rig.bridges.player import Player
    from rig.bridges.wyoming_satellite import WyomingSatellite
    from rig.bridges.wyoming_service import WyomingService
    from rig.bridges.wyoming_wire import Address

    settings = _settings(name, broker, microphone, operator, state_dir, window_ms, connect_timeout)
    _check_seconds("--answer-timeout", answer_timeout)
    if (service is None) == (events is None):
        raise UsageError("give either --service URI (it is sent the sound) or --events URI (it has a microphone)")
    stop = _start(log_level, exit_on_stdin_eof=exit_on_stdin_eof)
    assistant: Assistant
    if service is not None:
        if play is not None:
            raise UsageError("--play goes with --events: a --service is sent the sound itself")
        assistant = WyomingService(
            Address("--service", service),
            check_words(wake_word) if wake_word else (),
            utterance=_utterance(lead_ms, tail_ms, pace),
            answer_timeout_s=answer_timeout,
            stop=stop,
        )
    else:
        if play is None:
            raise UsageError(
                "--events needs --play COMMAND, which the satellite hears, e.g. --play 'aplay -q -t raw ...'"
            )
        utterance = _utterance(lead_ms, tail_ms, Pace.REAL_TIME)
        assistant = WyomingSatellite(
            Address("--events", events or ""),
            check_words(wake_word or ()),
            utterance=utterance,
            player=Player(play, utterance, stop),
            late_s=min(answer_timeout, 0.5),
        )
    _go(nullcontext(), assistant, settings, stop, dry_run=dry_run, as_json=as_json)


@app.command()
def hermes(
    name: NameOption,
    broker: BrokerOption,
    wake_word: Annotated[
        list[str], typer.Option("--wake-word", help="Wake word, sentence or intent that counts; repeatable.")
    ],
    site: Annotated[str, typer.Option("--site", help="The assistant's site whose microphone this is.")] = "default",
    service: Annotated[
        str | None,
        typer.Option("--service", metavar="URL", help="The assistant's broker.", show_default="the one of --broker"),
    ] = None,
    event: Annotated[EventKind, typer.Option("--event", help="Which event counts.")] = EventKind.HOTWORD,
    probe: Annotated[bool, typer.Option(help="After each trial, ask the wake-word service whether it lives.")] = True,
    microphone: MicrophoneOption = "socket:127.0.0.1:7000",
    operator: OperatorOption = None,
    state_dir: StateOption = None,
    window_ms: WindowOption = 1000,
    lead_ms: LeadOption = 2000,
    tail_ms: TailOption = 1000,
    pace: Annotated[Pace, typer.Option("--pace", help="How fast the site is given its sound.")] = Pace.REAL_TIME,
    answer_timeout: Annotated[
        float | None,
        typer.Option(
            "--answer-timeout",
            help="How many seconds after the sound an event may come.",
            show_default="0.5 for a wake word, else 10",
        ),
    ] = None,
    connect_timeout: ConnectOption = 0.0,
    exit_on_stdin_eof: EofOption = False,
    log_level: LogOption = "info",
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bridge to a Rhasspy assistant (Hermes over MQTT)."""
    from edge.mqtt.broker_url import BrokerUrl
    from rig.bridges.assistant import check_words
    from rig.bridges.hermes import TOPICS, HermesAssistant
    from rig.bridges.hermes_link import HermesLink

    settings = _settings(name, broker, microphone, operator, state_dir, window_ms, connect_timeout)
    words = check_words(wake_word)
    if not site or len(site) > 128 or not site.isprintable() or any(character in site for character in "/+#"):
        raise UsageError(f"--site {site[:40]!r}: use 1 to 128 printable characters other than / + #")
    timeout_s = answer_timeout if answer_timeout is not None else 0.5 if event is EventKind.HOTWORD else 10.0
    _check_seconds("--answer-timeout", timeout_s)
    stop = _start(log_level, exit_on_stdin_eof=exit_on_stdin_eof)
    link = HermesLink(BrokerUrl.parse(service or broker), site, TOPICS[event.value], stop)
    assistant = HermesAssistant(
        link,
        site,
        words,
        kind=event.value,
        utterance=_utterance(lead_ms, tail_ms, pace),
        answer_timeout_s=timeout_s,
        probe=probe,
    )
    _go(link, assistant, settings, stop, dry_run=dry_run, as_json=as_json)


def _go(
    link: AbstractContextManager[object],
    assistant: Assistant,
    settings: BridgeSettings,
    stop: threading.Event,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from rig.bridges.run import outline, run_bridge

    if dry_run:
        facts = outline(assistant, settings)
        if as_json:
            print_json(facts)
            return
        say(f"device {facts['device']} would be {facts['bundle_name']}, sha256 {facts['bundle_sha256']}")
        say(f"labels: {', '.join(facts['labels'])}")
        say(f"windows of {facts['window_samples']} samples at {facts['rate_hz']} Hz")
        return
    with link:
        code = run_bridge(assistant, settings, stop)
    if code:
        raise typer.Exit(code)


def _settings(
    name: str,
    broker: str,
    microphone: str,
    operator: list[Path] | None,
    state_dir: Path | None,
    window_ms: int,
    connect_timeout_s: float,
) -> BridgeSettings:
    from edge.mqtt.broker_url import BrokerUrl
    from rig.bridges.run import BridgeSettings

    return BridgeSettings(
        name=name,
        broker=BrokerUrl.parse(broker),
        microphone=microphone,
        operators=operator or [],
        state_dir=state_dir,
        window_ms=window_ms,
        connect_timeout_s=connect_timeout_s,
    )


def _utterance(lead_ms: int, tail_ms: int, pace: Pace) -> Utterance:
    from rig.bridges.utterance import MAX_SILENCE_MS, Utterance

    for option, value in (("--lead-ms", lead_ms), ("--tail-ms", tail_ms)):
        if not 0 <= value <= MAX_SILENCE_MS:
            raise UsageError(f"{option} {value}: use 0 to {MAX_SILENCE_MS}")
    return Utterance(lead_ms=lead_ms, tail_ms=tail_ms, pace=pace.value)


def _check_seconds(option: str, value: float) -> None:
    if not 0 < value <= 20:
        raise UsageError(f"{option} {value:g}: use more than 0, at most 20 seconds")


def _start(level: str, *, exit_on_stdin_eof: bool) -> threading.Event:
    from edge.cli.process import watch_stdin

    levels = ("debug", "info", "warning", "error")
    if level not in levels:
        raise UsageError(f"--log-level {level!r}: use {', '.join(levels)}")
    form = "%(asctime)s earshot bridge: %(levelname)s %(message)s"
    logging.basicConfig(level=level.upper(), format=form, datefmt="%H:%M:%S", stream=sys.stderr)
    stop = threading.Event()
    if exit_on_stdin_eof:
        watch_stdin(stop.set)
    return stop


def _need_wyoming() -> None:
    if find_spec("wyoming") is None:
        raise UnavailableError("the Wyoming protocol is not installed: pip install 'earshot[bridges]'")
