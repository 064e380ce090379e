"""A session: one run of a plan in one air, from the first trial to a folder that tells everything."""

from rig.session.material import Material
from rig.session.prepare import Setup, create
from rig.session.run import resume

__all__ = ["Material", "Setup", "create", "resume"]
