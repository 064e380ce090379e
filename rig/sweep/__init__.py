"""Sweeps: every clip x position x delay x level x eps x model of a plan, rendered and scored on this or many machines.

::

    found = outline(load(path))                         # rig.sweep.prepare: axes, blocks, what must be crafted
    job = begin(found, folder)                          # its folder, complete in itself
    run(job, workers=2)                                 # rig.sweep.running.run: rows, then the summary

Rows depend on the plan alone: not on chunks, workers or the order in which they end.
"""
