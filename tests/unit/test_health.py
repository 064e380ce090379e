"""The device's health from the files that real machines have: Raspberry Pi, Jetson, x86, a container."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from edge.health.latencies import WINDOWS, Latencies
from edge.health.resources import disk_free_mb, load_1min, memory_available_mb, memory_rss_mb
from edge.health.sampler import HealthSampler
from edge.health.temperature import cpu_temperature_c
from edge.health.throttling import PI_BITS, Throttling, ThrottlingReader

THERMAL, HWMON = "sys/class/thermal", "sys/class/hwmon"
PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"

RASPBERRY_PI_4 = {
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "51607\n",
    f"{THERMAL}/cooling_device0/type": "gpio-fan\n",
    f"{THERMAL}/cooling_device0/cur_state": "1\n",
    f"{HWMON}/hwmon0/name": "cpu_thermal\n",
    f"{HWMON}/hwmon0/temp1_input": "51120\n",
    f"{HWMON}/hwmon1/name": "rpi_volt\n",
    f"{HWMON}/hwmon1/in0_lcrit_alarm": "0\n",
    PI_FIRMWARE: "0\n",
}
JETSON_NANO = {
    f"{THERMAL}/thermal_zone0/type": "AO-therm\n",
    f"{THERMAL}/thermal_zone0/temp": "43000\n",
    f"{THERMAL}/thermal_zone1/type": "CPU-therm\n",
    f"{THERMAL}/thermal_zone1/temp": "34500\n",
    f"{THERMAL}/thermal_zone2/type": "GPU-therm\n",
    f"{THERMAL}/thermal_zone2/temp": "33000\n",
    f"{THERMAL}/thermal_zone4/type": "PMIC-Die\n",
    f"{THERMAL}/thermal_zone4/temp": "100000\n",
    f"{THERMAL}/cooling_device0/type": "thermal-cpufreq-0\n",
    f"{THERMAL}/cooling_device0/cur_state": "0\n",
}
JETSON_ORIN = {
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "48937\n",
    f"{THERMAL}/thermal_zone1/type": "gpu-thermal\n",
    f"{THERMAL}/thermal_zone1/temp": "-256000\n",
    f"{THERMAL}/thermal_zone8/type": "tj-thermal\n",
    f"{THERMAL}/thermal_zone8/temp": "49593\n",
    f"{HWMON}/hwmon4/name": "soctherm_oc\n",
    f"{HWMON}/hwmon4/oc1_event_cnt": "0\n",
    f"{HWMON}/hwmon4/oc3_event_cnt": "7\n",
}
NOTEBOOK = {
    f"{THERMAL}/thermal_zone0/type": "acpitz\n",
    f"{THERMAL}/thermal_zone0/temp": "27800\n",
    f"{THERMAL}/thermal_zone9/type": "x86_pkg_temp\n",
    f"{THERMAL}/thermal_zone9/temp": "64000\n",
    f"{THERMAL}/cooling_device3/type": "Processor\n",
    f"{THERMAL}/cooling_device3/cur_state": "0\n",
    f"{THERMAL}/cooling_device9/type": "intel_powerclamp\n",
    f"{THERMAL}/cooling_device9/cur_state": "-1\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "12\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
}


@pytest.fixture
def machine(tmp_path: Path):
    def make(tree: dict[str, str]) -> Path:
        for name, text in tree.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("tree", "celsius"),
    [(RASPBERRY_PI_4, 51.607), (JETSON_NANO, 34.5), (JETSON_ORIN, 48.937), (NOTEBOOK, 64.0), ({}, None)],
    ids=["raspberry-pi-4", "jetson-nano", "jetson-orin", "notebook", "container"],
)
def test_the_processors_temperature_is_found(machine, tree: dict[str, str], celsius: float | None) -> None:
    assert cpu_temperature_c(machine(tree)) == celsius


def test_the_chips_temperature_stands_in_for_the_processors(machine) -> None:
    root = machine({f"{THERMAL}/thermal_zone0/type": "acpitz", f"{THERMAL}/thermal_zone0/temp": "27800"})
    assert cpu_temperature_c(root) == 27.8
    machine({f"{THERMAL}/thermal_zone0/temp": "no number"})
    assert cpu_temperature_c(root) is None


def test_a_raspberry_pi_tells_what_holds_it_back(machine) -> None:
    root = machine(RASPBERRY_PI_4)
    reader = ThrottlingReader(root)
    assert reader.read() == Throttling((), ())
    machine({PI_FIRMWARE: "50005\n"})
    assert reader.read() == Throttling(("throttled", "under-voltage"), ("throttled", "under-voltage"))
    # It is over, and remembered by the firmware alone.
    machine({PI_FIRMWARE: "50000\n"})
    assert reader.read() == Throttling((), ("throttled", "under-voltage"))
    # What came and went between two readings counts for the later one.
    machine({PI_FIRMWARE: "d0000\n"})
    assert reader.read() == Throttling(
        ("soft-temperature-limit",), ("soft-temperature-limit", "throttled", "under-voltage")
    )
    assert reader.read() == Throttling((), ("soft-temperature-limit", "throttled", "under-voltage"))


@pytest.mark.parametrize(("bit", "name"), PI_BITS.items())
def test_every_bit_has_its_name(machine, bit: int, name: str) -> None:
    root = machine({PI_FIRMWARE: f"{1 << bit:x}\n"})
    assert ThrottlingReader(root).read() == Throttling((name,), (name,))
    machine({PI_FIRMWARE: f"{1 << (bit + 16):x}\n"})
    assert ThrottlingReader(root).read() == Throttling((), (name,))


def test_vcgencmd_is_asked_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\ntest "$1" = get_throttled && echo throttled=0x20002\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert ThrottlingReader(tmp_path, vcgencmd=str(program)).read() == Throttling(
        ("frequency-capped",), ("frequency-capped",)
    )
    program.write_text("#!/bin/sh\necho x >> $0.asked\necho VCHI initialization failed >&2\nexit 255\n")
    reader = ThrottlingReader(tmp_path, vcgencmd=str(program))
    assert (reader.read(), reader.read()) == (None, None)
    assert (tmp_path / "vcgencmd.asked").read_text() == "x\n", "it is not asked again"


def test_a_pi_whose_kernel_tells_the_voltage_alone(machine) -> None:
    root = machine({f"{HWMON}/hwmon1/name": "rpi_volt\n", f"{HWMON}/hwmon1/in0_lcrit_alarm": "1\n"})
    assert ThrottlingReader(root).read() == Throttling(("under-voltage",), ("under-voltage",))


def test_a_jetson_counts_over_current(machine) -> None:
    reader = ThrottlingReader(machine(JETSON_ORIN))
    assert reader.read() == Throttling((), ("over-current",))
    machine({f"{HWMON}/hwmon4/oc1_event_cnt": "1\n"})
    assert reader.read() == Throttling(("over-current",), ("over-current",))
    assert reader.read() == Throttling((), ("over-current",))


def test_a_hot_processor_is_slowed_by_the_kernel(machine) -> None:
    reader = ThrottlingReader(machine(JETSON_NANO))
    assert reader.read() == Throttling((), ())
    machine({f"{THERMAL}/cooling_device0/cur_state": "3\n"})
    assert reader.read() == Throttling(("frequency-capped",), ("frequency-capped",))
    reader = ThrottlingReader(machine({**NOTEBOOK, f"{THERMAL}/cooling_device0/cur_state": "0\n"}))
    assert reader.read() == Throttling((), ("throttled",))
    machine({"sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n"})
    assert reader.read() == Throttling(("throttled",), ("throttled",))


def test_memory_and_load_are_read(machine) -> None:
    root = machine(
        {
            "proc/self/statm": "5000 1000 300 1 0 900 0\n",
            "proc/meminfo": "MemTotal:        7999 kB\nMemFree: 1 kB\nMemAvailable:    2000 kB\n",
            "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
        }
    )
    assert memory_rss_mb(root) == pytest.approx(4.096)
    assert memory_available_mb(root) == pytest.approx(2.048)
    assert load_1min(root) == 0.52
    machine({"proc/self/statm": "", "proc/meminfo": "MemAvailable:\n", "proc/loadavg": "many\n"})
    assert (memory_rss_mb(root), memory_available_mb(root), load_1min(root)) == (None, None, None)
    assert disk_free_mb(root) > 0
    assert disk_free_mb(root / "absent") is None


def test_percentiles_are_of_the_last_thousand_windows() -> None:
    latencies = Latencies()
    assert latencies.percentiles_ms() is None
    latencies.note(3.0)
    assert latencies.percentiles_ms() == (3.0, 3.0, 3.0)
    times = np.random.default_rng(5).gamma(2.0, 1.5, 3456).astype(np.float32)
    latencies = Latencies()
    for count, time in enumerate(times, 1):
        latencies.note(time)
        if count in {2, 17, 999, 1000, 1001, 3456}:
            kept = times[max(0, count - WINDOWS) : count]
            expected = tuple(np.percentile(kept, (50, 95, 99), method="inverted_cdf"))
            assert latencies.percentiles_ms() == pytest.approx(expected)
    assert latencies.windows == 3456


def test_a_sample_says_what_is_known_and_leaves_out_the_rest(machine, tmp_path: Path) -> None:
    empty = HealthSampler("kitchen", "boot", tmp_path / "absent", root=tmp_path, throttling=ThrottlingReader(tmp_path))
    health = empty.sample(xruns=1, overruns=2, reopened=3, outbox_depth=4, outbox_dropped=5, rejected_commands=6)
    told = health.model_dump(exclude_none=True)
    counted = ("xruns", "overruns", "reopened", "outbox_depth", "outbox_dropped", "rejected_commands")
    assert [told[name] for name in counted] == [1, 2, 3, 4, 5, 6]
    absent = {"cpu_temperature_c", "throttled", "load_1min", "memory_rss_mb", "memory_available_mb", "disk_free_mb"}
    assert not absent & told.keys()
    root = machine({**RASPBERRY_PI_4, PI_FIRMWARE: "1\n"})
    sampler = HealthSampler("kitchen", "boot", tmp_path, root=root, throttling=ThrottlingReader(root))
    for _ in range(3):
        sampler.note_window(2.5)
    health = sampler.sample()
    assert (health.windows, health.latency_p50_ms, health.throttled) == (3, 2.5, ("under-voltage",))
    assert health.cpu_temperature_c == 51.607
    assert health.disk_free_mb is not None
    assert health.uptime_s < 60


def test_this_machine_tells_at_least_memory_and_load(tmp_path: Path) -> None:
    health = HealthSampler("kitchen", "boot", tmp_path).sample()
    assert 5 < health.memory_rss_mb < 5000
    assert health.memory_available_mb > 10
    assert health.load_1min >= 0
