"""``earshot device``: the devices of a broker, and what one may ask of them."""

from __future__ import annotations

import typer

from rig.cli.devices import changes, follow, install, listing, rotate, status, watch

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List, watch, update, roll back and install devices."
)
# Each module has a typer ``app`` whose commands join this group under their own names.
for module in (listing, status, watch, follow, changes, rotate, install):
    app.add_typer(module.app)
