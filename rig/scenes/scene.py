"""The scene: what stands in a plan under ``room``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from edge.errors import PlanError
from edge.messages import Name
from rig.rooms import geometry
from rig.rooms.measured import Recording
from rig.rooms.space import Absorber, Space
from rig.scenes import background, profiles
from rig.scenes.placed import Placed
from rig.scenes.placement import Placements, place
from rig.scenes.settings import Agc, BackgroundChoice


def _recording(value: Any) -> Any:
    """A path alone is short for ``{file: PATH}``."""
    return {"file": value} if isinstance(value, str) else value


_Recording = Annotated[Recording, BeforeValidator(_recording)]
_Files = Annotated[dict[Name, Annotated[dict[str, _Recording], Field(min_length=1)]], Field(min_length=1)]
Measured = Annotated[
    Annotated[str, Tag("folder")] | Annotated[_Files, Tag("files")],
    Discriminator(lambda value: "files" if isinstance(value, Mapping) else "folder"),
]
_Db = Annotated[float, Field(ge=-60, le=20, allow_inf_nan=False)]


class Scene(Space):
    """A room, who stands where in it, and what the device does to what it hears.

    The keys of :class:`rig.rooms.Space` say how the room sounds; with ``measured`` only its walls may be given, for the
    plan view.

    Attributes:
        measured: responses in place of a simulation: a folder that ``earshot calibrate`` wrote, or by device and then
            by source (``talker`` or the attacker's name) the file. The positions then say where it was measured.
        talker_m: where the talker is; a session has one place, a sweep takes any number.
        attackers_m: where the attacker's loudspeaker is, by name; one place per entry or several.
        devices_m: where the device is, by name.
        loudspeaker: profile (studio, phone, far-field-array, telephone-band) or file of every loudspeaker that names
            none of its own; without it they add nothing.
        microphone: profile or file of the devices' microphone; without it it adds nothing.
        gain_db: applied to what the microphone hears; at 0 dB the direct sound of the talker arrives at the first
            device with the level of the clip itself.
        background: noise in the room at an SNR.
        noise_dbfs: the device's noise floor (RMS).
        clip_dbfs: where the device's converter clips.
        agc: automatic gain control.
        bits: of the device's samples.
    """

    measured: Measured | None = None
    talker_m: Placed
    attackers_m: Annotated[dict[Name, Placed], Field(min_length=1)]
    devices_m: Annotated[dict[Name, Placed], Field(min_length=1)]
    loudspeaker: str | None = None
    microphone: str | None = None
    gain_db: _Db = -6.0
    background: BackgroundChoice | None = None
    noise_dbfs: Annotated[float, Field(ge=-120, le=-20, allow_inf_nan=False)] = -70.0
    clip_dbfs: Annotated[float, Field(ge=-60, le=0, allow_inf_nan=False)] = 0.0
    agc: Agc | None = None
    bits: Annotated[int, Field(ge=4, le=16)] = 16

    @field_validator("walls", mode="before")
    @classmethod
    def _absorbers_make_sense(cls, walls: Any) -> Any:
        """Say what is wrong with a wall; the types alone would say that a number is no text."""
        if not isinstance(walls, Mapping):
            _check_absorber("", walls)
            return walls
        for name, absorber in walls.items():
            _check_absorber(f"{name}: ", absorber)
        # In a polygon the walls are numbered, and YAML reads numbers.
        return {str(name): absorber for name, absorber in walls.items()}

    @field_validator("agc", mode="before")
    @classmethod
    def _agc_as_it_comes(cls, value: Any) -> Any:
        """``agc: true`` is one with the defaults."""
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.measured is None:
            super()._says_one_thing()  # type: ignore[operator]  # pydantic leaves it callable
        elif self.rt60_s is not None or self.walls is not None:
            raise ValueError("the room is measured, so neither rt60_s nor walls means anything: leave them out")
        elif (self.corners_m is None) != (self.height_m is None) or (self.size_m and self.corners_m):
            raise ValueError("give size_m, or corners_m with height_m, or none of them")
        return self

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        for name, placed in self.devices_m.items():
            if placed.loudspeaker is not None:
                raise ValueError(f"devices_m.{name}.loudspeaker: a device only listens; set microphone for all devices")
        try:
            if self.shape is not None:
                geometry.require_polygon(self.shape)
                _require_materials(self.shape)
            _ = self.placements
        except PlanError as error:
            raise ValueError(str(error).removeprefix("room: ")) from None
        return self

    @property
    def space(self) -> Space:
        """The room as the simulation wants it."""
        return Space.model_validate({name: getattr(self, name) for name in Space.model_fields})

    @property
    def shape(self) -> Space | None:
        """The room as geometry wants it; None where nothing is known of its walls."""
        if self.measured is None:
            return self.space
        if self.size_m is None and self.corners_m is None:
            return None
        return Space.model_construct(size_m=self.size_m, corners_m=self.corners_m, height_m=self.height_m)

    @cached_property
    def placements(self) -> Placements:
        """Everything that stands in the room, by name."""
        return place(self.shape, self.talker_m, self.attackers_m, self.devices_m)

    @property
    def level(self) -> float:
        """Factor on simulated responses, whose direct sound has the amplitude 1 / distance."""
        return self.placements.reference_m * math.pow(10, self.gain_db / 20)

    def loudspeaker_of(self, source: str) -> str | None:
        """Profile or file of the loudspeaker with this key."""
        return self.placements.loudspeakers[source] or self.loudspeaker

    def absolute(self, folder: Path) -> Scene:
        """The scene with every path taken relative to ``folder``.

        Raises:
            PlanError: a file or folder is not there.
        """

        def response(kind: profiles.Kind, name: str | None) -> str | None:
            if name is None or profiles.is_profile(kind, name):
                return name
            path = (folder / Path(name).expanduser()).resolve()
            if not path.is_file():
                raise PlanError(f"room: {kind}: {name!r} is neither one of {profiles.known(kind)} nor a file")
            return str(path)

        def placed(entry: Placed) -> Placed:
            return entry.model_copy(update={"loudspeaker": response("loudspeaker", entry.loudspeaker)})

        changes: dict[str, Any] = {
            "talker_m": placed(self.talker_m),
            "attackers_m": {name: placed(entry) for name, entry in self.attackers_m.items()},
            "loudspeaker": response("loudspeaker", self.loudspeaker),
            "microphone": response("microphone", self.microphone),
        }
        if self.measured is not None:
            changes["measured"] = _absolute_measured(self.measured, folder)
        if self.background is not None and self.background.data not in background.MADE:
            data = str((folder / Path(self.background.data).expanduser()).resolve())
            background.require_there(data)
            changes["background"] = self.background.model_copy(update={"data": data})
        copied = self.model_copy(update=changes)
        # What was computed belongs to the old paths.
        copied.__dict__.pop("placements", None)
        return copied


def expand(scene: Scene) -> Placements:
    """Every place of a scene by name: talkers, attackers, devices; computed once per scene."""
    return scene.placements


def _absolute_measured(
    measured: str | dict[str, dict[str, Recording]], folder: Path
) -> str | dict[str, dict[str, Recording]]:
    def absolute(name: str, place_: str, *, is_folder: bool) -> str:
        path = (folder / Path(name).expanduser()).resolve()
        if not (path.is_dir() if is_folder else path.is_file()):
            raise PlanError(f"room: {place_}: {str(path)!r} is no {'folder' if is_folder else 'file'}")
        return str(path)

    if isinstance(measured, str):
        return absolute(measured, "measured", is_folder=True)
    return {
        device: {
            source: entry.model_copy(
                update={"file": absolute(entry.file, f"measured.{device}.{source}", is_folder=False)}
            )
            for source, entry in row.items()
        }
        for device, row in measured.items()
    }


def _check_absorber(place_: str, absorber: Absorber | Any) -> None:
    values = absorber if isinstance(absorber, list | tuple) else [absorber]
    if isinstance(absorber, str) or absorber is None:
        return
    if not values or len(values) > 12:
        raise ValueError(f"{place_}{len(values)} octave bands, give 1 to 12 from 125 Hz on")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(  # noqa: TRY004 - pydantic makes a message of a ValueError only
                f"{place_}{value!r} is neither a material nor a share of the energy absorbed, 0 to 1"
            )
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{place_}absorption {value:g}, allowed 0 (all comes back) to 1 (nothing does)")


def _require_materials(space: Space) -> None:
    walls = space.walls.values() if isinstance(space.walls, dict) else (space.walls,)
    if not any(isinstance(absorber, str) for absorber in walls):
        return
    from rig.rooms.images.grid import band_centres_hz  # noqa: PLC0415 - numba takes a second to import
    from rig.rooms.materials import absorption  # noqa: PLC0415 - as above

    absorption(space, band_centres_hz(16_000))
