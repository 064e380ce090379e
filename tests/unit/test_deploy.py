"""Installing devices: addresses, scripts, what a machine says of itself, wheels, settings, the unit."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from edge.cli.settings import DeviceSettings
from edge.errors import EarshotError, UnavailableError, UsageError
from firmware_models import zoo
from rig.deploy import facts as machine_facts
from rig.deploy import wheels
from rig.deploy.facts import Facts, lack_of_space, require_device
from rig.deploy.script import Script, Secret
from rig.deploy.settings import check
from rig.deploy.steps import UNIT_FILE, findings
from rig.deploy.target import Target

SCRIPTS = sorted((Path(wheels.__file__).parent / "scripts").glob("*.sh"))
# What systemd-analyze gives the unit; below 2.0 was asked for.
EXPOSURE = 1.6


@pytest.mark.parametrize(
    ("text", "user", "host"),
    [
        ("pi@kitchen.local", "pi", "kitchen.local"),
        ("kitchen", None, "kitchen"),
        ("a.b_c-d@10.0.0.1", "a.b_c-d", "10.0.0.1"),
        ("root@[fe80::1%eth0]", "root", "fe80::1%eth0"),
        ("root@::1", "root", "::1"),
    ],
)
def test_addresses(text: str, user: str | None, host: str) -> None:
    target = Target.parse(text)
    assert (target.user, target.host) == (user, host)


def test_the_credentials_of_a_device_come_as_a_folder(tmp_path: Path) -> None:
    from rig.cli.devices.install import _credentials
    from rig.deploy.broker.folder import plan
    from rig.deploy.broker.settings import Settings

    none: dict[str, Path | None] = {"ca": None, "cert": None, "key": None, "password_file": None}
    plan(tmp_path / "b", Settings(hosts=("lab",), path=tmp_path / "b"), add=["kitchen"]).carry_out()
    folder = tmp_path / "b/devices/kitchen"
    url, *files = _credentials(folder, "kitchen", "mqtts://lab", **none)
    assert url == "mqtts://kitchen@lab:8883"
    assert files == [folder / name for name in ("ca.crt", "client.crt", "client.key", "password")]
    assert _credentials(None, "kitchen", "mqtt://lab", **none)[0] == "mqtt://lab"
    with pytest.raises(UsageError, match="is for device kitchen, not for hall"):
        _credentials(folder, "hall", "mqtts://lab", **none)
    with pytest.raises(UsageError, match="not for rig"):
        _credentials(folder, "kitchen", "mqtts://rig@lab", **none)
    with pytest.raises(UsageError, match="leave those out"):
        _credentials(folder, "kitchen", "mqtts://lab", **(none | {"ca": folder / "ca.crt"}))
    (folder / "client.key").unlink()
    with pytest.raises(UsageError, match=r"client\.key: no such file"):
        _credentials(folder, "kitchen", "mqtts://lab", **none)


@given(st.text(max_size=40))
def test_no_address_passes_for_an_option_or_a_command(text: str) -> None:
    try:
        target = str(Target.parse(text))
    except UsageError:
        return
    assert not target.startswith("-")
    assert not re.search(r"[\s;&|$`'\"\\<>(){}*?!#]", target)


@given(st.lists(st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"])), max_size=5))
def test_arguments_arrive_as_they_were(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    text = Script("account.sh", "check", tuple(words)).text()
    tail = text[text.rindex("\nearshot_step") :].replace("earshot_step", "printf '%s\\0'", 1)
    shell = subprocess.run(["/bin/sh", "-s"], input=tail.encode(), capture_output=True, check=True)
    printed = shell.stdout.decode().split("\0")[:-1]
    assert printed == (words or [""])


def test_a_line_break_in_an_argument_is_refused_and_a_secret_not_shown() -> None:
    with pytest.raises(UsageError, match="line break"):
        Script("account.sh", "act", ("a\nb",)).text()
    script = Script("files.sh", "act", ("", Secret("swordfish")))
    assert "swordfish" in script.text()
    assert "swordfish" not in script.text(shown=True)
    assert "swordfish" not in str(script)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    for shell in ("dash", "bash", "sh"):
        if shutil.which(shell):
            subprocess.run([shell, "-n", str(path)], check=True)
    text = path.read_text()
    assert text.startswith("# ")
    # Half a script, as a connection that breaks leaves it, does nothing.
    whole = Script(path.name, "act", ("/nowhere",)).text()
    half = whole[: whole.rindex("\nearshot_step")]
    broken = subprocess.run(["/bin/sh", "-s"], input=half, capture_output=True, text=True, check=False)
    assert (broken.returncode, broken.stdout, broken.stderr) == (0, "", "")


GOOD = """system=Linux
machine=aarch64
long_bit=64
libc=glibc 2.36
os=Debian GNU/Linux 12 (bookworm)
apt=/usr/bin/apt-get
sudo=root
systemd=252
systemd_runs=yes
root=yes
program_free_kb=9000000
upload_free_kb=9000000
python=3.11.2 64 venv /usr /usr/bin/python3
"""


def changed(old: str, new: str) -> Facts:
    assert old in GOOD
    return machine_facts.parse(GOOD.replace(old, new))


def test_a_good_machine() -> None:
    facts = machine_facts.parse(GOOD)
    assert require_device(facts, start=True, root="").path == "/usr/bin/python3"
    assert lack_of_space(facts, "") is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("python=3.11.2 64 venv /usr /usr/bin/python3\n", "", ("no usable Python", "3.11, 3.12 or 3.13")),
        ("python=3.11.2", "python=3.9.2", ("/usr/bin/python3 (3.9.2)", "3.11, 3.12 or 3.13")),
        ("python=3.11.2", "python=3.14.0", ("3.14.0",)),
        ("64 venv", "32 venv", ("32-bit", "Raspberry Pi OS 64-bit")),
        ("venv /usr ", "- /usr ", ("venv",)),
        ("venv /usr /usr/bin", "venv /home/pi/.pyenv /usr/bin", ("home folders",)),  # of another machine
        ("machine=aarch64", "machine=riscv64", ("riscv64",)),
        ("glibc 2.36", "musl", ("glibc 2.28",)),
        ("glibc 2.36", "glibc 2.27", ("glibc 2.27", "2.28")),
        ("systemd=252", "systemd=", ("systemd is missing",)),
        ("systemd_runs=yes", "systemd_runs=", ("--no-start",)),
    ],
)
def test_machines_that_cannot_be_devices(old: str, new: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UnavailableError) as caught:
        require_device(changed(old, new), start=True, root="")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_space_is_told_by_place() -> None:
    assert "/mnt/opt/earshot has 97 MB" in (
        lack_of_space(changed("program_free_kb=9000000", "program_free_kb=100000"), "/mnt") or ""
    )
    assert "/var/tmp has 0 MB" in (lack_of_space(changed("upload_free_kb=9000000", "upload_free_kb=many"), "") or "")


@given(st.text())
def test_whatever_a_machine_says_is_one_line_or_facts(text: str) -> None:
    with pytest.raises(EarshotError) as caught:
        require_device(machine_facts.parse(text), start=True, root="")
    assert "\n" not in str(caught.value)


def test_our_wheel_has_the_device_and_nothing_else_and_is_the_same_again() -> None:
    name, content = wheels.pack()
    assert wheels.pack() == (name, content)
    archive = zipfile.ZipFile(io.BytesIO(content))
    tops = {member.split("/")[0] for member in archive.namelist()}
    (information,) = [top for top in tops if top.endswith(".dist-info")]
    assert tops == {"edge", information}
    about = archive.read(f"{information}/METADATA").decode()
    assert "torch" not in about
    assert "Requires-Dist: onnxruntime" in about
    assert archive.read(f"{information}/entry_points.txt").decode().split() == [
        *("[console_scripts]", "earshot-device", "=", "edge.cli:main")
    ]
    for line in archive.read(f"{information}/RECORD").decode().splitlines():
        member, digest, size = line.rsplit(",", 2)
        if digest:
            data = archive.read(member)
            assert len(data) == int(size)
            recorded = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
            assert hashlib.sha256(data).digest() == recorded


def test_the_pins_are_those_of_the_constraints() -> None:
    root = Path(wheels.__file__).resolve().parents[2]
    lines = [line.split("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines()]
    pinned = {Requirement(line).name: line for line in lines if line}
    chosen = [Requirement(line) for line in wheels._requirements()]
    names = {each.name for each in chosen}
    assert {"numpy", "onnxruntime", "paho-mqtt", "pydantic", "sounddevice", "soxr", "pip"} <= names
    assert not names & {"torch", "scipy", "typer", "rich", "onnx", "matplotlib"}
    assert {str(each) for each in chosen if each.name != "pip"} <= set(pinned.values())


def test_pip_is_asked_for_the_machine_s_wheels_not_for_ours() -> None:
    options = wheels.Platform(python="3.13", machine="aarch64", glibc_minor=41).pip_options()
    assert {"cp313", "abi3", "none", "3.13", "manylinux_2_41_aarch64", "manylinux_2_28_aarch64", ":all:"} <= set(
        options
    )
    assert not [option for option in options if "x86" in option]


@pytest.fixture
def given_settings(keys, tmp_path: Path) -> dict:
    return {
        "name": "kitchen",
        "bundle": zoo.bundle("lms-int8"),
        "trust": (zoo.PUBLIC_KEY,),
        "operators": (keys.public,),
        "broker": "mqtt://kitchen@lab",
        "microphone": "sounddevice",
        "environment": {},
    }


def test_settings_are_what_the_device_reads(given_settings: dict, tmp_path: Path) -> None:
    password, more = tmp_path / "password", tmp_path / "more.toml"
    password.write_text("secret\n")
    more.write_text("[listening]\nthreshold = 0.9\n")
    spec = 'sounddevice:USB "x" \\ ' + "\x7f \u00e9 \U0001f399"
    with pytest.raises(UsageError, match="microphone"):
        check(**{**given_settings, "microphone": spec})
    made = check(**{**given_settings, "microphone": spec.replace("\x7f", "")}, password_file=password, settings=more)
    config, placed = made.files
    document = tomllib.loads(config.content.decode())
    settings = DeviceSettings.model_validate(document)
    assert settings.microphone == spec.replace("\x7f", "")
    assert settings.listening is not None
    assert settings.listening.threshold == 0.9
    assert settings.bundle is None
    assert (placed.path, placed.mode, placed.content) == ("/etc/earshot/kitchen/password", "0600", b"secret\n")
    assert placed.owner != "root"
    assert b"secret" not in config.content
    assert made.needs_portaudio


def test_wrong_settings_are_told(given_settings: dict, keys, tmp_path: Path) -> None:
    empty, more = tmp_path / "empty", tmp_path / "more.toml"
    empty.write_text("\n")
    more.write_text('state_dir = "/"\n')
    for change, words in (
        ({"operators": (keys.private,)}, "private key and belongs on no device"),
        ({"trust": (keys.public,)}, "sign"),
        ({"trust": ()}, "--trust"),
        ({"password_file": empty}, "empty"),
        ({"password_file": tmp_path / "none"}, "No such file"),
        ({"ca": empty}, "mqtts"),
        ({"settings": more}, "state_dir"),
        ({"broker": "mqtt://lab", "environment": {"EARSHOT_MQTT_PASSWORD": "x"}}, "needs a user"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            check(**{**given_settings, **change})


def test_findings_of_the_doctor() -> None:
    assert findings('{"findings": [{"check": "disk", "ok": true}]}') == [{"check": "disk", "ok": True}]
    for output in ("", "[]", "{}", '{"findings": 1}', '{"findings": [1]}'):
        assert findings(output) is None


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *arguments, str(UNIT_FILE)], capture_output=True, text=True, check=False)


def test_the_unit_is_valid() -> None:
    result = analyze("verify")
    complaints = [line for line in result.stderr.splitlines() if "is not executable" not in line]
    assert complaints == []


def test_the_unit_s_exposure_does_not_grow() -> None:
    result = analyze("security", "--offline=true", "--no-pager")
    found = re.search(r"exposure level for .*: ([0-9.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    print(f"exposure {found[1]}")
    assert float(found[1]) <= EXPOSURE
