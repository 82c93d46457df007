"""Ratings by people: kappa on hand-worked numbers, blind sheets, and every bad cell named."""

import csv
import json

import pytest
from openai_server import OpenAIServer

from fission_grpo.chat import parse, render_call
from fission_grpo.simulator.check_command import check_command
from fission_grpo.simulator.instances import Instance, write_instances
from fission_grpo.simulator.kappa import cohen_kappa, fleiss_kappa, kappa
from fission_grpo.simulator.quality import Said
from fission_grpo.simulator.rate_command import rate_command
from fission_grpo.simulator.ratings import COLUMNS, agreements, export_sheet, key_path, read_key, read_sheet
from fission_grpo.task_rows import TaskFileError
from fission_grpo.trajectory import ErrorKind, Failure, Task, ToolCall

TOOLS = ({"name": "book", "parameters": {"type": "object", "properties": {"to": {}, "seats": {}}}},)
RIGHT = {"to": "Oslo", "seats": 4}


def instance(name: str, api: str = "Old", diagnosis: str = "", **wrong) -> Instance:
    task = Task(name, ({"role": "user", "content": f"I am {name}"},), TOOLS, (ToolCall("book", RIGHT),))
    turn = parse(render_call(ToolCall("book", {**RIGHT, **wrong})))
    failure = Failure(task, (turn,), ErrorKind.WRONG_CALL)
    return Instance(failure, api, "corruption:wrong_value", diagnosis, "rules" if diagnosis else "")


def test_cohens_kappa_of_two_raters_is_the_one_worked_by_hand():
    """20 both yes, 5 and 10 one alone, 15 both no: agreement 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so 0.4."""
    ratings = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohen_kappa(ratings) == pytest.approx(0.4)
    value, interval = kappa(ratings)
    assert value == pytest.approx(0.4)
    assert interval is not None
    assert interval == pytest.approx((0.16, 0.65), abs=0.04)  # 0.4 +- 1.96 * sqrt(0.7 * 0.3 / 50) / 0.5 = 0.4 +- 0.254


def test_fleiss_kappa_of_three_raters_is_the_one_worked_by_hand():
    """3, 3, 0 and 1 of 3 say yes: pairs agree in (1 + 1 + 1 + 1/3) / 4 = 5/6; yes 7/12, by chance 74/144; 0.6571."""
    ratings = [(True,) * 3, (True,) * 3, (False,) * 3, (True, False, False)]
    assert fleiss_kappa(ratings) == pytest.approx((5 / 6 - 74 / 144) / (1 - 74 / 144))
    assert kappa(ratings)[0] == pytest.approx(0.65714, abs=1e-5)


def test_full_agreement_is_one_opposites_are_minus_one_and_one_answer_alone_defines_nothing():
    yes, no = (True, True), (False, False)
    assert cohen_kappa([yes, no]) == 1.0
    assert fleiss_kappa([yes, no]) == 1.0
    assert cohen_kappa([(True, False), (False, True)]) == -1.0
    assert cohen_kappa([yes, yes]) is None
    assert kappa([yes] * 5) == (None, None)
    assert kappa([]) == (None, None)


def test_raters_who_did_not_answer_the_same_items_are_refused():
    with pytest.raises(ValueError, match="two answers"):
        cohen_kappa([(True, True, False)])
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([(True, True, False), (True, True)])


def sheet(path, *answers, head=COLUMNS):
    """A filled sheet with the answers to the three questions, row by row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for number, said in enumerate(answers, start=1):
            writer.writerow((f"r{number}", "dialogue", "failed", "correct", "error: ...", *said))
    return path


def test_a_sheet_is_blind_shuffled_and_its_key_tells_the_sources(tmp_path):
    instances = [instance(f"i{n}", seats=n) for n in range(10, 22)]
    said = [Said(one, f"error: of {one.id}", "f") for one in instances] + [Said(instances[0], None)]
    path = tmp_path / "sheet.csv"
    assert export_sheet(path, said, ["rules"] * 6 + ["secret source"] * 7, seed=1) == 12
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["id"] for row in rows] == [f"r{n:04d}" for n in range(1, 13)]
    order = [row["diagnosis"] for row in rows]
    assert sorted(order) == [f"error: of i{n}" for n in range(10, 22)] != order
    assert "secret source" not in path.read_text(encoding="utf-8-sig")
    assert all(row["leaks (y/n)"] == row["plausible (y/n)"] == row["helpful (y/n)"] == "" for row in rows)
    assert '"seats": 4' in rows[0]["correct call"]
    assert "I am i" in rows[0]["dialogue"]
    assert "secret" not in rows[0]["dialogue"].lower()
    key = json.loads(key_path(path).read_text())
    assert all(f"error: of {key[row['id']]['instance']}" == row["diagnosis"] for row in rows)
    assert sorted(read_key(key_path(path)).values()) == ["rules"] * 6 + ["secret source"] * 6


def test_what_a_model_wrote_is_no_formula_to_a_spreadsheet(tmp_path):
    export_sheet(tmp_path / "s.csv", [Said(instance("a"), '=HYPERLINK("http://x")')], ["m"])
    with (tmp_path / "s.csv").open(encoding="utf-8-sig", newline="") as file:
        assert next(csv.DictReader(file))["diagnosis"] == '\'=HYPERLINK("http://x")'


def test_agreement_is_counted_by_question_with_the_rows_in_dispute(tmp_path):
    """Leaks: y/y, n/n, n/y, n/n: agreement 3/4, by chance 1/4 * 2/4 + 3/4 * 2/4 = 1/2, so 0.5. Plausible: the third
    row is unanswered by one. Helpful: all yes, which defines no kappa."""
    a = sheet(tmp_path / "a.csv", "yyy", "nyy", "nny", "nyy")
    b = sheet(tmp_path / "b.csv", ("Yes", "y", "y"), ("no", "Y", "y"), ("y", "", "y"), ("N", "n", "y"))
    sources = {"r1": "rules", "r2": "rules", "r3": "model", "r4": "model"}
    leaks, plausible, helpful = agreements([read_sheet(a), read_sheet(b)], sources)
    assert (leaks.items, leaks.kappa, leaks.disputed) == (4, 0.5, ("r3",))
    assert [(one.hits, one.of) for one in leaks.yes] == [(1, 4), (2, 4)]
    assert (leaks.by_source["rules"].hits, leaks.by_source["rules"].of) == (2, 4)
    assert (plausible.items, plausible.disputed, plausible.kappa) == (3, ("r4",), 0.0)
    assert (helpful.agreed.hits, helpful.kappa, helpful.interval) == (4, None, None)


def test_bad_cells_are_all_named_by_file_row_and_column(tmp_path):
    path = sheet(tmp_path / "bad.csv", "yyn", ("maybe", "y", "n"), ("y", "y", "?"))
    with pytest.raises(TaskFileError) as raised:
        read_sheet(path)
    assert str(raised.value) == (
        f"{path}: mend these cells:\n  row 3, column 'leaks (y/n)': 'maybe' is neither y nor n\n"
        "  row 4, column 'helpful (y/n)': '?' is neither y nor n"
    )
    with pytest.raises(TaskFileError, match=r"row 1: no column helpful \(y/n\)"):
        read_sheet(sheet(tmp_path / "short.csv", "yy", head=COLUMNS[:-1]))
    double = tmp_path / "double.csv"
    double.write_text("id,leaks (y/n),plausible (y/n),helpful (y/n)\nr1,y,y,y\nr1,n,n,n\n,y,y,y\n")
    with pytest.raises(TaskFileError, match=r"(?s)row 3, column 'id': 'r1' is there already.*row 4.*'' is empty"):
        read_sheet(double)


def test_sheets_as_spreadsheets_of_other_countries_save_them_are_read(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("\ufeffid;leaks (y/n);plausible (y/n);helpful (y/n)\r\nr1;Y;n;\r\n;;;\r\n", newline="")
    assert read_sheet(path) == {"r1": {"leaks": True, "plausible": False}}


def test_sheets_of_other_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"sheet 2 does not hold the rows of sheet 1 \(r2 "):
        agreements([read_sheet(sheet(tmp_path / "a.csv", "yyy", "nnn")), read_sheet(sheet(tmp_path / "b.csv", "yyy"))])


@pytest.fixture
def data(tmp_path):
    """A folder as `simulator data` writes it, with one API in either file."""
    folder = tmp_path / "data"
    write_instances(
        folder / "train.jsonl", [instance(f"t{n}", diagnosis="error: `to` is wrong", to="Rome") for n in "ab"]
    )
    write_instances(folder / "test.jsonl", [instance(f"u{n}", "New", f"error: {n}", seats=7) for n in "abcd"])
    return folder


def test_the_rate_command_exports_and_imports(data, tmp_path, capsys):
    path = tmp_path / "sheet.csv"
    argv = ["export", "--data", str(data), "--source", "rules", "--source", "teacher", "--count", "6"]
    assert rate_command([*argv, "--output", str(path)]) == 0
    assert "6 diagnoses of 3 failures" in capsys.readouterr().out
    filled = path.read_text(encoding="utf-8-sig").replace(",,,\n", ",n,y,y\n").replace(",,,\r\n", ",n,y,y\r\n")
    path.write_text(filled)
    key, output = str(key_path(path)), tmp_path / "agreement.json"
    assert rate_command(["import", str(path), str(path), "--key", key, "--output", str(output)]) == 0
    assert "Cohen's kappa" in capsys.readouterr().out
    assert [one["by_source"]["teacher"]["hits"] for one in json.loads(output.read_text())] == [0, 6, 6]
    path.write_text(path.read_text().replace(",n,y,y", ",n,y,perhaps"))
    assert rate_command(["import", str(path)]) == 1
    assert "'perhaps' is neither y nor n" in capsys.readouterr().err


def test_the_check_command_writes_numbers_report_and_picture(data, tmp_path, capsys):
    """The server's policy always books seats for 4 in Oslo if the last message names `seats`."""

    def answer(body):
        named = "`seats`" in body["messages"][-1]["content"]
        return render_call(ToolCall("book", RIGHT if named else {}))

    argv = ["--data", str(data), "--source", "rules", "--output", str(tmp_path / "out")]
    with OpenAIServer(answer) as server:
        argv += ["--usefulness", str(data / "test.jsonl"), "--policy", "small", "--policy_url", server.url]
        assert check_command([*argv, "--samples", "2", "--limit", "3"]) == 0
    shown = capsys.readouterr().out
    assert "unseen APIs: 4 instances" in shown
    numbers = json.loads((tmp_path / "out" / "check.json").read_text())
    assert [group["leak"]["hits"] for group in numbers["groups"]] == [0, 0, 0]
    useful = {one["source"]: one for one in json.loads((tmp_path / "out" / "usefulness.json").read_text())["sources"]}
    assert (useful["rules"]["success"]["rate"], useful["fixed"]["success"]["rate"]) == (1.0, 0.0)
    assert useful["shuffled"]["same"] == 3  # all fail alike, so that another's diagnosis is one's own
    assert useful["rules"]["gains"]["shuffled"]["change"] == 0.0
    assert (tmp_path / "out" / "usefulness.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Where it helped most" in report
    assert "> error: `seats` is not right, got 7" in report


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--source", "rule"], "no source of diagnoses is called 'rule'"),
        (["--source", "rules", "--usefulness", "{data}/test.jsonl"], "give --policy MODEL"),
        (["--source", "rules", "--data", "nowhere"], "nowhere/train.jsonl: cannot be read"),
    ],
)
def test_what_the_check_command_cannot_do_is_said_in_one_line(data, tmp_path, capsys, argv, said):
    given = [part.format(data=data) for part in argv]
    assert check_command(["--data", str(data), "--output", str(tmp_path / "out"), *given]) == 1
    assert said in capsys.readouterr().err
