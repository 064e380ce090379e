"""``earshot bundle``: look at bundles and verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rig.cli.console import print_json, say

if TYPE_CHECKING:
    from edge.bundle.manifest import Manifest
    from edge.bundle.reading import Bundle, Claims

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show and verify bundles.")

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file NAME.earshot.")]
TrustOption = Annotated[
    list[Path] | None, typer.Option("--trust", help="A public key KEY.pub; give it again for more keys.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def group() -> None:
    """Show and verify bundles."""


@app.command()
def show(
    bundle: BundleArgument,
    trust: TrustOption = None,
    card: Annotated[bool, typer.Option("--card", help="Print the model card, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a bundle says of itself; without --trust nothing of it is verified, and its model is not run."""
    from edge.bundle.reading import describe_untrusted, read_bundle
    from edge.bundle.signing import load_public_key

    found: Bundle | Claims
    if trust:
        found = read_bundle(bundle, trusted=[load_public_key(path) for path in trust])
        verdict = {"verified": True, "key": found.key}
    else:
        found = describe_untrusted(bundle)
        verdict = {"verified": False, "intact": found.intact}
    facts: dict[str, Any] = {"path": str(bundle), "sha256": found.sha256, **verdict}
    if as_json:
        print_json({**facts, "manifest": found.manifest.model_dump(mode="json", by_alias=True), "card": found.card})
        return
    say(_verdict(facts))
    for key, value in _lines(found.manifest, found.sha256):
        say(f"  {key:<14} {_plain(value)}")
    if card:
        say()
        for line in found.card.splitlines():
            say(_plain(line))


@app.command()
def verify(bundle: BundleArgument, trust: TrustOption = None, as_json: JsonOption = False) -> None:
    """Do all that a device does before it trusts a bundle, and compute its golden vectors here."""
    from edge.bundle.classifier import Classifier
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key
    from edge.errors import UsageError

    if not trust:
        raise UsageError("no key to verify with: name the one you trust with --trust KEY.pub")
    found = read_bundle(bundle, trusted=[load_public_key(path) for path in trust])
    worst = Classifier(found).check_golden()
    if as_json:
        print_json(
            {
                "path": str(bundle),
                "verified": True,
                "name": found.manifest.name,
                "version": found.manifest.version,
                "sha256": found.sha256,
                "key": found.key,
                "golden_max_abs": worst,
                "golden_limit": found.manifest.golden_tolerance.max_abs,
            }
        )
        return
    say(f"OK {bundle}: {found.manifest.name} version {found.manifest.version}, signed by {found.key}")
    say(f"  sha256 {found.sha256}")
    say(f"  golden vectors differ by {worst:.2g} here, the limit is {found.manifest.golden_tolerance.max_abs:g}")


def _verdict(facts: dict[str, Any]) -> str:
    if facts["verified"]:
        return f"{facts['path']}: VERIFIED, signed by {facts['key']}"
    state = "" if facts["intact"] else " and ALTERED: members differ from the hashes"
    return f"{facts['path']}: UNVERIFIED{state}; anybody may have written this, verify it with --trust KEY.pub"


def _lines(manifest: Manifest, sha256: str) -> list[tuple[str, str]]:
    quantisation = manifest.quantisation
    floor = "none" if manifest.log_floor is None else f"{manifest.log_floor:g}"
    return [
        ("name", f"{manifest.name} version {manifest.version}, {manifest.architecture}"),
        ("format", f"{quantisation.bits} bits, profile {quantisation.profile}, {quantisation.scheme}"),
        ("labels", " ".join(manifest.labels)),
        ("input", f"{manifest.window_samples} samples at {manifest.rate_hz} Hz"),
        ("scores", manifest.score_kind),
        ("log floor", floor),
        ("sizes", ", ".join(f"{name} {member.size_bytes}" for name, member in manifest.members.items())),
        ("training data", manifest.training_data),
        ("licence", manifest.licence),
        *((f"{key}", f"{value:.6g}") for key, value in manifest.metrics.items()),
        ("packed", f"{manifest.created_utc} by earshot {manifest.earshot_version}"),
        ("sha256", sha256),
    ]


def _plain(text: str) -> str:
    """Text of strangers without control characters, which could rewrite what the terminal shows."""
    return "".join(character if character.isprintable() else "?" for character in text)
