import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from edge import files
from edge.bundle.signing import load_public_key
from edge.errors import BundleError, UsageError
from edge.update.pointer import MAX_NAMES, Content, Known, Outcome, Pointer
from edge.update.provisioning import provision
from edge.update.slots import Slots


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def versions(make_tiny_bundle) -> dict[int, Path]:
    return {version: make_tiny_bundle(version=version) for version in (1, 2, 3)}


@pytest.fixture
def device(tmp_path, versions, keys) -> Slots:
    """A device with version 1, confirmed."""
    provision(tmp_path / "kitchen", versions[1], bundle_keys=[keys.public])
    slots = Slots(tmp_path / "kitchen")
    slots.choose()
    slots.confirm()
    return slots


def install(slots: Slots, bundle: Path) -> str:
    part = slots.folder / "download/x.part"
    part.parent.mkdir(exist_ok=True)
    shutil.copy(bundle, part)
    return slots.install(part, slots.verify(part))


def test_a_confirmed_bundle_starts_without_a_write(device, versions):
    before = device.pointer_path.stat()
    choice = device.choose()
    assert (choice.slot, choice.bundle.sha256) == ("a", sha256(versions[1]))
    assert choice.pointer.confirmed
    assert device.pointer_path.stat().st_ino == before.st_ino


def test_an_update_goes_into_the_other_slot_and_is_confirmed(device, versions):
    assert install(device, versions[2]) == "b"
    assert not (device.folder / "download/x.part").exists()
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version, choice.pointer.starts) == ("b", 2, 1)
    assert not choice.pointer.confirmed
    assert choice.pointer.last_update.stage == "running"
    assert device.confirm().last_update.stage == "confirmed"
    assert device.choose().pointer.confirmed
    assert install(device, versions[3]) == "a"


def test_three_starts_without_confirmation_go_back(device, versions):
    install(device, versions[2])
    for start in (1, 2, 3):
        choice = device.choose()
        assert (choice.slot, choice.pointer.starts) == ("b", start)
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version) == ("a", 1)
    assert choice.pointer.confirmed
    assert choice.pointer.last_update.stage == "reverted"
    assert choice.pointer.last_update.bundle_version == 2
    assert "3 starts" in choice.pointer.last_update.detail
    assert device.choose().slot == "a"


def test_the_start_is_counted_before_the_bundle_is_read(device, versions, monkeypatch):
    install(device, versions[2])
    counted = []

    def read(slot: str) -> None:
        counted.append(device.pointer().starts)
        raise RuntimeError("power cut")

    monkeypatch.setattr(device, "read", read)
    with pytest.raises(RuntimeError):
        device.choose()
    assert counted == [1]


def test_only_a_confirmed_device_takes_an_update(device, versions):
    install(device, versions[2])
    device.choose()
    with pytest.raises(UsageError, match="slot b has not proved itself yet"):
        install(device, versions[3])
    assert sha256(device.path("a")) == sha256(versions[1])


@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "folder", "signed by a stranger"])
def test_an_active_slot_that_does_not_verify_gives_way(device, versions, damage, make_tiny_bundle, other_keys):
    install(device, versions[2])
    device.choose()
    device.confirm()
    path = device.path("b")
    good = bytearray(path.read_bytes())
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        good[len(good) // 2] ^= 1
        path.write_bytes(good)
    elif damage == "folder":
        path.mkdir()
    elif damage == "signed by a stranger":
        shutil.copy(make_tiny_bundle(version=2, key=other_keys), path)
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version) == ("a", 1)
    assert choice.pointer.last_update.stage == "reverted"
    assert "slot b" in choice.pointer.last_update.detail
    assert device.choose().slot == "a"


def test_a_bundle_that_was_not_installed_there_runs_only_where_nothing_better_is(device, versions):
    install(device, versions[2])
    device.choose()
    device.confirm()
    shutil.copy(versions[3], device.path("b"))
    assert device.choose().slot == "a"
    shutil.copy(versions[3], device.path("a"))
    device.path("b").unlink()
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version) == ("a", 3)


def test_without_any_bundle_the_error_names_the_fix(device):
    device.path("a").unlink()
    with pytest.raises(BundleError, match="earshot-device provision FILE") as caught:
        device.choose()
    assert "\n" not in str(caught.value)
    device.pointer_path.unlink()
    with pytest.raises(BundleError, match="earshot-device provision FILE"):
        device.choose()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\0" * 500,
        b"{",
        b'{"schema": 2, "active": "a", "confirmed": true}',
        b'{"schema": 1, "active": "c", "confirmed": true}',
        b'{"schema": 1, "active": "a", "confirmed": true, "starts": -1}',
        b'{"schema": 1, "active": "a", "confirmed": true, "more": 1}',
        b"[" * 60_000,
        b'"' + b"x" * 70_000 + b'"',
        "folder",
    ],
)
def test_an_unreadable_pointer_is_made_again(device, versions, content):
    install(device, versions[2])
    device.choose()
    device.confirm()
    device.pointer_path.unlink()
    if content == "folder":
        device.pointer_path.mkdir()
    elif content is not None:
        device.pointer_path.write_bytes(content)
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version, choice.pointer.confirmed) == ("b", 2, False)
    if content != "folder":
        assert device.pointer() == choice.pointer
        assert choice.pointer.highest["level"].version == 2


def test_a_rebuilt_pointer_takes_what_verifies(device, versions):
    install(device, versions[2])
    device.pointer_path.write_bytes(b"x")
    device.path("b").write_bytes(b"x")
    assert device.choose().slot == "a"


def test_a_rebuilt_pointer_of_two_models_takes_the_later_one(device, make_tiny_bundle):
    install(device, make_tiny_bundle(name="another", version=1))
    os.utime(device.path("a"), (1000, 1000))
    device.pointer_path.unlink()
    assert device.choose().bundle.manifest.name == "another"


def test_a_disk_that_takes_nothing_does_not_keep_a_device_from_starting(device, versions, monkeypatch, caplog):
    install(device, versions[2])

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    assert device.choose().bundle.manifest.version == 2
    assert "No space left" in caplog.text


def test_what_interrupted_writes_left_is_cleared_away(device):
    left = [
        device.folder / "slots/.pointer.json.4711",
        device.folder / "slots/a/.bundle.earshot.4711",
        device.folder / "trust/bundle/.0123456789abcdef.pub.4711",
    ]
    for path in left:
        path.write_bytes(b"half")
    device.choose()
    assert not any(path.exists() for path in left)
    assert device.path("a").exists()


def test_highest_version_is_remembered_per_name(device, versions, make_tiny_bundle):
    install(device, versions[3])
    assert device.pointer().highest["level"].version == 1
    device.choose()
    pointer = device.confirm()
    assert pointer.highest["level"] == Known(version=3, sha256=sha256(versions[3]))
    v2 = sha256(versions[2])
    with pytest.raises(UsageError, match="version 2 is below 3"):
        pointer.check_version("level", 2, v2, downgrade=False)
    pointer.check_version("level", 2, v2, downgrade=True)
    pointer.check_version("level", 4, v2, downgrade=False)
    pointer.check_version("other", 1, v2, downgrade=False)
    pointer.check_version("level", 3, sha256(versions[3]), downgrade=False)
    for downgrade in (False, True):
        with pytest.raises(UsageError, match="version 3 is known here with other bytes"):
            pointer.check_version("level", 3, v2, downgrade=downgrade)
        with pytest.raises(UsageError, match="version 1 is known here with other bytes"):
            pointer.check_version("level", 1, v2, downgrade=downgrade)


def test_the_names_remembered_are_bounded():
    pointer = Pointer(active="a", confirmed=True)
    for number in range(MAX_NAMES + 5):
        content = Content(sha256="0" * 64, name=f"m{number}", version=1, key="0" * 16)
        pointer = pointer.with_run(content)
    assert len(pointer.highest) == MAX_NAMES
    assert f"m{MAX_NAMES + 4}" in pointer.highest
    assert Pointer.model_validate_json(pointer.model_dump_json(by_alias=True)) == pointer


def test_a_switch_goes_to_the_other_slot_unconfirmed(device, versions):
    install(device, versions[2])
    device.choose()
    device.confirm()
    assert device.switch(device.read("a")) == "a"
    choice = device.choose()
    assert (choice.slot, choice.bundle.manifest.version, choice.pointer.confirmed) == ("a", 1, False)
    assert choice.pointer.highest["level"].version == 2
    for _ in range(3):
        choice = device.choose()
    assert (choice.slot, choice.pointer.last_update.stage) == ("b", "reverted")


def test_the_pointer_is_plain_json(device):
    document = json.loads(device.pointer_path.read_bytes())
    assert document["schema"] == 1
    assert document["slots"]["a"]["name"] == "level"
    assert Outcome.model_validate(document["last_update"]).stage == "confirmed"


def test_provisioning_an_empty_folder(tmp_path, versions, keys, other_keys):
    folder = tmp_path / "new/kitchen"
    done = provision(folder, versions[1], bundle_keys=[keys.public], operator_keys=[other_keys.public])
    assert (done.slot, done.bundle_name, done.bundle_version, done.changed) == ("a", "level", 1, True)
    slots = Slots(folder)
    assert slots.trust.keys("operator") == [load_public_key(other_keys.public)]
    choice = slots.choose()
    assert (choice.slot, choice.pointer.confirmed, choice.pointer.starts) == ("a", False, 1)
    for _ in range(5):
        assert slots.choose().slot == "a"
    again = provision(folder, versions[1], bundle_keys=[keys.public], operator_keys=[other_keys.public])
    assert (again.slot, again.changed) == ("a", False)


def test_provisioning_needs_a_key_that_signed(tmp_path, versions, other_keys):
    with pytest.raises(UsageError, match="--trust"):
        provision(tmp_path / "d", versions[1])
    with pytest.raises(BundleError, match="another key"):
        provision(tmp_path / "d", versions[1], bundle_keys=[other_keys.public])
    assert not (tmp_path / "d").exists()


def test_provisioning_refuses_what_runs_and_mends_what_does_not(device, versions):
    with pytest.raises(UsageError, match="slot a holds level version 1"):
        provision(device.folder, versions[2])
    assert provision(device.folder, versions[2], force=True).slot == "b"
    assert device.choose().bundle.manifest.version == 2
    for slot in ("a", "b"):
        device.path(slot).write_bytes(b"broken")
    with pytest.raises(BundleError):
        device.choose()
    provision(device.folder, versions[3])
    assert device.choose().bundle.manifest.version == 3


def test_whatever_a_broken_card_leaves_a_start_finds_a_bundle_or_says_so(device, versions, tmp_path):
    """Damage of one to three files or folders, seeded: never another error, never a bundle that does not verify."""
    install(device, versions[2])
    device.choose()
    device.confirm()
    good = {sha256(versions[1]), sha256(versions[2])}
    rng = random.Random(8)
    started, refusals = 0, []
    for _ in range(100):
        folder = tmp_path / "broken"
        shutil.copytree(device.folder, folder)
        for path in rng.sample(sorted(folder.rglob("*")), rng.randint(1, 3)):
            damage_one(path, rng)
        try:
            assert Slots(folder).choose().bundle.sha256 in good
            started += 1
        except BundleError as error:
            refusals.append(str(error))
        shutil.rmtree(folder)
    assert started >= 30
    assert refusals
    assert all("earshot-device provision FILE" in each for each in refusals)


def damage_one(path: Path, rng: random.Random) -> None:
    how = rng.choice(["gone", "flipped", "cut", "garbage", "folder", "link"])
    if not path.exists():
        return
    content = bytearray(path.read_bytes()) if path.is_file() else None
    if how in {"gone", "folder", "link"} or not content:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to(rng.choice(["/dev/zero", str(path.parent / "nowhere"), str(path), "/"]))
    elif how == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        path.write_bytes(rng.randbytes(rng.randrange(3000)))
