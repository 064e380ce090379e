"""Putting ``earshot-device`` onto machines over the system's ssh, and taking it away again.

:mod:`rig.deploy.ssh` connects, :mod:`rig.deploy.facts` looks at the machine, :mod:`rig.deploy.wheels` packs the
program, :mod:`rig.deploy.settings` says what is wanted, :mod:`rig.deploy.steps` makes a list of steps of it and
:mod:`rig.deploy.carry_out` takes those that are not done yet. What runs on the machine are the shell files in
``scripts``, with their arguments and nothing else put in.
"""
