"""Templates for TravelAPI."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, choice, choice_from, number, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import NAMES, SURNAMES

# fmt: off
CITIES = ("Boston", "Chicago", "London", "Rivermist", "Rome", "Tokyo")
ROUTES = (
    ("SFO", "LAX"), ("SFO", "JFK"), ("SFO", "ORD"), ("LAX", "SFO"), ("LAX", "JFK"), ("JFK", "BOS"), ("JFK", "ORD"),
)
CURRENCIES = ("RMB", "EUR", "JPY", "GBP", "CAD", "AUD", "INR", "MXN")
FLIGHT = "{travel_from} to {travel_to} on {travel_date}"


def config(rng: Random) -> dict[str, object]:
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
        trip = _trip(rng) | {"travel_class": "economy"}
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


def _trip(rng: Random) -> dict[str, str]:
    start, end = rng.choice(ROUTES)
    date = f"2027-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return {"travel_date": date, "travel_from": start, "travel_to": end}


token = choice_from("TravelAPI", lambda api: [api.access_token] if api.access_token else [])
booking = choice_from("TravelAPI", lambda api: sorted(api.booking_record))
credit_id = choice_from("TravelAPI", lambda api: sorted(api.credit_card_list))


def authenticate(t: Sandbox) -> UserRequest:
    state = t.instance("TravelAPI")
    t.require(not state.access_token)
    client, secret, refresh = (f"{word}{t.rng.randint(100, 999)}" for word in ("cl", "se", "re"))
    names = {"user_first_name": state.user_first_name, "user_last_name": state.user_last_name}
    keys = {"client_id": client, "client_secret": secret, "refresh_token": refresh, "grant_type": "read_write"}
    t.do("authenticate_travel", **keys, **names)
    return t.request("Sign me in to travel: client {client_id}, secret {client_secret}, refresh token "
                     "{refresh_token}, grant {grant_type}, I am {user_first_name} {user_last_name}.",
                     "Authenticate {user_first_name} {user_last_name} for travel with client id {client_id}, secret "
                     "{client_secret}, refresh token {refresh_token} and grant {grant_type}.")


def price(t: Sandbox) -> UserRequest:
    trip, travel_class = _trip(t.rng), t.pick(("economy", "business", "first"))
    places = {name: trip[name] for name in ("travel_from", "travel_to", "travel_date")}
    t.do("get_flight_cost", **places, travel_class=travel_class)
    return t.request(f"What does a flight from {FLIGHT} cost in {{travel_class}}?",
                     "Price of {travel_from} to {travel_to}, {travel_date}, {travel_class} class?",
                     vague="What does a flight from {travel_from} to {travel_to} cost in {travel_class}?",
                     detail="On {travel_date}.")


def book(t: Sandbox) -> UserRequest:
    payment = {"access_token": token(t), "card_id": credit_id(t)}
    t.do("book_flight", **payment, **_trip(t.rng), travel_class=t.pick(("economy", "business")))
    return t.request(f"Book {FLIGHT} in {{travel_class}} with card {{card_id}}, token {{access_token}}.",
                     "With token {access_token} and card {card_id}, book me a {travel_class} flight from "
                     f"{FLIGHT}.",
                     vague="Book {travel_from} to {travel_to} in {travel_class} with card {card_id}, "
                     "token {access_token}.", detail="On {travel_date}.")


def register(t: Sandbox) -> UserRequest:
    access_token, name = token(t), f"{t.pick(NAMES)} {t.pick(SURNAMES)}"
    account, expiry = str(t.rng.randint(10**15, 10**16 - 1)), f"2029-{t.rng.randint(1, 12):02d}"
    holder = {"cardholder_name": name, "card_verification_number": t.rng.randint(100, 999)}
    details = {"card_number": account, "expiration_date": expiry, **holder}
    registered = t.do("register_credit_card", access_token=access_token, **details)
    more = ""
    if t.rng.random() < 0.4:
        t.do("get_credit_card_balance", access_token=access_token, card_id=registered["card_id"])
        more = " Then tell me its balance."
    return t.request("Register card {card_number} of {cardholder_name}, valid until {expiration_date}, "
                     "code {card_verification_number}, token {access_token}.{more}",
                     "Token {access_token}: add the credit card {card_number}, expiring {expiration_date}, "
                     "code {card_verification_number}, holder {cardholder_name}.{more}", more=more)


def book_and_insure(t: Sandbox) -> UserRequest:
    access_token, card_id, trip = token(t), credit_id(t), _trip(t.rng)
    cost = float(t.rng.randint(20, 90))
    booked = t.do("book_flight", access_token=access_token, card_id=card_id, **trip, travel_class="economy")
    insurance = {"insurance_type": "basic", "booking_id": booked["booking_id"], "insurance_cost": cost}
    t.do("purchase_insurance", access_token=access_token, **insurance, card_id=card_id)
    return t.request(f"Book {FLIGHT} in economy with card {{card_id}} and token {{access_token}}, and insure it: "
                     "basic, {insurance_cost}.",
                     f"Token {{access_token}}, card {{card_id}}: economy flight {FLIGHT}, plus basic insurance for "
                     "{insurance_cost}.")


TEMPLATES = (
    authenticate,
    price,
    book,
    one_call("cancel_booking", "Cancel booking {booking_id} with token {access_token}.",
             "My token is {access_token}: cancel my booking {booking_id}.",
             vague="Cancel my booking, token {access_token}.", detail="Booking {booking_id}.",
             access_token=token, booking_id=booking),
    one_call("retrieve_invoice", "Get the invoice of booking {booking_id}, token {access_token}.",
             "With token {access_token}, show me the invoice for {booking_id}.",
             access_token=token, booking_id=booking),
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
             booking_id=booking, message=choice(("seat change", "extra bag", "late arrival"))),
    register,
    book_and_insure,
)
