"""Templates for GorillaFileSystem."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, any_call, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import ADJECTIVES, NOUNS

# fmt: off
LINES = ("north wind", "red door", "blue lamp", "old bridge", "green field", "last train", "first snow")
UNITS = {"l": "lines", "w": "words", "c": "characters"}


def config(rng: Random) -> dict[str, object]:
    """A folder with files and two folders."""
    words = rng.sample(NOUNS, 6)
    contents: dict[str, object] = {
        f"{word}.txt": {"type": "file", "content": "\n".join(rng.sample(LINES, rng.randint(2, 4)))}
        for word in words[:4]
    }
    for name in rng.sample(ADJECTIVES, 2):
        inner = {"type": "file", "content": rng.choice(LINES)}
        files = {f"{words[4]}_{name}.md": inner} if rng.random() < 0.7 else {}
        contents[name] = {"type": "directory", "contents": files}
    return {"root": {f"home_{words[5]}": {"type": "directory", "contents": contents}}}


def _files(t: Sandbox, folders: bool = False) -> list[str]:
    contents = t.instance("GorillaFileSystem")._current_dir.contents
    return sorted(name for name, item in contents.items() if hasattr(item, "contents") == folders)


def a_file(t: Sandbox) -> str:
    return t.pick(_files(t))


def a_folder(t: Sandbox) -> str:
    return t.pick(_files(t, folders=True))


def enter(t: Sandbox) -> UserRequest:
    t.do("cd", folder=a_folder(t))
    if t.rng.random() < 0.4:
        return t.request("Go into {folder}.", "Change to the folder {folder}.")
    t.do("cat", file_name=a_file(t))
    return t.request("Go into {folder} and show {file_name}.", "In {folder}, read {file_name}.")


def write(t: Sandbox) -> UserRequest:
    name, text = f"{t.pick(ADJECTIVES)}.txt", t.pick(LINES)
    t.do("touch", file_name=name)
    t.do("echo", content=text, file_name=name)
    return t.request("Create {file_name} and write '{content}' into it.",
                     "Make a new file {file_name} that says '{content}'.",
                     vague="Create a file and write '{content}' into it.", detail="Name it {file_name}.")


def count(t: Sandbox) -> UserRequest:
    name, mode = a_file(t), t.pick(tuple(UNITS))
    t.do("wc", file_name=name, mode=mode)
    return t.request("Count the {unit} of {file_name}.", "How many {unit} has {file_name}?", unit=UNITS[mode])


def compare(t: Sandbox) -> UserRequest:
    names = _files(t)
    first = t.pick(names)
    t.do("diff", file_name1=first, file_name2=t.pick([name for name in names if name != first]))
    return t.request("Compare {file_name1} with {file_name2}.", "How do {file_name1} and {file_name2} differ?")


MOVE_OR_COPY = {
    "mv": ("Move {source} into {destination}.", "Put {source} in the folder {destination}."),
    "cp": ("Copy {source} into {destination}.", "Put a copy of {source} in {destination}."),
}
TEMPLATES = (
    one_call("cat", "Show me {file_name}.", "What is in {file_name}?",
             vague="Show me the file.", detail="I mean {file_name}.", file_name=a_file),
    one_call("ls", "List the files here.", "What is in this folder?"),
    enter,
    one_call("mkdir", "Make a folder {dir_name}.", "Create the directory {dir_name}.",
             vague="Make a folder.", detail="Call it {dir_name}.",
             dir_name=lambda t: f"{t.pick(ADJECTIVES)}_{t.pick(NOUNS)}"),
    write,
    any_call(MOVE_OR_COPY, source=a_file, destination=a_folder),
    one_call("mv", "Rename {source} to {destination}.", "{source} should be called {destination}.",
             source=a_file, destination=lambda t: f"{t.pick(ADJECTIVES)}_{t.rng.randint(2, 99)}.txt"),
    one_call("rm", "Delete {file_name}.", "Remove the file {file_name}.",
             vague="Delete a file.", detail="{file_name}, please.", file_name=a_file),
    one_call("grep", "Find lines with '{pattern}' in {file_name}.", "Search {file_name} for '{pattern}'.",
             file_name=a_file, pattern=lambda t: t.pick(LINES).split()[1]),
    count,
    compare,
    one_call("sort", "Sort the lines of {file_name}.", "Show {file_name} sorted.", file_name=a_file),
)
