"""Room acoustics: from walls, loudspeakers and microphones to impulse responses.

::

    space = Space(size_m=(5, 4, 3), rt60_s=0.4)
    sources = {"talker": Placement.at(1, 1, 1.5), "attackers.door": Placement.at(4, 3, 1.2)}
    devices = {"desk": Placement.at(2.5, 2, 0.8)}
    responses = simulate(space, sources, devices, rate_hz=16000)      # rig.rooms.simulate
    describe(responses)                                               # rig.rooms.measures

What is imported here is light (settings for plans and types); the modules that compute import numba or pyroomacoustics
when they are called.
"""

from rig.rooms.air import Air
from rig.rooms.directivity import OMNI, Directivity, Placement
from rig.rooms.responses import Point, Responses
from rig.rooms.space import Absorber, Space

__all__ = ["OMNI", "Absorber", "Air", "Directivity", "Placement", "Point", "Responses", "Space"]
