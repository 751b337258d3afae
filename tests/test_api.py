"""The production API: real servers, as the command line starts them, on this machine's own network only."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin

import psutil
import pytest
import requests
import websocket
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conftest import posix
from test_server import check_docs, eventually

from workshop import ROOT, records, registry, server
from workshop.forecaster import INPUTS, Storm, forecasts
from workshop.model import train
from workshop.storms import build_examples, load_storms

IAN = {"time": "2022-09-27T12:00:00Z", "latitude": 22.6, "longitude": -83.6, "wind_kt": 100.0,
       "pressure_hpa": 963.0, "latitude_12h_ago": 20.8, "longitude_12h_ago": -83.3, "wind_kt_12h_ago": 85.0,
       "pressure_hpa_12h_ago": 965.0}
OLD, NEW = "1975-2014", "1975-1994"  # the version in use, and another one
EXAMPLES = build_examples(load_storms())
SAMPLE = [{"time": f"{row.time:%Y-%m-%dT%H:%M:%SZ}", **row[list(INPUTS)]}
          for _, row in EXAMPLES.dropna().sample(300, random_state=0).iterrows()]
for unknown in SAMPLE[::3]:
    unknown.update(pressure_hpa=None, pressure_hpa_12h_ago=None)
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody sees another process' files")


class Service:
    """`python -m workshop serve` as a process, with all that it writes in a folder of its own."""

    def __init__(self, folder, *options, ready=True, **environment):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self.folder, self.logs = f"http://127.0.0.1:{self.port}", folder, folder / "logs"
        (folder / "temporary").mkdir(parents=True)
        silent = {"ORT_DISABLE_TELEMETRY", "CI"}  # what would keep a library silent: we have to do that
        plain = {name: value for name, value in os.environ.items() if name not in silent}
        own = {"WORKSHOP_LOG_DIR": str(self.logs), "TMPDIR": str(folder / "temporary"), **environment}
        with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
            self.process = psutil.Popen(
                [sys.executable, "-m", "workshop", "serve", "--port", str(self.port), *options], cwd=ROOT,
                env=plain | own, stdout=out, stderr=err, start_new_session=True)
        if ready:
            eventually(lambda: self.process.poll() is not None or healthy(self))
            assert self.process.poll() is None, self.text("err")
        self.family = [self.process, *self.process.children(recursive=True)]

    def post(self, body=IAN, path="forecast", **headers):
        """Post JSON; or, as it is, what is text or bytes already."""
        body = body if isinstance(body, (str, bytes)) else json.dumps(body)
        headers = {"Content-Type": "application/json", **headers}
        return requests.post(f"{self.url}/{path}", data=body, headers=headers, timeout=30)

    def get(self, path, **headers):
        return requests.get(f"{self.url}/{path}", headers=headers, timeout=30)

    def refusal(self, body, path="forecast"):
        """The place and the words of the one problem that the API has with what is posted."""
        answer = self.post(body, path)
        assert answer.status_code == 422, answer.text
        problem, = answer.json()["detail"]
        return problem["loc"], problem["msg"]

    def counted(self):
        """All that /metrics counts: values by name and labels, these in the order of their names."""
        return Counter({(sample.name, *(text for _, text in sorted(sample.labels.items()))): sample.value
                        for family in text_string_to_metric_families(self.get("metrics").text)
                        for sample in family.samples})

    def logged(self, answer=None):
        """The lines of the forecast log: all, or those of an answer's request."""
        return [line for line in records.read(*self.logs.glob("*"))
                if answer is None or line["request_id"] == answer.headers["X-Request-ID"]]

    def text(self, name):
        return (self.folder / name).read_text()

    def printed(self):
        return [json.loads(line) for line in self.text("out").splitlines()]

    def kill(self):
        """Kill it, then its workers (it would start new ones), and see that nothing is left."""
        for process in (process for process in self.family if process.is_running()):
            process.kill()
        eventually(lambda: gone(self.family) and not healthy(self))
        self.process.wait()


def healthy(service):
    try:
        return service.get("health").ok
    except requests.ConnectionError:
        return False


def gone(processes):
    left = psutil.wait_procs(processes, timeout=0)[1]
    with suppress(psutil.NoSuchProcess):  # one has just ended: look again
        return all(process.status() == "zombie" for process in left)  # a container's init collects none


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    """A folder with two versions, trained once; servers and this process use it, and OLD is in use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORKSHOP_API_KEY", raising=False)
        patch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path_factory.mktemp("api") / "models"))
        assert registry.kept_model(str).version == OLD
        assert registry.save(train(EXAMPLES, 1994), EXAMPLES) == NEW
        yield registry.folder()


@pytest.fixture
def own_models(models, tmp_path, monkeypatch):
    """A copy of the versions, for a test that changes them."""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(shutil.copytree(models, tmp_path / "models")))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One ordinary server, which most tests share."""
    started = Service(tmp_path_factory.mktemp("api") / "service")
    yield started
    started.kill()
    assert "Traceback" not in started.text("err")


@pytest.fixture
def start(tmp_path):
    """Start a server that breaks or needs something else, as often as wanted; all are gone at the end."""
    with ExitStack() as stack:
        def started(*options, **settings):
            made = Service(tmp_path / str(len(list(tmp_path.iterdir()))), *options, **settings)
            stack.callback(made.kill)
            return made
        yield started


@contextmanager
def clients(service):
    """Four threads that ask without a break; gives two lists that grow: answers, and what went wrong."""
    came, broken, stop = [], [], threading.Event()

    def go_on_asking():
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    came.append(session.post(f"{service.url}/forecast", json=IAN, timeout=30))
                except requests.RequestException as error:
                    return broken.append(error)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(go_on_asking)
        try:
            yield came, broken
        finally:
            stop.set()


# --- answers ---

def test_the_api_answers_as_the_function_does_with_the_version_in_use(service):
    expected = [answer.model_dump(mode="json") for answer in
                forecasts([Storm(**storm) for storm in SAMPLE], registry.load())]
    assert service.post({"storms": SAMPLE}, "forecasts").json() == {"forecasts": expected}
    assert [service.post(storm).json() for storm in SAMPLE[:20]] == expected[:20]
    assert service.get("model").json() == registry.load().card
    assert service.get("health").json() == {"status": "ok", "model_version": OLD, "refused_version": None}


def test_the_examples_in_the_docs_are_real_storms_that_the_api_answers(service):
    paths = service.get("openapi.json").json()["paths"]
    one, several = (paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"].values()
                    for path in ("/forecast", "/forecasts"))
    for storm in (shown["value"] for shown in one):
        known = EXAMPLES[EXAMPLES.time == storm["time"]][list(INPUTS)].to_dict("records")
        assert {name: storm[name] for name in INPUTS} in known and service.post(storm).status_code == 200
    assert [service.post(shown["value"], "forecasts").status_code for shown in several] == [200]
    assert {"400", "401", "408", "413", "422", "503"} < set(paths["/forecast"]["post"]["responses"])


# --- refusals ---

RANGES = {"latitude": ("°N", 0, 75), "longitude": ("°E: west is negative", -140, 20),
          "wind_kt": ("maximum sustained wind, knots", 10, 200),
          "pressure_hpa": ("central pressure, hPa", 850, 1050)}
REFUSED = [  # fields as JSON text, the place that is named, and words that are said
    *(({field: str(value)}, [field], f"({unit}: {low} to {high})")
      for name, (unit, low, high) in RANGES.items()
      for field in (name, f"{name}_12h_ago") for value in (low - 0.5, high + 0.5)),
    *(({"wind_kt": text}, ["wind_kt"], "knots: 10 to 200") for text in (
        "true", '"100"', "null", "[1]", "NaN", "Infinity", "-Infinity", "1e400", "9" * 400)),
    *(({"time": text}, ["time"], "a time like 2022-09-27T12:00:00Z") for text in (
        "1664280000", "2022", "null", '"yesterday"', '"2022-09-31T12:00:00Z"', '"1850-09-27T12:00:00Z"')),
    ({"time": '"2022-09-27T12:00:00"'}, ["time"], "timezone"),
    *(({field: ""}, [field], "Field required") for field in IAN if "pressure" not in field),
    ({"wind_ms": "50"}, ["wind_ms"], "not permitted"),
    ({"latitude": "38.8"}, [], "at most 1600 km in 12 hours, this one moved 200"),
    ({"longitude": "10", "longitude_12h_ago": "-10"}, [], "is the sign of a longitude lost"),
    ({"wind_kt": "126", "wind_kt_12h_ago": "35"}, [], "-120 to 90 knots in 12 hours, this one changed by 91"),
    ({"wind_kt": "30", "wind_kt_12h_ago": "151"}, [], "this one changed by -121")]


@pytest.mark.parametrize("changes, place, expected", REFUSED, ids=[str(row[0])[:40] for row in REFUSED])
def test_a_refusal_names_the_field_and_in_a_batch_the_storm_and_says_what_is_right(
        service, changes, place, expected):
    fields = {name: json.dumps(value) for name, value in IAN.items()} | changes
    storm = "{%s}" % ", ".join(f'"{name}": {text}' for name, text in fields.items() if text)
    where, words = service.refusal(storm)
    assert where == ["body", *place] and expected in words
    batch = '{"storms": [%s, %s, %s]}' % (json.dumps(IAN), json.dumps(IAN), storm)
    assert service.refusal(batch, "forecasts") == (["body", "storms", 2, *place], words)


def test_the_ends_of_each_range_are_allowed(service):
    for name, (_, *ends) in RANGES.items():
        for end in ends:
            assert service.post(IAN | {name: end, f"{name}_12h_ago": end}).status_code == 200


def test_a_batch_has_one_to_a_thousand_storms(service):
    assert len(service.post({"storms": [IAN] * 1000}, "forecasts").json()["forecasts"]) == 1000
    for number, words in ((1001, "at most 1000 items after validation, not 1001"), (0, "at least 1 item")):
        place, said = service.refusal({"storms": [IAN] * number}, "forecasts")
        assert place == ["body", "storms"] and words in said


def test_a_body_over_a_million_bytes_is_refused_whether_or_not_its_length_is_told(service):
    body = json.dumps(IAN).encode().ljust(1_000_001)
    assert service.post(body[:-1]).status_code == 200
    chunked = requests.post(f"{service.url}/forecast", data=iter([body[:600_000], body[600_000:]]))
    for answer in (chunked, service.post(body), service.post(body * 20)):
        assert answer.status_code == 413 and "at most 1,000,000 bytes" in answer.json()["detail"]


def test_a_body_that_is_not_json_is_refused(service):
    for body in (b'{"time": "\xff"}', b"[" * 100_000, b'{"wind_kt": ' + b"9" * 5000 + b"}"):
        answer = service.post(body)
        assert (answer.status_code, answer.json()) == (400, {"detail": "There was an error parsing the body"})
    assert "send JSON" in service.refusal(json.dumps("text"))[1] and "JSON" in service.refusal("{")[1]
    answer = service.post(**{"Content-Type": "text/plain"})
    assert answer.status_code == 422 and "with the header Content-Type: application/json" in answer.text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from([*IAN]), inner))
times = st.datetimes(timezones=st.none() | st.timezones()).map(str)
times = times | st.from_regex(r"\A[\d-]{10}T[\d:.+Z-]{5,}")
numbers = st.floats(0, 100) | st.floats() | st.integers(-200, 1100)
changed = {"time": times | anything, **dict.fromkeys(INPUTS, numbers | anything)}
storms = st.fixed_dictionaries({}, optional=changed).map(lambda changes: IAN | changes) | anything
bodies = storms | st.lists(storms, max_size=4).map(lambda several: {"storms": several})


@settings(deadline=None, max_examples=200, database=None)
@given(body=bodies, path=st.sampled_from(["forecast", "forecasts"]))
@example(body=IAN | {"time": "2022-09-27T12:00:00+23:59:59.999999"}, path="forecast")
def test_whatever_is_sent_is_answered_or_refused_and_is_never_the_servers_fault(service, body, path):
    answer = service.post(body, path)
    assert answer.status_code in (200, 400, 422)
    if answer.status_code == 200:
        for one in answer.json().get("forecasts", [answer.json()]):
            assert one["wind_kt_low"] <= one["wind_kt"] <= one["wind_kt_high"]
    elif answer.status_code == 422:  # in the form that the docs show
        for problem in answer.json()["detail"]:
            assert problem["msg"] and problem["type"] and problem["loc"][0] == "body" and "input" in problem


@pytest.mark.campaign
def test_a_body_that_never_comes_is_given_up_and_keeps_nobody_waiting(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as slow:
        slow.sendall(b"POST /forecast HTTP/1.1\r\nHost: x\r\nContent-Length: 200\r\n\r\n{")
        assert [service.post().status_code for _ in range(50)] == [200] * 50
        assert service.counted()["http_requests_total", "POST", "/forecast", "408"] == 0  # it still waits
        said = slow.recv(10_000).decode()
    assert said.startswith("HTTP/1.1 408") and "did not come in 10 seconds" in said


# --- the forecast log, and what is printed and counted ---

def test_a_forecast_is_in_the_log_before_it_is_answered(service):
    for storm in SAMPLE[:20]:
        answer = service.post(storm, **{"X-Client": 'the "harbour" Ü'.encode("latin-1")})
        line, = service.logged(answer)
        assert line.pop("at").endswith("Z") and answer.json()["model_version"] == OLD
        assert line == {"request_id": answer.headers["X-Request-ID"], "client": 'the "harbour" Ü',
                        "storm": storm, "forecast": answer.json()}
    answer = service.post({"storms": SAMPLE}, "forecasts")
    assert [line["storm"] for line in service.logged(answer)] == SAMPLE
    assert [line["forecast"] for line in service.logged(answer)] == answer.json()["forecasts"]


def test_a_request_id_is_kept_if_it_is_a_plain_word_and_replaced_if_not(service):
    for plain in ("b7d9:4.2_x-1", "x" * 100):
        assert service.post(**{"X-Request-ID": plain}).headers["X-Request-ID"] == plain
    for strange in ("a b", 'a"b', r"a\nb", "a%0Ab", "a\tb", "x" * 300, "é", '","status":200,"x":"'):
        answer = service.post(**{"X-Request-ID": strange.encode("latin-1")})
        assert answer.headers["X-Request-ID"] != strange and len(service.logged(answer)) == 1


@pytest.mark.parametrize("body, status, refused", [
    (IAN | {"wind_kt": 500}, 422, [500]), (b" " * 1_000_001, 413, []), (b"\xff", 400, [])],
    ids=[422, 413, 400])
def test_a_refusal_is_logged_with_what_was_refused(service, body, status, refused):
    line, = service.logged(service.post(body, **{"X-Client": "harbour"}))
    assert (line["path"], line["status"], line["client"]) == ("/forecast", status, "harbour")
    assert [problem["input"] for problem in line["refused"] or []] == refused


def test_each_request_is_one_line_of_json_on_stdout(service):
    asked = {"forecast": 200, "forecasts": 422, "no/such/path": 404}
    ids = {service.post(IAN, path).headers["X-Request-ID"]: path for path in asked}
    eventually(lambda: ids.keys() <= {line.get("request_id") for line in service.printed()})
    lines = [line for line in service.printed() if line.get("request_id") in ids]
    assert [(line["status"], line["path"]) for line in lines] == [
        (200, "/forecast"), (422, "/forecasts"), (404, "other")]
    assert all(line["method"] == "POST" and line["milliseconds"] > 0 for line in lines)


def test_the_metrics_count_requests_and_forecasts_and_repeat_no_text_of_a_request(service):
    before = service.counted()
    answer = service.post({"storms": SAMPLE}, "forecasts")
    service.post({})
    for path in ("no/such/path", "such%22%7D", "forecast?such"):
        service.get(path)
    requests.request("SUCH", service.url)
    grown = (now := service.counted()) - before
    assert not any("such" in label.lower() for key in now for label in key)
    assert grown["http_requests_total", "POST", "/forecasts", "200"] == 1
    assert grown["http_requests_total", "POST", "/forecast", "422"] == 1
    assert grown["http_requests_total", "GET", "other", "404"] == 2
    assert grown["http_request_seconds_count", "/forecasts"] == 1
    for category, many in Counter(each["category"] for each in answer.json()["forecasts"]).items():
        assert grown["forecasts_total", category, OLD] == many


def test_two_workers_lose_and_double_nothing_and_count_together(start):
    service, came = start("--workers", "2"), []
    while len(list(service.logs.glob("*"))) < 2:  # until both have answered
        came.append(service.post())
    with ThreadPoolExecutor(8) as pool:
        came += pool.map(lambda _: service.post(), range(400))
    assert {answer.status_code for answer in came} == {200}
    assert sorted(line["request_id"] for line in service.logged()) == sorted(
        answer.headers["X-Request-ID"] for answer in came)
    for _ in range(10):  # whichever worker is asked
        assert service.counted()["forecasts_total", came[0].json()["category"], OLD] == len(came)
    eventually(lambda: service.counted()["http_requests_total", "POST", "/forecast", "200"] == len(came))


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.campaign)])
def test_what_was_answered_before_a_kill_is_in_the_log(start, times, workers):
    for _ in range(times):
        service = start("--workers", workers)
        with clients(service) as (came, broken):
            eventually(lambda: len(came) > 50)
            service.kill()
            eventually(lambda: len(broken) == 4)
        answered = [answer.headers["X-Request-ID"] for answer in came if answer.status_code == 200]
        logged = Counter(line["request_id"] for line in service.logged())
        assert len(answered) == len(came) and all(logged[each] == 1 for each in answered)


@pytest.mark.parametrize("below", [".", "logs"])
def test_without_a_log_there_is_no_forecast_until_it_can_be_written(start, tmp_path, below):
    (tmp_path / "taken").write_text("a file where a folder should be")
    service = start(WORKSHOP_LOG_DIR=str(tmp_path / "taken" / below))
    for answer in (service.post(), service.post({"storms": [IAN]}, "forecasts")):
        assert answer.status_code == 503 and str(tmp_path / "taken") in answer.json()["detail"]
        assert "No forecast without a record of it, and the log can't be written" in answer.text
    assert service.refusal(IAN | {"wind_kt": 5})[0] == ["body", "wind_kt"] and service.get("health").ok
    assert not any("forecasts_total" in key for key in service.counted())
    (tmp_path / "taken").unlink()
    service.logs = tmp_path / "taken" / below
    assert len(service.logged(service.post())) == 1


@linux
def test_a_full_disk_costs_forecasts_and_neither_the_log_nor_the_process(start):
    service = start()
    service.process.rlimit(psutil.RLIMIT_FSIZE, (30_000, -1))  # then writing more to a file fails, as there
    came = [service.post({"storms": SAMPLE[:7]}, "forecasts") for _ in range(20)]
    assert [answer.status_code for answer in came] == sorted(answer.status_code for answer in came)
    assert came[0].ok and came[-1].status_code == 503 and "can't be written" in came[-1].json()["detail"]
    eventually(lambda: service.post().status_code == 503)  # a smaller one: there was room for some
    assert service.get("health").ok and service.get("metrics").ok
    log, = service.logs.glob("*")
    assert all(map(json.loads, log.read_bytes().splitlines()))  # not one line is cut short
    assert all(sum("forecast" in line for line in service.logged(answer)) == 7 * answer.ok for answer in came)
    service.process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
    answer = service.post()
    assert answer.ok and len(service.logged(answer)) == 1


@linux
def test_a_log_that_is_deleted_under_the_server_begins_anew(start):
    service = start()
    for _ in range(3):
        assert len(service.logged(service.post())) == 1
        shutil.rmtree(service.logs)
    assert len(service.logged(service.post())) == 1
    for file in Path(f"/proc/{service.process.pid}/fd").iterdir():  # kept open, it would still fill the disk
        with suppress(FileNotFoundError):  # a connection that has just ended
            assert "(deleted)" not in os.readlink(file)


# --- new versions ---

def served(service, version, refused=None):
    """Wait until the server says that it answers with this version."""
    state = {"status": "ok", "model_version": version, "refused_version": refused}
    eventually(lambda: service.get("health").json() == state, 5)


def note(folder, *lines):
    """Add to the versions' history, as by hand."""
    with open(folder / "history.jsonl", "a") as history:
        history.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize("workers, times", [("1", 3), pytest.param("2", 50, marks=pytest.mark.campaign)])
def test_promoting_and_rolling_back_under_load_fails_no_request(start, own_models, workers, times):
    service = start("--workers", workers)
    right = {version: forecasts([Storm(**IAN)], registry.load(version))[0].model_dump(mode="json")
             for version in (OLD, NEW)}
    with clients(service) as (came, broken):
        for _ in range(times):
            registry.promote(NEW, "test")
            served(service, NEW)
            assert registry.roll_back("test") == OLD
            served(service, OLD)
        registry.promote(NEW, "for good")
        eventually(lambda: all(service.post().json() == right[NEW] for _ in range(20)))
    assert broken == [] and {answer.status_code for answer in came} == {200}
    assert {answer.json()["model_version"] for answer in came} == {OLD, NEW}
    assert all(answer.json() == right[answer.json()["model_version"]] for answer in came)
    assert service.get("model").json()["version"] == NEW


@pytest.mark.parametrize("damage", [lambda content: content[:-100],
                                    lambda content: content[:5000] + b"!" + content[5001:]],
                         ids=["cut short", "a byte changed"])
def test_a_damaged_version_is_refused_until_it_is_mended(start, own_models, damage):
    service, file = start(), own_models / NEW / "model.onnx"
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    with pytest.raises(registry.RegistryError, match=f"Version {NEW} is damaged"):
        registry.promote(NEW, "test")
    assert registry.current() == OLD
    note(own_models, json.dumps({"event": "promoted", "version": NEW}))  # past that check
    served(service, OLD, refused=NEW)
    assert service.post().json()["model_version"] == OLD
    assert any(f"Version {NEW} is damaged" in line.get("event", "") for line in service.printed())
    assert registry.roll_back("it is damaged") == OLD
    served(service, OLD)
    file.write_bytes(sound)
    registry.promote(NEW, "mended")
    served(service, NEW)
    assert registry.roll_back("on second thoughts") == OLD
    served(service, OLD)


def test_a_torn_or_foreign_line_in_the_history_stops_no_new_version(start, own_models):
    service = start()
    note(own_models, '{"event": "checked", "by": "hand"}', '{"at": "2026-0')
    registry.promote(NEW, "test")
    served(service, NEW)


# --- who may ask, from where, and how it ends ---

def test_with_a_key_only_those_who_send_it_are_answered(start, service):
    guarded = start(WORKSHOP_API_KEY="lighthouse")
    for key in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": b"\xe4"}):
        for answer in guarded.post(**key), guarded.post({}, "forecasts", **key), guarded.get("model", **key):
            assert answer.status_code == 401 and "in the header X-API-Key" in answer.json()["detail"]
    key = {"X-API-Key": "lighthouse"}
    assert guarded.post(**key).ok and guarded.get("model", **key).ok
    assert all(guarded.get(path).ok for path in ("", "health", "metrics", "docs"))
    schema = guarded.get("openapi.json").json()
    scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    assert scheme in schema["components"]["securitySchemes"].values()
    assert schema["paths"]["/forecast"]["post"]["security"] == [{"APIKeyHeader": []}]
    assert "securitySchemes" not in service.get("openapi.json").json()["components"]
    assert "lighthouse" not in json.dumps(guarded.printed() + guarded.logged())


def test_a_taken_port_and_an_open_door_are_said_in_one_line_each(start, service):
    second = start("--port", str(service.port), ready=False)  # the last one counts
    assert second.process.wait(20) == 1
    line, = second.text("err").splitlines()
    assert line.startswith(f"Port {service.port} of 127.0.0.1 can't be had") and "another --port" in line
    warning = "WARNING: others can reach it, and it asks for no key"
    assert warning in start("--host", "0.0.0.0").text("err") and "can reach" not in service.text("err")


@posix
@pytest.mark.parametrize("workers, end", [("1", "Ctrl-C"), ("2", "Ctrl-C"), ("2", "a kill")])
def test_the_server_ends_with_all_its_workers(start, workers, end):
    service = start("--workers", workers)
    if end == "Ctrl-C":
        os.killpg(service.process.pid, signal.SIGINT)  # as a terminal does
    else:
        service.process.kill()  # the supervisor alone
    eventually(lambda: gone(service.family) and not healthy(service))
    assert len(service.family) >= int(workers) and "Traceback" not in service.text("err")


def test_nothing_is_left_in_the_temporary_folder(start):
    service = start("--workers", "2")
    service.process.terminate()
    service.process.wait(20)
    assert [path.name for path in (service.folder / "temporary").iterdir()] == []  # nor a library's telemetry


def test_behind_a_prefix_the_docs_and_the_page_use_addresses_that_fit(service):
    prefix = "/user/learner/proxy/8000"
    behind = {"X-Forwarded-Prefix": prefix}
    assert check_docs(f"{service.url}/docs", headers=behind)["servers"] == [{"url": prefix}]
    page = service.get("", **behind).text
    links = [part.split('"')[0] for part in page.split('<a href="')[1:]]
    assert [urljoin(f"{prefix}/", link) for link in links] == [f"{prefix}/docs", f"{prefix}/model"]
    assert "http" not in page and 'src="' not in page and service.post(**behind).ok


@pytest.mark.parametrize("workers", [1, 2])
def test_a_notebook_launches_the_service_again_at_its_port_and_stops_it(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("WORKSHOP_LOG_DIR", str(tmp_path / "logs"))
    first = server.launch_service(workers=workers)
    try:
        assert requests.post(f"{first.url}/forecast", json=IAN).json()["model_version"] == OLD
        second = server.launch_service(workers=workers)
        assert second.port == first.port and not first.running
        assert requests.post(f"{second.url}/forecast", json=IAN).ok and f"{second.url}/docs" in repr(second)
        eventually(lambda: '"path": "/forecast"' in second.log())
        family = psutil.Process(second.pid).children(recursive=True)
        second.stop()
        eventually(lambda: gone(family))
        socket.create_server(("127.0.0.1", second.port)).close()  # it is free
    finally:
        server._running.pop("service").stop()
    assert len(list(records.read(*(tmp_path / "logs").iterdir()))) == 2


# --- the page ---

class Browser:
    """Headless Chromium, driven as its own developer tools drive it."""

    def __init__(self, folder):
        options = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking",
                   "remote-debugging-port=0", f"user-data-dir={folder}")
        options = ["chromium", *(f"--{option}" for option in options)]
        self.process = psutil.Popen(options, stderr=subprocess.DEVNULL)
        told = folder / "DevToolsActivePort"
        eventually(lambda: told.exists() and "\n" in told.read_text())
        tab = requests.put(f"http://127.0.0.1:{told.read_text().split()[0]}/json/new").json()
        self.tab = websocket.create_connection(tab["webSocketDebuggerUrl"], suppress_origin=True, timeout=30)
        self.requested = []  # the addresses, since Network.enable

    def call(self, method, **parameters):
        self.tab.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while (message := json.loads(self.tab.recv())).get("id") != 1:
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        return message["result"]

    def get(self, element, what="textContent"):
        script = f"document.getElementById('{element}').{what}"
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def enter(self, element, value, event="input"):
        self.get(element, f"value = {json.dumps(value)}")
        self.get(element, f"dispatchEvent(new Event('{event}', {{bubbles: true}}))")

    def shows(self, expected, element, what="textContent"):
        eventually(lambda: expected in str(self.get(element, what))
                   and self.get("result", "ariaBusy") == "false")


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path)
    family = [opened.process, *opened.process.children(recursive=True)]
    yield opened
    opened.call("Browser.close")
    opened.process.wait(20)
    eventually(lambda: gone(family))


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_in_a_browser_the_page_forecasts_what_is_chosen_and_says_what_is_refused(service, browser):
    browser.call("Network.enable")
    browser.call("Page.navigate", url=service.url)
    examples = registry.load().card["examples"]
    eventually(lambda: browser.get("example", "options.length") == 1 + len(examples))
    for number, known in enumerate(examples):
        browser.enter("example", str(number), "change")
        browser.shows(f"what really came: {known['wind_kt_in_24h']:g} kt", "scale", "ariaLabel")
        assert json.loads(browser.get("request")) == known["storm"]
        assert (answer := json.loads(browser.get("response"))) == service.post(known["storm"]).json()
        low, middle, high = (int(answer[f"wind_kt{end}"] + 0.5) for end in ("_low", "", "_high"))
        assert f"{middle} kt, 80 %: {low} to {high} kt" in browser.get("details")
    before = browser.get("details")
    browser.enter("wind_kt-slider", "120")
    browser.shows("now 120 kt", "scale", "ariaLabel")
    assert browser.get("wind_kt", "value") == "120" and browser.get("details") != before
    assert f"curl '{service.url}/forecast'" in browser.get("curl")
    browser.get("unknown", "click()")
    browser.shows('"pressure_hpa": null', "request")
    browser.enter("wind_kt", "500")
    browser.get("ask", "click()")
    browser.shows("knots: 10 to 200", "wind_kt-error")
    assert browser.get("category") == "No forecast"
    assert all(url.startswith((service.url, "data:")) for url in browser.requested) and browser.requested
