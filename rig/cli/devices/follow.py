"""``earshot device follow``: keep what devices recognise, so that they may forget it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, say
from rig.cli.devices.options import BrokerOption, JsonOption, OperatorOption, StationOption, access

if TYPE_CHECKING:
    from edge.messages import Prediction
    from rig.devices.events import Events

app = typer.Typer()
_LONGEST_S = 366 * 86_400.0


@app.command("follow")
def follow(
    out: Annotated[Path, typer.Option("--out", help="SQLite file to keep predictions in; goes on where it ended.")],
    device: Annotated[list[str] | None, typer.Option("--device", help="Only this device; repeatable.")] = None,
    broker: BrokerOption = None,
    operator: OperatorOption = None,
    station: StationOption = None,
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Also keep what a session asked for (when none is running).")
    ] = False,
    seconds: Annotated[float | None, typer.Option("--seconds", help="End after so long (until Ctrl-C).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Store predictions on this disk and acknowledge them to the devices; triggers are shown as they come."""
    import queue

    from edge.messages import check_name
    from rig.devices.link import Link
    from rig.devices.operator import Operator
    from rig.fleet.collection import Collection
    from rig.fleet.follow import Follower, tune_process

    if seconds is not None and not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--seconds {seconds:g}: use over 0 to {_LONGEST_S:g}")
    way = access(broker, operator, station)
    signer = Operator.load(way.need_operator())
    devices = [check_name(name) for name in device] if device else ["+"]
    events: Events = queue.SimpleQueue()
    stop = threading.Event()
    if seconds is not None:
        end = threading.Timer(seconds, stop.set)
        end.daemon = True
        end.start()
    link = Link(way.url, devices, events, operator=signer, reports=("prediction",))
    with Collection(out) as collection, link:
        follower = Follower(link, events, collection, sessions=sessions, on_predictions=None if as_json else _show)
        tune_process()
        # Ctrl-C is the usual end: what came is stored.
        with contextlib.suppress(KeyboardInterrupt):
            follower.run(stop)
        kept = len(collection)
    told = {"file": str(out), "new": follower.stored, "duplicates": follower.duplicates, "kept": kept}
    if as_json:
        print_json(told)
    else:
        say(f"{told['new']} new predictions, {told['duplicates']} duplicates; {out} holds {kept}")


def _show(predictions: Sequence[Prediction]) -> None:
    import datetime as dt

    for prediction in predictions:
        if prediction.trigger is None:
            continue
        at = dt.datetime.fromtimestamp(prediction.t_utc_ns / 1e9, dt.UTC).astimezone()
        say(f"{at:%H:%M:%S} {prediction.device} {prediction.trigger}")
