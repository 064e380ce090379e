"""Whenever the power goes, the device starts with a valid signed model, and no confirmed update is lost."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge.errors import BundleError
from edge.messages import Rollback, Rotate, Update
from edge.update.job import Job
from edge.update.provisioning import provision
from edge.update.slots import Slots
from rig.devices.bundle_server import BundleServer

# Small pieces and frequent synchronising make many moments.
PATIENCE = {"chunk_bytes": 1500, "synchronise_bytes": 6000, "reserve_bytes": 0, "attempts": 2, "backoff_s": 0.01}
CALLS = ("write", "openat", "fsync", "rename", "unlink", "mkdir")
FEW_STATES = 20
DRAWS = 20


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Story:
    """A state folder, what is done to it, and what must hold after a cut, given what had been said before it."""

    name: str
    deed: str
    prepare: Callable[[SimpleNamespace, Path], dict]
    check: Callable[[SimpleNamespace, Path, str], None]


@pytest.fixture(scope="module")
def world(make_tiny_bundle, keys, other_keys, tmp_path_factory):
    """Three versions, a server for each, and keys."""
    bundles = {version: make_tiny_bundle(version=version) for version in (1, 2, 3)}
    servers = {version: BundleServer(path, host="127.0.0.1") for version, path in bundles.items()}
    for server in servers.values():
        server.__enter__()
    yield SimpleNamespace(bundles=bundles, servers=servers, keys=keys, new_keys=other_keys)
    for server in servers.values():
        server.__exit__()


def device(world, folder: Path, *installed: int, confirmed: bool = True, starts: int = 0) -> Slots:
    """A device that came to its last version by updates."""
    provision(folder, world.bundles[installed[0]], bundle_keys=[world.keys.public], operator_keys=[world.keys.public])
    slots = Slots(folder)
    for version in installed[1:]:
        slots.choose()
        slots.confirm()
        part = folder / "part"
        shutil.copy(world.bundles[version], part)
        slots.install(part, slots.verify(part))
    for _ in range(1 if confirmed else starts):
        slots.choose()
    if confirmed:
        slots.confirm()
    return slots


def update_task(world, version: int) -> dict:
    path = world.bundles[version]
    update = Update(
        device="kitchen",
        url=world.servers[version].url,
        bundle_name="level",
        bundle_version=version,
        bundle_sha256=sha256(path),
        size_bytes=path.stat().st_size,
    )
    return {"task": update.model_dump(mode="json", by_alias=True), "patience": PATIENCE}


def rotate_task(world, role: str) -> dict:
    old, new = world.keys.signer, world.new_keys.signer
    fields = {"old_key": bytes(old.verify_key).hex(), "new_key": bytes(new.verify_key).hex(), "signature": "0" * 128}
    unsigned = Rotate(device="kitchen", role=role, **fields)
    signature = old.sign(unsigned.signed_bytes()).signature.hex()
    return {"rotate": unsigned.model_copy(update={"signature": signature}).model_dump(mode="json", by_alias=True)}


def check_replaced(folder: Path, said: str, *, old: int, new: int) -> None:
    """The old bundle, confirmed, or the new one with the way back; after success was told, the new one."""
    slots = Slots(folder)
    choice = slots.choose()
    version = choice.bundle.manifest.version
    assert version in {old, new}
    assert version == new or not said.startswith("installed"), "what was said to be installed is not"
    assert choice.pointer.confirmed == (version == old)
    if version == new:
        assert choice.pointer.starts == 1
        assert [slots.choose().bundle.manifest.version for _ in range(3)] == [new, new, old], "no way back"
        assert slots.choose().pointer.confirmed


def updating(*installed: int, to: int, part: int = 0) -> Callable[[SimpleNamespace, Path], dict]:
    """A confirmed device that is told to update; ``part`` bytes of the download have come before."""

    def prepare(world, folder: Path) -> dict:
        device(world, folder, *installed)
        if part:
            (folder / "download").mkdir()
            (folder / "download/old.part").write_bytes(b"x")
            begun = folder / f"download/{sha256(world.bundles[to])}.part"
            begun.write_bytes(world.bundles[to].read_bytes()[:part])
        return update_task(world, to)

    return prepare


def rolling_back(world, folder: Path) -> dict:
    device(world, folder, 1, 2)
    task = Rollback(device="kitchen", bundle_sha256=sha256(world.bundles[1]))
    return {"task": task.model_dump(mode="json", by_alias=True)}


def replaced(old: int, new: int) -> Callable[[SimpleNamespace, Path, str], None]:
    return lambda world, folder, said: check_replaced(folder, said, old=old, new=new)


def unconfirmed(starts: int) -> Callable[[SimpleNamespace, Path], dict]:
    def prepare(world, folder: Path) -> dict:
        device(world, folder, 1, 2, confirmed=False, starts=starts)
        return {}

    return prepare


def check_counted(world, folder: Path, said: str) -> None:
    slots = Slots(folder)
    choice = slots.choose()
    assert (choice.slot, choice.bundle.manifest.version) == ("b", 2)
    assert choice.pointer.starts in ({2} if said else {1, 2}), "a start was not counted"
    while (choice := slots.choose()).slot == "b":
        assert choice.pointer.starts <= 3
    assert choice.pointer.confirmed


def check_went_back(world, folder: Path, said: str) -> None:
    choice = Slots(folder).choose()
    assert (choice.slot, choice.bundle.manifest.version) == ("a", 1)
    assert choice.pointer.last_update.stage == "reverted"


def broken_slot(world, folder: Path) -> dict:
    slots = device(world, folder, 1, 2)
    slots.path("b").write_bytes(slots.path("b").read_bytes()[:-100])
    (folder / "slots/.pointer.json.17").write_bytes(b"left by an interrupted write")
    return {}


def lost_pointer(world, folder: Path) -> dict:
    device(world, folder, 1, 2).pointer_path.unlink()
    return {}


def check_rebuilt(world, folder: Path, said: str) -> None:
    choice = Slots(folder).choose()
    assert choice.bundle.manifest.version == 2
    assert choice.pointer.starts in ({2} if said else {1, 2})


def check_confirmed(world, folder: Path, said: str) -> None:
    choice = Slots(folder).choose()
    assert choice.bundle.manifest.version == 2
    assert choice.pointer.confirmed or not said, "a confirmed update is lost"
    assert Slots(folder).read("a").manifest.version == 1


def rotating(role: str) -> Story:
    def prepare(world, folder: Path) -> dict:
        device(world, folder, 1, 2)
        return rotate_task(world, role)

    def check(world, folder: Path, said: str) -> None:
        new = world.new_keys.signer.verify_key
        slots = Slots(folder)
        trusted = slots.trust.keys(role)
        assert trusted, "locked out"
        assert trusted == [new] or not said, "what was said to be rotated is not"
        for _ in range(2):
            assert slots.choose().bundle.manifest.version == 2
            assert slots.choose().pointer.confirmed
            assert slots.read("a").manifest.version == 1
            slots.rotate(Rotate.model_validate(rotate_task(world, role)["rotate"]))
            assert slots.trust.keys(role) == [new]

    return Story(f"rotate {role}", "rotate", prepare, check)


def empty(world, folder: Path) -> dict:
    folder.mkdir()
    return {"bundle": str(world.bundles[1]), "keys": [str(world.keys.public)]}


def nothing_left(world, folder: Path) -> dict:
    slots = device(world, folder, 2, 3)
    for slot in ("a", "b"):
        slots.path(slot).write_bytes(b"broken")
    return {"bundle": str(world.bundles[1]), "keys": [str(world.keys.public)]}


def check_provisioned(world, folder: Path, said: str) -> None:
    slots = Slots(folder)
    if not said:
        # Nobody was told that it is done: at worst it must be done again.
        provision(folder, world.bundles[1], bundle_keys=[world.keys.public])
    assert slots.choose().bundle.manifest.version == 1


STORIES = (
    Story("first update", "update", updating(1, to=2), replaced(1, 2)),
    Story("update", "update", updating(1, 2, to=3), replaced(2, 3)),
    Story("resumed update", "update", updating(1, 2, to=3, part=50_000), replaced(2, 3)),
    Story("rollback", "update", rolling_back, replaced(2, 1)),
    Story("first start", "start", unconfirmed(starts=0), check_counted),
    Story("fourth start", "start", unconfirmed(starts=3), check_went_back),
    Story("broken slot", "start", broken_slot, check_went_back),
    Story("lost pointer", "start", lost_pointer, check_rebuilt),
    Story("confirm", "confirm", unconfirmed(starts=1), check_confirmed),
    rotating("bundle"),
    rotating("operator"),
    Story("provision", "provide", empty, check_provisioned),
    Story("provision again", "provide", nothing_left, check_provisioned),
)
UPDATE = STORIES[1]


def complaint(world, story: Story, folder: Path, said: str) -> str | None:
    """What a start after the cut finds wrong."""
    try:
        story.check(world, folder, said)
    except (AssertionError, BundleError) as error:
        return f"{story.name}: said {said!r}: {str(error).splitlines()[0]}"
    return None


def cut_by_signal(world, story, actor, tmp_path, *, moments=None) -> tuple[int, list[str]]:
    """Kill the deed at each of its calls, or at some; returns how often, and what was found wrong."""
    kills, wrong = 0, []
    for call in CALLS:
        counts = itertools.count(1) if moments is None else moments.get(call, ())
        for count in counts:
            folder = tmp_path / "killed"
            task = story.prepare(world, folder)
            ended = actor.do(story.deed, folder, task, kill_at=(call, count))
            if ended.code != -9:
                assert ended.code == 0, f"{story.name}: ended with {ended.code}"
                shutil.rmtree(folder)
                break
            kills += 1
            if (found := complaint(world, story, folder, ended.said)) is not None:
                wrong.append(f"{found} (killed at {call} {count})")
            shutil.rmtree(folder)
    return kills, wrong


def cut_the_disk(world, story, actor, replay, lay_out, tmp_path, *, most=None) -> tuple[int, int, list[str]]:
    """Lose what was not synchronised after each operation; returns moments, distinct states, what was found wrong."""
    rng = np.random.default_rng(5)
    folder, before = tmp_path / "traced", tmp_path / "before"
    task = story.prepare(world, folder)
    shutil.copytree(folder, before)
    ended = actor.do(story.deed, folder, task)
    assert ended.code == 0, f"{story.name}: ended with {ended.code}"
    shutil.rmtree(folder)
    shutil.copytree(before, folder)
    moments, seen, wrong = 0, set(), []
    chosen = []
    for disk, call, said in replay(ended.trace, folder):
        moments += 1
        chosen += [(state, call, said) for state in disk.states(rng, DRAWS)]
    step = 1 if most is None else max(1, len(chosen) // most)
    for state, call, said in chosen[::step]:
        there = tmp_path / "state"
        there.mkdir()
        key = (lay_out(state, there), said)
        if key not in seen:
            seen.add(key)
            if (found := complaint(world, story, there, said)) is not None:
                wrong.append(f"{found} (after {call})")
        shutil.rmtree(there)
    shutil.rmtree(folder)
    shutil.rmtree(before)
    return moments, len(seen), wrong


def test_a_cut_at_a_dozen_calls_of_an_update(world, actor, tmp_path):
    some = {"write": (3, 50), "openat": (9,), "fsync": (1, *range(11, 19)), "rename": (1, 2), "mkdir": (1,)}
    kills, wrong = cut_by_signal(world, UPDATE, actor, tmp_path, moments=some)
    print(f"{kills} points: killed by strace")
    assert not wrong
    assert kills >= 10


def test_a_cut_that_loses_what_was_not_synchronised(world, actor, replay, lay_out, tmp_path):
    total = 0
    for story in STORIES:
        moments, states, wrong = cut_the_disk(world, story, actor, replay, lay_out, tmp_path, most=FEW_STATES)
        assert not wrong
        assert moments >= 3, f"{story.name}: the trace shows no operation on the disk"
        total += states
    print(f"{total} points: states of a disk that lost what was not synchronised")


@pytest.mark.parametrize("deed", ["naive", "unsynchronised"])
def test_the_harness_finds_what_careless_writers_break(world, actor, replay, lay_out, tmp_path, deed):
    def prepare(world, folder: Path) -> dict:
        return UPDATE.prepare(world, folder) | ({"bundle": str(world.bundles[3])} if deed == "naive" else {})

    story = Story(deed, deed, prepare, UPDATE.check)
    _, states, wrong = cut_the_disk(world, story, actor, replay, lay_out, tmp_path, most=60 if deed == "naive" else 200)
    print(f"{deed}: {len(wrong)} of {states} states of the disk are broken")
    assert wrong
    if deed == "naive":
        kills, wrong = cut_by_signal(world, story, actor, tmp_path, moments={"write": (2, 12), "openat": (5,)})
        print(f"naive: {len(wrong)} of {kills} kills break it")
        assert wrong


def real_process(world, strace: str, folder: Path, calls: str, count: int) -> tuple[int, str]:
    """Kill ``python -m edge.update.worker`` itself; returns its code and what it said last."""
    task = UPDATE.prepare(world, folder)
    worker = [sys.executable, "-m", "edge.update.worker"]
    tracing = [strace, "-f", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={count}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*tracing, *worker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        # The parent of the updating process is strace.
        job = Job.model_validate({"folder": folder, "parent_pid": process.pid, "runs": 3, **task})
        output, _ = process.communicate(job.model_dump_json(exclude_none=True).encode() + b"\n", timeout=60)
    said = "installed" if b'"installed"' in output else ""
    return process.returncode, said


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([("rename", 1), ("rename", 2)], id="renames"),
        pytest.param(
            [*(("rename", n) for n in (1, 2)), *(("fsync", n) for n in range(1, 12))], id="all", marks=pytest.mark.soak
        ),
    ],
)
def test_the_updating_process_itself_is_killed(world, strace_program, spellings, tmp_path, calls):
    kills = 0
    for number, (call, count) in enumerate(calls):
        folder = tmp_path / str(number)
        code, said = real_process(world, strace_program, folder, spellings.get(call, call), count)
        assert code == -9, f"{call} {count}: ended with {code}"
        kills += 1
        assert complaint(world, UPDATE, folder, said) is None
    assert kills >= 2
    print(f"{kills} points: python -m edge.update.worker killed")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_cut_at_every_call_of_everything(world, actor, replay, lay_out, tmp_path):
    killed = lost = 0
    for story in STORIES:
        kills, wrong = cut_by_signal(world, story, actor, tmp_path)
        assert not wrong
        moments, states, wrong = cut_the_disk(world, story, actor, replay, lay_out, tmp_path)
        assert not wrong
        print(f"{story.name}: {kills} kills, {moments} operations, {states} states of the disk")
        killed, lost = killed + kills, lost + states
    print(f"{killed} points by strace, {lost} states of a disk that lost what was not synchronised: all started")
    assert killed >= 500
    assert lost >= 300
