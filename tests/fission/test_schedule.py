"""When to recover: worked by hand."""

import pytest

from fission_grpo.fission.schedule import RecoverySchedule


def phases(share, count):
    """What the cycles do when the buffer is always full enough."""
    done = ""
    for _ in range(count):
        if share.recovery_due():
            share.record_recovery()
            done += "r"
        else:
            share.record_explore()
            done += "e"
    return done


def test_half_recovers_every_second_cycle_and_a_third_every_third():
    assert phases(RecoverySchedule(0.5), 6) == "ererer"
    assert phases(RecoverySchedule(1 / 3), 6) == "eereer"


def test_never_twice_in_a_row_even_after_a_long_wait():
    share = RecoverySchedule(0.5)
    for _ in range(5):
        share.record_explore()
    assert phases(share, 4) == "rere"


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_no_more_than_one_recover_cycle_is_ever_due(ratio):
    share = RecoverySchedule(ratio)
    credits = []
    for _ in range(40):
        share.record_explore()
        credits.append(share.state()["credit"])
    assert max(credits) == 1.0
    share.record_recovery()
    assert share.state()["credit"] == 0.0


def test_share_survives_a_checkpoint():
    share, other = RecoverySchedule(0.3), RecoverySchedule(0.3)
    phases(share, 7)
    other.load_state(share.state())
    assert phases(other, 20) == phases(share, 20)
