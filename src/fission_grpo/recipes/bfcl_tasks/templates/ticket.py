"""Templates for TicketAPI."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, choice, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import NAMES, a_password, a_user

# fmt: off
PROBLEMS = (
    "printer jam", "slow laptop", "lost badge", "broken screen", "mail delay", "no sound", "wifi drops", "door stuck",
)
FIXES = ("cable replaced", "restarted the service", "new part fitted", "settings reset", "software updated")


def config(rng: Random) -> dict[str, object]:
    """A queue of two to four tickets, and possibly a user who is logged in."""
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


def _ticket(t: Sandbox, *statuses: str) -> dict[str, object]:
    queue = t.instance("TicketAPI").ticket_queue
    return t.pick([ticket for ticket in queue if not statuses or ticket["status"] in statuses])


def create(t: Sandbox) -> UserRequest:
    title, priority = t.pick(PROBLEMS), t.rng.randint(1, 5)
    if t.rng.random() < 0.5:
        t.do("create_ticket", title=title, priority=priority)
        return t.request("Open a ticket titled '{title}' with priority {priority}.",
                         "Please file a ticket '{title}', priority {priority}.",
                         vague="Open a ticket with priority {priority}.", detail="Its title is '{title}'.")
    text = f"{title} since {t.pick(('Monday', 'Tuesday', 'Friday'))}"
    t.do("create_ticket", title=title, description=text, priority=priority)
    return t.request("Open a ticket titled '{title}', description '{description}', priority {priority}.",
                     "File '{title}' as a priority {priority} ticket and describe it as '{description}'.")


def change_priority(t: Sandbox) -> UserRequest:
    ticket = _ticket(t, "Open")
    priority = t.pick([n for n in range(1, 6) if n != ticket["priority"]])
    t.do("edit_ticket", ticket_id=ticket["id"], updates={"priority": priority})
    return t.request("Change the priority of ticket {ticket_id} to {updates[priority]}.",
                     "Set ticket {ticket_id} to priority {updates[priority]}.",
                     vague="Change the priority of ticket {ticket_id}.", detail="To {updates[priority]}.")


def list_own(t: Sandbox) -> UserRequest:
    if t.rng.random() < 0.5:
        t.do("get_user_tickets")
        return t.request("List all my tickets.", "Which tickets have I created?")
    t.do("get_user_tickets", status=t.pick(("Open", "Resolved")))
    return t.request("List my tickets with status {status}.", "Which of my tickets are {status}?")


def create_and_close(t: Sandbox) -> UserRequest:
    ticket = t.do("create_ticket", title=t.pick(PROBLEMS), priority=t.rng.randint(1, 5))
    t.do("close_ticket", ticket_id=ticket["id"])
    return t.request("Open a ticket titled '{title}' with priority {priority} and close it right away.",
                     "File '{title}' at priority {priority}, then close that ticket.")


TEMPLATES = (
    one_call("ticket_login", "Log me in to the ticket system as {username} with password {password}.",
             "Sign in to ticketing: user {username}, password {password}.",
             vague="Log me in to the ticket system as {username}.", detail="The password is {password}.",
             when=lambda t: t.instance("TicketAPI").current_user is None, username=a_user, password=a_password),
    create,
    create,
    one_call("get_ticket", "Show me ticket {ticket_id}.", "What does ticket {ticket_id} say?",
             vague="Show me my ticket.", detail="Ticket {ticket_id}.", ticket_id=lambda t: _ticket(t)["id"]),
    one_call("close_ticket", "Close ticket {ticket_id}.", "Ticket {ticket_id} can be closed.",
             vague="Close the ticket.", detail="I mean {ticket_id}.",
             ticket_id=lambda t: _ticket(t, "Open", "Resolved")["id"]),
    one_call("resolve_ticket", "Resolve ticket {ticket_id} with the resolution '{resolution}'.",
             "Ticket {ticket_id} is solved: '{resolution}'. Mark it resolved.",
             vague="Resolve ticket {ticket_id}.", detail="The resolution is '{resolution}'.",
             ticket_id=lambda t: _ticket(t, "Open")["id"], resolution=choice(FIXES)),
    change_priority,
    list_own,
    one_call("logout", "Log me out of the ticket system.", "Sign out of ticketing."),
    create_and_close,
)
