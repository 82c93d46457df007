"""How fast the endpoint client of the simulator is, against a local server with 100 ms latency in its own process.

    python benchmarks/archive/simulator/client.py

`uncached`: 1,000 different failures with 20 real BFCL tools each (12,000 characters of prompt), 32 requests in flight;
3.1 s would be no overhead at all; five rounds. `hits_per_second`: the same failures from the cache, by
`EndpointSource.start`, prompt building and hashing included; best and median of nine rounds. `first_start`: the
cost of beginning a request in the
training thread. Results go to client.json beside this file. Needs bfcl-eval and openai; takes about 30 s.
"""

import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "support"))
RESULTS = Path(__file__).with_suffix(".json")
DIAGNOSES, IN_FLIGHT, LATENCY, ROUNDS, REPEATS = 1000, 32, 0.1, 9, 5


def serve(pipe):
    from openai_server import OpenAIServer

    def answer(body):
        time.sleep(LATENCY)
        return "error: `destination` is not right."

    with OpenAIServer(answer) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(server.most)


def failures():
    from fission_grpo.core.chat import parse, render_call
    from fission_grpo.core.types import (
        ErrorKind,
        Failure,
        Task,
        ToolCall,
    )
    from fission_grpo.envs.bfcl.functions import class_docs, official_schema

    names = [*class_docs("GorillaFileSystem"), *list(class_docs("MessageAPI"))[:2]]
    tools = tuple(official_schema(name) for name in names)
    system = {"role": "system", "content": "You manage files."}

    def failure(number):
        said = (
            f"Please move report_{number}.txt to the archive, and tell me afterwards what is left in the folder. " * 2
        )
        reference = ToolCall("mv", {"source": f"report_{number}.txt", "destination": "archive"})
        turn = parse(render_call(ToolCall("mv", {"source": f"report_{number}.txt", "destination": "temp"})))
        task = Task(f"t{number}", (system, {"role": "user", "content": said}), tools, (reference,))
        return Failure(task, (turn,), ErrorKind.WRONG_CALL)

    return [failure(number) for number in range(DIAGNOSES)]


def uncached(url, asked, cache):
    """Seconds, CPU seconds, and seconds in the asking thread, of one round."""
    from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions

    with EndpointFeedback("small", url, FeedbackModelOptions(concurrency=IN_FLIGHT, cache=cache)) as source:
        source.check()
        began, cpu = time.perf_counter(), time.process_time()
        futures = source.start(asked)
        started = time.perf_counter() - began
        wait(futures)
        spent = time.perf_counter() - began, time.process_time() - cpu, started
        assert all(future.result().text for future in futures)
        assert source.totals()["simulator/requests"] == DIAGNOSES
    return spent


def measure(url, cache):
    from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions
    from fission_grpo.feedback.prompt import failure_text

    asked = failures()
    found = {"diagnoses": DIAGNOSES, "in_flight": IN_FLIGHT, "latency_s": LATENCY, "tools": len(asked[0].task.tools)}
    found["prompt_characters"] = len(failure_text(asked[0]))
    rounds = [uncached(url, asked, place) for place in (None,) * (REPEATS - 1) + (cache,)]
    seconds, cpu, started = (statistics.median(column) for column in zip(*rounds, strict=True))
    ideal = DIAGNOSES * LATENCY / IN_FLIGHT
    found["uncached"] = {
        "seconds": [round(one[0], 2) for one in rounds],
        "median_s": round(seconds, 2),
        "ideal_s": round(ideal, 2),
        "overhead_ms_per_diagnosis": round(1000 * (seconds - ideal) / DIAGNOSES, 3),
        "cpu_ms_per_diagnosis": round(1000 * cpu / DIAGNOSES, 3),
        "first_start_us_per_diagnosis": round(1e6 * started / DIAGNOSES, 1),
    }
    with EndpointFeedback("small", url, FeedbackModelOptions(cache=cache)) as source:  # as a resumed run has it
        rates = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            futures = source.start(asked)
            rates.append(DIAGNOSES / (time.perf_counter() - began))
            assert all(future.result().text for future in futures)
        assert source.counts()["simulator/cache_hits"] == ROUNDS * DIAGNOSES
        assert "simulator/requests" not in source.totals()
        found["hits_per_second"] = {"median": round(statistics.median(rates)), "best": round(max(rates))}
        found["hits_per_second"]["first_round"] = round(rates[0])
    return found


def main():
    os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as cache:
        found = measure(ours.recv(), cache)
    ours.send("end")
    found["most_in_flight_seen_by_server"] = ours.recv()
    server.join()
    found["load_average"] = round(os.getloadavg()[0], 1)  # other processes on the same cores
    found["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
