"""Word lists, and names and passwords of users."""

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox

# fmt: off
NAMES = [
    "Amara", "Bjorn", "Celia", "Dario", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kira", "Liam",
    "Mona", "Nils", "Odile", "Pavel", "Quinn", "Rosa", "Sven", "Talia", "Umar", "Vera", "Wim", "Xenia",
    "Yara", "Zeno",
]
SURNAMES = [
    "Adler", "Brandt", "Castel", "Dovic", "Egede", "Ferrol", "Galan", "Holm", "Iversen", "Jurek", "Kallas",
    "Lindt", "Moro", "Nygaard", "Orsini", "Prado",
]
NOUNS = [
    "budget", "invoice", "roster", "menu", "agenda", "survey", "manual", "draft", "ledger", "brochure",
    "forecast", "contract", "catalog", "timetable",
]
ADJECTIVES = [
    "amber", "brisk", "coral", "dusty", "early", "frozen", "gentle", "hollow", "ivory", "jolly", "kindled",
    "lunar", "mellow", "narrow", "opal", "plain",
]
# fmt: on


def a_user(t: Sandbox) -> str:
    return t.pick(NAMES).lower()


def a_password(t: Sandbox) -> str:
    return f"{t.pick(NAMES).lower()}{t.rng.randint(10, 99)}"
