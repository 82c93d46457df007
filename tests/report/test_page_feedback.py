"""The report on rejected feedback."""

from report_support import PUSHED, page_of, write_run


def test_rejected_feedback_is_counted_by_reason(tmp_path):
    late = PUSHED | {"id": "b", "fallback": "endpoint: late; rules: leak"}
    events = [PUSHED, late, late | {"id": "c", "fallback": "endpoint: HTTP 500"}, late | {"id": "d"}]
    _, page = page_of(write_run(tmp_path / "run", fission=events))
    at = page.cells.index("endpoint: late")
    assert page.cells[at : at + 9] == [
        *("endpoint: late", "2", "50.0%"),
        *("rules: leak", "2", "50.0%"),
        *("endpoint: HTTP 500", "1", "25.0%"),
    ]
