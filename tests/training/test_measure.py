"""What the measurement of the verifier counts."""

from training.measure import OF_KINDS, Reading, summary


def test_a_summary_counts_the_own_edit_alone() -> None:
    found = [Reading("+alias", 2.0, True), Reading("+alias", 3.0, False), *[Reading("-bare", 0.0, False)] * 99]
    result = summary([*found, Reading("-bare", 1.0, False)])
    assert result["texts"] == {"ask": 2, "do not ask": 100}
    assert result["recognised"][f"{OF_KINDS:.0%}"] == result["kinds"]["+alias"] == 50.0
