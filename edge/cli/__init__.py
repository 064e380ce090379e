"""The command ``earshot-device``: run a device, or find out why it does not run."""

from edge.cli.entry import main

__all__ = ["main"]
