"""Templates for VehicleControlAPI."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, choice, number, one_call

# fmt: off
DOORS = ("driver", "passenger", "rear_left", "rear_right")
CITIES = ("Rivermist", "Stonebrook", "Maplecrest", "Silverpine", "Oakendale", "Willowbend", "Autumnville")
NEIGHBORS = (("Rivermist", "Stonebrook"), ("Maplecrest", "Silverpine"), ("Oakendale", "Willowbend"))


def config(rng: Random) -> dict[str, object]:
    """A parked car with some fuel and some unlocked doors."""
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


def _unlocked_doors(t: Sandbox) -> list[str]:
    status = t.instance("VehicleControlAPI").doorStatus
    return [door for door in DOORS if status[door] == "unlocked"]


def fill_liters(t: Sandbox) -> UserRequest:
    gallons = t.do("liter_to_gallon", liter=float(t.rng.randint(5, 40)))["gallon"]
    t.do("fillFuelTank", fuelAmount=gallons)
    return t.request("Convert {liter} liters to gallons and fill that in.",
                     "Fuel up {liter} liters; convert to gallons first.")


def lock(t: Sandbox) -> UserRequest:
    doors = _unlocked_doors(t)
    t.pick(doors)  # at least one; this draw keeps the tasks of a seed as they are
    t.do("lockDoors", unlock=False, door=doors)
    return t.request("Lock these doors: {door}.", "Please lock {door}.")


def start(t: Sandbox) -> UserRequest:
    doors = _unlocked_doors(t)
    if doors:
        t.do("lockDoors", unlock=False, door=doors)
    t.do("pressBrakePedal", pedalPosition=1.0)
    t.do("startEngine", ignitionMode="START")
    locking = f"Lock {', '.join(doors)}, press" if doors else "Press"
    return t.request(f"{locking} the brake fully and START the engine.",
                     f"{locking} the brake pedal to 1.0, then START.")


def distance(t: Sandbox) -> UserRequest:
    start, end = t.pick(NEIGHBORS)
    codes = [t.do("get_zipcode_based_on_city", city=city)["zipcode"] for city in (start, end)]
    t.do("estimate_distance", cityA=codes[0], cityB=codes[1])
    return t.request(f"How far is {start} from {end}? Look up both zip codes.",
                     f"Distance from {start} to {end}, by zip code?")


TEMPLATES = (
    one_call("fillFuelTank", "Fill in {fuelAmount} gallons of fuel.", "Add {fuelAmount} gallons to the tank.",
             vague="Fill up some fuel.", detail="{fuelAmount} gallons.", fuelAmount=number(1, 15, 1.0)),
    fill_liters,
    lock,
    start,
    one_call("adjustClimateControl", "Set the climate to {temperature} degrees celsius, fan speed {fanSpeed}.",
             "Cabin at {temperature} celsius and fan at {fanSpeed}, please.",
             vague="Set the climate with fan speed {fanSpeed}.", detail="{temperature} degrees celsius.",
             temperature=number(16, 27, 1.0), fanSpeed=number(1, 9, 10)),
    one_call("setHeadlights", "Turn the headlights {mode}.", "Headlights {mode}.", mode=choice(("on", "off"))),
    one_call("activateParkingBrake", "{mode} the parking brake.", "Please {mode} the parking brake.",
             mode=choice(("engage", "release"))),
    one_call("set_navigation", "Navigate to {destination}.", "Set the route to {destination}.",
             vague="Start the navigation.", detail="To {destination}.",
             destination=lambda t: f"{t.rng.randint(1, 99)} {t.pick(CITIES)} Road"),
    one_call("get_zipcode_based_on_city", "What is the zip code of {city}?", "Find {city}'s zip code.",
             city=choice(CITIES)),
    distance,
    one_call("displayCarStatus", "Show the car's {option} status.", "What is the {option} status?",
             option=choice(("fuel", "battery", "doors", "climate", "headlights"))),
    one_call("check_tire_pressure", "Check the tire pressure.", "How are the tires?"),
)
