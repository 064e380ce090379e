"""Another model on a running device, without fear: two slots, a pointer, and a process of its own that does the work.

The state folder of a device holds ``slots/{a,b}/bundle.earshot`` and ``slots/pointer.json`` (what runs), ``trust/``
(whose bundles and commands are obeyed) and ``download/`` (what is on its way). Whatever is interrupted at whatever
moment, the next start finds a bundle that verifies.
"""
