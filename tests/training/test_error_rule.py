"""Results that report errors in words only: told apart by a rule, else counted and named."""

import pytest
from error_words import WordyDesk
from trainer_support import desk_trainer, events, history

from fission_grpo.training.settings import compare_settings, settings_of


def starts_so(text):
    return text.startswith("Error")


@pytest.mark.parametrize("given", [{"error_pattern": "^Error"}, {"more": {"error_if": starts_so}}])
def test_with_a_rule_such_a_result_is_the_failure_to_recover_from(tmp_path, given, caplog):
    trainer = desk_trainer(tmp_path, factory=WordyDesk, max_steps=2, **given)
    trainer.train()
    raised = [event for event in events(tmp_path, "pushed") if event["kind"] == "raised"]
    assert raised
    assert all(event["feedback"].startswith("Error: ") for event in raised)
    assert history(trainer, "env/like_errors") == []
    assert "like errors" not in caplog.text


def test_without_one_they_are_counted_and_named_once(tmp_path, caplog):
    trainer = desk_trainer(tmp_path, factory=WordyDesk, max_steps=2)
    trainer.train()
    assert [event for event in events(tmp_path, "pushed") if event["kind"] == "raised"] == []
    assert sum(history(trainer, "env/like_errors")) > 0
    named = [record.getMessage() for record in caplog.records if "like errors" in record.getMessage()]
    assert len(named) == 1
    assert "(such as " in named[0]
    assert "give error_pattern" in named[0]


def test_a_resume_with_another_rule_warns(tmp_path, caplog):
    saved = settings_of(desk_trainer(tmp_path / "a", error_pattern="^Error"))
    now = settings_of(desk_trainer(tmp_path / "b", more={"error_if": starts_so}))
    compare_settings(tmp_path, saved, now)
    assert 'error_pattern: "^Error" -> null' in caplog.text
    assert 'error_if: "^Error" -> "starts_so"' in caplog.text


def test_a_pattern_that_cannot_be_used_stops_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="is no regular expression"):
        desk_trainer(tmp_path, error_pattern="(")
