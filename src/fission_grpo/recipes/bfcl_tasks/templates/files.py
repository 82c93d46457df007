"""GorillaFileSystem."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    ADJECTIVES,
    NOUNS,
    Intent,
    Request,
    Trial,
)

LINES = ("north wind", "red door", "blue lamp", "old bridge", "green field", "last train", "first snow")


def config(rng: random.Random) -> dict[str, Any]:
    """A folder with files, and two folders within."""
    words = rng.sample(NOUNS, 6)
    contents: dict[str, Any] = {
        f"{word}.txt": {"type": "file", "content": "\n".join(rng.sample(LINES, rng.randint(2, 4)))}
        for word in words[:4]
    }
    for name in rng.sample(ADJECTIVES, 2):
        inner = {"type": "file", "content": rng.choice(LINES)}
        contents[name] = {
            "type": "directory",
            "contents": {f"{words[4]}_{name}.md": inner} if rng.random() < 0.7 else {},
        }
    return {"root": {f"home_{words[5]}": {"type": "directory", "contents": contents}}}


def _here(t: Trial, folders: bool) -> list[str]:
    contents = t.state("GorillaFileSystem")._current_dir.contents
    return sorted(name for name, item in contents.items() if hasattr(item, "contents") == folders)


def show(t: Trial) -> Request:
    name = t.pick(_here(t, False))
    t.do("cat", file_name=name)
    return t.ask(
        "Show me {name}.", "What is in {name}?", vague="Show me the file.", detail="I mean {name}.", name=name
    )


def listing(t: Trial) -> Request:
    t.do("ls")
    return t.ask("List the files here.", "What is in this folder?")


def enter(t: Trial) -> Request:
    folder = t.pick(_here(t, True))
    t.do("cd", folder=folder)
    if t.rng.random() < 0.4:
        return t.ask("Go into {folder}.", "Change to the folder {folder}.", folder=folder)
    name = t.pick(_here(t, False))
    t.do("cat", file_name=name)
    return t.ask("Go into {folder} and show {name}.", "In {folder}, read {name}.", folder=folder, name=name)


def make(t: Trial) -> Request:
    name = f"{t.pick(ADJECTIVES)}_{t.pick(NOUNS)}"
    t.do("mkdir", dir_name=name)
    return t.ask(
        "Make a folder {name}.",
        "Create the directory {name}.",
        vague="Make a folder.",
        detail="Call it {name}.",
        name=name,
    )


def write(t: Trial) -> Request:
    name, text = f"{t.pick(ADJECTIVES)}.txt", t.pick(LINES)
    t.do("touch", file_name=name)
    t.do("echo", content=text, file_name=name)
    return t.ask(
        "Create {name} and write '{text}' into it.",
        "Make a new file {name} that says '{text}'.",
        vague="Create a file and write '{text}' into it.",
        detail="Name it {name}.",
        name=name,
        text=text,
    )


def move(t: Trial) -> Request:
    name, folder = t.pick(_here(t, False)), t.pick(_here(t, True))
    action = t.pick(("mv", "cp"))
    t.do(action, source=name, destination=folder)
    if action == "cp":
        return t.ask("Copy {name} into {folder}.", "Put a copy of {name} in {folder}.", name=name, folder=folder)
    return t.ask("Move {name} into {folder}.", "Put {name} in the folder {folder}.", name=name, folder=folder)


def rename(t: Trial) -> Request:
    name, new = t.pick(_here(t, False)), f"{t.pick(ADJECTIVES)}_{t.rng.randint(2, 99)}.txt"
    t.do("mv", source=name, destination=new)
    return t.ask("Rename {name} to {new}.", "{name} should be called {new}.", name=name, new=new)


def remove(t: Trial) -> Request:
    name = t.pick(_here(t, False))
    t.do("rm", file_name=name)
    return t.ask(
        "Delete {name}.", "Remove the file {name}.", vague="Delete a file.", detail="{name}, please.", name=name
    )


def look_for(t: Trial) -> Request:
    name, word = t.pick(_here(t, False)), t.pick(LINES).split()[1]
    t.do("grep", file_name=name, pattern=word)
    return t.ask("Find lines with '{word}' in {name}.", "Search {name} for '{word}'.", name=name, word=word)


def count(t: Trial) -> Request:
    name, (mode, unit) = t.pick(_here(t, False)), t.pick((("l", "lines"), ("w", "words"), ("c", "characters")))
    t.do("wc", file_name=name, mode=mode)
    return t.ask("Count the {unit} of {name}.", "How many {unit} has {name}?", unit=unit, name=name)


def compare(t: Trial) -> Request:
    names = _here(t, False)
    one = t.pick(names)
    other = t.pick([name for name in names if name != one])
    t.do("diff", file_name1=one, file_name2=other)
    return t.ask("Compare {one} with {other}.", "How do {one} and {other} differ?", one=one, other=other)


def in_order(t: Trial) -> Request:
    name = t.pick(_here(t, False))
    t.do("sort", file_name=name)
    return t.ask("Sort the lines of {name}.", "Show {name} sorted.", name=name)


INTENTS: tuple[Intent, ...] = (
    show,
    listing,
    enter,
    make,
    write,
    move,
    rename,
    remove,
    look_for,
    count,
    compare,
    in_order,
)
