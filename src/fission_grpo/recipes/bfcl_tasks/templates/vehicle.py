"""VehicleControlAPI."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import Intent, Request, Trial

DOORS = ("driver", "passenger", "rear_left", "rear_right")


CITIES = ("Rivermist", "Stonebrook", "Maplecrest", "Silverpine", "Oakendale", "Willowbend", "Autumnville")


def config(rng: random.Random) -> dict[str, Any]:
    """A parked car with some fuel and some doors open."""
    doors = {door: rng.choice(("locked", "unlocked")) for door in DOORS}
    return {
        "random_seed": rng.randint(1, 10**6),
        "fuelLevel": float(rng.randint(3, 30)),
        "batteryVoltage": round(rng.uniform(11.8, 13.0), 1),
        "engineState": "stopped",
        "remainingUnlockedDoors": sum(state == "unlocked" for state in doors.values()),
        "doorStatus": doors,
        "acTemperature": float(rng.randint(16, 26)),
        "fanSpeed": rng.randint(1, 9) * 10,
        "acMode": "auto",
        "humidityLevel": float(rng.randint(30, 60)),
        "headLightStatus": "off",
        "parkingBrakeStatus": "released",
        "brakePedalStatus": "released",
        "cruiseStatus": "inactive",
        "destination": "None",
        "frontLeftTirePressure": float(rng.randint(28, 36)),
    }


def fill(t: Trial) -> Request:
    amount = float(t.rng.randint(1, 15))
    t.do("fillFuelTank", fuelAmount=amount)
    return t.ask(
        "Fill in {n} gallons of fuel.",
        "Add {n} gallons to the tank.",
        vague="Fill up some fuel.",
        detail="{n} gallons.",
        n=amount,
    )


def fill_litres(t: Trial) -> Request:
    litres = float(t.rng.randint(5, 40))
    gallons = t.do("liter_to_gallon", liter=litres)["gallon"]
    t.do("fillFuelTank", fuelAmount=gallons)
    return t.ask(
        "Convert {n} liters to gallons and fill that in.", "Fuel up {n} liters; convert to gallons first.", n=litres
    )


def lock(t: Trial) -> Request:
    status = t.state("VehicleControlAPI").doorStatus
    doors = [door for door in DOORS if status[door] == "unlocked"]
    t.pick(doors)  # there must be some
    t.do("lockDoors", unlock=False, door=doors)
    return t.ask("Lock these doors: {doors}.", "Please lock {doors}.", doors=", ".join(doors))


def start(t: Trial) -> Request:
    status = t.state("VehicleControlAPI").doorStatus
    doors = [door for door in DOORS if status[door] == "unlocked"]
    if doors:
        t.do("lockDoors", unlock=False, door=doors)
    t.do("pressBrakePedal", pedalPosition=1.0)
    t.do("startEngine", ignitionMode="START")
    locking = f"Lock {', '.join(doors)}, press" if doors else "Press"
    return t.ask(
        "{locking} the brake fully and START the engine.",
        "{locking} the brake pedal to 1.0, then START.",
        locking=locking,
    )


def climate(t: Trial) -> Request:
    degrees, fan = float(t.rng.randint(16, 27)), t.rng.randint(1, 9) * 10
    t.do("adjustClimateControl", temperature=degrees, fanSpeed=fan)
    return t.ask(
        "Set the climate to {degrees} degrees celsius, fan speed {fan}.",
        "Cabin at {degrees} celsius and fan at {fan}, please.",
        vague="Set the climate with fan speed {fan}.",
        detail="{degrees} degrees celsius.",
        degrees=degrees,
        fan=fan,
    )


def lights(t: Trial) -> Request:
    mode = t.pick(("on", "off"))
    t.do("setHeadlights", mode=mode)
    return t.ask("Turn the headlights {mode}.", "Headlights {mode}.", mode=mode)


def parking_brake(t: Trial) -> Request:
    mode = t.pick(("engage", "release"))
    t.do("activateParkingBrake", mode=mode)
    return t.ask("{mode} the parking brake.", "Please {mode} the parking brake.", mode=mode)


def navigate(t: Trial) -> Request:
    place = f"{t.rng.randint(1, 99)} {t.pick(CITIES)} Road"
    t.do("set_navigation", destination=place)
    return t.ask(
        "Navigate to {place}.",
        "Set the route to {place}.",
        vague="Start the navigation.",
        detail="To {place}.",
        place=place,
    )


def zip_code(t: Trial) -> Request:
    city = t.pick(CITIES)
    t.do("get_zipcode_based_on_city", city=city)
    return t.ask("What is the zip code of {city}?", "Find {city}'s zip code.", city=city)


def distance(t: Trial) -> Request:
    one, other = t.pick((("Rivermist", "Stonebrook"), ("Maplecrest", "Silverpine"), ("Oakendale", "Willowbend")))
    ends = [t.do("get_zipcode_based_on_city", city=city)["zipcode"] for city in (one, other)]
    t.do("estimate_distance", cityA=ends[0], cityB=ends[1])
    return t.ask(
        "How far is {one} from {other}? Look up both zip codes.",
        "Distance from {one} to {other}, by zip code?",
        one=one,
        other=other,
    )


def status(t: Trial) -> Request:
    option = t.pick(("fuel", "battery", "doors", "climate", "headlights"))
    t.do("displayCarStatus", option=option)
    return t.ask("Show the car's {option} status.", "What is the {option} status?", option=option)


def tires(t: Trial) -> Request:
    t.do("check_tire_pressure")
    return t.ask("Check the tire pressure.", "How are the tires?")


INTENTS: tuple[Intent, ...] = (
    fill,
    fill_litres,
    lock,
    start,
    climate,
    lights,
    parking_brake,
    navigate,
    zip_code,
    distance,
    status,
    tires,
)
