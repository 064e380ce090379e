"""What is made of a sweep: pictures, sounds, the plan of a session, and the gap to one."""

import json
import math
import sys
from collections import Counter
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from typer.testing import CliRunner

from edge.bundle.classifier import Classifier
from edge.errors import PlanError, UsageError
from firmware_models.statistics import newcombe, score_interval, wilson
from rig.cli.main import app
from rig.journal import Attempt, Journal
from rig.plan import load
from rig.report.write import write_report
from rig.rooms.measured import save_folder
from rig.rooms.simulate import simulate
from rig.scenes import Scene
from rig.scenes.respond import respond
from rig.session import material
from rig.session.prepare import Setup, create
from rig.sweep import listen, rows
from rig.sweep.engine import Engine
from rig.sweep.grid import BATCH
from rig.sweep.pictures import decay, draw, floor
from rig.sweep.pictures.charts import VIEWS, charts
from rig.sweep.pictures.tally import tally
from rig.sweep.pictures.write import write
from rig.sweep.prepare import begin, outline
from rig.sweep.running.run import run
from rig.sweep.session import gap as gaps
from rig.sweep.session.propose import propose, to_yaml
from rig.sweep.session.scene import with_places

ROOM = {
    "size_m": [4.5, 3.6, 2.6],
    "walls": 0.6,
    "talker_m": [2.2, 1.8, 1.5],
    "attackers_m": {
        "spot": {"points": [[3.4, 2.9, 1.6], [0.5, 0.5, 1.2], [1.2, 1.6, 0.8]]},
        "shelf": [3.4, 2.9, 0.6],
    },
    "devices_m": {"table": [2.9, 1.5, 0.9], "floor": [1.0, 1.5, 0.4]},
    "noise_dbfs": -60,
}


def document(**changes):
    found = {
        "schema": 1,
        "name": "small",
        "seed": 20,
        "bundles": ["zoo:lms-int8"],
        "clips": {"data": "zoo", "split": "all", "count": 4},
        "attacks": [
            {"name": "benign"},
            {"name": "random-sign", "eps": [0.004, 0.08]},
            {"name": "pgd", "steps": 2, "eps": [0.004, 0.08], "target": "yes"},
        ],
        "delays_ms": [0, 25],
        "room": ROOM,
        "sweep": {"levels_db": [0, 6]},
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def sweep(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    job = begin(outline(load(path), chunk=64), folder / "out")
    run(job)
    return job


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def found(swept):
    """Every row of the sweep."""
    files = sorted((swept.folder / rows.FOLDER).glob("chunk-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist() if row["reason"] is None]


def command(*arguments):
    words = [str(each) for each in arguments]
    # Whether help is wanted is read from the command line of the process.
    with mock.patch.object(sys, "argv", ["earshot", *words]):
        return CliRunner().invoke(app, words)


def rate_of(these):
    return sum(not row["correct"] for row in these) / len(these)


def position(kind, name):
    if kind == "attackers_m" and name.startswith("spot-"):
        return ROOM[kind]["spot"]["points"][int(name[5:]) - 1]
    return ROOM[kind][name]


def test_newcombe_says_what_newcombe_published():
    # Statistics in Medicine 17 (1998) p. 873, method 10: 56/70 against 48/80.
    difference = newcombe(wilson(56, 70), wilson(48, 80))
    assert difference == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert newcombe(wilson(10, 10), wilson(0, 20)) == pytest.approx((1.0, 0.6791, 1.0), abs=5e-5)
    assert all(map(math.isnan, newcombe(wilson(0, 0), wilson(1, 2))))
    assert score_interval(0.25, 8) == wilson(2, 8)


def test_charts_say_what_the_rows_say(swept, found):
    every = {chart.name: chart for chart in charts(swept.grid, tally(swept.folder, swept.grid, VIEWS))}
    assert set(every) == {"distance", "angle", "delay", "level", "snr"}
    compared = 0
    for device in ROOM["devices_m"]:
        for attack, kind in (("pgd-2", "attack"), ("random-sign", "control")):
            here = [r for r in found if (r["device_position"], r["attack"], r["eps"]) == (device, attack, 0.08)]
            for name, of in (
                ("delay", lambda row: row["delay_ms"]),
                ("level", lambda row: row["level_db"]),
                ("distance", distance_m),
                ("angle", angle_deg),
            ):
                (panel,) = [panel for panel in every[name].panels if panel.device == device]
                (series,) = [series for series in panel.series if series.kind == kind]
                assert series.name.startswith(attack)
                assert sum(point.n for point in series.points) == len(here)
                for point in series.points:
                    these = [row for row in here if abs(of(row) - point.x) < 0.011]
                    assert point.n == len(these)
                    assert point.error_rate == pytest.approx(rate_of(these))
                    # Several cells of the same clips do not make the interval narrower than the clips do.
                    clips = len({row["clip"] for row in these})
                    low_high = score_interval(rate_of(these), clips)[1:]
                    assert (point.ci_low, point.ci_high) == pytest.approx(low_high)
                    compared += 1
    assert compared > 40
    for panel in every["snr"].panels:
        for series in panel.series:
            if series.kind == "benign":
                continue
            here = [r for r in found if r["device_position"] == panel.device and series.name.startswith(r["attack"])]
            counted = Counter(math.floor((row["snr_db"] + 60) / 3) * 3 - 60 + 1.5 for row in here)
            assert {point.x: point.n for point in series.points} == counted


def distance_m(row):
    return math.dist(position("attackers_m", row["attacker_position"]), position("devices_m", row["device_position"]))


def angle_deg(row):
    device = np.array(position("devices_m", row["device_position"]))
    one, other = np.array(ROOM["talker_m"]) - device, position("attackers_m", row["attacker_position"]) - device
    # By the sides of the triangle, not by the product that the code takes.
    a, b, c = np.linalg.norm(one), np.linalg.norm(other), np.linalg.norm(one - other)
    return math.degrees(math.acos((a * a + b * b - c * c) / (2 * a * b)))


def test_the_map_puts_heights_together_and_names_n(swept, found):
    maps = floor.maps(swept.grid, tally(swept.folder, swept.grid, VIEWS))
    assert [(each.device, each.attack.split()[0]) for each in maps] == [
        (device, attack) for device in swept.grid.axes.devices for attack in ("random-sign", "pgd-2")
    ]
    for each in maps:
        here = [r for r in found if (r["device_position"], r["eps"]) == (each.device, 0.08)]
        here = [row for row in here if each.attack.startswith(row["attack"])]
        assert len(each.places) == 3  # shelf stands below a spot
        assert sorted(name for place in each.places for name in place.attackers) == sorted(swept.grid.axes.attackers)
        for place in each.places:
            these = [row for row in here if row["attacker_position"] in place.attackers]
            assert (place.n, place.error_rate) == (len(these), pytest.approx(rate_of(these)))
    figure = floor.draw(swept.scene, maps)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 4
    assert all(" n " in title for title in titles)
    drawn = figure.axes[0]
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("x (m)", "y (m)")
    assert figure.axes[-1].get_ylabel() == "error rate"


def test_every_picture_has_units_and_n(swept):
    for chart in charts(swept.grid, tally(swept.folder, swept.grid, VIEWS)):
        figure = draw.draw(chart)
        assert "(" in figure.axes[-1].get_xlabel(), "a unit"
        assert all(", n " in axes.get_title() for axes in figure.axes)
        assert figure.axes[0].get_ylabel() == "error rate"
        named = {text.get_text() for text in figure.legends[0].get_texts()}
        assert {"benign"} < named
        assert any("(control)" in name for name in named)
    figure, told = decay.draw(decay.Wires(swept.folder, swept.description), 16_000, 1)
    assert "(dB)" in figure.axes[-2].get_ylabel()
    assert figure.axes[-1].get_xlabel() == "time (ms)"
    assert all("n 1" in axes.get_title() for axes in figure.axes[: len(figure.axes) // 2])
    assert {each.source for each in told} == {"talker", "attacker shelf"}
    assert all(0.05 < each.t30_s < 0.5 for each in told)


def test_plot_writes_pictures_and_their_numbers(swept, tmp_path):
    dry = command("sweep", "plot", swept.folder, "--out", tmp_path / "a", "--dry-run", "--json")
    assert not (tmp_path / "a").exists()
    result = command("sweep", "plot", swept.folder, "--out", tmp_path / "a", "--json")
    (told,) = json.loads(result.stdout)
    assert told["pictures"] == json.loads(dry.stdout)[0]["pictures"]
    names = {path.name for path in (tmp_path / "a").iterdir()}
    expected = {"distance", "angle", "delay", "level", "snr", "map-lms-int8", "response"}
    assert names == {f"{name}.png" for name in expected} | {"figures.json"}
    for name in expected:
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "a" / "figures.json").read_text()) == told


def test_reverberation_over_several_sweeps(swept, tmp_path):
    attacks = [{"name": "benign"}, {"name": "random-sign", "eps": [0.08]}]
    live = sweep(tmp_path / "live", room={**ROOM, "walls": 0.25}, attacks=attacks)
    figures = write([swept.folder, live.folder], tmp_path / "both", kind="svg")
    assert figures[0].rt60_s[0] < 0.7 * figures[1].rt60_s[0]
    shared = json.loads((tmp_path / "both" / "rt60.json").read_text())
    assert (tmp_path / "both" / "rt60.svg").read_text().startswith("<?xml")
    for panel in shared["panels"]:
        by_kind = {series["kind"]: [point["x"] for point in series["points"]] for series in panel["series"]}
        assert by_kind["benign"] == by_kind["control"] == [each.rt60_s[0] for each in figures]
    assert sorted(path.name for path in (tmp_path / "both").iterdir() if path.is_dir()) == ["1-out", "2-out"]
    with pytest.raises(UsageError, match="is named twice"):
        write([swept.folder, swept.folder], tmp_path / "twice")


def test_a_sweep_without_a_room_has_no_map(tmp_path):
    job = sweep(tmp_path, room=None, sweep=None)
    (figures,) = write([job.folder], tmp_path / "figures")
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"delay", "snr"}
    assert figures.maps == figures.responses == ()


def test_what_is_listened_to_is_what_was_scored(swept, tmp_path):
    """Bit for bit: against the whole chunk rendered once more, and by what the bundle says of the file itself."""
    cell = "attack=pgd-2,eps=0.08,device=floor,attacker=spot-2,delay_ms=25,level_db=6"
    result = command("sweep", "listen", swept.folder, "--cell", cell, "--out", tmp_path, "--count", 2, "--json")
    samples = json.loads(result.stdout)["samples"]
    assert len(samples) == 2
    classifier = Classifier(swept.bundles["lms-int8"])
    stored = {
        row["index"]: row
        for file in (swept.folder / rows.FOLDER).glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    }
    engine = Engine(swept)
    clips = np.load(swept.folder / "material" / "clips.npy")
    for sample in samples:
        row = stored[sample["condition"]]
        assert (row["attack"], row["eps"], row["device_position"]) == ("pgd-2", 0.08, "floor")
        assert (row["attacker_position"], row["delay_ms"], row["level_db"]) == ("spot-2", 25, 6)
        assert (sample["heard"], sample["margin"], sample["compared"]) == (row["heard"], row["margin"], True)
        heard, rate_hz = soundfile.read(tmp_path / sample["heard_file"], dtype="int16")
        clean, _ = soundfile.read(tmp_path / sample["clean_file"], dtype="int16")
        assert rate_hz == 16_000
        np.testing.assert_array_equal(clean, clips[row["clip"]])
        spans = (swept.grid.span(number) for number in range(swept.grid.chunks))
        (span,) = [each for each in spans if each.first <= row["index"] < each.first + each.stop - each.start]
        place = row["index"] - span.first
        whole = engine.heard(span, swept.sounds(span), slice(place, place + 1))[0]
        np.testing.assert_array_equal(heard, (whole * 32768).astype(np.int16))
        # The bundle hears the file as it heard the condition, in the same batch.
        batch = engine.heard(span, swept.sounds(span), slice(place // BATCH * BATCH, place // BATCH * BATCH + BATCH))
        batch[place % BATCH] = heard.astype(np.float32) / 32768
        scores = classifier.scores(batch)[place % BATCH]
        truth = classifier.labels.index(row["label"])
        assert np.float32(scores[truth] - np.delete(scores, truth).max()) == np.float32(row["margin"])


def test_loud_pairs_are_made_quieter_together(swept, tmp_path):
    (sample,) = listen.choose(swept.grid, "attack=benign,device=table", 1)
    (entry,) = listen.record(swept, [sample], tmp_path / "loud", cap_dbfs=0)
    (quiet,) = listen.record(swept, [sample], tmp_path / "quiet", cap_dbfs=-45)
    assert entry["attenuated_db"] == 0 < quiet["attenuated_db"]
    assert entry["scored_sha256"] == quiet["scored_sha256"]
    for kind in ("clean_file", "heard_file"):
        loud, _ = soundfile.read(tmp_path / "loud" / entry[kind], dtype="int16")
        soft, _ = soundfile.read(tmp_path / "quiet" / quiet[kind], dtype="int16")
        assert listen.level_dbfs(soft) <= -44.9
        np.testing.assert_allclose(
            soft, loud * 10 ** (-quiet["attenuated_db"] / 20), atol=0.51 + 1e-3 * abs(loud).max()
        )
    with pytest.raises(UsageError, match=r"--cap nan: allowed -60 to 0"):
        listen.record(swept, [sample], tmp_path / "x", cap_dbfs=math.nan)


def test_a_row_that_says_something_else_is_noticed(tmp_path):
    job = sweep(tmp_path, attacks=[{"name": "benign"}])
    table = pq.read_table(rows.path(job.folder, 0))
    margin = pa.array(table["margin"].to_numpy() + np.float32(0.5))
    table = table.set_column(table.schema.get_field_index("margin"), "margin", margin)
    rows.store(job.folder, 0, rows.encode(table, job.grid.span(0), job.description.digest))
    samples = listen.choose(job.grid, "device=table", 1)
    with pytest.raises(PlanError, match=r"condition 1 scores .* or the row is damaged"):
        listen.record(job, samples, tmp_path / "x", cap_dbfs=0)
    rows.path(job.folder, 0).write_bytes(b"PAR1")
    for arguments in (("plot",), ("listen", "--cell", "device=table", "--out", tmp_path / "x")):
        result = command("sweep", arguments[0], job.folder, *arguments[1:])
        assert isinstance(result.exception, PlanError)
        assert "damaged, 'earshot sweep run' computes" in str(result.exception)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("attack=pgd-2", r"--cell: eps is open, add one of eps=0.004, eps=0.08"),
        ("", r"--cell: attack is open, add one of attack=benign, attack=random-sign, attack=pgd-2"),
        ("attack=fgsm", r"--cell attack=fgsm: no such value here, allowed: benign, random-sign, pgd-2"),
        ("attack=benign,device=roof", r"device_position=roof: no such value here, allowed: floor, table"),
        ("attack=benign,delay_ms=25,device=table", r"delay_ms=25: no such value here, allowed: 0"),
        ("volume=11", r"'volume' is none of bundle, attack"),
        ("attack", r"give key=value"),
        ("attack=benign,attack=pgd-2", r"attack stands twice"),
        ("attack=pgd-2,eps=much", r"eps=much: no such value"),
    ],
)
def test_cells_that_are_none_or_several(swept, cell, told):
    with pytest.raises(UsageError, match=told):
        listen.choose(swept.grid, cell, 1)


def test_listen_lists_before_it_renders(swept, tmp_path):
    options = ("--cell", "attack=benign,device=table", "--out", tmp_path / "out")
    dry = json.loads(command("sweep", "listen", swept.folder, *options, "--dry-run", "--json").stdout)
    assert not (tmp_path / "out").exists()
    done = json.loads(command("sweep", "listen", swept.folder, *options, "--json").stdout)
    files = [[sample[key] for key in ("clean_file", "heard_file")] for sample in dry["samples"]]
    assert files == [[sample[key] for key in ("clean_file", "heard_file")] for sample in done["samples"]]
    assert len(list((tmp_path / "out").glob("*.flac"))) == 6


def test_the_proposed_plan_can_run_and_says_why(swept, found, tmp_path):
    path = tmp_path / "top.yaml"
    result = command("sweep", "plan", swept.folder, "--top", "12", "--out", path, "--json")
    told = json.loads(result.stdout)
    assert told["conditions"] <= 12
    checked = json.loads(command("plan", "check", path, "--json").stdout)
    assert checked["airs"]["room"]["conditions"] == told["conditions"]
    plan = load(path)
    assert {attack.title for attack in plan.attacks} == {"benign", "random-sign", "pgd-2"}
    assert len({each["attacker_position"] for each in told["chosen"]}) >= 2
    assert len({each["delay_ms"] for each in told["chosen"]}) == 2
    assert plan.attacks[1].eps == plan.attacks[2].eps
    for each in told["chosen"]:
        keys = ("eps", "delay_ms", "attacker_position", "device_position")
        here = [row for row in found if row["level_db"] == 0 and all(row[key] == each[key] for key in keys)]
        attacked, noise = ([row for row in here if row["attack"] == name] for name in ("pgd-2", "random-sign"))
        assert (each["n"], each["control_n"]) == (len(attacked), len(noise))
        assert each["effect"] == pytest.approx(rate_of(attacked) - rate_of(noise))
        assert each["ci_low"] < each["effect"] < each["ci_high"]
    best = max(rate_difference(found, *key) for key in cells(found))
    assert max(each["effect"] for each in told["chosen"]) == pytest.approx(best)
    assert len(list(propose(swept.folder, top=3).chosen)) == 1
    assert "# " in to_yaml(propose(swept.folder, top=3))


def cells(found):
    keys = ("eps", "delay_ms", "attacker_position", "device_position")
    return {tuple(row[key] for key in keys) for row in found if row["attack"] == "pgd-2"}


def rate_difference(found, *cell):
    keys = ("eps", "delay_ms", "attacker_position", "device_position")
    here = [row for row in found if row["level_db"] == 0 and tuple(row[key] for key in keys) == cell]
    attacked, noise = ([row for row in here if row["attack"] == name] for name in ("pgd-2", "random-sign"))
    return rate_of(attacked) - rate_of(noise)


@pytest.mark.parametrize("is_measured", [False, True])
def test_places_keep_their_names_and_levels(swept, tmp_path, is_measured):
    """The second device alone hears what it heard beside the first, at which levels are set."""
    whole = swept.scene
    assert list(whole.placements.devices) == ["floor", "table"]
    if is_measured:
        places = whole.placements
        save_folder(tmp_path, simulate(whole.space, places.sources, places.microphones, 16_000))
        room = {key: value for key, value in ROOM.items() if key != "walls"}
        whole = Scene(
            **room
            | {"devices_m": {key: ROOM["devices_m"][key] for key in ("floor", "table")}, "measured": str(tmp_path)}
        )
    kept = {"talker_m": ["talker"], "attackers_m": ["spot-2", "shelf"], "devices_m": ["table"]}
    scene = with_places(whole, kept, None, 16_000)
    assert list(scene.placements.attackers) == ["spot-2", "shelf"]
    assert abs(scene.gain_db - whole.gain_db) > 1, "the levels would have changed"
    before, after = respond(whole, 16_000).wire, respond(scene, 16_000).wire
    for source in after.sources:
        one, other = before.of("devices_m.table", source), after.of("devices_m.table", source)
        size = min(len(one), len(other))
        np.testing.assert_allclose(one[:size], other[:size], atol=2e-4 * np.abs(one).max())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attacks": [{"name": "benign"}]}, "holds no attack"),
        ({"attacks": [{"name": "fgsm", "eps": [0.01]}]}, "no attack has a random-sign of its eps"),
        ({"sweep": {"levels_db": [6]}}, "sweep.levels_db lacks 0"),
    ],
)
def test_nothing_to_propose_is_said_in_a_line(tmp_path, changes, told):
    job = sweep(tmp_path, **{"room": None, "delays_ms": [0], "sweep": None, **changes})
    with pytest.raises(PlanError, match=told):
        propose(job.folder)


def session_of(swept, folder, *, wrong=0):
    """A session's folder in which every trial ended as the sweep says, but for the first ``wrong`` under attack."""
    plan_file = folder / "top.yaml"
    plan_file.write_text(to_yaml(propose(swept.folder, top=12)))
    loaded = material.load(load(plan_file), "room")
    create(folder / "session", loaded, Setup(), ["earshot"])
    by_key = {
        tuple(row[key] for key in ("attack", "eps", "delay_ms", "attacker_position", "device_position", "clip")): row
        for row in (
            row
            for file in (swept.folder / rows.FOLDER).glob("*.parquet")
            for row in pq.read_table(file).to_pylist()
            if row["level_db"] == 0
        )
    }
    paths = [clip.sha256 for clip in swept.grid.axes.clips]
    with Journal(folder / "session") as journal:
        attempts, conditions, clips = [], journal.conditions(), journal.clips()
        for trial in journal.trials():
            cell, clip = conditions[trial.condition], clips[trial.clip]
            place = (cell.attacker_position, cell.device_position, paths.index(clip.sha256))
            heard = by_key[(cell.attack, cell.eps, cell.delay_ms, *place)]["heard"]
            if cell.attack == "benign" and wrong and heard == clip.label:
                heard, wrong = "_silence_", wrong - 1
            attempts.append(Attempt(trial.trial_id, 0, "valid", label=heard, snr_db=1.0, linf=0.1))
        journal.record(attempts)
    return folder / "session"


def test_the_gap_is_a_number(swept, tmp_path):
    same = gaps.compare(swept.folder, session_of(swept, tmp_path))
    assert (same.mean_absolute_gap, same.session_only, same.same_clips) == (0, 0, True)
    assert same.matched == propose(swept.folder, top=12).conditions
    assert same.beyond_chance == 0
    (tmp_path / "other").mkdir()
    session = session_of(swept, tmp_path / "other", wrong=2)
    write_report([session], session)
    dry = command("sweep", "gap", swept.folder, session, "--dry-run", "--json")
    assert not (session / "gap.json").exists()
    result = command("sweep", "gap", swept.folder, session, "--json")
    told = json.loads(result.stdout)
    assert told["mean_absolute_gap"] == pytest.approx(2 / 4 / told["matched"]) == told["mean_gap"]
    assert json.loads(dry.stdout)["mean_absolute_gap"] == told["mean_absolute_gap"]
    assert gaps.read(session / "gap.json").mean_absolute_gap == told["mean_absolute_gap"]
    page = (session / "report.html").read_text()
    assert "Simulation and session" in page
    assert f"<b>{100 * told['mean_absolute_gap']:.1f} %</b>" in page
    cell = next(each for each in told["cells"] if each["gap"])
    interval = newcombe(wilson(cell["session_errors"], 4), wilson(cell["sweep_errors"], 4))
    assert (cell["gap"], cell["ci_low"], cell["ci_high"]) == pytest.approx(interval)


def test_wrong_folders_are_one_line(swept, tmp_path):
    for arguments in (
        ("plot", tmp_path),
        ("listen", tmp_path, "--cell", "a=b", "--out", tmp_path / "x"),
        ("plan", tmp_path, "--out", tmp_path / "x"),
        ("gap", tmp_path, tmp_path),
    ):
        result = command("sweep", *arguments)
        assert isinstance(result.exception, PlanError)
        assert "holds no sweep.json" in str(result.exception)
    assert "has no journal.sqlite" in str(command("sweep", "gap", swept.folder, tmp_path).exception)
    bad = command("sweep", "plot", swept.folder, "--format", "gif", "--out", tmp_path)
    assert str(bad.exception) == "--format gif: allowed: png, svg, pdf"
    bad = command("sweep", "plan", swept.folder, "--top", "2", "--out", tmp_path / "x")
    assert "--top 2: allowed 3" in str(bad.exception)
    assert not list(tmp_path.iterdir())


def test_a_sweep_without_rows_says_so(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document(room=None, sweep=None)))
    job = begin(outline(load(path)), tmp_path / "out")
    with pytest.raises(PlanError, match="has no rows yet"):
        write([job.folder], tmp_path / "figures")
