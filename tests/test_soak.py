"""The service over a long time: a million forecasts, and workers that are killed while it is asked."""
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest
import requests

from conftest import posix, tried
from test_api import IAN, SAMPLE, gone, healthy, linux, models, start  # two of them fixtures
from test_server import eventually


def lines_per_request(service):
    """How many forecasts the log holds for each request. It may be long: read line by line, then deleted."""
    lines = Counter()
    for file in service.logs.iterdir():
        with open(file, "rb") as log:
            for line in map(json.loads, log):  # each can be read
                assert line["storm"]["time"] and line["forecast"]["wind_kt"]
                lines[line["request_id"]] += 1
        file.unlink()
    return lines


@pytest.mark.parametrize("batches, singles", [
    (20, 1000), pytest.param(980, 20_000, marks=pytest.mark.campaign)], ids=["a sample", "a million"])
def test_memory_stays_as_it_is_and_each_answered_storm_is_a_line_of_the_log(start, batches, singles):
    service, answered, sizes = start(), Counter(), []
    many = json.dumps({"storms": (SAMPLE * 4)[:1000]})
    local = threading.local()

    def ask(path, body, storms):
        local.session = getattr(local, "session", None) or requests.Session()
        answer = local.session.post(f"{service.url}/{path}", data=body, timeout=30,
                                    headers={"Content-Type": "application/json"})
        assert answer.status_code == 200 and answer.text.count("valid_time") == storms
        answered[answer.headers["X-Request-ID"]] += storms
        sizes.append(service.process.memory_info().rss)

    with ThreadPoolExecutor(2) as pool:  # no more than the machine has
        list(pool.map(lambda _: ask("forecasts", many, 1000), range(batches)))
        list(pool.map(lambda _: ask("forecast", json.dumps(IAN), 1), range(singles)))
    assert answered.total() == 1000 * batches + singles
    lines = lines_per_request(service)
    if batches == 980:
        tried("forecasts of one service, each of them a line of its log", answered.total(), (answered - lines).total())
    assert lines == answered
    assert max(sizes[batches // 10:]) < 1.1 * sizes[batches // 10], "memory grew after the first tenth"
    assert "Traceback" not in service.text("err")


@linux
def test_a_service_out_of_file_descriptors_goes_on_when_there_are_some_again(start):
    service = start()
    right = service.post().json()
    service.process.rlimit(psutil.RLIMIT_NOFILE, (60, 60))
    with ExitStack() as crowd:
        for _ in range(150):
            crowd.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=5))
        with pytest.raises(requests.RequestException):
            requests.post(f"{service.url}/forecast", json=IAN, timeout=1)
    eventually(lambda: healthy(service))
    answer = service.post()
    assert answer.json() == right and len(service.logged(answer)) == 1


@posix
@pytest.mark.parametrize("workers, kills, every", [
    (2, 2, 0), pytest.param(4, 6, 10, marks=pytest.mark.campaign)], ids=["a sample", "a minute"])
def test_a_killed_worker_costs_what_it_was_at_work_on_and_is_replaced(start, workers, kills, every):
    service, stop, clients = start("--workers", str(workers)), threading.Event(), 4
    answered, failed, deaths = [], [], []

    def go_on_asking():
        while not stop.is_set():
            begun = time.monotonic()
            try:  # a connection for each request: one that was kept could be lost before the request is made
                answer = requests.post(f"{service.url}/forecast", json=IAN, timeout=30)
                assert answer.status_code == 200
                answered.append(answer.headers["X-Request-ID"])
            except requests.RequestException:
                failed.append((begun, time.monotonic()))

    def alive():
        found = []
        for child in service.process.children():
            with suppress(psutil.NoSuchProcess):  # or what is left of one
                found += [child] * ("spawn_main" in " ".join(child.cmdline()))
        return found

    def all_answer(ever):  # each worker writes a file of its own, with its first answer
        return len(alive()) == workers and len([*service.logs.glob("*")]) == ever

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(go_on_asking) for _ in range(clients)]
        try:
            eventually(lambda: all_answer(workers))
            first = time.monotonic()
            for number in range(kills):
                eventually(lambda: time.monotonic() >= first + number * every, 60)
                oldest, begun = min(alive(), key=lambda process: process.create_time()), time.monotonic()
                oldest.kill()
                eventually(lambda: gone([oldest]))
                deaths.append((begun, time.monotonic()))
                eventually(lambda: all_answer(workers + len(deaths)), 60)
        finally:
            stop.set()
    for client in asking:
        client.result()
    for begun, ended in failed:
        assert any(begun <= dead and ended >= killed for killed, dead in deaths), "no worker was killed then"
    assert len(failed) <= kills * clients
    lines = lines_per_request(service)
    assert len(set(answered)) == len(answered) and all(lines[each] == 1 for each in answered)
    assert lines.total() <= len(answered) + len(failed)  # a line may be there, and its answer not
    service.family = [service.process, *service.process.children(recursive=True)]  # the new ones end, too
    if every:
        tried("requests while one of four workers is killed every ten seconds", len(answered) + len(failed),
              len(failed))
