"""Templates for TravelAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    SURNAMES,
    Sandbox,
    Template,
    UserRequest,
    choice,
    number,
    one_call,
)

# phrases are wrapped by hand
# fmt: off
CITIES = ("Boston", "Chicago", "London", "Rivermist", "Rome", "Tokyo")
ROUTES = (
    ("SFO", "LAX"), ("SFO", "JFK"), ("SFO", "ORD"), ("LAX", "SFO"), ("LAX", "JFK"), ("JFK", "BOS"), ("JFK", "ORD"),
)
CURRENCIES = ("RMB", "EUR", "JPY", "GBP", "CAD", "AUD", "INR", "MXN")


def config(rng: random.Random) -> dict[str, Any]:
    """A traveler with one or two credit cards, possibly a valid token and a booking."""
    first, last = rng.choice(NAMES), rng.choice(SURNAMES)
    credit_cards = {}
    for _ in range(rng.randint(1, 2)):
        account = str(rng.randint(10**15, 10**16 - 1))
        expiry = f"{rng.randint(2027, 2031)}-{rng.randint(1, 12):02d}"
        credit_cards[f"card_{rng.randint(1000, 9999)}"] = {
            "card_number": account,
            "expiration_date": expiry,
            "cardholder_name": f"{first} {last}",
            "card_verification_number": rng.randint(100, 999),
            "balance": rng.randint(20, 90) * 1000.0,
        }
    has_token = rng.random() < 0.85
    bookings = {}
    if rng.random() < 0.6:
        trip = _trip(rng.choice(ROUTES), _date(rng), "economy")
        paid = {"travel_cost": rng.randint(2, 9) * 100.0, "transaction_id": str(rng.randint(10**7, 10**8))}
        bookings[str(rng.randint(10**6, 10**7))] = {"card_id": rng.choice(sorted(credit_cards)), **trip, **paid}
    return {
        "random_seed": rng.randint(1, 10**6),
        "credit_card_list": credit_cards,
        "booking_record": bookings,
        "access_token": f"tok{rng.randint(1000, 9999)}" if has_token else None,
        "token_type": "Bearer",
        "token_expires_in": 3600 if has_token else None,
        "token_scope": "read_write",
        "user_first_name": first,
        "user_last_name": last,
        "budget_limit": None,
    }


def _date(rng: random.Random) -> str:
    return f"2027-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _trip(route: tuple[str, str], date: str, travel_class: str) -> dict[str, str]:
    return {"travel_date": date, "travel_from": route[0], "travel_to": route[1], "travel_class": travel_class}


def token(t: Sandbox) -> str:
    access_token = t.instance("TravelAPI").access_token
    return t.pick([access_token] if access_token else [])


def a_booking(t: Sandbox) -> str:
    return t.pick(sorted(t.instance("TravelAPI").booking_record))


def credit_id(t: Sandbox) -> str:
    return t.pick(sorted(t.instance("TravelAPI").credit_card_list))


def authenticate(t: Sandbox) -> UserRequest:
    state = t.instance("TravelAPI")
    t.require(not state.access_token)
    client, secret, refresh = (f"{word}{t.rng.randint(100, 999)}" for word in ("cl", "se", "re"))
    names = {"user_first_name": state.user_first_name, "user_last_name": state.user_last_name}
    keys = {"client_id": client, "client_secret": secret, "refresh_token": refresh, "grant_type": "read_write"}
    t.do("authenticate_travel", **keys, **names)
    return t.ask(
        "Sign me in to travel: client {client_id}, secret {client_secret}, refresh token {refresh_token}, "
        "grant {grant_type}, I am {user_first_name} {user_last_name}.",
        "Authenticate {user_first_name} {user_last_name} for travel with client id {client_id}, secret "
        "{client_secret}, refresh token {refresh_token} and grant {grant_type}.",
    )


def price(t: Sandbox) -> UserRequest:
    (start, end), date, travel_class = t.pick(ROUTES), _date(t.rng), t.pick(("economy", "business", "first"))
    t.do("get_flight_cost", travel_from=start, travel_to=end, travel_date=date, travel_class=travel_class)
    return t.ask(
        "What does a flight from {travel_from} to {travel_to} on {travel_date} cost in {travel_class}?",
        "Price of {travel_from} to {travel_to}, {travel_date}, {travel_class} class?",
        vague="What does a flight from {travel_from} to {travel_to} cost in {travel_class}?",
        detail="On {travel_date}.",
    )


def book(t: Sandbox) -> UserRequest:
    access_token, card_id = token(t), credit_id(t)
    trip = _trip(t.pick(ROUTES), _date(t.rng), t.pick(("economy", "business")))
    t.do("book_flight", access_token=access_token, card_id=card_id, **trip)
    flight = "{travel_from} to {travel_to} on {travel_date}"
    return t.ask(
        f"Book {flight} in {{travel_class}} with card {{card_id}}, token {{access_token}}.",
        f"With token {{access_token}} and card {{card_id}}, book me a {{travel_class}} flight from {flight}.",
        vague="Book {travel_from} to {travel_to} in {travel_class} with card {card_id}, token {access_token}.",
        detail="On {travel_date}.",
    )


def register(t: Sandbox) -> UserRequest:
    access_token, name = token(t), f"{t.pick(NAMES)} {t.pick(SURNAMES)}"
    account, expiry = str(t.rng.randint(10**15, 10**16 - 1)), f"2029-{t.rng.randint(1, 12):02d}"
    details = {
        "card_number": account, "expiration_date": expiry, "cardholder_name": name,
        "card_verification_number": t.rng.randint(100, 999),
    }
    registered = t.do("register_credit_card", access_token=access_token, **details)
    more = ""
    if t.rng.random() < 0.4:
        t.do("get_credit_card_balance", access_token=access_token, card_id=registered["card_id"])
        more = " Then tell me its balance."
    return t.ask(
        "Register card {card_number} of {cardholder_name}, valid until {expiration_date}, "
        "code {card_verification_number}, token {access_token}.{more}",
        "Token {access_token}: add the credit card {card_number}, expiring {expiration_date}, "
        "code {card_verification_number}, holder {cardholder_name}.{more}", more=more,
    )


def book_and_insure(t: Sandbox) -> UserRequest:
    access_token, card_id = token(t), credit_id(t)
    trip = _trip(t.pick(ROUTES), _date(t.rng), "economy")
    cost = float(t.rng.randint(20, 90))
    booking = t.do("book_flight", access_token=access_token, card_id=card_id, **trip)["booking_id"]
    insurance = {"insurance_type": "basic", "booking_id": booking, "insurance_cost": cost}
    t.do("purchase_insurance", access_token=access_token, **insurance, card_id=card_id)
    flight = "{travel_from} to {travel_to} on {travel_date}"
    return t.ask(
        f"Book {flight} in economy with card {{card_id}} and token {{access_token}}, and insure it: basic, "
        "{insurance_cost}.",
        f"Token {{access_token}}, card {{card_id}}: economy flight {flight}, plus basic insurance for "
        "{insurance_cost}.",
    )


TEMPLATES: tuple[Template, ...] = (
    authenticate,
    price,
    book,
    one_call("cancel_booking", "Cancel booking {booking_id} with token {access_token}.",
             "My token is {access_token}: cancel my booking {booking_id}.",
             vague="Cancel my booking, token {access_token}.", detail="Booking {booking_id}.",
             access_token=token, booking_id=a_booking),
    one_call("retrieve_invoice", "Get the invoice of booking {booking_id}, token {access_token}.",
             "With token {access_token}, show me the invoice for {booking_id}.",
             access_token=token, booking_id=a_booking),
    one_call("get_credit_card_balance", "What is the balance of card {card_id}? Token {access_token}.",
             "With token {access_token}, check card {card_id}.",
             vague="What is the balance of my card? Token {access_token}.", detail="Card {card_id}.",
             access_token=token, card_id=credit_id),
    one_call("set_budget_limit", "Set my travel budget to {budget_limit}, token {access_token}.",
             "Token {access_token}: limit my budget to {budget_limit}.",
             vague="Set my travel budget, token {access_token}.", detail="To {budget_limit}.",
             access_token=token, budget_limit=number(5, 90, 100.0)),
    one_call("get_nearest_airport_by_city", "Which airport is nearest to {location}?",
             "Find the airport of {location}.", location=choice(CITIES)),
    one_call("compute_exchange_rate", "How much is {value} USD in {target_currency}?",
             "Convert {value} USD to {target_currency}.",
             base_currency="USD", target_currency=choice(CURRENCIES), value=number(10, 900, 1.0)),
    one_call("contact_customer_support", "Tell support about booking {booking_id}: '{message}'.",
             "Write '{message}' to support for {booking_id}.",
             booking_id=a_booking, message=choice(("seat change", "extra bag", "late arrival"))),
    register,
    book_and_insure,
)
