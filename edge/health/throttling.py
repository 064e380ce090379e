"""What holds the processor back: heat, a weak power supply, too much current.

=============================  ===============================================  ==========================
told by, below ``/sys``        on                                               names
=============================  ===============================================  ==========================
``*firmware/get_throttled``    Raspberry Pi, where absent ``vcgencmd``          those of :data:`PI_BITS`
``in0_lcrit_alarm``            Raspberry Pi with a kernel that lacks the first  ``under-voltage``
``oc*_event_cnt``              Jetson                                           ``over-current``
``cooling_device*/cur_state``  any that lowers its frequency when hot           ``frequency-capped``
``core_throttle_count``        x86                                              ``throttled``
=============================  ===============================================  ==========================
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.health.system_files import matching, read_number, read_text

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: bits 0 to 3 hold now, 16 to 19 tell the
# same for the time since boot.
PI_BITS = {0: "under-voltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}
_SINCE_BOOT = 16
_VCGENCMD_TIMEOUT_S = 2.0
_FREQUENCY_COOLERS = re.compile(r"cpu-?freq|^Processor$|cpu-balanced", re.IGNORECASE)


@dataclass(frozen=True)
class Throttling:
    """What holds the processor back ``now``, and what did at any time ``since_boot``; both by name, sorted."""

    now: tuple[str, ...] = ()
    since_boot: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Told:
    """One source's word: names that hold now, and by name how often it happened since boot."""

    now: frozenset[str]
    happened: dict[str, int]


class ThrottlingReader:
    """Reads all sources; what happened and ended between two readings counts for the later one.

    Args:
        root: holds ``sys``.
        vcgencmd: the Raspberry Pi's program, asked where the kernel does not tell; None for no such program.
    """

    def __init__(self, root: Path = Path("/"), *, vcgencmd: str | None = None) -> None:
        self._sys = root / "sys"
        self._vcgencmd = vcgencmd
        self._happened: dict[str, int] | None = None

    @classmethod
    def of_this_machine(cls) -> ThrottlingReader:
        """The reader of the running system."""
        return cls(vcgencmd=shutil.which("vcgencmd"))

    def read(self) -> Throttling | None:
        """What is told now; None where this machine tells nothing."""
        told = [*self._raspberry_pi(), *self._jetson(), *self._coolers(), *self._x86()]
        if not told:
            return None
        now: set[str] = set().union(*(each.now for each in told))
        happened: dict[str, int] = {}
        for each in told:
            for name, count in each.happened.items():
                happened[name] = happened.get(name, 0) + count
        if self._happened is not None:
            now |= {name for name, count in happened.items() if count > self._happened.get(name, 0)}
        self._happened = happened
        since_boot = now | {name for name, count in happened.items() if count}
        return Throttling(tuple(sorted(now)), tuple(sorted(since_boot)))

    def _raspberry_pi(self) -> Iterator[_Told]:
        bits = self._pi_bits()
        if bits is not None:
            now = frozenset(name for bit, name in PI_BITS.items() if bits >> bit & 1)
            yield _Told(now, {name: bits >> (bit + _SINCE_BOOT) & 1 for bit, name in PI_BITS.items()})
            return
        for alarm in self._hwmon("rpi_volt", "in0_lcrit_alarm"):
            yield _Told(frozenset(["under-voltage"] if alarm else []), {})

    def _pi_bits(self) -> int | None:
        platform = self._sys / "devices/platform"
        for file in matching(platform, "soc*/*firmware/get_throttled"):
            bits = read_number(file, 16)
            if bits is not None:
                return bits
        if self._vcgencmd is None:
            return None
        import subprocess  # noqa: PLC0415 - memory that most devices need not spend

        try:
            done = subprocess.run(
                [self._vcgencmd, "get_throttled"],
                capture_output=True,
                text=True,
                timeout=_VCGENCMD_TIMEOUT_S,
                check=True,
            )
            return int(done.stdout.strip().removeprefix("throttled="), 16)
        except (OSError, ValueError, subprocess.SubprocessError):
            # No right to ask the firmware will not be granted later: it is not asked again.
            self._vcgencmd = None
            return None

    def _jetson(self) -> Iterator[_Told]:
        counts = list(self._hwmon("soctherm_oc", "oc*_event_cnt"))
        if counts:
            yield _Told(frozenset(), {"over-current": sum(counts)})

    def _coolers(self) -> Iterator[_Told]:
        """The kernel lowers the highest frequency of a processor that gets too hot by raising such a device's state."""
        for cooler in matching(self._sys / "class/thermal", "cooling_device*"):
            state = read_number(cooler / "cur_state")
            if state is not None and _FREQUENCY_COOLERS.search(read_text(cooler / "type") or ""):
                yield _Told(frozenset(["frequency-capped"] if state > 0 else []), {})

    def _x86(self) -> Iterator[_Told]:
        files = matching(self._sys / "devices/system/cpu", "cpu[0-9]*/thermal_throttle/core_throttle_count")
        counts = [count for count in map(read_number, files) if count is not None]
        if counts:
            yield _Told(frozenset(), {"throttled": sum(counts)})

    def _hwmon(self, name: str, pattern: str) -> Iterator[int]:
        for chip in matching(self._sys / "class/hwmon", "hwmon*"):
            if read_text(chip / "name") == name:
                for file in matching(chip, pattern):
                    value = read_number(file)
                    if value is not None:
                        yield value
