"""How fast is the service? Against an API that answers a constant, against the one of most tutorials, by Ray.

    python tests/benchmarks/serving.py [--rounds 5] [--seconds 3] [--connections 8]

All servers run at once, on this machine alone, and take turns in every round; what counts is the ratio within
a round. Uses wrk where it is installed, else `workshop.traffic`. Where Ray is installed
(requirements-scale.txt), the job of notebook 06 measures it, beside two plain processes. Prints the README's
table.
"""
import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import date
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LUA = """local bodies, turn = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
request = function()
  turn = turn %% #bodies + 1
  return wrk.format("POST", "%s", {["Content-Type"] = "application/json"}, bodies[turn])
end
done = function(summary)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  print("RESULT " .. summary.requests .. " " .. summary.duration / 1e6 .. " " .. errors)
end
"""


# --- the servers to compare; `serving:constant` and so on is what uvicorn imports ---

def constant():
    """A plain app: the same models, validated; one answer to all. No log, no metrics, no model."""
    from fastapi import FastAPI

    from workshop.api import Forecasts, Storms
    from workshop.forecaster import Forecast, Storm

    app = FastAPI()
    answer = Forecast(valid_time="2022-09-28T12:00:00Z", wind_kt=102.33, wind_kt_low=80.24,
                      wind_kt_high=121.99, category="category 3", model_version="constant")

    @app.post("/forecast")
    async def forecast(storm: Storm) -> Forecast:
        return answer

    @app.post("/forecasts")
    async def forecasts(batch: Storms) -> Forecasts:
        return Forecasts(forecasts=[answer] * len(batch.storms))

    return app


def naive():
    """What most tutorials teach: a plain `def`, joblib, a DataFrame of one row."""
    import joblib
    import pandas as pd
    from fastapi import FastAPI

    from workshop.forecaster import Forecast, Storm, category
    from workshop.model import features

    app, model = FastAPI(), joblib.load(os.environ["NAIVE_MODEL"])

    @app.post("/forecast")
    def forecast(storm: Storm) -> Forecast:
        row = pd.DataFrame([storm.model_dump(exclude={"time"})], dtype=float)
        row["time"] = pd.to_datetime([storm.time], utc=True)
        wind = model.predict(features(row)).iloc[0].round(2)
        return Forecast(valid_time=storm.time + pd.Timedelta(hours=24), wind_kt=wind.middle,
                        wind_kt_low=wind.low, wind_kt_high=wind.high, category=category(wind.middle),
                        model_version="naive")

    return app


def start(command, port, **environment):
    """Start a server and wait until it answers; returns the process and the seconds that took."""
    begin = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
                               stdout=quiet, stderr=quiet)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=60).close()
            return process, time.perf_counter() - begin
        except urllib.error.URLError:
            if process.poll() is not None or time.perf_counter() - begin > 60:
                raise SystemExit(f"{command} did not start") from None
            time.sleep(0.01)


def uvicorn(app, port):
    """Return the command that serves an app of this file."""
    return [sys.executable, "-m", "uvicorn", f"{Path(__file__).stem}:{app}", "--factory", "--port", str(port),
            "--app-dir", str(Path(__file__).parent), "--no-access-log", "--log-level", "warning"]


# --- the clients ---

def load(port, path, bodies, seconds, connections):
    """Return requests a second, from `connections` that each wait for their answer before they ask again."""
    if shutil.which("wrk"):
        with tempfile.TemporaryDirectory() as folder:
            lines, script = Path(folder, "bodies"), Path(folder, "post.lua")
            lines.write_text("\n".join(map(json.dumps, bodies)))
            script.write_text(LUA % (lines, path))
            command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10", "-s", script]
            out = subprocess.check_output([*command, f"http://127.0.0.1:{port}"], text=True)
        count, duration, errors = map(float, out.rpartition("RESULT ")[2].split())
    else:
        from workshop.traffic import send

        asked = send(f"http://127.0.0.1:{port}", bodies, path, connections, seconds=seconds)
        count, duration = len(asked), (asked.due_s + asked.latency_ms / 1000).max()
        errors = (asked.status != 200).sum()
    assert not errors, f"{errors:.0f} requests to {path} failed"
    return count / duration


def rows_in_process(model, inputs):
    """Return rows a second that the model makes of an array in this process, without any service."""
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + 1:
        model.predict(inputs)
        count += len(inputs)
    return count / (time.perf_counter() - begin)


def memory_mb(process):
    """Return the resident memory of the largest of its processes."""
    import psutil

    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return max(one.memory_info().rss for one in tree) / 2**20


def ray_serve(folder):
    """Run the job of notebook 06; return by number of users the requests/s of Ray and of two plain processes."""
    import papermill

    papermill.execute_notebook(ROOT / "notebooks/jobs/ray_serve.ipynb", None, {"output_folder": folder},
                               cwd=ROOT / "notebooks", progress_bar=False)
    seen = json.loads(Path(folder, "ray_serve.json").read_text())
    rates = {(load["served by"], load["users"]): load["requests_per_s"] for load in seen["loads"]}
    return {users: (rates["Ray, two replicas", users], rates["two plain processes", users]) for users in (8, 64)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    args = parser.parse_args()

    import joblib

    from workshop import model, registry, storms

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(WORKSHOP_MODEL_DIR=f"{folder}/models", WORKSHOP_LOG_DIR=f"{folder}/logs",
                          NAIVE_MODEL=f"{folder}/naive.joblib")
        examples = storms.build_examples(storms.load_storms())
        trained = model.train(examples)
        registry.promote(registry.save(trained, examples), "benchmark")
        joblib.dump(trained, os.environ["NAIVE_MODEL"])
        sample = examples.sample(1000, random_state=0)
        from workshop.forecaster import INPUTS

        states = [{"time": f"{row.time:%Y-%m-%dT%H:%M:%SZ}", **row[list(INPUTS)]}
                  for _, row in sample.iterrows()]
        one, many = states[:200], [{"storms": states}]
        ports = {}
        for name in ("service", "two workers", "constant", "naive"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[name] = free.getsockname()[1]
        servers = {}
        try:
            for name, workers in (("service", 1), ("two workers", 2)):
                serve = [sys.executable, "-m", "workshop", "serve", "--port", str(ports[name])]
                servers[name], seconds = start([*serve, "--workers", str(workers)], ports[name])
                cold = seconds if workers == 1 else cold
            for name in ("constant", "naive"):
                servers[name], _ = start(uvicorn(name, ports[name]), ports[name])
            rounds = []
            for number in range(args.rounds + 1):
                rates = {(name, users): load(port, "/forecast", one, args.seconds, users)
                         for users in (args.connections, 64) for name, port in ports.items()}
                rates["batch"] = 1000 * load(ports["service"], "/forecasts", many, args.seconds, 2)
                rates["in process"] = rows_in_process(registry.load(), model.features(sample))
                rounds += [rates] * bool(number)  # the first one only warms up
            memory = memory_mb(servers["service"])
        finally:
            for process in servers.values():
                process.terminate()
                process.wait()
        ray = ray_serve(folder) if find_spec("ray") else None

    def median(name, users, over=None):
        return statistics.median(rates[name, users] / (rates[over, users] if over else 1) for rates in rounds)

    tool, few = "wrk" if shutil.which("wrk") else "workshop.traffic", args.connections
    print(f"{date.today()}, {platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores, "
          f"{tool}, medians of {args.rounds} rounds of {args.seconds} s\n")
    print(f"| served by | requests/s, {few} connections | 64 connections | over the tutorials' app |\n"
          "| --- | --- | --- | --- |")
    for name, words in (("naive", "the tutorials' app: `def`, joblib, a table of one row"),
                        ("service", "the course's service, one worker"),
                        ("two workers", "the same, two workers"),
                        ("constant", "an app that validates, and answers a constant")):
        print(f"| {words} | {median(name, few):,.0f} | {median(name, 64):,.0f} | "
              f"{median(name, few, 'naive'):.0f} |")
    if ray:
        print(f"| the same service by Ray Serve, two replicas | {ray[8][0]:,.0f} | {ray[64][0]:,.0f} | "
              f"{ray[8][0] / median('naive', few):.1f} |")
        print("\nRay against two plain processes, by the client of the notebook: "
              + ", ".join(f"{one / other:.2f} with {users} users" for users, (one, other) in ray.items()))
    batch = statistics.median(rates["batch"] / rates["in process"] for rates in rounds)
    print(f"\nservice / constant: {median('service', few, 'constant'):.2f}\n"
          f"batch of 1,000 over the model in process: {batch:.2f} "
          f"({statistics.median(rates['batch'] for rates in rounds):,.0f} rows/s)\n"
          f"serve, start to first answer: {cold:.2f} s; memory of its worker: {memory:.0f} MB")


if __name__ == "__main__":
    main()
