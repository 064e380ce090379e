from rig.report.summary import Row, headlines


def row(attack, error_rate, **changes):
    facts = {
        "bundle": "m",
        "bits": 8,
        "log_floor": 1e-6,
        "air": "digital",
        "attack": attack,
        "crafted_on": None,
        "target": None,
        "norm": "linf",
        "eps": 0.0 if attack == "benign" else 0.01,
        "linf": 0.0,
        "snr_db": None,
        "delay_ms": 0.0,
        "attacker_position": None,
        "device_position": None,
        "n": 10,
        "valid": 10,
        "invalid": 0,
        "invalid_attempts": 0,
        "errors": 0,
        "error_rate": error_rate,
        "ci_low": None,
        "ci_high": None,
        "targeted_success": None,
        "latency_ms": None,
    }
    return Row(**{**facts, **changes})


def test_benign_the_worst_attack_and_its_own_control():
    rows = [
        row("benign", 0.1),
        row("random-sign", 0.1, eps=0.001),
        row("random-sign", 0.2),
        row("random-sign", 0.3, delay_ms=100),
        row("fgsm", 0.5),
        row("pgd-20", 0.9),
        row("pgd-20", 0.9, eps=0.05),
        row("pgd-20", None, eps=0.1),
    ]
    assert headlines(rows) == [rows[0], rows[2], rows[5]]


def test_each_air_and_bundle_has_its_own():
    rows = [row("benign", 0.1), row("benign", 0.2, air="room"), row("benign", 0.3, bundle="other")]
    assert headlines(rows) == rows
    assert headlines([row("random-sign", 0.4)]) == []
