"""``earshot data``: fetch a public data set, and see what is in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.errors import UsageError
from rig.cli.console import print_json, progress, say

if TYPE_CHECKING:
    from firmware_models.data.check import Findings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Fetch and check data sets.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The data set: speech-commands.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="A new folder for it.")],
    url: Annotated[str | None, typer.Option("--url", help="A mirror of the same archive.")] = None,
    keep_archive: Annotated[bool, typer.Option("--keep-archive", help="Keep the archive in the cache folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Download, verify and unpack a data set; a download that broke off goes on where it was."""
    from firmware_models.data.fetch import ARCHIVES, check_target
    from firmware_models.data.fetch import fetch as fetch_archive

    if name not in ARCHIVES:
        raise UsageError(f"data set {name!r}: use one of {', '.join(ARCHIVES)}")
    archive = ARCHIVES[name] if url is None else replace(ARCHIVES[name], url=url)
    check_target(archive, out)
    plan = {"url": archive.url, "bytes": archive.size_bytes, "sha256": archive.sha256, "licence": archive.licence}
    if dry_run:
        if as_json:
            print_json({**plan, "out": str(out)})
            return
        say(f"would download {archive.url} ({archive.size_bytes / 1e9:.1f} GB, {archive.licence})")
        say(f"and unpack it into {out} (about {archive.unpacked_bytes / 1e9:.0f} GB); nothing was written")
        return
    with progress(f"fetching {name}", enabled=not as_json) as report:
        clips = fetch_archive(archive, out, keep_archive=keep_archive, progress=report)
    if as_json:
        print_json({**plan, "out": str(out), "clips": clips})
        return
    say(f"{clips} clips in {out} ({archive.licence}); next: earshot data check {out}")


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Speech Commands, or any folder with a folder per class.")],
    *,
    window: Annotated[
        float | None,
        typer.Option("--window", min=0.1, max=60, help="Seconds per clip.", show_default="1 of words, 3 of classes"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print clips per label and speakers (or recordings) per split; short, silent, clipped and unreadable files."""
    from firmware_models.data import RATE_HZ
    from firmware_models.data.check import check as check_data

    with progress("reading", enabled=not as_json) as report:
        samples = None if window is None else round(window * RATE_HZ)
        found = check_data(folder, window_samples=samples, progress=report)
    if as_json:
        print_json(found.to_json())
        return
    _print(found)


def _print(found: Findings) -> None:
    splits = list(found.clips)
    words = found.kind == "words"
    labels = list(found.clips[splits[0]])
    width = max(12, *(len(label) + 2 for label in labels))
    more = "" if words else f"{'recordings':>12}"
    say(f"{'label':<{width}}" + "".join(f"{split:>12}" for split in splits) + more)
    for label in labels:
        more = "" if words else f"{found.recordings[label]:>12}"
        say(f"{label:<{width}}" + "".join(f"{found.clips[split][label]:>12}" for split in splits) + more)
    say(f"{'clips':<{width}}" + "".join(f"{sum(found.clips[split].values()):>12}" for split in splits))
    say(f"{'speakers' if words else 'recordings':<{width}}" + "".join(f"{found.speakers[s]:>12}" for s in splits))
    say()
    _print_split(found)
    _print_classes(found) if not words else say(f"background noise: {found.noise_s:.0f} s; _silence_ is cut from it")
    for title, names in (
        (f"shorter than {found.window_s:g} s (padded)", found.short),
        ("silent (never above -54 dBFS)", found.silent),
        ("clipped (16 samples or more at full scale)", found.clipped),
    ):
        say(f"{title}: {len(names)}" + _examples(list(names)))
    say(f"not usable: {len(found.unreadable)}")
    for item in found.unreadable[:20]:
        say(f"  {item.path}: {item.reason}")
    if len(found.unreadable) > 20:
        say(f"  and {len(found.unreadable) - 20} more (--json lists all)")


def _print_split(found: Findings) -> None:
    how = {"lists": "the lists", "speaker hash": "a hash of the speaker (no lists here)"}
    say(f"split by {how.get(found.split_by, found.split_by)}")
    whom = "speakers" if found.kind == "words" else "recordings"
    if found.moved:
        say(f"{found.moved} clips follow their {whom[:-1]} into another split than the lists say")
    if found.both_lists:
        say(f"{len(found.both_lists)} {whom} are in both lists and count as test: {', '.join(found.both_lists[:5])}")
    if found.kind == "classes":
        for split, labels in found.absent.items():
            say(f"no clip for {split}: {', '.join(labels)}")


def _print_classes(found: Findings) -> None:
    """What is done to recordings of other lengths, rates and channels, and how unequal the classes are."""
    say(f"clips of {found.window_s:g} s; {found.cut} files give several; {found.left_out_s} s left out at their ends")
    rates = ", ".join(f"{count} from {rate_hz} Hz" for rate_hz, count in sorted(found.other_rates.items()))
    say(f"resampled to 16000 Hz: {rates or 'none'}; channels mixed down to one: {found.mixed_down}")
    training = sorted(found.clips["train"].items(), key=lambda each: each[1])
    (fewest, low), (most, high) = training[0], training[-1]
    say(f"training clips per label: {low} of {fewest} to {high} of {most}; training draws every label as often")


def _examples(names: list[Any]) -> str:
    return f", e.g. {', '.join(map(str, names[:3]))}" if names else ""
