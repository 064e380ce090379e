"""Pictures of sweeps: error over the floor plan, over distance, angle, delay, RT60 and SNR, and room responses.

::

    write([folder], out)                                # rig.sweep.pictures.write: all pictures, and their numbers
"""
