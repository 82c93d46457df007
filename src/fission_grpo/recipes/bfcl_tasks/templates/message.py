"""Templates for MessageAPI."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, choice, choice_from, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import NAMES

# fmt: off
TEXTS = (
    "the meeting moved", "lunch at noon", "files are ready", "call me back", "see you soon", "train is late",
    "all done",
)


def config(rng: Random) -> dict[str, object]:
    """Three to five users, a few messages, and possibly a user who is logged in."""
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


other_name = choice_from("MessageAPI", lambda api: [n for n, id in api.user_map.items() if id != api.current_user])
other_id = choice_from("MessageAPI", lambda api: [id for id in api.user_map.values() if id != api.current_user])
receiver = choice_from("MessageAPI", lambda api: sorted({next(iter(message)) for message in api.inbox}))
new_name = choice_from("MessageAPI", lambda api: [name for name in NAMES if name not in api.user_map])


def send_to_name(t: Sandbox) -> UserRequest:
    name, text = other_name(t), t.pick(TEXTS)
    user = t.do("get_user_id", user=name)
    t.do("send_message", receiver_id=user["user_id"], message=text)
    return t.request("Look up {user} and send them '{message}'.", "Find {user}'s id and write '{message}'.")


def add(t: Sandbox) -> UserRequest:
    added = t.do("add_contact", user_name=new_name(t))
    if t.rng.random() < 0.5:
        return t.request("Add {user_name} as a contact.", "Put {user_name} into my contacts.",
                         vague="Add a new contact.", detail="The name is {user_name}.")
    t.do("send_message", receiver_id=added["user_id"], message=t.pick(TEXTS))
    return t.request("Add {user_name} as a contact and send them '{message}'.",
                     "Add {user_name}, then write '{message}'.")


send_to_id = one_call("send_message", "Send '{message}' to {receiver_id}.", "Message {receiver_id}: '{message}'.",
                      vague="Send a message to {receiver_id}.", detail="It should say '{message}'.",
                      receiver_id=other_id, message=choice(TEXTS))
TEMPLATES = (
    one_call("message_login", "Log me in to messages as {user_id}.", "Sign in to the message app with id {user_id}.",
             vague="Log me in to messages.", detail="My id is {user_id}.", user_id=other_id),
    send_to_id,
    send_to_id,
    send_to_name,
    one_call("get_user_id", "What is {user}'s user id?", "Find the id of {user}.", user=other_name),
    add,
    one_call("delete_message", "Delete my latest message to {receiver_id}.",
             "Take back the last message to {receiver_id}.",
             vague="Delete my latest message.", detail="The one to {receiver_id}.", receiver_id=receiver),
    one_call("search_messages", "Search my messages for '{keyword}'.", "Which messages contain '{keyword}'?",
             keyword=lambda t: t.pick(TEXTS).split()[0]),
    one_call("view_messages_sent", "Show the messages I sent.", "Which messages have I sent?"),
    one_call("get_message_stats", "Give me my message statistics.", "How many messages are there for me?"),
    one_call("list_users", "List all users.", "Who is in the workspace?"),
)
