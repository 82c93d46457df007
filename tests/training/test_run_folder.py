"""The final model appears whole, and a start keeps what an earlier run left."""

import json
import os

import pytest

from fission_grpo.training.run_folder import RUN, claim, model_staging, publish_model, run_of


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_moved_file_by_file_weights_last(tmp_path, monkeypatch):
    write(tmp_path, config__json="old", model__safetensors="old", notes__txt="mine")
    staged = model_staging(tmp_path)
    write(staged, config__json="new", model__safetensors="new", tokenizer__json="new", ref_in_adapter__json="new")
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append(os.path.basename(paths[1])), replace(*paths)))
    publish_model(staged, tmp_path)
    assert order == ["config.json", "adapter.json", "tokenizer.json", "model.safetensors"]
    new = dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json", "ref/adapter.json"), "new")
    assert content(tmp_path) == {"notes.txt": "mine", **new}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.safetensors", "adapter_model.safetensors"),
        ("adapter_config.json", "model.safetensors"),
        ("model.safetensors", "model-00001-of-00002.safetensors"),
        ("model.safetensors.index.json", "model.safetensors"),
    ],
)
def test_weights_of_an_earlier_model_that_would_be_loaded_instead_are_set_aside(tmp_path, caplog, old, new):
    (tmp_path / old).write_text("old")
    staged = model_staging(tmp_path)
    staged.mkdir(parents=True)
    (staged / new).write_text("new")
    publish_model(staged, tmp_path)
    assert content(tmp_path) == {new: "new", f"_earlier-1/{old}": "old"}
    assert f"{old} moved to _earlier-1" in caplog.text


def test_a_start_numbers_its_folders_and_touches_nothing_else(tmp_path, caplog):
    names = set()
    for number in (1, 2):
        for step in (2, 10):
            write(tmp_path / f"checkpoint-{step}", x__json=str(number))
        write(tmp_path / "checkpoint-best", x__json="mine")
        names.add(claim(tmp_path, None, 0))
    assert len(names) == 2
    assert run_of(tmp_path / RUN) in names
    assert sorted(path for path in content(tmp_path) if path != RUN) == [
        "_earlier-1/checkpoint-10/x.json",
        "_earlier-1/checkpoint-2/x.json",
        "_earlier-2/checkpoint-10/x.json",
        "_earlier-2/checkpoint-2/x.json",
        "checkpoint-best/x.json",
    ]
    assert "checkpoint-2, checkpoint-10 moved to _earlier-1, as this run begins anew" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"run": 3}', "{", "null"])
def test_a_damaged_id_of_a_folder_is_no_id(tmp_path, text):
    (tmp_path / RUN).write_text(text)
    assert run_of(tmp_path / RUN) is None
    claim(tmp_path, None, 0)
    assert json.loads((tmp_path / RUN).read_text())["run"] == run_of(tmp_path / RUN)
