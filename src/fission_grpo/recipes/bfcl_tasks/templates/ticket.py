"""TicketAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    Intent,
    Request,
    Trial,
)

PROBLEMS = (
    "printer jam",
    "slow laptop",
    "lost badge",
    "broken screen",
    "mail delay",
    "no sound",
    "wifi drops",
    "door stuck",
)


FIXES = ("cable replaced", "restarted the service", "new part fitted", "settings reset", "software updated")


def config(rng: random.Random) -> dict[str, Any]:
    """A queue of two to four tickets, somebody logged in or not."""
    user = rng.choice(NAMES).lower()
    first = rng.randint(100, 899)
    tickets = []
    for number, title in enumerate(rng.sample(PROBLEMS, rng.randint(2, 4))):
        owner = user if rng.random() < 0.7 else rng.choice(NAMES).lower()
        status = rng.choice(("Open", "Open", "Resolved"))
        fields = {"title": title, "description": f"{title} in room {rng.randint(1, 40)}", "status": status}
        tickets.append({"id": first + number, **fields, "priority": rng.randint(1, 5), "created_by": owner})
    current = user if rng.random() < 0.8 else None
    return {"ticket_queue": tickets, "ticket_counter": first + len(tickets), "current_user": current}


def _ticket(t: Trial, *statuses: str) -> dict[str, Any]:
    return t.pick([one for one in t.state("TicketAPI").ticket_queue if not statuses or one["status"] in statuses])


def login(t: Trial) -> Request:
    user, password = t.pick(NAMES).lower(), f"{t.pick(NAMES).lower()}{t.rng.randint(10, 99)}"
    if t.state("TicketAPI").current_user is not None:
        t.pick(())
    t.do("ticket_login", username=user, password=password)
    return t.ask(
        "Log me in to the ticket system as {user} with password {password}.",
        "Sign in to ticketing: user {user}, password {password}.",
        vague="Log me in to the ticket system as {user}.",
        detail="The password is {password}.",
        user=user,
        password=password,
    )


def create(t: Trial) -> Request:
    title, priority = t.pick(PROBLEMS), t.rng.randint(1, 5)
    if t.rng.random() < 0.5:
        t.do("create_ticket", title=title, priority=priority)
        return t.ask(
            "Open a ticket titled '{title}' with priority {priority}.",
            "Please file a ticket '{title}', priority {priority}.",
            vague="Open a ticket with priority {priority}.",
            detail="Its title is '{title}'.",
            title=title,
            priority=priority,
        )
    text = f"{title} since {t.pick(('Monday', 'Tuesday', 'Friday'))}"
    t.do("create_ticket", title=title, description=text, priority=priority)
    return t.ask(
        "Open a ticket titled '{title}', description '{text}', priority {priority}.",
        "File '{title}' as a priority {priority} ticket and describe it as '{text}'.",
        title=title,
        text=text,
        priority=priority,
    )


def show(t: Trial) -> Request:
    number = _ticket(t)["id"]
    t.do("get_ticket", ticket_id=number)
    return t.ask(
        "Show me ticket {id}.",
        "What does ticket {id} say?",
        vague="Show me my ticket.",
        detail="Ticket {id}.",
        id=number,
    )


def close(t: Trial) -> Request:
    number = _ticket(t, "Open", "Resolved")["id"]
    t.do("close_ticket", ticket_id=number)
    return t.ask(
        "Close ticket {id}.", "Ticket {id} can be closed.", vague="Close the ticket.", detail="I mean {id}.", id=number
    )


def resolve(t: Trial) -> Request:
    number, fix = _ticket(t, "Open")["id"], t.pick(FIXES)
    t.do("resolve_ticket", ticket_id=number, resolution=fix)
    return t.ask(
        "Resolve ticket {id} with the resolution '{fix}'.",
        "Ticket {id} is solved: '{fix}'. Mark it resolved.",
        vague="Resolve ticket {id}.",
        detail="The resolution is '{fix}'.",
        id=number,
        fix=fix,
    )


def raise_priority(t: Trial) -> Request:
    ticket = _ticket(t, "Open")
    priority = t.pick([n for n in range(1, 6) if n != ticket["priority"]])
    number = ticket["id"]
    t.do("edit_ticket", ticket_id=number, updates={"priority": priority})
    return t.ask(
        "Change the priority of ticket {id} to {priority}.",
        "Set ticket {id} to priority {priority}.",
        vague="Change the priority of ticket {id}.",
        detail="To {priority}.",
        id=number,
        priority=priority,
    )


def mine(t: Trial) -> Request:
    if t.rng.random() < 0.5:
        t.do("get_user_tickets")
        return t.ask("List all my tickets.", "Which tickets have I created?")
    status = t.pick(("Open", "Resolved"))
    t.do("get_user_tickets", status=status)
    return t.ask("List my tickets with status {status}.", "Which of my tickets are {status}?", status=status)


def log_out(t: Trial) -> Request:
    t.do("logout")
    return t.ask("Log me out of the ticket system.", "Sign out of ticketing.")


def create_and_close(t: Trial) -> Request:
    title, priority = t.pick(PROBLEMS), t.rng.randint(1, 5)
    made = t.do("create_ticket", title=title, priority=priority)
    t.do("close_ticket", ticket_id=made["id"])
    return t.ask(
        "Open a ticket titled '{title}' with priority {priority} and close it right away.",
        "File '{title}' at priority {priority}, then close that ticket.",
        title=title,
        priority=priority,
    )


INTENTS: tuple[Intent, ...] = (
    login,
    create,
    create,
    show,
    close,
    resolve,
    raise_priority,
    mine,
    log_out,
    create_and_close,
)
