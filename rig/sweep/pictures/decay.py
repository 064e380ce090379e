"""Room responses and their decay curves, as the sweep rendered with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from edge.errors import PlanError
from rig.rooms.measures import decay_db, measure
from rig.sweep import job as jobs
from rig.sweep.job import Description
from rig.sweep.pictures.draw import COLOURS, MAX_ACROSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOOR_DB = -70.0
MAX_ROOMS = 6


class Response(BaseModel):
    """What one response tells; times in seconds, None where it does not decay far enough."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    room: int
    rt60_wanted_s: float | None
    device: str
    source: str
    t30_s: float | None
    t20_s: float | None
    c50_db: float | None
    drr_db: float | None


class Wires:
    """The responses of a sweep, read from its folder as they are needed.

    Raises:
        PlanError: a file is missing or is not what the sweep needs.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self._axes, self._rate_hz = description.grid.axes, description.rate_hz
        self.devices = list(self._axes.devices)
        self.sources = [name if name == "talker" else f"talker {name}" for name in self._axes.talkers]
        self.sources += [f"attacker {name}" for name in self._axes.attackers]
        try:
            self._array = np.load(folder / jobs.MATERIAL / jobs.RESPONSES, mmap_mode="r", allow_pickle=False)
            self._onsets = np.load(folder / jobs.MATERIAL / jobs.ONSETS, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise PlanError(f"sweep {folder}: {jobs.MATERIAL} cannot be read ({error}), compute it again") from None
        shape = (len(self._axes.rt60_s), len(self.devices), len(self.sources))
        if self._array.ndim != 2 or len(self._array) != math.prod(shape) or self._onsets.shape != shape:
            raise PlanError(f"sweep {folder}: {jobs.MATERIAL} does not fit {jobs.DESCRIPTION}, compute it again")

    def of(self, room: int, device: int, source: int) -> npt.NDArray[np.float32]:
        """One response, float32 (taps,), from its loudspeaker's input to the microphone's wire."""
        row = (room * len(self.devices) + device) * len(self.sources) + source
        found: npt.NDArray[np.float32] = np.asarray(self._array[row], np.float32)
        return found

    def told(self, room: int, device: int, source: int) -> Response:
        """The measures of one response."""
        onset = float(self._onsets[room, device, source])
        found = measure(self.of(room, device, source), self._rate_hz, onset)
        return Response(
            room=room,
            rt60_wanted_s=self._axes.rt60_s[room],
            device=self.devices[device],
            source=self.sources[source],
            t30_s=_plain(found.t30_s),
            t20_s=_plain(found.t20_s),
            c50_db=_plain(found.c50_db),
            drr_db=_plain(found.drr_db),
        )

    def rt60_s(self, room: int) -> float | None:
        """Mean T30 of a room from its talkers to its devices; None where no response decays far enough."""
        talkers = len(self._axes.talkers)
        found = [
            seconds
            for device in range(min(len(self.devices), 8))
            for talker in range(min(talkers, 8))
            if (seconds := self.told(room, device, talker).t30_s) is not None
        ]
        return round(float(np.mean(found)), 4) if found else None


def draw(wires: Wires, rate_hz: int, rooms: int) -> tuple[Figure, list[Response]]:
    """Responses of the first talker and the first attacker at each device, and below how their energy decays."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second

    devices, attacker = (
        wires.devices[:MAX_ACROSS],
        next(place for place, name in enumerate(wires.sources) if name.startswith("attacker ")),
    )
    figure = Figure(figsize=(4.2 * len(devices) + 0.6, 6), layout="constrained", dpi=150)
    grid: Any = figure.subplots(2, len(devices), squeeze=False, sharex=True, sharey="row")
    told = []
    for device, name in enumerate(devices):
        above, below = grid[0, device], grid[1, device]
        lines = [(room, source) for room in range(min(rooms, MAX_ROOMS)) for source in (0, attacker)]
        for number, (room, source) in enumerate(lines):
            response = wires.of(room, device, source)
            time_ms = np.arange(len(response)) * 1000 / rate_hz
            found = wires.told(room, device, source)
            told.append(found)
            seconds = "T30 unknown" if found.t30_s is None else f"T30 {found.t30_s:.2f} s"
            label = f"{found.source}{f', room {room + 1}' if rooms > 1 else ''}: {seconds}"
            look: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": "-" if source == 0 else "--",
                "linewidth": 1.0,
            }
            peak = float(np.abs(response).max()) or 1.0
            above.plot(time_ms, response / peak, **{**look, "linewidth": 0.6, "alpha": 0.8})
            curve = decay_db(response)
            shown = np.isfinite(curve) & (curve > FLOOR_DB)
            below.plot(time_ms[shown], curve[shown], label=label, **look)
        above.set_title(f"device {name} (n 1 response per line)", fontsize=9)
        below.legend(fontsize=7, frameon=False)
        below.set_xlabel("time (ms)")
        below.set_ylim(FLOOR_DB, 3)
        for axes in (above, below):
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("response (re its peak)")
    grid[1, 0].set_ylabel("energy still to come (dB)")
    more = f"; the first {MAX_ACROSS} of {len(wires.devices)} devices" if len(wires.devices) > MAX_ACROSS else ""
    figure.suptitle(f"Room responses and their decay{more}", fontsize=11)
    return figure, told


def _plain(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
