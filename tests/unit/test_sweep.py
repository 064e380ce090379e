import json
import math
import sys
from collections import Counter
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.signal import fftconvolve
from typer.testing import CliRunner

from edge.bundle.classifier import Classifier
from edge.errors import PlanError, UnavailableError, UsageError
from firmware_models.statistics import wilson
from rig.airs import DigitalAir
from rig.cli.main import app
from rig.plan import Condition, load
from rig.sweep import rows
from rig.sweep.engine import Engine, noise_seed
from rig.sweep.grid import BATCH
from rig.sweep.job import read_job
from rig.sweep.prepare import begin, outline
from rig.sweep.running.run import run
from rig.sweep.summary import read_summary, write_summary

ROOM = {
    "size_m": [4.5, 3.6, 2.6],
    "walls": 0.6,
    "talker_m": [2.2, 1.8, 1.5],
    "attackers_m": {"shelf": [3.4, 2.9, 1.6], "door": [0.5, 0.5, 1.2]},
    "devices_m": {"table": [2.9, 1.5, 0.9], "floor": [1.0, 1.5, 0.4]},
    "noise_dbfs": -60,
}


def document(**changes):
    return {
        "schema": 1,
        "name": "small",
        "seed": 20,
        "bundles": ["zoo:lms-int8"],
        "clips": {"data": "zoo", "split": "all", "count": 4},
        "attacks": [
            {"name": "benign"},
            {"name": "random-sign", "eps": [0.002, 0.02]},
            {"name": "pgd", "steps": 2, "eps": [0.002, 0.02], "target": "yes"},
        ],
        "delays_ms": [0, 33.3],
        "room": ROOM,
        "sweep": {"levels_db": [0, 6]},
        **changes,
    }


def plan_file(folder, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    return path


def prepared(folder, *, chunk=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    return begin(outline(load(plan_file(folder, **changes)), chunk=chunk), folder / "out", chunk=chunk)


def contents(folder):
    """Every row of a sweep, chunk after chunk."""
    files = sorted((folder / rows.FOLDER).glob("chunk-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    job = prepared(tmp_path_factory.mktemp("sweep"), chunk=64)
    return job, run(job)


def test_every_cell_of_the_plan_has_every_clip(swept):
    job, outcome = swept
    found = contents(job.folder)
    assert [row["index"] for row in found] == list(range(job.grid.total))
    assert outcome.summary.complete
    counted = Counter((row["attack"], row["eps"]) for row in found)
    places = 2 * 2 * 2 * 2  # devices, attackers, delays, levels
    says_yes = sum(clip.label == "yes" for clip in job.grid.axes.clips)
    assert counted == {
        ("benign", 0.0): 4 * 2,
        ("random-sign", 0.002): 4 * places,
        ("random-sign", 0.02): 4 * places,
        ("pgd-2", 0.002): (4 - says_yes) * places,
        ("pgd-2", 0.02): (4 - says_yes) * places,
    }


def test_rows_are_those_of_the_plain_loop(swept):
    """Convolve, shift, scale, add, quantise and score one condition at a time, with nothing of the sweep's own."""
    job, _ = swept
    quiet = job.plan.model_copy(update={"room": job.plan.room.model_copy(update={"noise_dbfs": -120.0})})
    job = type(job)(**{**job.__dict__, "plan": quiet})
    grid, classifier = job.grid, Classifier(job.bundles["lms-int8"])
    labels = job.description.labels
    clips = np.load(job.folder / "material/clips.npy").astype(float) / 32768
    made = np.load(job.folder / "material/perturbations.npy").astype(float) / 32768
    engine = Engine(job)
    responses = job.responses.reshape(2, 3, -1).astype(float)  # devices, talker and two attackers
    for number in range(grid.chunks):
        span = grid.span(number)
        for row in engine.table(span, job.sounds(span)).to_pylist()[::7]:
            device = list(grid.axes.devices).index(row["device_position"])
            start = round(float(job.onsets[0, device, 0]))
            heard = fftconvolve(clips[row["clip"]], responses[device, 0])[start : start + 16_000]
            expected_linf = 0.0
            if row["attack"] != "benign":
                family = {"random-sign": 0, "pgd-2": 1 + (row["eps"] == 0.02)}[row["attack"]]
                gain = 10 ** (row["level_db"] / 20) * (row["eps"] / 0.02 if family == 0 else 1)
                attacker = 1 + list(grid.axes.attackers).index(row["attacker_position"])
                played = fftconvolve(made[family * 4 + row["clip"]] * gain, responses[device, attacker])
                late = np.concatenate([np.zeros(round(row["delay_ms"] * 16)), played])[start : start + 16_000]
                late = np.pad(late, (0, 16_000 - len(late)))
                expected_linf = np.abs(late).max()
                assert row["snr_db"] == pytest.approx(10 * math.log10((heard**2).sum() / (late**2).sum()), abs=1e-3)
                heard = heard + late
            assert row["linf"] == pytest.approx(expected_linf, rel=1e-4, abs=1e-7)
            pcm = (np.clip(np.rint(heard * 32768), -32768, 32767) / 32768).astype(np.float32)
            (scores,) = classifier.scores(pcm[np.newaxis])
            truth = labels.index(row["label"])
            margin = scores[truth] - np.delete(scores, truth).max()
            # Noise at -120 dBFS and rounding of single samples move INT8 scores by a step or two.
            assert row["margin"] == pytest.approx(margin, abs=0.35)
            if abs(margin) > 0.35:
                assert row["heard"] == labels[scores.argmax()]
            assert row["correct"] == (row["heard"] == row["label"])
            assert row["targeted"] == (row["heard"] == "yes" if row["target"] else None)


def test_without_a_room_it_is_the_digital_air(tmp_path):
    job = prepared(tmp_path, room=None, sweep=None)
    run(job)
    air = DigitalAir(rate_hz=16_000, window_samples=16_000)
    classifier = Classifier(job.bundles["lms-int8"])
    clips, made = (np.load(job.folder / "material" / name) for name in ("clips.npy", "perturbations.npy"))
    compared = 0
    for row in contents(job.folder):
        family = {("random-sign", 0.02): 0, ("pgd-2", 0.002): 1, ("pgd-2", 0.02): 2}.get((row["attack"], row["eps"]))
        if row["attack"] != "benign" and family is None:
            continue  # scaled and not rounded to 16 bits before it is added
        perturbation = None if family is None else made[family * 4 + row["clip"]]
        condition = Condition(bundle="m", attack=row["attack"], eps=row["eps"], delay_ms=row["delay_ms"])
        rendered = air.render("0", clips[row["clip"]], perturbation, condition)
        (scores,) = classifier.scores(rendered.pcm[np.newaxis].astype(np.float32) / 32768)
        assert row["heard"] == classifier.labels[scores.argmax()]
        truth = classifier.labels.index(row["label"])
        assert row["margin"] == pytest.approx(scores[truth] - np.delete(scores, truth).max(), abs=1e-4)
        assert row["linf"] == pytest.approx(rendered.linf, abs=1e-6)
        compared += 1
    assert compared > 10


@pytest.mark.parametrize(("chunk", "workers"), [(32, 1), (4096, 1), (96, 2)])
def test_rows_depend_on_neither_chunks_nor_workers(swept, tmp_path, chunk, workers):
    job, outcome = swept
    other = prepared(tmp_path, chunk=chunk)
    again = run(other, workers=workers)
    assert other.grid.chunks != job.grid.chunks
    assert contents(other.folder) == contents(job.folder)
    assert again.summary == outcome.summary


def test_a_finished_sweep_is_taken_as_it_is_and_damage_is_mended(tmp_path):
    job = prepared(tmp_path, chunk=32)
    run(job)
    before = contents(job.folder)
    files = [rows.path(job.folder, number) for number in range(job.grid.chunks)]
    times = [file.stat().st_mtime_ns for file in files]
    assert run(read_job(job.folder)).computed == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    content = bytearray(files[0].read_bytes())
    content[len(content) // 3] ^= 0x10
    files[0].write_bytes(content)
    files[1].write_bytes(files[2].read_bytes())
    files[3].write_bytes(files[3].read_bytes()[:-9])
    files[4].unlink()
    outcome = run(read_job(job.folder))
    assert (outcome.computed, outcome.replaced, outcome.found) == (4, 3, job.grid.chunks - 4)
    assert contents(job.folder) == before


def test_another_plan_is_refused(tmp_path):
    job = prepared(tmp_path, attacks=[{"name": "benign"}])
    for changes in ({"seed": 21}, {"room": {**ROOM, "walls": 0.5}}, {"bundles": ["zoo:lms-fp32"]}, {"delays_ms": [1]}):
        other = outline(load(plan_file(tmp_path, **{"attacks": [{"name": "benign"}], **changes})))
        with pytest.raises(PlanError, match="holds the sweep of another plan"):
            begin(other, job.folder)
    same = outline(load(plan_file(tmp_path, attacks=[{"name": "benign"}])))
    with pytest.raises(PlanError, match=r"--chunk 999: the sweep in .* has chunks of 512"):
        begin(same, job.folder, chunk=999)
    assert begin(same, job.folder).description == job.description


def test_damaged_material_is_refused(tmp_path):
    job = prepared(tmp_path, attacks=[{"name": "benign"}])
    path = job.folder / "material" / "clips.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"xx")
    with pytest.raises(PlanError, match=r"material/clips.npy is missing or damaged"):
        read_job(job.folder)


def test_the_summary_counts_what_the_rows_say(swept):
    job, outcome = swept
    found = contents(job.folder)
    keys = [key for key in type(outcome.summary.overall[0]).model_fields if key in found[0]]
    of_cell = ("linf", "snr_db", "margin")
    by_cell = {}
    for row in found:
        by_cell.setdefault(tuple(row[key] for key in keys if key not in of_cell), []).append(row)
    assert len(by_cell) == len(outcome.summary.conditions) == outcome.summary.cells
    for rate in outcome.summary.conditions:
        told = rate.model_dump()
        here = by_cell[tuple(told[key] for key in keys if key not in of_cell)]
        errors = sum(not row["correct"] for row in here)
        assert (rate.n, rate.valid, rate.errors) == (len(here), len(here), errors)
        assert (rate.error_rate, rate.ci_low, rate.ci_high) == pytest.approx(wilson(errors, len(here)))
        assert rate.linf == pytest.approx(max(row["linf"] for row in here))
        assert rate.margin == pytest.approx(np.mean([row["margin"] for row in here]), abs=1e-5)
    assert read_summary(job.folder) == outcome.summary
    assert pq.read_table(job.folder / "cells.parquet").to_pylist() == [
        rate.model_dump() for rate in outcome.summary.conditions
    ]


def test_many_places_do_not_feign_more_clips(swept):
    _, outcome = swept
    for rate in outcome.summary.overall:
        _, low, high = wilson(0, 4) if rate.errors == 0 else (0, rate.ci_low, rate.ci_high)
        assert (rate.ci_low, rate.ci_high) == pytest.approx((low, high), abs=0.2)
        assert rate.ci_high - rate.ci_low > 0.3


def test_what_the_microphone_clips_does_not_count(tmp_path):
    job = prepared(tmp_path, room={**ROOM, "gain_db": 20}, attacks=[{"name": "benign"}])
    summary = run(job).summary
    found = contents(job.folder)
    assert summary.invalid[rows.CLIPPED] == sum(row["clipped"] > 0.001 for row in found) > 0
    assert all((row["reason"] == rows.CLIPPED) == (row["clipped"] > 0.001) for row in found)
    assert summary.overall[0].invalid == summary.invalid[rows.CLIPPED]
    assert summary.overall[0].valid + summary.overall[0].invalid == summary.overall[0].n == len(found)


def test_repeats_differ_by_the_noise_alone(tmp_path):
    job = prepared(tmp_path, repeats=3, attacks=[{"name": "benign"}], room={**ROOM, "noise_dbfs": -30})
    run(job)
    found = contents(job.folder)
    first = [row for row in found if (row["clip"], row["device_position"]) == (0, "table")]
    assert [row["repeat"] for row in first] == [0, 1, 2]
    assert len({row["talker_dbfs"] for row in first}) == 1
    assert len({row["margin"] for row in first}) == 3
    assert job.grid.cells(0) == 2


def test_reverberation_times_are_an_axis(tmp_path):
    room = {**{key: value for key, value in ROOM.items() if key != "walls"}, "rt60_s": 0.3}
    job = prepared(tmp_path, room=room, sweep={"rt60_s": [0.2, 0.4]}, attacks=[{"name": "benign"}])
    assert [round(facts["rt60_s"], 1) for facts in job.description.rooms] == [0.2, 0.4]
    run(job)
    by_room = {rt60_s: [row for row in contents(job.folder) if row["rt60_s"] == rt60_s] for rt60_s in (0.2, 0.4)}
    assert len(by_room[0.2]) == len(by_room[0.4]) == 8
    assert np.mean([row["talker_dbfs"] for row in by_room[0.4]]) > np.mean([row["talker_dbfs"] for row in by_room[0.2]])
    (tmp_path / "x").mkdir()
    with pytest.raises(PlanError, match=r"sweep.rt60_s needs a simulated room"):
        outline(load(plan_file(tmp_path / "x", sweep={"rt60_s": [0.2]})))


def test_background_noise_is_set_against_the_talker(tmp_path):
    room = {**ROOM, "background": {"data": "white", "snr_db": 0}}
    loud = prepared(tmp_path / "loud", room=room, attacks=[{"name": "benign"}])
    quiet = prepared(tmp_path / "quiet", attacks=[{"name": "benign"}])
    run(loud), run(quiet)
    assert np.mean([row["margin"] for row in contents(loud.folder)]) < np.mean(
        [row["margin"] for row in contents(quiet.folder)]
    )


def test_what_is_heard_can_be_listened_to(swept):
    job, _ = swept
    span = job.grid.span(1)
    engine = Engine(job)
    heard = engine.heard(span, job.sounds(span), slice(30, 35))
    assert heard.shape == (5, 16_000)
    np.testing.assert_array_equal(heard * 32768, np.rint(heard * 32768))
    scores = Classifier(job.bundles["lms-int8"]).scores(heard)
    found = engine.table(span, job.sounds(span)).slice(30, 5).column("heard").to_pylist()
    assert [job.description.labels[i] for i in scores.argmax(axis=1)] == found


def test_seeds_of_an_ensemble_belong_to_the_condition():
    seeds = {noise_seed(seed, index) for seed in (1, 2) for index in (0, 1)}
    assert len(seeds) == 4
    assert all(len(seed) == 16 for seed in seeds)


def test_an_ensemble_draws_by_the_number_of_the_condition(ensemble_bundle, keys, tmp_path):
    changes = {
        "bundles": [str(ensemble_bundle)],
        "trust": [str(keys.public)],
        "attacks": [{"name": "random-sign", "eps": [0.01, 0.02]}],
        "clips": {"data": "zoo", "split": "all", "count": 2, "labels": ["yes"]},
        "room": None,
        "sweep": None,
        "repeats": 2,
    }
    found = []
    for name, chunk in (("a", 32), ("b", 512)):
        job = prepared(tmp_path / name, chunk=chunk, **changes)
        run(job)
        found.append(contents(job.folder))
    assert found[0] == found[1]
    # Nothing else is random: the members are what repeats differ by.
    assert len({row["margin"] for row in found[0]}) == len(found[0]) == 2 * 2 * 2 * 2
    row = found[0][-1]
    classifier = Classifier(job.bundles["lms-ensemble"])
    pcm = Engine(job).heard(job.grid.span(0), job.sounds(job.grid.span(0)), slice(15, 16))
    (scores,) = classifier.scores(pcm, noise=classifier.noise(noise_seed(20, row["index"])))
    truth = classifier.labels.index(row["label"])
    assert row["margin"] == pytest.approx(scores[truth] - np.delete(scores, truth).max())


def test_torch_renders_and_scores_the_same(swept, monkeypatch):
    """The way through torch, on its CPU: a GPU is not everywhere."""
    from rig.render.torch_linear import TorchRenderer
    from rig.sweep import engine

    job, _ = swept
    span = job.grid.span(2)
    expected = Engine(job).table(span, job.sounds(span)).to_pylist()
    monkeypatch.setattr(
        engine, "open_renderer", lambda material, device, **more: TorchRenderer(material, **more, device="cpu")
    )
    monkeypatch.setattr(engine, "_by_onnxruntime", engine._by_twin)
    for row, other in zip(expected, Engine(job).table(span, job.sounds(span)).to_pylist(), strict=True):
        assert other["linf"] == pytest.approx(row["linf"], rel=1e-4)
        assert other["snr_db"] == pytest.approx(row["snr_db"], abs=1e-3)
        assert other["margin"] == pytest.approx(row["margin"], abs=0.35)


def test_a_sweep_that_is_being_computed_is_left_alone(tmp_path):
    import fcntl

    job = prepared(tmp_path, attacks=[{"name": "benign"}])
    with (job.folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PlanError, match="is being computed by another process"):
            run(job)


def test_a_summary_of_what_is_there_says_that_it_is_incomplete(tmp_path):
    job = prepared(tmp_path, chunk=32)
    run(job)
    rows.path(job.folder, 0).unlink()
    summary = write_summary(job)
    assert not summary.complete
    assert summary.computed == job.grid.total - 8
    assert summary.overall[0].n == 0
    assert summary.overall[0].error_rate is None


def command(*arguments):
    words = [str(each) for each in arguments]
    # Whether help is wanted is read from the command line of the process.
    with mock.patch.object(sys, "argv", ["earshot", *words]):
        return CliRunner().invoke(app, words)


def test_the_command_runs_shows_and_goes_on(tmp_path):
    plan, out = plan_file(tmp_path), tmp_path / "out"
    dry = command("sweep", "run", plan, "--out", out, "--dry-run", "--json")
    assert not out.exists()
    told = json.loads(dry.stdout)
    assert told["conditions"] == 4 * 2 + 4 * 32 + (told["axes"]["clips"] - _yes(plan)) * 32
    first = json.loads(command("sweep", "run", plan, "--out", out, "--json").stdout)
    assert (first["chunks_computed"], first["complete"], first["total"]) == (told["chunks"], True, told["conditions"])
    again = json.loads(command("sweep", "run", plan, "--out", out, "--json").stdout)
    assert (again["chunks_computed"], again["chunks_found"]) == (0, told["chunks"])
    shown = command("sweep", "show", out)
    assert "lms-int8, pgd-2 to yes eps 0.02:" in shown.stdout
    assert json.loads(command("sweep", "show", out, "--json").stdout)["conditions"]


def _yes(plan):
    return sum(clip.label == "yes" for clip in outline(load(plan)).grid.axes.clips)


def test_wrong_use_is_one_line(tmp_path, monkeypatch):
    plan = plan_file(tmp_path, attacks=[{"name": "benign"}])
    loaded = load(plan)
    job = begin(outline(loaded), tmp_path / "out")
    for wrong, words in (
        ({"device": "tpu"}, "use cpu, cuda"),
        ({"workers": 0}, "at least 1"),
        ({"workers": 2, "device": "cuda"}, "a GPU has one"),
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:9"}, "leave --workers or --scheduler out"),
        ({"device": "cuda", "scheduler": "tcp://127.0.0.1:9"}, "begun for cpu"),
    ):
        with pytest.raises(UsageError, match=words):
            run(job, **wrong)
    with pytest.raises(PlanError, match=r"holds no sweep.json"):
        read_job(tmp_path)
    with pytest.raises(PlanError, match=r"has no summary.json yet"):
        read_summary(tmp_path / "out")
    from rig.sweep.running import cluster

    monkeypatch.setattr(cluster, "TIMEOUT_S", 1)
    with pytest.raises(UsageError, match="give tcp://HOST:PORT"):
        run(job, scheduler="localhost")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        run(job, scheduler="tcp://127.0.0.1:9")
    recognised = load(
        plan_file(tmp_path, recogniser={"name": "assistant", "hears": {"yes": "yes"}}, attacks=[{"name": "benign"}])
    )
    with pytest.raises(PlanError, match="a sweep scores bundles itself"):
        outline(recognised)


def test_a_batch_is_never_torn(swept):
    job, _ = swept
    assert job.grid.chunk % BATCH == 0
