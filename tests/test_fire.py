"""The API under fire: ten thousand generated requests, and what somebody who means harm would send."""
import gzip
import io
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from importlib import util

import pytest
import requests

from conftest import tried
from test_api import IAN, OLD, Service, models, start  # two of them fixtures
from test_server import eventually

from workshop import registry
from workshop.forecaster import Storm, forecasts

BODY = json.dumps(IAN).encode()
MOST_MB = 64  # that the service's process may grow by under any of this; a single body may have one


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A server that most tests here share: what one did to it, the next would see."""
    started = Service(tmp_path_factory.mktemp("fire") / "service")
    yield started
    try:
        unharmed(started)
    finally:
        started.kill()


def unharmed(service):
    """It has never answered with its own fault (5xx), and printed no traceback."""
    assert not [key for key in service.counted() if key[0] == "http_requests_total" and key[-1] >= "500"]
    assert "Traceback" not in service.text("err")


@contextmanager
def under_fire(service, **headers):
    """Whatever is done inside, the service is none the worse for it; gives the answers a neighbour gets.

    The neighbour asks again and again, and each answer has to be right, and in the log, once. The service
    never answers with its own fault (5xx), grows by less than 64 MB, and prints no traceback.
    """
    right = forecasts([Storm(**IAN)], registry.load())[0].model_dump(mode="json")
    came, stop = [], threading.Event()

    def go_on_asking():
        with requests.Session() as session:
            while not stop.wait(0.005):  # what is tried should have the most of the machine
                came.append(session.post(f"{service.url}/forecast", json=IAN, headers=headers, timeout=30))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(go_on_asking)
        try:
            eventually(lambda: len(came) > 50 or asking.done())  # it is warm
            before = service.process.memory_info().rss
            yield came
            answered = len(came)
            eventually(lambda: len(came) > answered + 10 or asking.done())  # all is as it was
        finally:
            stop.set()
    asking.result()
    assert (service.process.memory_info().rss - before) / 2**20 < MOST_MB
    assert {answer.status_code for answer in came} == {200} and all(answer.json() == right for answer in came)
    logged = Counter(line["request_id"] for line in service.logged())
    assert all(logged[answer.headers["X-Request-ID"]] == 1 for answer in came)
    for file in service.logs.iterdir():
        assert all(map(json.loads, file.read_bytes().splitlines())), "a line of the log can't be read"
    unharmed(service)


def request(method="GET", path="/health", *lines, body=b"", version="1.1"):
    """A request as its bytes."""
    head = [f"{method} {path} HTTP/{version}", "Host: x", *lines]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def connect(service):
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


def say(service, *parts, end=b"", half_closed=False):
    """All that comes back for these bytes, until the service closes the connection, as `end` may ask for."""
    with connect(service) as connection:
        came = b""
        with suppress(ConnectionError):  # it had enough, and closed: what it said may still be read
            for part in (*parts, end):
                connection.sendall(part)
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while more := connection.recv(100_000):
                came += more
    return came.decode("latin-1")


LAST = request("GET", "/health", "Connection: close")


def statuses(text):
    return [int(status) for status in re.findall(r"HTTP/1\.1 (\d{3}) ", text)]


# --- what the docs say, and ten thousand generated requests ---

HOOKS = '''
"""Two checks that Schemathesis can't know of."""
import schemathesis
from schemathesis.specs.openapi import checks


@schemathesis.check
def what_the_schema_allows_is_answered_or_no_storm_could_do_it(context, response, case):
    try:
        checks.positive_data_acceptance(context, response, case)
    except checks.RejectedPositiveData:  # how far a storm gets in 12 hours, a schema can't say
        problems = response.json()["detail"] if response.status_code == 422 else [{"type": "another"}]
        if {problem["type"] for problem in problems} - {"impossible_motion", "impossible_gain"}:
            raise


@schemathesis.check
def each_answer_has_a_number_of_its_own(context, response, case):
    assert len(response.headers["x-request-id"][0]) == 16
'''
CHECKS = ("not_a_server_error status_code_conformance content_type_conformance response_schema_conformance "
          "response_headers_conformance negative_data_rejection unsupported_method allow_header_conformance "
          "what_the_schema_allows_is_answered_or_no_storm_could_do_it each_answer_has_a_number_of_its_own")


def generated(service, folder, checks, examples, *options):
    """Let Schemathesis try what the API's own schema says, always the same; return its report."""
    folder.mkdir()
    (folder / "hooks.py").write_text(HOOKS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--seed", "1",
               "--max-examples", str(examples), "--checks", checks.replace(" ", ","), "--mode", "all",
               "--generation-database", "none", "--continue-on-failure", "--no-color",
               "--report-json-path", folder / "report.json", *options]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(folder)}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["complete"] and not report["failures"] and not report["errors"]
    return report


@pytest.mark.campaign
@pytest.mark.skipif(not util.find_spec("schemathesis"),
                    reason="needs Schemathesis: uv pip install -r pyproject.toml --extra fire")
@pytest.mark.parametrize("key, examples", [(None, [6800, 3400]), ("lighthouse", [680, 340])])
def test_each_documented_answer_is_true_and_none_is_left_out(start, tmp_path, key, examples):
    service = start(**{"WORKSHOP_API_KEY": key} if key else {})
    header, checks = {"X-API-Key": key} if key else {}, CHECKS + " ignored_auth" * bool(key)
    options = [f"--header=X-API-Key: {key}"] if key else []
    with under_fire(service, **header), ThreadPoolExecutor(2) as pool:  # two at a time, for the time it takes
        reports = list(pool.map(
            lambda many, only: generated(service, tmp_path / only[2:9], checks, many, only, *options),
            examples, ["--include-path=/forecast", "--exclude-path=/forecast"]))
    assert sum(report["operations"]["tested"] for report in reports) == len(
        service.get("openapi.json").json()["paths"])
    rates = reports[0]["valid_rates"] | reports[1]["valid_rates"]
    for path in "POST /forecast", "POST /forecasts":  # what could be a storm was not all refused
        assert rates[path]["fuzzing"]["accepted"] > examples[1] / 10
    made = sum(report["test_cases"]["generated"] for report in reports)
    assert made > sum(examples)
    tried(f"requests made up from the API's schema{', with a key' * bool(key)}", made)


def test_the_docs_say_what_each_answer_holds_and_which_times_are_read(service):
    schema = service.get("openapi.json").json()
    words = {"$ref": "#/components/schemas/Refusal"}
    for path in "/forecast", "/forecasts":
        for status, answer in schema["paths"][path]["post"]["responses"].items():
            told = answer["content"]["application/json"]["schema"]
            assert told == words or status in ("200", "422")
    assert schema["components"]["schemas"]["Refusal"]["required"] == ["detail"]
    assert [*schema["paths"]["/model"]["get"]["responses"]] == ["200"]  # no key is asked for here
    assert [*schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"]] == ["text/plain"]
    time = re.compile(schema["components"]["schemas"]["Storm"]["properties"]["time"]["pattern"])
    for text, read in (("1851-01-01T00:00:00Z", True), ("1850-12-31T23:59:59Z", False),
                       ("2100-12-31T23:59:59.5+01:00", True), ("2101-01-01T00:00:00Z", False),
                       ("2016-12-31T23:59:60Z", False), ("2022-09-27T12:00:00z", False)):
        assert bool(time.search(text)) == read == service.post(IAN | {"time": text}).ok


# --- bodies ---

def test_a_body_of_100_megabytes_is_refused(service):
    with under_fire(service):
        chunked = (bytes(1_000_000) for _ in range(100))
        for body in io.BytesIO(bytes(100_000_000)), chunked:
            answer = requests.post(f"{service.url}/forecast", data=body, timeout=30)
            assert answer.status_code == 413 and "at most 1,000,000 bytes" in answer.json()["detail"]


def test_a_body_without_end_is_refused_while_it_comes(service):
    head = request("POST", "/forecast", "Content-Type: application/json", "Transfer-Encoding: chunked")
    sent, chunk = 0, b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with under_fire(service), connect(service) as connection:
        connection.sendall(head)
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(chunk)
            sent += len(chunk)
            assert sent < 100_000_000, "it is still read"
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("depths", [
    range(25, 1100, 50), pytest.param(range(1100), marks=pytest.mark.campaign)], ids=["some", "all"])
def test_however_deep_a_body_is_nested_it_is_refused(service, depths):
    times = 0
    with under_fire(service):
        for opened, closed in ((b"[", b"]"), (b'{"time":', b"}"), (b'{"wind_kt":[', b"]}"),
                               (b'{"storms":[', b"]}")):
            for depth in (*depths, 100_000 // len(opened)):
                nested = opened * depth + b"1" + closed * depth
                for path, body in (("forecast", nested), ("forecasts", b'{"storms": [%b]}' % nested)):
                    assert service.post(body, path).status_code in (400, 422)
                    times += 1
    if len(depths) == 1100:
        tried("bodies nested to any depth", times)


def with_wind(text):
    return BODY.replace(b'"wind_kt": 100.0', b'"wind_kt": ' + text)


NUMBERS = [(b"1e2", 200), (b"100." + b"0" * 10_000, 200), (b"0." + b"0" * 9997 + b"1e10000", 200),
           (b"1" * 10_000, 400), (b"-0", 422), (b"1e" + b"9" * 10_000, 422), (b"1e-" + b"9" * 10_000, 422),
           (b"-" * 10_000, 422), (b"0x64", 422), (b"1_00", 422), ("\u0661\u0660\u0660".encode(), 422),
           (b"+100", 422)]


@pytest.mark.parametrize("body, status", [
    *((with_wind(text), status) for text, status in NUMBERS),
    *((BODY.decode().encode(name), 200) for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32-be")),
    (BODY.replace(b"}", b', "\xfc": 1}'), 400), (BODY + b"\0", 422), (b"", 422), (b"\0" * 1000, 422),
    (gzip.compress(BODY), 400), (BODY.replace(b"wind_kt", b"\\u0077ind_kt"), 200),
    (BODY.replace(b"time", b"\\ud800"), 422), (with_wind(b'"\\ud800"'), 422)],
    ids=lambda value: None if isinstance(value, int) else repr(value)[-30:])
def test_a_strange_body_is_read_as_json_is_or_refused(service, body, status):
    answer = service.post(body, **{"Content-Encoding": "gzip"})  # which it is not, and nobody asked for
    assert answer.status_code == status
    assert not answer.ok or answer.json() == service.post().json()


def test_of_a_key_that_comes_twice_the_last_one_counts_and_is_what_the_log_says(service):
    answer = service.post(BODY.replace(b'"wind_kt"', b'"wind_kt": 500, "wind_kt"'))
    assert answer.json() == service.post().json() and service.logged(answer)[0]["storm"] == IAN
    assert service.refusal(BODY.replace(b"}", b', "wind_kt": 500}'))[0] == ["body", "wind_kt"]


# --- heads, lines and connections ---

LONG = "a" * 1_000_000
HEADS = [
    (request("GET", "/health", *(f"X-{number}: {number}" for number in range(10_000))), 200),
    (request("GET", "/health", *["X-Request-ID: a"] * 10_000), 200),
    (request("GET", "/health", f"X: {LONG}"), 200),
    (request("GET", "/health", f"{LONG}: x"), 200),
    (request("GET", "/health", f"X-Forwarded-Prefix: {LONG}"), 200),
    (request("GET", "/docs", f"X-Forwarded-Prefix: {'/a' * 500_000}"), 200),
    (request("POST", "/forecast", f"X-Client: {LONG[::3]}", f"X-Request-ID: {LONG[::3]}", body=BODY), 200),
    (request("POST", "/forecast", f"X-Client: {LONG}", f"X-Request-ID: {LONG}", body=BODY), 400),
    (request("GET", "/health", *["X: y"] * 1_000_000), 400),
    (request("GET", f"/{LONG}"), 400),
    (request("GET", f"/health?{LONG}"), 400),
    (request(LONG, "/health"), 400),
    (request("GET", "/" + "a" * 60_000), 404),
    (request("GET", "/health", version="9.9"), 400),
    (request("GET", "/health", "X: a\0b"), 400),
    (request("GET", "/health", "Content-Length: -5"), 400),
    (request("GET", "/health", "no colon"), 400),
    (request("GET", "/health", " folded: x"), 400),
    (request("POST", "/forecast", "Content-Length: 5", body=BODY), 400),  # two lengths: whose is the rest?
    (request("POST", "/forecast", "Transfer-Encoding: chunked", body=BODY), 400),
    (request("POST", "/forecast", "Transfer-Encoding: chunked") + b"no number\r\n", 400),
    (b"\x16\x03\x01\x02\x00" + bytes(range(256)) + b"\r\n\r\n", 400),  # https
    (b"\r\n" * 1000 + request(), 200)]


def test_a_head_that_is_too_much_or_wrong_harms_nobody(service):
    with under_fire(service):
        for head, status in HEADS:
            assert statuses(say(service, head, end=LAST))[0] == status, head[:100]


@pytest.mark.parametrize("piece", [b"X: y\r\n" * 10_000, b"X: " + b"y" * 60_000 + b"\r\n", b"y" * 60_000])
def test_a_head_without_end_is_given_up_at_a_million_bytes(service, piece):
    sent, deadline = 0, time.monotonic() + 60
    with under_fire(service), connect(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: y\r\nY: ")
        with suppress(ConnectionError):
            while True:
                assert time.monotonic() < deadline
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 20_000_000  # buffers on the way hold some


@pytest.mark.campaign
def test_a_first_line_that_never_ends_is_given_up_and_frees_its_connection(service):
    before = service.process.num_fds()
    with under_fire(service), ExitStack() as stack:
        kept = [HTTPConnection("127.0.0.1", service.port, timeout=30) for _ in range(20)]  # sound ones, at first
        for begun in [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nX: y\r\n"] * 60:
            stack.enter_context(connect(service)).sendall(begun)
        for _ in range(15):  # longer than any head may take
            for connection in kept:
                connection.request("GET", "/health")
                assert connection.getresponse().read()
            time.sleep(1)
        for connection in kept:
            stack.enter_context(connection.sock).sendall(b"GET /hea")
        eventually(lambda: service.process.num_fds() <= before + 5, seconds=60)


@pytest.mark.parametrize("ahead", [request("GET", "/openapi.json"), request("POST", "/forecast", body=BODY)],
                         ids=["GET", "POST"])
def test_a_client_that_asks_on_and_on_and_reads_no_answer_fills_no_memory(service, ahead):
    many, sent = ahead * 500, 0
    with under_fire(service), connect(service) as connection:
        connection.settimeout(3)
        with suppress(TimeoutError):  # it is not read any more
            while sent < 100_000_000:
                sent += connection.send(many)
    assert sent < 20_000_000  # buffers on the way hold some


def test_a_client_that_asks_on_and_on_and_leaves_is_no_fault_of_the_service(service):
    with under_fire(service):
        for _ in range(5):
            with connect(service) as connection:
                connection.sendall(request("GET", "/openapi.json") * 2000)


METHODS = ["TRACE", "TRACK", "OPTIONS", "HEAD", "PUT", "PATCH", "DELETE", "CONNECT", "PROPFIND", "PURGE",
           "MADE-UP", "get", "GET\t", "", "\xff"]


def test_only_the_documented_methods_do_something(service):
    before = len(service.logged())
    for method in METHODS:
        for path in "/forecast", "/health", "/nowhere", "example.org:443", "*":
            answer = say(service, request(method, path, "X-Secret: echo", "Connection: close", body=BODY))
            assert statuses(answer)[0] in (400, 404, 405) and "echo" not in answer
    assert not [line for line in service.logged()[before:] if "forecast" in line]


PATHS = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", "//etc/passwd",
         "//health",
         *(f"/docs/static/{trick}" for trick in (
             "../../../../../../../../etc/passwd", "%2e%2e/%2e%2e/__init__.py", "..%2f..%2f__init__.py",
             "..%5c..%5c__init__.py", "/etc/passwd", "%2fetc%2fpasswd", "%00", "swagger-ui.css%00", "%ff%fe",
             "a" * 5000, "", ".", "..", "%252e%252e/__init__.py", "C:/", "\\..\\..")),
         "/forecast%00", "/health%20", "/health;a=b", "/%", "/%zz", "/docs/../../health", "/.git/config",
         "/page.html", "/\u00e4", "*"]


def test_no_trick_with_a_path_shows_a_file_or_finds_what_is_not_there(service):
    for path in PATHS:
        for prefix in [], ["X-Forwarded-Prefix: /.."], ["X-Forwarded-Prefix: /docs/static"]:
            answer = say(service, request("GET", path, *prefix), end=LAST)
            assert statuses(answer)[0] in (400, 404) and "root:" not in answer and "import" not in answer
    assert service.get("docs/static/swagger-ui.css").ok


def test_what_a_proxy_would_say_is_believed_of_a_plain_prefix_only_and_for_that_request_only(service):
    tricks = ["//evil", "/evil\"><script>", "/evil'+", "evil", "/evil//evil", "/evil?", "/evil#", "/evil\\",
              "/é-evil", "/evil\tevil", "http://evil", "/" + "evil/" * 1000 + "&"]
    others = {f"X-Forwarded-{name}": "evil" for name in ("For", "Host", "Proto", "Port", "Server")}
    others |= {"Forwarded": "for=evil;host=evil", "X-Original-URL": "/evil", "X-Rewrite-URL": "/evil"}
    for prefix in tricks:
        for path in "", "docs", "openapi.json", "health":
            given = others | {"X-Forwarded-Prefix": prefix.encode("latin-1")}
            answer = requests.get(f"{service.url}/{path}", headers=given, allow_redirects=False)
            assert answer.ok and "evil" not in answer.text + str(answer.headers)
    plain = service.get("openapi.json", **{"X-Forwarded-Prefix": "/plain"}).json()
    assert plain["servers"] == [{"url": "/plain"}]
    assert "servers" not in service.get("openapi.json").json()
    assert "evil" not in service.text("out") + json.dumps(service.logged())


def test_http_1_0_pipelines_expectations_and_upgrades_are_answered_in_their_order(service):
    post = request("POST", "/forecast", body=BODY)
    with under_fire(service):
        assert statuses(say(service, post.replace(b"HTTP/1.1", b"HTTP/1.0"))) == [200]  # and it closes
        for times in 2, 500:
            three = post + request("POST", "/forecast", body=b"{}") + request()
            answer = say(service, three * times, end=LAST)
            assert statuses(answer) == [200, 422, 200] * times + [200]
        answer = say(service, request("POST", "/forecast", "Expect: 100-continue", body=BODY), end=LAST)
        assert statuses(answer) == [100, 200, 200]
        for protocol in "websocket", "h2c", "made-up":
            asked = request("GET", "/health", "Connection: Upgrade, close", f"Upgrade: {protocol}",
                            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
            assert statuses(say(service, asked))[0] == 200  # an answer, not another protocol


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(service):
    post = request("POST", "/forecast", body=BODY)
    with under_fire(service):
        before = service.process.num_fds() if hasattr(service.process, "num_fds") else 0
        for size in (*range(0, len(post), 7), len(post)):
            say(service, post[:size], half_closed=True)
            with connect(service) as connection:
                connection.sendall(post[:size])  # and gone, without a word
        if before:
            eventually(lambda: service.process.num_fds() <= before)


def test_clients_that_come_a_byte_at_a_time_or_stop_in_the_first_line_keep_nobody_waiting(service):
    head = request("POST", "/forecast", "Content-Type: application/json", f"Content-Length: {len(BODY)}",
                   "Connection: close")
    with under_fire(service) as came, ExitStack() as stack:
        connections = [stack.enter_context(connect(service)) for _ in range(300)]
        slow, stopped = connections[:100], connections[100:]
        for connection in stopped:
            connection.sendall(b"GET /hea")
        for begin in range(0, len(head), 20):
            answered = len(came)
            for number in range(begin, min(begin + 20, len(head))):
                for connection in slow:
                    connection.sendall(head[number:number + 1])
            eventually(lambda: len(came) > answered)
        for connection in slow:
            connection.sendall(BODY)
        assert [connection.recv(100)[:15] for connection in slow] == [b"HTTP/1.1 200 OK"] * 100


# --- the key ---

@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=pytest.mark.campaign)])
def test_guessing_finds_no_key_and_tells_nothing_of_it(start, times):
    key = "Lighthouse-4711-Sandy-Hook"
    service, said = start(WORKSHOP_API_KEY=key), []
    near = [*(key[:end] for end in range(len(key))), key + "x", key * 2, key[::-1], key.lower(), key.upper()]
    with under_fire(service, **{"X-API-Key": key}), requests.Session() as session:
        for number in range(times):
            guess = near[number] if number < len(near) else f"{key[:-4]}{number:04}"
            answer = session.post(f"{service.url}/forecast", json=IAN, headers={"X-API-Key": guess})
            assert answer.status_code == 401
            said.append(answer.text)
        for more in ({"Authorization": key}, {"Cookie": f"X-API-Key={key}"}, {"X_API_Key": key}):
            assert service.post(IAN, f"forecast?X-API-Key={key}", **more).status_code == 401
    assert set(said) == {'{"detail":"Send the key that you were given, in the header X-API-Key."}'}
    assert service.post(**{"X-API-Key": key}).json()["model_version"] == OLD
    told = [service.get(path).text for path in ("", "docs", "openapi.json", "health", "metrics")]
    told += [service.text("out"), service.text("err"), json.dumps(service.logged())]
    assert not any(key[:10] in text for text in told)
    if times == 10_000:
        tried("keys guessed", times)
