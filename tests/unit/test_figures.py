"""The pictures of a report tell apart what differs, and only that."""

import pytest

from rig.report.figures import error_over_eps
from rig.report.summary import Row


def row(air, attack, eps, attacker=None, device=None):
    facts = dict.fromkeys(Row.model_fields)
    numbers = dict.fromkeys(("linf", "delay_ms", "error_rate", "ci_low", "ci_high"), 0.0)
    counts = dict.fromkeys(("n", "valid", "invalid", "invalid_attempts", "errors"), 1)
    places = {"attacker_position": attacker, "device_position": device}
    about = {"air": air, "bundle": "m", "bits": 8, "attack": attack, "eps": eps}
    return Row.model_construct(**facts | numbers | counts | places | about)


@pytest.mark.parametrize(
    ("attackers", "devices", "names"),
    [
        (["shelf"], ["table"], ["fgsm"]),
        (["shelf", "door"], ["table"], ["fgsm", "fgsm @ shelf", "fgsm @ door"]),
        (["shelf"], ["table", "sill"], ["fgsm", "fgsm @ table", "fgsm @ sill"]),
        (["shelf", "door"], ["table", "sill"], ["fgsm @ shelf to sill", "fgsm @ door to table"]),
    ],
)
def test_every_series_is_in_the_legend(attackers, devices, names):
    rows = [row("digital", "fgsm", eps) for eps in (0.1, 0.2)]
    rows += [row("room", "fgsm", eps, a, d) for eps in (0.1, 0.2) for a in attackers for d in devices]
    picture = error_over_eps(rows)
    for name in names:
        assert f"<!-- {name} -->" in picture
    assert picture.count("<!-- fgsm") == 1 + (len(attackers) * len(devices) if len(names) > 1 else 0)
