"""Predictions that wait on disk until a rig has acknowledged them."""
