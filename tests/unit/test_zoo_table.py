"""The zoo in figures: rows from verified bundles, commands that can be run, and what nobody signed."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from firmware_models import zoo
from firmware_models.zoo.commands import Planned, commands_of, grid, ranks_of
from firmware_models.zoo.rendering import HEADINGS, cells, command_lines, commands_of_absent
from firmware_models.zoo.table import read_rows


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def earshot(monkeypatch, capsys) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        from rig.cli.main import main

        monkeypatch.setattr(sys, "argv", ["earshot", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return run


FP32 = {"test_top1": 0.94, "test_balanced": 0.95, "test_n": 1000.0}
INT4 = {"test_top1": 0.92, "test_balanced": 0.93, "test_n": 1000.0, "twin_labels_equal": 0.997}
LOW_RANK = {
    **FP32,
    "fp32_test_top1": 0.942,
    "full_test_top1": 0.947,
    "rank_conv1": 9.0,
    "rank_conv2": 64.0,
    "rank_fc1": 16.0,
    "parameters": 401_234.0,
    "multiply_adds": 12_345_678.0,
}


@pytest.fixture(scope="module")
def pack_lm(lms_graphs, random_lms, keys) -> Callable[..., Path]:
    """Packs a graph under any name, width and figures."""
    from export.card import Facts
    from export.fixed_point.number_format import number_format
    from export.pack import Identity, pack

    def make(folder: Path, name: str, *, bits: int, metrics: dict[str, float], **options: object) -> Path:
        training = {"command": "earshot train lm --data DIR --out RUN --seed 3", "minutes": 20.5, **options}
        form = number_format(bits)
        identity = Identity(
            name=name,
            version=3,
            architecture="lm",
            labels=random_lms.labels,
            rate_hz=16_000,
            window_samples=16_000,
            log_floor=1e-6,
            parameters=5_000_000,
            form=form,
        )
        graph = lms_graphs[8 if bits == 8 else 32]
        facts = Facts(training=training, metrics=metrics)
        return pack(folder / f"{name}.earshot", graph, identity, key=keys.signer, facts=facts).path

    return make


@pytest.fixture(scope="module")
def runs(pack_lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "deeper").mkdir()
    pack_lm(folder, "lm-fp32", bits=32, metrics=FP32)
    pack_lm(folder / "deeper", "lm-int4", bits=4, metrics=INT4, teacher_minutes=10)
    pack_lm(folder, "lm-low-rank-int8", bits=8, metrics=LOW_RANK, retrained_minutes=2.5, retrained_steps=600)
    return folder


def test_the_zoo_itself(earshot):
    told = json.loads(earshot("zoo", "table", "--json").stdout)
    released = {path.stem for path in zoo.FOLDER.glob("*.earshot")}
    rows = {row["name"]: row for row in told["rows"]}
    assert set(rows) == released
    for row in rows.values():
        assert row["verified"]
        assert row["shipped"]
        assert row["n"] >= 1000
        assert row["top1_low"] < row["top1"] < row["top1_high"]
        assert row["parameters"] > 10_000
        assert row["minutes"] > 1
        assert row["size_bytes"] == Path(row["path"]).stat().st_size
    assert rows["lms-int8"]["computes_in"] == "8-bit integers"
    assert rows["lms-int8"]["drop_points"] == pytest.approx(
        100 * (rows["lms-fp32"]["top1"] - rows["lms-int8"]["top1"]), abs=0.2
    )
    # The grid is complete: everything is either there or has its commands.
    shipped = {(row["architecture"], row["bits"], bool(row["ranks"])) for row in rows.values()}
    assert len(shipped) + len(told["not_shipped"]) == 3 * 4 * 2
    assert all(len(each["commands"]) == 2 for each in told["not_shipped"])


def test_rows_of_own_runs(earshot, runs, keys):
    told = json.loads(earshot("zoo", "table", runs, "--trust", keys.public, "--json").stdout)
    rows = {row["name"]: row for row in told["rows"] if not row["shipped"]}
    assert list(rows) == ["lm-fp32", "lm-int4", "lm-low-rank-int8"]
    fp32, int4, low = rows.values()
    # The Wilson interval of 940 of 1000.
    assert (fp32["top1_low"], fp32["top1_high"]) == pytest.approx((0.92354, 0.95309), abs=2e-5)
    assert fp32["drop_points"] is None
    assert fp32["parameters"] == 5_000_000
    assert (fp32["minutes"], int4["minutes"], low["minutes"]) == (20.5, 30.5, 23.0)
    # Against the FP32 bundle beside it, and against what the bundle says of its own FP32.
    assert int4["drop_points"] == pytest.approx(2.0)
    assert low["drop_points"] == pytest.approx(0.2)
    assert low["rank_drop_points"] == pytest.approx(0.5)
    assert (low["parameters"], low["multiply_adds"]) == (401_234, 12_345_678)
    assert low["ranks"] == {"conv": 64, "fc": 16}
    assert (int4["computes_in"], low["computes_in"]) == ("32-bit float", "8-bit integers")
    commands = {each["name"]: each["commands"] for each in told["not_shipped"]}
    assert commands["lm-int4"] == [
        "earshot train lm --data DIR --out RUN --seed 3",
        "earshot export RUN --calibration DIR --key KEY.pem --out lm-int4.earshot --bits 4",
    ]
    assert commands["lm-low-rank-int8"][1].endswith(
        "--out lm-low-rank-int8.earshot --rank-fc 16 --rank-conv 64 --retrain low-rank --run RUN-low-rank --bits 8"
    )


def test_text_markdown_and_csv(earshot, runs, keys, tmp_path):
    markdown, table = tmp_path / "zoo.md", tmp_path / "zoo.csv"
    done = earshot("zoo", "table", runs, "--trust", keys.public, "--markdown", markdown, "--csv", table)
    assert done.returncode == 0, done.stderr
    # Nobody's terminal: no drawing, one line for a bundle.
    assert not set(done.stdout) & set("│─\x1b")
    # The zoo has a bundle of this name, too.
    found_lines = [line for line in done.stdout.splitlines() if line.split("  ")[0] == "lm-low-rank-int8"]
    assert any("conv 64, fc 16" in line and "92.4..95.3" in line for line in found_lines)
    lines = markdown.read_text().splitlines()
    assert lines[0].count("|") == lines[1].count("|") == len(HEADINGS) + 1
    assert "    earshot train ete --data DIR --out runs/ete" in lines
    rows = list(csv.DictReader(table.open()))
    found = next(row for row in rows if row["name"] == "lm-int4")
    assert float(found["top1"]) == 0.92
    assert found["commands"].count(" && ") == 1
    assert "Is a directory" in refusal(earshot("zoo", "table", "--csv", tmp_path))


def refusal(result: Result, code: int = 2) -> str:
    assert result.returncode == code, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    return result.stderr.strip()


def test_bundles_that_nobody_signed(earshot, runs, keys, other_keys, tmp_path):
    altered = tmp_path / "altered.earshot"
    data = bytearray((runs / "lm-fp32.earshot").read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    for arguments in (("table",), ("list",)):
        done = earshot("zoo", *arguments, altered, "--trust", keys.public)
        assert "1 of" in refusal(done, 3)
        assert "model.onnx is altered" in done.stderr
        assert any("NOT VERIFIED" in line and "altered.earshot" in line for line in done.stdout.splitlines())
        # The others are told all the same.
        assert any(line.startswith("lms-int8 ") for line in done.stdout.splitlines())
    done = earshot("zoo", "table", runs, "--trust", other_keys.public, "--json")
    assert "3 of" in refusal(done, 3)
    bad = [row for row in json.loads(done.stdout)["rows"] if not row["verified"]]
    assert len(bad) == 3
    # Nothing that an unverified bundle says of itself is passed on.
    assert {key for row in bad for key, value in row.items() if value} == {"path", "reason"}
    assert all("another key" in row["reason"] for row in bad)


def test_paths_that_are_none(earshot, tmp_path):
    assert "no such file or folder" in refusal(earshot("zoo", "table", tmp_path / "absent"))
    assert "no .earshot file in this folder" in refusal(earshot("zoo", "list", tmp_path))
    assert "no such key file" in refusal(earshot("zoo", "list", "--trust", tmp_path / "absent.pub"))


def test_list(earshot, runs, keys):
    told = json.loads(earshot("zoo", "list", runs / "lm-fp32.earshot", "--trust", keys.public, "--json").stdout)
    own = next(each for each in told if each["name"] == "lm-fp32" and not each["shipped"])
    assert (own["version"], own["path"]) == (3, str(runs / "lm-fp32.earshot"))
    assert len(own["sha256"]) == 64
    again = json.loads(earshot("zoo", "list", runs / "lm-fp32.earshot", runs, "--trust", keys.public, "--json").stdout)
    assert len(again) == len(told) + 2


def test_commands_are_understood(runs, keys):
    """The command line takes every option that the table advises."""
    import typer.main

    from rig.cli.models import export, train

    commands = {name: typer.main.get_command(module.app) for name, module in (("export", export), ("train", train))}
    advised = {command for planned in grid() for command in planned.commands}
    assert len(advised) == 3 + 24
    for text in advised:
        program, name, *arguments = text.split()
        assert program == "earshot"
        commands[name].make_context(name, arguments)


def test_order_of_commands(runs, keys):
    from edge.bundle.signing import load_public_key

    rows = read_rows(sorted(runs.rglob("*.earshot")), trusted=[load_public_key(keys.public)])
    lines = command_lines(rows)
    assert len(lines) == len(set(lines))
    for line in lines:
        if line.startswith("earshot export runs/"):
            run = line.split()[2]
            trained = f"earshot train {run.removeprefix('runs/')} --data DIR --out {run}"
            assert lines.index(trained) < lines.index(line)
    # A bundle of another kind than those of the grid is listed after them.
    odd = dataclasses.replace(rows[0], name="odd", bits=8, activation_bits=8, profile="portable")
    assert commands_of_absent([odd])[-1] == ("odd", odd.commands)
    assert len(commands_of_absent([odd])) == 25
    assert all(len(cells(row)) == len(HEADINGS) for row in (*rows, odd))


def test_names_and_ranks():
    assert Planned("lm", 4, low_rank=True).name == "lm-low-rank-int4"
    assert Planned("ete", 32, low_rank=False).name == "ete-fp32"
    assert ranks_of({"rank_conv1": 9, "rank_blocks.0.conv2": 64, "rank_fc": 16, "test_top1": 1}) == {
        "conv": 64,
        "fc": 16,
    }
    assert ranks_of({"test_top1": 0.9}) == {}


def test_commands_follow_the_manifest(runs, keys):
    from edge.bundle.manifest import Ensemble, Quantisation
    from edge.bundle.reading import read_bundle
    from edge.bundle.signing import load_public_key

    bundle = read_bundle(runs / "lm-fp32.earshot", trusted=[load_public_key(keys.public)])
    odd = bundle.manifest.model_copy(
        update={
            "quantisation": Quantisation(
                bits=8, activation_bits=32, profile="storage", scheme="W8 per tensor, weights only, power-of-two scales"
            ),
            "metrics": {"rank_fc1": 8.0},
            "ensemble": Ensemble(members=8, noise_values=3),
        }
    )
    card = bundle.card + "- Low rank, reshape spatial.\n- of 8 members, sigma 0.1: drawn anew\n"
    assert commands_of(odd, card)[1] == (
        "earshot export RUN --calibration DIR --key KEY.pem --out lm-fp32.earshot --rank-fc 8 --bits 8 "
        "--activation-bits 32 --profile storage --per-tensor --power-of-two --reshape spatial --ensemble 8 --sigma 0.1"
    )
    exact = "Export: `earshot export x --bits 8`\n" + card
    assert commands_of(odd, exact)[1] == "earshot export x --bits 8"
    assert commands_of(odd, "a card without a command") == ()
