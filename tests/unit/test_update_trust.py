import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from edge import files
from edge.bundle.signing import fingerprint, load_public_key, public_pem
from edge.errors import BundleError, UsageError
from edge.messages import Rotate
from edge.update.provisioning import provision
from edge.update.slots import Slots
from edge.update.trust import MAX_KEYS, TrustStore


@dataclass(frozen=True)
class Statement:
    old: SigningKey
    new: SigningKey
    role: str = "bundle"

    def rotate(self, *, signer: SigningKey | None = None) -> Rotate:
        unsigned = Rotate(
            device="kitchen",
            role=self.role,
            old_key=bytes(self.old.verify_key).hex(),
            new_key=bytes(self.new.verify_key).hex(),
            signature="0" * 128,
        )
        signature = (signer or self.old).sign(unsigned.signed_bytes()).signature.hex()
        return unsigned.model_copy(update={"signature": signature})


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "trust")


def key(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


def test_keys_are_files_named_by_their_fingerprint(store, tmp_path):
    assert store.keys("bundle") == []
    store.add("bundle", key(1).verify_key)
    store.add("bundle", key(1).verify_key)
    store.add("operator", key(2).verify_key)
    assert store.keys("bundle") == [key(1).verify_key]
    assert store.keys("operator") == [key(2).verify_key]
    path = tmp_path / f"trust/bundle/{fingerprint(key(1).verify_key)}.pub"
    assert load_public_key(path) == key(1).verify_key


def test_what_is_no_key_gives_nobody_a_right(store, tmp_path, keys):
    store.add("bundle", key(1).verify_key)
    folder = tmp_path / "trust/bundle"
    (folder / "garbage.pub").write_bytes(b"\xff" * 300)
    (folder / "huge.pub").write_bytes(b"x" * 100_000)
    (folder / "empty.pub").write_bytes(b"")
    (folder / "folder.pub").mkdir()
    (folder / "dangling.pub").symlink_to("nowhere")
    shutil.copy(keys.private, folder / "private.pub")
    (folder / f".{fingerprint(key(3).verify_key)}.pub.123").write_bytes(public_pem(key(3).verify_key))
    assert store.keys("bundle") == [key(1).verify_key]


def test_the_number_of_keys_is_bounded(store):
    for number in range(MAX_KEYS):
        store.add("bundle", key(number).verify_key)
    with pytest.raises(UsageError, match=f"{MAX_KEYS} are trusted already"):
        store.add("bundle", key(MAX_KEYS).verify_key)


def test_a_rotation_replaces_a_key_and_can_be_said_again(store):
    store.add("operator", key(1).verify_key)
    statement = Statement(key(1), key(2), "operator").rotate()
    store.rotate(statement, keep=[])
    assert store.keys("operator") == [key(2).verify_key]
    store.rotate(statement, keep=[])
    assert store.keys("operator") == [key(2).verify_key]


def test_only_the_old_key_itself_can_name_another(store):
    store.add("bundle", key(1).verify_key)
    store.add("operator", key(3).verify_key)
    with pytest.raises(UsageError, match="did not sign"):
        store.rotate(Statement(key(1), key(2)).rotate(signer=key(3)), keep=[])
    with pytest.raises(UsageError, match="not trusted"):
        store.rotate(Statement(key(3), key(2)).rotate(), keep=[])
    with pytest.raises(UsageError, match="same key"):
        store.rotate(Statement(key(1), key(1)).rotate(), keep=[])
    altered = Statement(key(1), key(2)).rotate().model_copy(update={"role": "operator"})
    with pytest.raises(UsageError, match="did not sign"):
        store.rotate(altered, keep=[])
    assert store.keys("bundle") == [key(1).verify_key]
    assert store.keys("operator") == [key(3).verify_key]


def test_a_retired_key_does_not_come_back(store, tmp_path):
    store.add("bundle", key(1).verify_key)
    store.rotate(Statement(key(1), key(2)).rotate(), keep=[])
    with pytest.raises(UsageError, match="does not come back"):
        store.rotate(Statement(key(2), key(1)).rotate(), keep=[])
    with pytest.raises(UsageError, match="does not come back"):
        store.add("bundle", key(1).verify_key)
    with pytest.raises(UsageError, match="not trusted"):
        store.rotate(Statement(key(1), key(3)).rotate(), keep=[])
    # A file put back by hand, or one that an interrupted rotation has left, counts for nothing.
    (tmp_path / "trust/bundle/back.pub").write_bytes(public_pem(key(1).verify_key))
    assert store.keys("bundle") == [key(2).verify_key]


def test_the_new_key_is_there_before_the_old_one_goes(store, monkeypatch):
    store.add("bundle", key(1).verify_key)
    seen = []
    write, remove = files.write, files.remove

    def watched_write(path, content):
        write(path, content)
        seen.append(store.keys("bundle"))

    def watched_remove(path):
        remove(path)
        seen.append(store.keys("bundle"))

    monkeypatch.setattr(files, "write", watched_write)
    monkeypatch.setattr(files, "remove", watched_remove)
    store.rotate(Statement(key(1), key(2)).rotate(), keep=[])
    assert len(seen) == 3
    assert all(seen)
    assert seen[-1] == [key(2).verify_key]


def test_a_retired_key_vouches_for_the_bundles_in_the_slots_only(tmp_path, make_tiny_bundle, keys):
    first, second = make_tiny_bundle(version=1), make_tiny_bundle(version=2)
    provision(tmp_path, first, bundle_keys=[keys.public])
    slots = Slots(tmp_path)
    slots.choose()
    slots.confirm()
    old = keys.signer
    slots.rotate(Statement(old, key(9)).rotate())
    assert slots.trust.keys("bundle") == [key(9).verify_key]
    assert slots.choose().bundle.manifest.version == 1
    with pytest.raises(BundleError, match="another key"):
        slots.verify(second)
    slots.path("b").parent.mkdir()
    shutil.copy(second, slots.path("b"))
    with pytest.raises(BundleError, match="another key"):
        slots.read("b")
    # Even where the pointer is lost, the bundle in the slot stays runnable.
    slots.pointer_path.unlink()
    assert slots.choose().slot == "a"
