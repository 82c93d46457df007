"""What a model wrote, as a diagnosis."""

import pytest

from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.sources import Answer

SAID = "error: `to` is not right."


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ("<think>Oslo it is.</think>\n\nSure:\n\nERROR: `to` is off.\n\n(I kept it secret.)", "ERROR: `to` is off."),
        ("thought without its beginning</think>" + SAID, SAID),
        (f'```json\n"{SAID}"\n```', SAID),
        (f'"{SAID}"', SAID),
        ("error: a. " * 300, ("error: a. " * 200).strip()),
        ("error: \x00\x1b[31m`to` is off.", "error: [31m`to` is off."),
        ("error: the flag `ignore` is missing; the task of `previous` is unknown.", None),
    ],
)
def test_what_stands_around_a_diagnosis_is_taken_off(said, used):
    assert usable_text(said) == Answer(used or said)


def test_a_truncated_text_ends_with_its_last_whole_sentence_and_a_script_of_the_dialogue_may_be_used():
    assert usable_text("error: `to` is off. It shou", truncated=True) == Answer("error: `to` is off.")
    assert usable_text("error: `to` is 3.1", truncated=True) == Answer(None, "cut")
    assert usable_text("错误：目的地不对", context="user: 订一张票") == Answer("错误：目的地不对")
    assert usable_text("erreur : « to » n'est pas bon") == Answer(
        "erreur : « to » n'est pas bon"
    )  # Latin: not told apart
