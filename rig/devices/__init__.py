"""Devices under test as the rig sees them: their messages, the sound they are given, their processes."""
