"""``earshot keys``: make signing keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rig.cli.console import print_json, say

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make signing keys.")


@app.callback()
def group() -> None:
    """Make signing keys."""


@app.command()
def new(
    out: Annotated[Path, typer.Option("--out", help="NAME of the pair: NAME.pem (private) and NAME.pub.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an Ed25519 key pair; existing files are never overwritten."""
    from edge.bundle.signing import fingerprint, load_public_key, write_key_pair

    private, public = write_key_pair(out)
    mark = fingerprint(load_public_key(public))
    if as_json:
        print_json({"private": str(private), "public": str(public), "fingerprint": mark})
        return
    say(f"{private}  private, mode 0600: signs bundles or commands; never copy it to a device or into a repository")
    say(f"{public}  public: devices trust it with --trust")
    say(f"fingerprint {mark}")
