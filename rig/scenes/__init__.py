"""Scenes: who stands where in a room, and what a device makes of the sound that reaches it.

::

    scene = plan.room                                   # rig.scenes.scene.Scene, what stands in a plan under `room`
    expand(scene).attackers                             # every place by name
    heard = respond(scene, rate_hz=16000)               # rig.scenes.respond: responses from loudspeaker to microphone
    capture_chain(scene, rate_hz=16000, seed=1)         # rig.scenes.respond: what happens after the sum

What is imported here is light: a plan is read without numba, scipy or pyroomacoustics.
"""

from rig.scenes.placed import WALL_MARGIN_M, Placed, Position
from rig.scenes.placement import Placements, attacker_key, device_key, talker_key
from rig.scenes.scene import Scene, expand
from rig.scenes.settings import Agc, BackgroundChoice

__all__ = [
    "WALL_MARGIN_M",
    "Agc",
    "BackgroundChoice",
    "Placed",
    "Placements",
    "Position",
    "Scene",
    "attacker_key",
    "device_key",
    "expand",
    "talker_key",
]
