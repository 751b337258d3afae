"""Traffic: a client, in a process of its own, that asks a server on this machine again and again."""
import asyncio
import ipaddress
import itertools
import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
import IPython
import numpy as np
import pandas as pd
import psutil

from workshop import ROOT

PATIENCE = 10  # seconds that the client waits for one answer
MOST = {"connections": 256, "rate": 10_000, "seconds": 120, "targets": 16, "bodies": 100_000}  # of one load
_waiting = []  # the client, between two loads: it starts once, and ends when this process has ended


def send(target, bodies, path="/forecast", connections=8, rate=None, seconds=0.6, tick=lambda: None):
    """Send requests for some seconds; return what became of them, a DataFrame with one row a request.

    `target` is a Server, or an address of this machine, or a list of them, which take turns; so do `bodies`,
    which are sent as JSON (None: a GET without one). Without `rate`, `connections` users each wait for an
    answer and ask again at once: a closed loop. With it, so many requests a second come at random moments,
    whether or not the server is ready for them: an open loop. Columns: `due_s`, when it was due;
    `latency_ms`, from then until the whole answer was there; `status`, 0 if none came (in 10 seconds);
    `server`, its place in the list. Raises ValueError for another machine, or too much for a shared one.
    """
    urls, bodies = [_on_this_machine(one, path) for one in np.atleast_1d(target)], list(bodies)
    for (name, most), value in zip(MOST.items(), [connections, rate, seconds, len(urls), len(bodies)]):
        if value is not None and not 0 < value <= most:
            raise ValueError(f"{name} is {value}; it should be more than 0, and {most:,} at the most.")
    task = json.dumps([urls, bodies, connections, rate, seconds], default=float)
    client = _waiting.pop() if _waiting and _waiting[0].poll() is None else subprocess.Popen(
        [sys.executable, "-m", "workshop.traffic"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True)  # the interrupt button is for us
    try:
        print(task, file=client.stdin, flush=True)
        while (told := client.stdout.readline()) == "\n":  # ten times, while it lasts
            tick()
        if not told:
            raise RuntimeError(f"The load client ended early, with {client.wait()}.")
    except BaseException:
        client.kill()
        client.wait()
        raise
    _waiting[:] = [client]
    asked = pd.DataFrame(json.loads(told), None, ["due_s", "latency_ms", "status", "server"], float)
    return asked.astype({"status": int, "server": int})


def load(target, bodies, path="/forecast", connections=8, rate=None, seconds=0.6):
    """Return how a server bears a load: a DataFrame, a row for each of the connections or rates (see `send`).

    Columns: requests_per_s, answered; mean_ms, their average time; p50_ms, p95_ms, p99_ms, the time that so
    many per cent of them took at the most; errors, a status of 400 or more, or no answer; cpu_ms, processor
    time of the server for a request; cores, how many it kept busy (NaN: its process is unknown, or ended).
    """
    kind, settings = ("connections", connections) if rate is None else ("rate", rate)
    settings, rows = np.atleast_1d(settings).tolist(), []
    bar = map(int, IPython.display.ProgressBar(10 * len(settings)) if IPython.get_ipython() else ())
    for setting in settings:
        before_s = _cpu_s(target)
        asked = send(target, bodies, path, **{"connections": connections, kind: setting}, seconds=seconds,
                     tick=lambda: next(bar, None))
        spent_s, took_s = _cpu_s(target) - before_s, (asked.due_s + asked.latency_ms / 1000).max()
        good = asked.latency_ms[asked.status.between(200, 399)]
        rows.append({kind: setting, "requests_per_s": len(good) / took_s, "mean_ms": good.mean(),
                     **{f"p{part}_ms": good.quantile(part / 100) for part in (50, 95, 99)},
                     "errors": len(asked) - len(good), "cpu_ms": 1000 * spent_s / max(1, len(asked)),
                     "cores": spent_s / took_s})
    list(bar)
    return pd.DataFrame(rows).set_index(kind)


def _on_this_machine(target, path):
    url = f"{getattr(target, 'url', target)}{path}"  # with the path, or that could name another machine
    with suppress(ValueError):  # no host, or no port
        parts = urlsplit(url)
        ours = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
        if ours and parts.scheme == "http" and parts.port != 0:
            return url
    raise ValueError(f"{url} is no address on this machine, such as http://127.0.0.1:8000/forecast. A load "
                     "on other people's servers is an attack.")


def _cpu_s(target):  # of the servers, with all their workers; NaN if not known
    with suppress(AttributeError, psutil.NoSuchProcess):
        parents = [psutil.Process(one.pid) for one in np.atleast_1d(target)]
        times = [one.cpu_times() for parent in parents for one in [parent, *parent.children(recursive=True)]]
        if not any(parent.status() == psutil.STATUS_ZOMBIE for parent in parents):
            return sum(time.user + time.system for time in times)
    return float("nan")


async def _client(urls, bodies, connections, rate, seconds):
    """Send the requests; return a row for each, as `send` says."""
    clock, rows, turns, chance = time.perf_counter, [], itertools.count(), random.Random(0)
    bodies = [None if body is None else json.dumps(body).encode() for body in bodies]

    async def ask(due):
        turn, status = next(turns), 0
        body, url = bodies[turn % len(bodies)], urls[turn % len(urls)]
        with suppress(aiohttp.ClientError, TimeoutError):
            verb = "POST" if body else "GET"
            async with session.request(verb, url, data=body, allow_redirects=False) as answer:
                await answer.read()
                status = answer.status
        rows.append((due - begin, 1000 * (clock() - due), status, turn % len(urls)))

    async def user():
        while clock() < begin + seconds:
            await ask(clock())

    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}, auto_decompress=False,
                                     connector=aiohttp.TCPConnector(limit=0),
                                     timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
        begin = due = clock()
        for tenth in range(10):  # a line when half of each is over: see `send`
            asyncio.get_running_loop().call_later((tenth + 0.5) * seconds / 10, lambda: print(flush=True))
        async with asyncio.TaskGroup() as group:
            for _ in range(0 if rate else int(connections)):
                group.create_task(user())
            while rate and (due := due + chance.expovariate(rate)) < begin + seconds:
                await asyncio.sleep(due - clock())
                group.create_task(ask(due))
    return rows


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_client(*json.loads(line)))), flush=True)
