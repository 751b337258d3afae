"""The load client: real servers on this machine, and what the client says of them.

Nothing here depends on how fast a machine is: counts, and orders that must hold however slow it is.
"""
import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import requests
import uvicorn

from workshop import ROOT, server
from workshop.traffic import load, send

COLUMNS = ["requests_per_s", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "errors", "cpu_ms", "cores"]
ELSEWHERE = ["http://example.com", "http://10.0.0.1", "http://0.0.0.0", "http://127.0.0.1.example.com",
             "http://user@10.0.0.1", "http://127.0.0.1@10.0.0.1", "http://127.0.0.1:80@10.0.0.1:80",
             "http://10.0.0.1#@127.0.0.1", "http://10.0.0.1?127.0.0.1", "http://10.0.0.1/127.0.0.1",
             "http://127.0.0.1\\@10.0.0.1", "http://localhost.example.com", "http://[::ffff:10.0.0.1]",
             "http://[fe80::1]", "http://2130706433", "http://127.0.0.1\t.example.com", "//10.0.0.1",
             "https://192.168.0.1", "http://", "127.0.0.1", "localhost:8000", "", None]
# Slow on purpose, by processor time, whatever else the machine does; and it can be told to die.
BURNING = """
import os, time
from fastapi import FastAPI
app = FastAPI()
asked = 0
@app.post("/burn")
async def burn(steps: dict) -> dict:
    global asked
    asked += 1
    end = time.process_time() + 0.005
    while time.process_time() < end:
        pass
    if asked == steps.get("die_after"):
        os._exit(1)
    return {}
"""


def eventually(condition, seconds=20):
    """Poll until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


class App:
    """An ASGI app that remembers each request, and the most that it had at once.

    `status`: what it answers; None: the body says which. `hold`: nobody is answered before so many wait
    together. `slow_s`: so long each takes; `busy_s`: so long it does nothing but one.
    """

    def __init__(self, status=200, headers=(), hold=1, slow_s=0, busy_s=0):
        self.status, self.headers = status, list(headers)
        self.hold, self.slow_s, self.busy_s = hold, slow_s, busy_s
        self.requests, self.now, self.most = [], 0, 0

    async def __call__(self, scope, receive, send):
        self.now += 1
        self.most = max(self.most, self.now)
        self.requests.append((scope["method"], scope["path"], dict(scope["headers"]).get(b"content-type"),
                              (await receive())["body"]))
        while self.most < self.hold:
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.slow_s)
        time.sleep(self.busy_s)
        status = self.status or self.bodies[-1]  # with one user, the last request is this one
        self.now -= 1  # first: at the client's next request this one must not count any more
        await send({"type": "http.response.start", "status": status, "headers": self.headers})
        await send({"type": "http.response.body"})

    @property
    def bodies(self):
        return [json.loads(body) if body else None for *_, body in self.requests]


@pytest.fixture(scope="module")
def serve():
    """Serve an app from a thread of this process; return its address, a folder of the one server there is."""
    apps, listener = [], server.listen(0)

    async def doorman(scope, receive, send):
        number, _, path = scope["path"][1:].partition("/")
        await apps[int(number)](scope | {"path": f"/{path}"}, receive, send)

    def start(app):
        apps.append(app)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/{len(apps) - 1}"
    running = uvicorn.Server(uvicorn.Config(doorman, lifespan="off", log_level="error"))
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()  # who asks before it is ready waits at the socket
    yield start
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def burning_app(tmp_path_factory):
    """The module of the app BURNING."""
    path = tmp_path_factory.mktemp("burning") / "burning.py"
    path.write_text(BURNING)
    spec = importlib.util.spec_from_file_location("burning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def burning(burning_app):
    """A launched server that uses 5 ms of processor time for each request."""
    started = server.launch(burning_app.app, name="burning")
    yield started
    server._running.pop("burning").stop()


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def rude():
    """A server that reads a request, answers with what it was given, if anything, and hangs up."""
    listeners = []

    def start(answer):
        listener = server.listen(0)
        listeners.append(listener)

        def work():
            with suppress(OSError):  # closed: the test is over
                while True:
                    client, _ = listener.accept()
                    with client, suppress(OSError):
                        client.recv(10_000)
                        client.sendall(answer)
        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield start
    for listener in listeners:
        listener.close()


# --- what is sent ---

def test_every_request_is_a_row_and_the_bodies_take_turns_as_json(serve):
    app, bodies = App(), [{"wind_kt": 100}, {"storms": ["é", None, 1.5]}, [], "text"]
    asked = send(serve(app), bodies, path="/somewhere", connections=1, seconds=0.2)
    assert len(asked) == len(app.requests) > len(bodies)
    assert app.bodies == [bodies[turn % len(bodies)] for turn in range(len(asked))]
    assert {(method, path, kind) for method, path, kind, _ in app.requests} == {
        ("POST", "/somewhere", b"application/json")}
    assert (asked.status == 200).all() and (asked.server == 0).all()


@pytest.mark.parametrize("how", [{"connections": 5}, {"rate": 300}], ids=["closed", "open"])
def test_with_many_at_once_every_request_is_a_row_too_and_each_body_has_its_share(how, serve):
    app = App()
    asked = send(serve(app), [1, 2, 3], seconds=0.3, **how)
    assert len(asked) == len(app.requests)
    times = Counter(app.bodies).values()
    assert len(times) == 3 and max(times) - min(times) <= 1
    assert asked.due_s.between(0, 0.3).all() and (asked.latency_ms > 0).all()


def test_a_body_of_none_is_a_get_without_one(serve):
    app = App()
    asked = send(serve(app), [None, 0], connections=1, seconds=0.1)
    assert len(asked) == len(app.requests) > 1
    assert [(method, body) for method, _, _, body in app.requests[:2]] == [("GET", b""), ("POST", b"0")]


def test_targets_take_turns_and_the_column_server_says_which(serve):
    good, bad = App(), App(status=503)
    asked = send([serve(good), serve(bad)], [1, 2, 3], connections=3, seconds=0.2)
    assert [len(app.requests) for app in (good, bad)] == list(asked.server.value_counts().sort_index())
    assert set(zip(asked.server, asked.status)) == {(0, 200), (1, 503)}
    assert abs(len(good.requests) - len(bad.requests)) <= 1


def test_a_redirect_is_noted_and_not_followed(serve):
    elsewhere = App()
    app = App(status=307, headers=[(b"location", serve(elsewhere).encode())])
    asked = send(serve(app), [1, None], connections=2, seconds=0.1)
    assert len(asked) == len(app.requests) and (asked.status == 307).all()
    assert elsewhere.requests == []


def test_a_proxy_for_the_outside_is_not_asked(serve, nobody, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    assert (send(serve(App()), [1], seconds=0.1).status == 200).all()


# --- closed and open loops ---

def test_a_closed_loop_never_has_more_requests_in_flight_than_connections(serve):
    app = App(hold=4, slow_s=0.02)  # and it does have as many: with fewer it would never be answered
    asked = send(serve(app), [1], connections=4, seconds=0.2)
    assert app.most == 4 and (asked.status == 200).all()


def test_an_open_loop_does_not_wait_for_answers(serve):
    app = App(hold=20)
    asked = send(serve(app), [1], connections=2, rate=200, seconds=0.5)
    assert app.most >= 20 and (asked.status == 200).all()


def test_an_open_loop_brings_about_so_many_requests_at_random_moments(serve):
    asked = send(serve(App()), [1], rate=400, seconds=1)
    assert 300 < len(asked) < 500  # five standard deviations: it is chance, though the same each time
    gaps = asked.due_s.sort_values().diff().dropna()
    assert (gaps < 0.3 / 400).mean() > 0.1 and (gaps > 2 / 400).mean() > 0.05  # as e^-t has it: 26 %, 14 %


@pytest.mark.parametrize("how", [{"connections": 3}, {"rate": 100}], ids=["closed", "open"])
def test_a_latency_is_at_least_what_the_server_took(how, serve):
    asked = send(serve(App(busy_s=0.02)), [1], seconds=0.2, **how)
    assert (asked.latency_ms >= 20).all()


def test_in_an_open_loop_that_is_too_much_the_wait_before_a_turn_counts(serve):
    """One at a time, 20 ms each: however fast the client is, the last answer can't be there before that."""
    asked = send(serve(App(busy_s=0.02)), [1], rate=200, seconds=0.4)
    assert len(asked) > 40
    there_ms = 1000 * asked.due_s + asked.latency_ms
    assert there_ms.max() >= 20 * len(asked)
    assert asked.latency_ms.max() >= 20 * len(asked) - 400 > 400  # longer than the load has lasted


# --- what goes wrong ---

def test_where_nobody_listens_every_request_fails_and_load_still_returns(nobody):
    loads = load(nobody, [1], connections=[1, 8], seconds=0.1)
    assert (loads.errors > 0).all() and (loads.requests_per_s == 0).all()
    assert loads[["p50_ms", "p95_ms", "p99_ms", "cpu_ms", "cores"]].isna().all(axis=None)
    assert (send(nobody, [1], rate=100, seconds=0.2).status == 0).all()


def test_what_is_no_whole_answer_has_the_status_0(rude):
    said = [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Len",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nwhole"]
    asked = send([rude(answer) for answer in said], [None], connections=7, seconds=0.2)
    assert set(zip(asked.server, asked.status)) == {*((number, 0) for number in range(6)), (6, 200)}


def test_a_failing_server_in_a_list_does_not_stop_the_others(serve, nobody):
    app = App()
    asked = send([nobody, serve(app)], [1], connections=3, seconds=0.2)
    assert set(zip(asked.server, asked.status)) == {(0, 0), (1, 200)}
    assert len(app.requests) == (asked.server == 1).sum()


@pytest.mark.campaign
def test_who_gets_no_answer_in_ten_seconds_gives_up():
    with server.listen(0) as listener:  # the system takes the connection, and nobody reads it
        asked = send(f"http://127.0.0.1:{listener.getsockname()[1]}", [1], connections=2, seconds=0.1)
    assert list(asked.status) == [0, 0] and (asked.latency_ms >= 10_000).all()


def test_an_address_that_is_not_of_this_machine_is_refused_before_anything_is_sent(serve):
    app = App()
    here = serve(app)
    for address in ELSEWHERE:
        for target in (address, SimpleNamespace(url=address, pid=os.getpid()), [here, address]):
            for way in (send, load):
                with pytest.raises(ValueError, match="on this machine.*127.0.0.1"):
                    way(target, [1], seconds=0.1)
    assert app.requests == []


@pytest.mark.parametrize("path", [".invalid/forecast", "@192.0.2.1/forecast", "1@192.0.2.1:80/forecast"])
def test_a_path_can_not_lead_to_another_machine(path):
    for target in ("http://127.0.0.1", "http://127.0.0.1:8000"):
        with pytest.raises(ValueError, match="on this machine"):
            send(target, [1], path=path, seconds=0.1)


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://127.0.0.1:99999", "http://127.0.0.1:x"])
def test_an_address_that_can_not_be_asked_is_refused(address):
    with pytest.raises(ValueError, match="http://127.0.0.1:8000"):
        send(address, [1], seconds=0.1)


def test_every_way_to_name_this_machine_will_do(serve):
    address, hosts = serve(App()), ("localhost", "LOCALHOST", "127.0.0.1", "user:word@127.0.0.1")
    asked = send([address.replace("127.0.0.1", host) for host in hosts], [1], seconds=0.1)
    assert dict(zip(asked.server, asked.status)) == dict.fromkeys(range(len(hosts)), 200)
    assert len(send("http://[::1]:1", [1], seconds=0.1))  # not refused by us; nobody listens there


def test_a_load_that_is_not_for_a_shared_machine_is_refused_with_the_limit(serve):
    app = App()
    address = serve(app)
    for name, value, most in [("connections", 257, "256"), ("connections", 0, "256"),
                              ("rate", 10_001, "10,000"), ("rate", -1, "10,000"), ("rate", 0, "10,000"),
                              ("rate", float("nan"), "10,000"), ("seconds", 121, "120"),
                              ("seconds", 0, "120")]:
        for way in (send, load):
            with pytest.raises(ValueError, match=f"^{name} is {value}; .*more than 0.* {most} at the most"):
                way(address, [1], **{"seconds": 0.1, name: value})
    assert app.requests == []


def test_nothing_to_send_and_nowhere_to_send_it_are_refused_with_words(nobody):
    for target, bodies, what in ((nobody, [], "bodies"), ([], [1], "targets")):
        with pytest.raises(ValueError, match=f"^{what} is 0; it should be more"):
            send(target, bodies, seconds=0.1)


def test_numbers_of_a_table_will_do_as_settings(nobody):
    numbers = pd.Series([2, 60])  # numpy's own kinds of numbers
    for settings in ({"connections": numbers[0]}, {"connections": 2.0}, {"rate": numbers[1]}):
        assert len(send(nobody, [1], seconds=numbers[0] / 10, **settings))


def test_a_load_so_light_that_no_request_came_is_a_row_without_numbers(nobody):
    asked = send(nobody, [1], rate=0.001, seconds=0.1)
    assert len(asked) == 0 and list(asked) == ["due_s", "latency_ms", "status", "server"]
    loads = load(nobody, [1], rate=0.001, seconds=0.1)
    assert loads.errors.tolist() == [0] and loads.p50_ms.isna().all() and loads.cpu_ms.isna().all()


# --- load ---

@pytest.mark.parametrize("kind, settings", [("connections", 3), ("rate", [50, 100.5])])
def test_a_load_has_a_row_for_each_setting(kind, settings, serve):
    app = App()
    loads = load(serve(app), [1], seconds=0.15, **{kind: settings})
    assert list(loads) == COLUMNS and loads.index.name == kind
    assert list(loads.index) == (settings if isinstance(settings, list) else [settings])
    assert (loads.p50_ms <= loads.p95_ms).all() and (loads.p95_ms <= loads.p99_ms).all()
    assert (loads.requests_per_s > 0).all() and (loads.errors == 0).all()
    assert loads[["cpu_ms", "cores"]].isna().all(axis=None)  # only the address is known


def test_the_requests_per_s_are_no_more_than_the_server_can_answer(serve):
    """Those that arrived, over the time until the last of them was there."""
    loads = load(serve(App(busy_s=0.02)), [1], connections=2, seconds=0.3)
    assert 0 < loads.requests_per_s[2] <= 50  # one at a time, 20 ms each
    assert loads.p50_ms[2] >= 20 and loads.errors[2] == 0


def test_a_status_of_400_or_more_is_an_error(serve):
    app, statuses = App(status=None), [200, 204, 304, 307, 400, 404, 422, 500, 503]
    loads = load(serve(app), statuses, connections=1, seconds=0.3)
    assert len(app.bodies) >= len(statuses)
    assert loads.errors[1] == sum(status >= 400 for status in app.bodies)


def test_where_all_answers_are_errors_the_processor_time_is_known_and_a_latency_is_not(burning):
    row, = load(burning, [{}], path="/nowhere", connections=2, seconds=0.2).itertuples()
    assert row.errors > 0 and row.requests_per_s == 0 and pd.isna(row.p50_ms)
    assert row.cpu_ms > 0 and row.cores > 0


def test_the_processor_time_of_a_request_is_told(burning):
    loads = load(burning, [{}], path="/burn", connections=[1, 4], seconds=0.3)
    assert (loads.cpu_ms > 2.5).all()  # it uses 5; but the system counts in hundredths of a second
    assert (loads.cores > 0).all() and (loads.cores < 1.5).all()  # one process keeps about one busy


def test_the_time_of_all_workers_is_counted(burning_app, tmp_path):
    """The first process of several only looks after them; the work is done by its children."""
    with server.listen(0) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "burning:app", "--workers", "2", "--port", str(port),
               "--log-level", "error", "--app-dir", os.path.dirname(burning_app.__file__)]
    parent = subprocess.Popen(command)
    try:
        service = SimpleNamespace(url=f"http://127.0.0.1:{port}", pid=parent.pid)
        eventually(lambda: answers(service.url))
        loads = load(service, [{}], path="/burn", connections=4, seconds=0.5)
        assert loads.errors[4] == 0 and loads.cpu_ms[4] > 2.5
    finally:
        for process in [*psutil.Process(parent.pid).children(recursive=True), parent]:
            process.kill()
        parent.wait()


def answers(url):
    with suppress(requests.ConnectionError):
        return requests.get(f"{url}/docs", timeout=5).ok


def test_servers_in_a_list_are_added_up_and_one_of_which_only_the_address_is_known_is_not_guessed(burning):
    both = load([burning, burning.url], [{}], path="/burn", connections=2, seconds=0.1)
    assert both.errors[2] == 0 and both[["cpu_ms", "cores"]].isna().all(axis=None)


def test_the_load_of_a_server_that_dies_in_the_middle_still_returns(burning_app):
    mortal = server.launch(burning_app.app, name="mortal")
    try:
        loads = load(mortal, [{"die_after": 20}], path="/burn", connections=2, seconds=0.5)
        assert loads.requests_per_s[2] > 0 and loads.errors[2] > 0
        assert not loads.cpu_ms[2] < 0
        eventually(lambda: not mortal.running)
        loads = load(mortal, [{}], path="/burn", connections=2, seconds=0.1)  # and of one that is dead
        assert loads.requests_per_s[2] == 0 and pd.isna(loads.cpu_ms[2])
    finally:
        server._running.pop("mortal").stop()


# --- what is left behind ---

SENDING = """
import sys
from workshop.traffic import send
try:
    send(sys.argv[1], [1], seconds=100)
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_the_interrupt_button_ends_the_client_at_once_and_leaves_nothing(serve, tmp_path):
    app = App()
    sender = subprocess.Popen([sys.executable, "-c", SENDING, serve(app)], cwd=ROOT, text=True,
                              env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    try:
        eventually(lambda: app.requests)
        client, = psutil.Process(sender.pid).children()
        assert os.getpgid(client.pid) != os.getpgid(sender.pid)  # Jupyter interrupts the whole group
        sender.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        assert sender.stdout.readline() == "interrupted\n"
        assert time.monotonic() - pressed < 60  # not only when the 100 seconds are over
        assert not client.is_running() and psutil.Process(sender.pid).children() == []
        asked = len(app.requests)
        assert list(tmp_path.iterdir()) == [] and app.now <= 8
        sender.communicate("")
        assert sender.returncode == 0 and len(app.requests) == asked
    finally:
        sender.kill()
        sender.communicate()


LOADING = """
import sys
from workshop.traffic import load
load(sys.argv[1], [1], connections=[1, 2], seconds=0.1)
load(sys.argv[1], [1], rate=50, seconds=0.1)
print("loaded", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_one_client_does_several_loads_and_ends_with_the_process_that_asked(end, serve, tmp_path):
    loader = subprocess.Popen([sys.executable, "-c", LOADING, serve(App())], cwd=ROOT, text=True,
                              env=os.environ | {"TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    try:
        assert loader.stdout.readline() == "loaded\n"
        client, = psutil.Process(loader.pid).children()
        if end == "killed":
            loader.kill()
        loader.communicate("")
        eventually(lambda: not client.is_running())
        assert list(tmp_path.iterdir()) == []
    finally:
        loader.kill()
        loader.wait()


def test_a_tick_that_fails_ends_the_client_too(serve):
    """As the interrupt button does while the progress bar is drawn."""
    app, before = App(), psutil.Process().children()

    def tick():
        if app.requests:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        send(serve(app), [1], seconds=2, tick=tick)
    assert len(psutil.Process().children()) <= len(before)  # the one that waited, if any, is gone


def test_a_client_that_is_killed_says_so_in_words(serve):
    """As a system does that runs out of memory."""
    def tick():
        for child in psutil.Process().children():
            child.kill()
    with pytest.raises(RuntimeError, match="client"):
        send(serve(App()), [1], seconds=0.5, tick=tick)


def test_a_client_that_was_killed_while_it_waited_costs_nothing(serve):
    send(serve(app := App()), [1], seconds=0.1)
    client, = (child for child in psutil.Process().children()
               if child.status() != psutil.STATUS_ZOMBIE and "workshop.traffic" in child.cmdline())
    client.kill()
    client.wait(20)
    assert (send(serve(app), [1], seconds=0.1).status == 200).all()


def test_it_ticks_about_ten_times(serve):
    ticks = []
    send(serve(App()), [1], seconds=0.5, tick=lambda: ticks.append(1))
    assert len(ticks) >= 5
