"""Where a device's sound comes from: a sound card, a file, or a rig's socket, behind one protocol."""
