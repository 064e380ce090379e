"""How hot the processor is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edge.health.system_files import matching, read_number, read_text

# The kernel's names for it: cpu-thermal (Raspberry Pi, Jetson Orin), CPU-therm (Jetson Nano, Xavier), bigcore0-thermal
# (Rockchip), x86_pkg_temp, k10temp (AMD); after those, what stands for the whole chip.
_PROCESSOR = re.compile(r"cpu|core|x86_pkg|k10temp|zenpower", re.IGNORECASE)
_CHIP = re.compile(r"^(soc|tj|acpitz|bcm2835)|package", re.IGNORECASE)
# A sensor outside of this is switched off or no sensor: a Jetson Nano's PMIC-Die says 100 degrees for ever, and is
# named neither after the processor nor the chip.
_PLAUSIBLE_C = (-40.0, 150.0)


def cpu_temperature_c(root: Path = Path("/")) -> float | None:
    """The hottest sensor of the processor, else of the chip, in degrees Celsius; None where there is none.

    Args:
        root: holds ``sys``.
    """
    readings = list(_readings(root / "sys"))
    for pattern in (_PROCESSOR, _CHIP):
        found = [celsius for name, celsius in readings if pattern.search(name)]
        if found:
            return max(found)
    return None


def _readings(sys: Path) -> Iterator[tuple[str, float]]:
    for zone in matching(sys / "class/thermal", "thermal_zone*"):
        yield from _reading(read_text(zone / "type"), zone / "temp")
    for chip in matching(sys / "class/hwmon", "hwmon*"):
        name = read_text(chip / "name")
        for sensor in matching(chip, "temp*_input"):
            yield from _reading(name, sensor)


def _reading(name: str | None, sensor: Path) -> Iterator[tuple[str, float]]:
    milli_c = read_number(sensor)
    if name is None or milli_c is None:
        return
    celsius = milli_c / 1000
    if _PLAUSIBLE_C[0] < celsius < _PLAUSIBLE_C[1]:
        yield name, celsius
