"""TravelAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    SURNAMES,
    Intent,
    Request,
    Trial,
)

CITIES = {"Rivermist": "RMS", "London": "LHR", "Chicago": "ORD", "Boston": "BOS", "Rome": "CIA", "Tokyo": "HND"}


ROUTES = (
    ("SFO", "LAX"),
    ("SFO", "JFK"),
    ("SFO", "ORD"),
    ("LAX", "SFO"),
    ("LAX", "JFK"),
    ("JFK", "BOS"),
    ("JFK", "ORD"),
)


CURRENCIES = ("RMB", "EUR", "JPY", "GBP", "CAD", "AUD", "INR", "MXN")


def config(rng: random.Random) -> dict[str, Any]:
    """A traveller with one or two cards, a valid token or none, perhaps a booking."""
    first, last = rng.choice(NAMES), rng.choice(SURNAMES)
    cards = {}
    for _ in range(rng.randint(1, 2)):
        number = str(rng.randint(10**15, 10**16 - 1))
        terms = {
            "expiration_date": f"{rng.randint(2027, 2031)}-{rng.randint(1, 12):02d}",
            "cardholder_name": f"{first} {last}",
        }
        cards[f"card_{rng.randint(1000, 9999)}"] = {
            "card_number": number,
            **terms,
            "card_verification_number": rng.randint(100, 999),
            "balance": rng.randint(20, 90) * 1000.0,
        }
    token = rng.random() < 0.85
    bookings = {}
    if rng.random() < 0.6:
        start, end = rng.choice(ROUTES)
        trip = {"travel_date": _date(rng), "travel_from": start, "travel_to": end, "travel_class": "economy"}
        paid = {"travel_cost": rng.randint(2, 9) * 100.0, "transaction_id": str(rng.randint(10**7, 10**8))}
        bookings[str(rng.randint(10**6, 10**7))] = {"card_id": rng.choice(sorted(cards)), **trip, **paid}
    return {
        "random_seed": rng.randint(1, 10**6),
        "credit_card_list": cards,
        "booking_record": bookings,
        "access_token": f"tok{rng.randint(1000, 9999)}" if token else None,
        "token_type": "Bearer",
        "token_expires_in": 3600 if token else None,
        "token_scope": "read_write",
        "user_first_name": first,
        "user_last_name": last,
        "budget_limit": None,
    }


def _date(rng: random.Random) -> str:
    return f"2027-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _token(t: Trial) -> str:
    token = t.state("TravelAPI").access_token
    return t.pick([token] if token else [])


def authenticate(t: Trial) -> Request:
    state = t.state("TravelAPI")
    if state.access_token:
        t.pick(())
    client, secret, refresh = (f"{word}{t.rng.randint(100, 999)}" for word in ("cl", "se", "re"))
    names = {"user_first_name": state.user_first_name, "user_last_name": state.user_last_name}
    keys = {"client_id": client, "client_secret": secret, "refresh_token": refresh, "grant_type": "read_write"}
    t.do("authenticate_travel", **keys, **names)
    return t.ask(
        "Sign me in to travel: client {client}, secret {secret}, refresh token {refresh}, grant read_write, I am "
        "{first} {last}.",
        "Authenticate {first} {last} for travel with client id {client}, secret {secret}, refresh token {refresh} and "
        "grant read_write.",
        client=client,
        secret=secret,
        refresh=refresh,
        first=state.user_first_name,
        last=state.user_last_name,
    )


def cost(t: Trial) -> Request:
    (start, end), day, seat = t.pick(ROUTES), _date(t.rng), t.pick(("economy", "business", "first"))
    t.do("get_flight_cost", travel_from=start, travel_to=end, travel_date=day, travel_class=seat)
    return t.ask(
        "What does a flight from {start} to {end} on {day} cost in {seat}?",
        "Price of {start} to {end}, {day}, {seat} class?",
        vague="What does a flight from {start} to {end} cost in {seat}?",
        detail="On {day}.",
        start=start,
        end=end,
        day=day,
        seat=seat,
    )


def book(t: Trial) -> Request:
    token, card = _token(t), t.pick(sorted(t.state("TravelAPI").credit_card_list))
    (start, end), day, seat = t.pick(ROUTES), _date(t.rng), t.pick(("economy", "business"))
    trip = {"travel_date": day, "travel_from": start, "travel_to": end, "travel_class": seat}
    t.do("book_flight", access_token=token, card_id=card, **trip)
    return t.ask(
        "Book {start} to {end} on {day} in {seat} with card {card}, token {token}.",
        "With token {token} and card {card}, book me a {seat} flight from {start} to {end} on {day}.",
        vague="Book {start} to {end} in {seat} with card {card}, token {token}.",
        detail="On {day}.",
        start=start,
        end=end,
        day=day,
        seat=seat,
        card=card,
        token=token,
    )


def cancel(t: Trial) -> Request:
    token, booking = _token(t), t.pick(sorted(t.state("TravelAPI").booking_record))
    t.do("cancel_booking", access_token=token, booking_id=booking)
    return t.ask(
        "Cancel booking {booking} with token {token}.",
        "My token is {token}: cancel my booking {booking}.",
        vague="Cancel my booking, token {token}.",
        detail="Booking {booking}.",
        booking=booking,
        token=token,
    )


def invoice(t: Trial) -> Request:
    token, booking = _token(t), t.pick(sorted(t.state("TravelAPI").booking_record))
    t.do("retrieve_invoice", access_token=token, booking_id=booking)
    return t.ask(
        "Get the invoice of booking {booking}, token {token}.",
        "With token {token}, show me the invoice for {booking}.",
        booking=booking,
        token=token,
    )


def balance(t: Trial) -> Request:
    token, card = _token(t), t.pick(sorted(t.state("TravelAPI").credit_card_list))
    t.do("get_credit_card_balance", access_token=token, card_id=card)
    return t.ask(
        "What is the balance of card {card}? Token {token}.",
        "With token {token}, check card {card}.",
        vague="What is the balance of my card? Token {token}.",
        detail="Card {card}.",
        card=card,
        token=token,
    )


def budget(t: Trial) -> Request:
    token, limit = _token(t), t.rng.randint(5, 90) * 100.0
    t.do("set_budget_limit", access_token=token, budget_limit=limit)
    return t.ask(
        "Set my travel budget to {limit}, token {token}.",
        "Token {token}: limit my budget to {limit}.",
        vague="Set my travel budget, token {token}.",
        detail="To {limit}.",
        limit=limit,
        token=token,
    )


def airport(t: Trial) -> Request:
    city = t.pick(sorted(CITIES))
    t.do("get_nearest_airport_by_city", location=city)
    return t.ask("Which airport is nearest to {city}?", "Find the airport of {city}.", city=city)


def convert(t: Trial) -> Request:
    target, value = t.pick(CURRENCIES), float(t.rng.randint(10, 900))
    t.do("compute_exchange_rate", base_currency="USD", target_currency=target, value=value)
    return t.ask(
        "How much is {value} USD in {target}?", "Convert {value} USD to {target}.", value=value, target=target
    )


def support(t: Trial) -> Request:
    booking, text = (
        t.pick(sorted(t.state("TravelAPI").booking_record)),
        t.pick(("seat change", "extra bag", "late arrival")),
    )
    t.do("contact_customer_support", booking_id=booking, message=text)
    return t.ask(
        "Tell support about booking {booking}: '{text}'.",
        "Write '{text}' to support for {booking}.",
        booking=booking,
        text=text,
    )


def register(t: Trial) -> Request:
    token, name = _token(t), f"{t.pick(NAMES)} {t.pick(SURNAMES)}"
    number, until, code = (
        str(t.rng.randint(10**15, 10**16 - 1)),
        f"2029-{t.rng.randint(1, 12):02d}",
        t.rng.randint(100, 999),
    )
    card = {"card_number": number, "expiration_date": until, "cardholder_name": name, "card_verification_number": code}
    made = t.do("register_credit_card", access_token=token, **card)
    if t.rng.random() < 0.4:
        t.do("get_credit_card_balance", access_token=token, card_id=made["card_id"])
        more = " Then tell me its balance."
    else:
        more = ""
    return t.ask(
        "Register card {number} of {name}, valid until {until}, code {code}, token {token}.{more}",
        "Token {token}: add the credit card {number}, expiring {until}, code {code}, holder {name}.{more}",
        number=number,
        name=name,
        until=until,
        code=code,
        token=token,
        more=more,
    )


def book_and_insure(t: Trial) -> Request:
    token, card = _token(t), t.pick(sorted(t.state("TravelAPI").credit_card_list))
    (start, end), day, price = t.pick(ROUTES), _date(t.rng), float(t.rng.randint(20, 90))
    trip = {"travel_date": day, "travel_from": start, "travel_to": end, "travel_class": "economy"}
    booking = t.do("book_flight", access_token=token, card_id=card, **trip)["booking_id"]
    t.do(
        "purchase_insurance",
        access_token=token,
        insurance_type="basic",
        booking_id=booking,
        insurance_cost=price,
        card_id=card,
    )
    return t.ask(
        "Book {start} to {end} on {day} in economy with card {card} and token {token}, and insure it: basic, {price}.",
        "Token {token}, card {card}: economy flight {start} to {end} on {day}, plus basic insurance for {price}.",
        start=start,
        end=end,
        day=day,
        card=card,
        token=token,
        price=price,
    )


INTENTS: tuple[Intent, ...] = (
    authenticate,
    cost,
    book,
    cancel,
    invoice,
    balance,
    budget,
    airport,
    convert,
    support,
    register,
    book_and_insure,
)
