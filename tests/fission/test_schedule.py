"""When to recover, and from what: worked by hand."""

import pytest

from fission_grpo.core.types import ErrorKind, Task
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.fission.schedule import RecoveryRateEstimator, RecoverySchedule


def instance(name, kind=ErrorKind.RAISED, group_success=0.5):
    return CorrectiveInstance(Task(name, "p"), 0, kind, "rules", "f", "x", 0.0, group_success=group_success)


def phases(share, count, flat_explore=0.0, flat_recover=0.0):
    """What the cycles do when the buffer is always full enough."""
    done = ""
    for _ in range(count):
        if share.recovery_due():
            share.record_recovery(flat_recover)
            done += "r"
        else:
            share.record_explore(flat_explore)
            done += "e"
    return done


def test_half_recovers_every_second_cycle_and_a_third_every_third():
    assert phases(RecoverySchedule(0.5), 6) == "ererer"
    assert phases(RecoverySchedule(1 / 3), 6) == "eereer"


def test_never_twice_in_a_row_even_after_a_long_wait():
    share = RecoverySchedule(0.5)
    for _ in range(5):
        share.record_explore(0.0)
    assert phases(share, 4) == "rere"


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_no_more_than_one_recover_cycle_is_ever_due(ratio):
    share = RecoverySchedule(ratio)
    credits = []
    for _ in range(40):
        share.record_explore(0.0)
        credits.append(share.state()["credit"])
    assert max(credits) == 1.0
    share.record_recovery(0.0)
    assert share.state()["credit"] == 0.0


def test_adaptive_share_recovers_less_while_recovery_groups_have_no_gradient():
    share = RecoverySchedule(0.5, adaptive=True)
    assert phases(share, 200, flat_explore=0.0, flat_recover=1.0).count("r") < 40  # half would be 100
    assert share.rate < 0.3
    assert phases(share, 4000, flat_explore=0.0, flat_recover=0.0)[-10:].count("r") == 5  # and comes back


def test_adaptive_share_is_never_above_the_fixed_one():
    assert phases(RecoverySchedule(0.5, adaptive=True), 50, flat_explore=1.0, flat_recover=0.0).count("r") == 25


def test_share_survives_a_checkpoint():
    share, other = RecoverySchedule(0.3, adaptive=True), RecoverySchedule(0.3, adaptive=True)
    phases(share, 7, 0.2, 0.6)
    other.load_state(share.state())
    assert phases(other, 20, 0.2, 0.6) == phases(share, 20, 0.2, 0.6)


def test_with_nothing_known_a_group_that_half_succeeded_is_even():
    assert RecoveryRateEstimator().success_probability(instance("a")) == pytest.approx(0.5)


def test_odds_are_those_of_the_kind_times_those_of_the_group():
    odds = RecoveryRateEstimator()
    odds.record_explore(4, 8)  # odds 5/5
    odds.record_recovery("raised", 7, 8)  # odds 8/2
    assert odds.success_probability(instance("a")) == pytest.approx(4 / 5)
    assert odds.success_probability(instance("a", group_success=0.0)) == pytest.approx((4 / 9) / (1 + 4 / 9))
    assert odds.success_probability(instance("a", ErrorKind.UNPARSED)) == pytest.approx(0.5)


def test_contexts_that_may_go_either_way_are_recovered_first():
    odds = RecoveryRateEstimator()
    odds.record_recovery("raised", 4, 8)
    odds.record_recovery("low_reward", 0, 64)
    odds.record_recovery("unparsed", 64, 64)
    buffer = FissionBuffer(10, order="variance")
    for name, kind in (("sure", "unparsed"), ("old", "raised"), ("new", "raised"), ("never", "low_reward")):
        buffer.push(instance(name, ErrorKind(kind)))
    assert [item.task.id for item in buffer.sample(3, odds.expected_variance)][:2] == ["new", "old"]


def test_odds_survive_a_checkpoint():
    odds, other = RecoveryRateEstimator(), RecoveryRateEstimator()
    odds.record_explore(3, 8)
    odds.record_recovery("raised", 1, 8)
    other.load_state(odds.state())
    assert other.state() == odds.state()
