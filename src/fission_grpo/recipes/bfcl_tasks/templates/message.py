"""MessageAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    Intent,
    Request,
    Trial,
)

TEXTS = (
    "the meeting moved",
    "lunch at noon",
    "files are ready",
    "call me back",
    "see you soon",
    "train is late",
    "all done",
)


def config(rng: random.Random) -> dict[str, Any]:
    """Three to five users, a few messages, somebody logged in or not."""
    first = rng.randint(10, 700)
    users = {name: f"USR{first + i:03d}" for i, name in enumerate(rng.sample(NAMES, rng.randint(3, 5)))}
    ids = list(users.values())
    inbox = [{rng.choice(ids[1:]): rng.choice(TEXTS)} for _ in range(rng.randint(1, 3))]
    return {
        "random_seed": rng.randint(1, 10**6),
        "user_count": first + len(users),
        "user_map": users,
        "inbox": inbox,
        "message_count": len(inbox),
        "current_user": ids[0] if rng.random() < 0.8 else None,
    }


def _other(t: Trial) -> tuple[str, str]:
    state = t.state("MessageAPI")
    return t.pick([(name, id) for name, id in state.user_map.items() if id != state.current_user])


def log_in(t: Trial) -> Request:
    _, user = _other(t)
    t.do("message_login", user_id=user)
    return t.ask(
        "Log me in to messages as {user}.",
        "Sign in to the message app with id {user}.",
        vague="Log me in to messages.",
        detail="My id is {user}.",
        user=user,
    )


def send_to_id(t: Trial) -> Request:
    (_, user), text = _other(t), t.pick(TEXTS)
    t.do("send_message", receiver_id=user, message=text)
    return t.ask(
        "Send '{text}' to {user}.",
        "Message {user}: '{text}'.",
        vague="Send a message to {user}.",
        detail="It should say '{text}'.",
        user=user,
        text=text,
    )


def send_to_name(t: Trial) -> Request:
    (name, _), text = _other(t), t.pick(TEXTS)
    found = t.do("get_user_id", user=name)
    t.do("send_message", receiver_id=found["user_id"], message=text)
    return t.ask(
        "Look up {name} and send them '{text}'.", "Find {name}'s id and write '{text}'.", name=name, text=text
    )


def look_up(t: Trial) -> Request:
    name, _ = _other(t)
    t.do("get_user_id", user=name)
    return t.ask("What is {name}'s user id?", "Find the id of {name}.", name=name)


def add(t: Trial) -> Request:
    name = t.pick([name for name in NAMES if name not in t.state("MessageAPI").user_map])
    added = t.do("add_contact", user_name=name)
    if t.rng.random() < 0.5:
        return t.ask(
            "Add {name} as a contact.",
            "Put {name} into my contacts.",
            vague="Add a new contact.",
            detail="The name is {name}.",
            name=name,
        )
    text = t.pick(TEXTS)
    t.do("send_message", receiver_id=added["user_id"], message=text)
    return t.ask(
        "Add {name} as a contact and send them '{text}'.", "Add {name}, then write '{text}'.", name=name, text=text
    )


def delete(t: Trial) -> Request:
    users = {next(iter(message)) for message in t.state("MessageAPI").inbox}
    user = t.pick(sorted(users))
    t.do("delete_message", receiver_id=user)
    return t.ask(
        "Delete my latest message to {user}.",
        "Take back the last message to {user}.",
        vague="Delete my latest message.",
        detail="The one to {user}.",
        user=user,
    )


def search(t: Trial) -> Request:
    word = t.pick(TEXTS).split()[0]
    t.do("search_messages", keyword=word)
    return t.ask("Search my messages for '{word}'.", "Which messages contain '{word}'?", word=word)


def view(t: Trial) -> Request:
    t.do("view_messages_sent")
    return t.ask("Show the messages I sent.", "Which messages have I sent?")


def stats(t: Trial) -> Request:
    t.do("get_message_stats")
    return t.ask("Give me my message statistics.", "How many messages are there for me?")


def everybody(t: Trial) -> Request:
    t.do("list_users")
    return t.ask("List all users.", "Who is in the workspace?")


INTENTS: tuple[Intent, ...] = (
    log_in,
    send_to_id,
    send_to_id,
    send_to_name,
    look_up,
    add,
    delete,
    search,
    view,
    stats,
    everybody,
)
