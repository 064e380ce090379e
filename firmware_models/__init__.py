"""Firmware models: architectures with their front end, data sets, training recipes and the released zoo."""
