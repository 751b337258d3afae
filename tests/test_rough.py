"""Rough handling and a shared host: many learners at once, kills, full disks, folders that can't be written
to, a clock that jumps, folders from an older version, cells out of order. What may be lost is the work that
was under way; never what was there before, and the same command works again once the trouble is over."""
import ast
import builtins
import dataclasses
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import nbformat
import onnx
import papermill
import psutil
import pytest
import requests
from jupyter_client import BlockingKernelClient, KernelManager

import test_api
from conftest import posix, tried
from test_api import IAN, clients
from test_cli import BARE, answers, checkout, copy_checkout, surroundings, workshop, write_notebook
from test_exercises import category
from test_notebooks import NOTEBOOKS, cells, processes_of
from test_registry import save
from test_server import APP, LAUNCH, WHERE, eventually, gone, new_kernel, run, where
from workshop import ROOT, cli, lesson, monitor, records, registry
from workshop.forecaster import Storm, forecast

JOBS = Path(ROOT, "notebooks", "jobs")
ON_A_HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"}  # where `lab` starts nothing and comes back
FULL = "[Errno 28] No space left on device"


def ended(processes):
    """True if none of the processes runs; one that a container's init did not collect has ended as well."""
    def runs(process):
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return not any(map(runs, processes))


def answer_of(version):
    """What a version in $WORKSHOP_MODEL_DIR, the one in use if None, answers for the course's storm."""
    return forecast(Storm(**IAN), registry.load(version)).model_dump(mode="json")


def assert_in_a_line(answer, *words):
    """A verb has failed with these words, and said so in its last line, without a stack trace."""
    assert answer.returncode == 1 and "Traceback" not in answer.stderr, answer
    *_, last = answer.stderr.splitlines() or [""]
    assert [word for word in words if word not in last] == [], last


# --- a shared host ---

MEET = """import time; from pathlib import Path
meeting, deadline = Path({0!r}), time.monotonic() + 300
(meeting / str(server.port)).touch()
while len(list(meeting.iterdir())) < {1}:  # until so many servers run, each at a port of its own
    assert time.monotonic() < deadline, "the others did not come"
    time.sleep(0.05)"""


def learner_of(folder, model, examples, meeting, learners):
    """A learner's checkout with a model of its own, whose notebook 04 waits for the others' servers."""
    copy_checkout(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(folder / "models"))
        registry.promote(registry.save(model, examples, folder.name), "mine")
        answer = answer_of(folder.name)
    path = folder / "notebooks" / NOTEBOOKS[4].name
    notebook = nbformat.read(path, 4)
    launch = next(place for place, cell in enumerate(notebook.cells) if "= launch(app)" in cell.source)
    notebook.cells.insert(launch + 1, nbformat.v4.new_code_cell(MEET.format(str(meeting), learners)))
    nbformat.write(notebook, path)
    return answer


@pytest.mark.campaign
def test_learners_who_run_notebook_04_at_once_on_one_host_each_get_the_answer_of_their_own_model(
        tmp_path, surroundings, learners=8):
    if psutil.virtual_memory().available < learners * 2**30:
        pytest.skip(f"{learners} learners at once need {learners} GB of free memory")
    host, meeting = tmp_path / "temporary", tmp_path / "meeting"  # of one host: all share the first
    host.mkdir()
    meeting.mkdir()
    examples = test_api.EXAMPLES.query("2012 <= season <= 2015")
    model = test_api.train(examples)
    expected, runs = {}, {}
    for number in range(learners):
        own = dataclasses.replace(model, margin_kt=(number, 0, number + 1))
        folder = tmp_path / f"learner-{number}"
        expected[folder] = learner_of(folder, own, examples, meeting, learners)
    for folder in expected:
        env = surroundings | {"TMPDIR": str(host), "JUPYTER_DATA_DIR": str(folder / "jupyter"),
                              "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
        with open(folder / "out", "wb") as out:
            runs[folder] = subprocess.Popen([sys.executable, "-m", "workshop", "run", "04"], cwd=folder,
                                            env=env, stdout=out, stderr=subprocess.STDOUT)
    codes = {folder.name: process.wait(600) for folder, process in runs.items()}
    assert set(codes.values()) == {0}, {folder.name: (folder / "out").read_text()[-600:] for folder in runs}
    for folder, answer in expected.items():
        asked = next(cell for cell in cells(folder / "runs" / NOTEBOOKS[4].name, "code")
                     if "json=ian" in cell.source and cell.source.endswith("response.json()"))
        assert ast.literal_eval(asked.outputs[-1].data["text/plain"]) == answer
    assert len({answer["wind_kt_high"] for answer in expected.values()}) == learners, "the answers differ"
    assert len(list(meeting.iterdir())) == learners, "each had a port of its own"
    eventually(lambda: ended(processes_of(tmp_path)))
    assert list(host.iterdir()) == [] == list(tmp_path.glob("learner-*/runtime/*.json"))
    tried("learners who ran notebook 04 at once on one host", learners)


# --- an odd workspace ---

@pytest.mark.campaign
def test_every_notebook_runs_where_the_environment_is_set_for_other_programs(tmp_path, surroundings):
    """By an administrator, or by a shell's profile of ten years ago."""
    proxy, nowhere = "http://127.0.0.1:9", str(tmp_path / "nowhere")  # nobody listens there
    odd = {"HTTP_PROXY": proxy, "https_proxy": proxy, "ALL_PROXY": "socks5://127.0.0.1:9", "no_proxy": "files.test",
           "HOME": "/proc/nobody", "PYTHONPATH": nowhere, "TZ": "Pacific/Kiritimati", "LC_ALL": "C",
           "MPLBACKEND": "TkAgg", "OMP_NUM_THREADS": "64", "PYTHONWARNINGS": "default", "SSL_CERT_FILE": nowhere,
           "REQUESTS_CA_BUNDLE": nowhere, "PAGER": "less", "COLUMNS": "20", "TERM": "dumb", "PYTHONDEVMODE": "1"}
    checkout, before = copy_checkout(tmp_path / "curso de María"), os.umask(0o077)
    try:
        told = workshop(checkout, "run", env=surroundings | odd)
    finally:
        os.umask(before)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count(" s  ok\n") == len(NOTEBOOKS)
    tried("notebooks in a workspace whose environment is set for other programs", len(NOTEBOOKS))


# --- kills ---

LOADING = "import sys, time\nif 'ipykernel' not in sys.modules:\n    open('loading', 'w'); time.sleep(600)\n"


@posix
def test_a_kernel_that_is_killed_while_it_launches_an_app_leaves_nothing_and_the_next_one_works(new_kernel):
    manager, client, folder = new_kernel()
    run(client, LOADING + APP)
    client.execute(LAUNCH)
    eventually((folder / "loading").exists)
    child, = psutil.Process(manager.provisioner.pid).children()
    own = Path(json.loads(child.cmdline()[-1])[0])
    assert own.exists()
    os.kill(manager.provisioner.pid, signal.SIGKILL)
    eventually(lambda: ended([child]) and not own.exists())
    manager.restart_kernel()
    client.wait_for_ready(timeout=60)
    assert "app runs" in run(client, APP, LAUNCH)


@posix
@pytest.mark.campaign
@pytest.mark.parametrize("step", ["log", "port-*"])
def test_a_kernel_that_is_killed_at_any_step_of_a_launch_leaves_nothing(step, new_kernel):
    manager, client, _ = new_kernel()
    for _ in range(10):
        run(client, APP)
        client.execute(LAUNCH)
        kernel, children = psutil.Process(manager.provisioner.pid), []

        def at_that_step():
            children[:] = [child for child in kernel.children() if "workshop.server" in child.cmdline()]
            return children and glob.glob(json.loads(children[0].cmdline()[-1])[0] + "/" + step)
        eventually(at_that_step)
        own = Path(json.loads(children[0].cmdline()[-1])[0])
        kernel.kill()
        eventually(lambda: ended(children) and not own.exists())
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
    tried(f"kernels killed during a launch, once there was {step}", 10)


@posix
@pytest.mark.campaign
def test_a_jupyterlab_that_is_killed_leaves_nothing_running_and_lab_starts_again(
        checkout, surroundings, tmp_path):
    runtime = tmp_path / "runtime"
    env = surroundings | {"JUPYTER_RUNTIME_DIR": str(runtime), "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "workshop", "lab", "--no-browser", "--port", str(port)]
        lab = subprocess.Popen(command, cwd=checkout, env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            address = next(line.strip() for line in iter(lab.stdout.readline, "") if "token=" in line)
            assert answers(address)
            server, token = address.split("lab/")[0], address.split("=")[1]

            def start_kernel():
                asked = urllib.request.Request(f"{server}api/kernels?token={token}",
                                               data=b'{"name": "production-ml"}')
                made = json.load(urllib.request.urlopen(asked, timeout=60))["id"]
                client = BlockingKernelClient(connection_file=str(runtime / f"kernel-{made}.json"))
                client.load_connection_file()
                client.start_channels()
                client.wait_for_ready(timeout=60)
                run(client, f"import sys; sys.path.insert(0, {str(checkout)!r})")
                return client
            idle, busy = start_kernel(), start_kernel()
            run(idle, APP, LAUNCH)
            left = where(idle)
            busy.execute(f"open({str(tmp_path / 'busy')!r}, 'w')\nwhile True: pass")
            eventually((tmp_path / "busy").exists)
            family = psutil.Process(lab.pid).children(recursive=True)
            assert len(family) >= 3
        finally:
            lab.kill()
            lab.wait()
            lab.stdout.close()
        idle.stop_channels()
        busy.stop_channels()
        eventually(lambda: ended(family) and gone(*left))
        (tmp_path / "busy").unlink()
        assert list((tmp_path / "temporary").iterdir()) == []
    tried("JupyterLabs killed over a busy kernel and one with a server", 3)


@posix
@pytest.mark.campaign
def test_a_run_that_is_killed_leaves_neither_kernel_nor_server_and_the_next_run_works(checkout, surroundings):
    path, told = checkout / "notebooks/00_start_here.ipynb", checkout / "notebooks/told"
    here = "import sys; sys.path.insert(0, '..')"
    endless = WHERE.replace(")", ", file=open('told', 'w'), flush=True)") + "\nwhile True: pass"
    write_notebook(path, here, APP, LAUNCH, endless)
    process = subprocess.Popen([sys.executable, "-m", "workshop", "run", "0"], cwd=checkout, env=surroundings,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: told.exists() and told.read_text().endswith("\n"), 60)
        pid, port, folder = told.read_text().split()
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: ended(family) and gone(int(pid), int(port), folder))
    write_notebook(path, here, APP, LAUNCH)
    assert workshop(checkout, "run", "0", env=surroundings).returncode == 0
    eventually(lambda: ended(processes_of(checkout)))


@posix
@pytest.mark.campaign
def test_a_notebook_that_can_not_go_on_is_reported_and_the_others_get_their_turn(checkout, surroundings):
    out_of_memory = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"  # as systems do then
    write_notebook(checkout / "notebooks/00_start_here.ipynb", out_of_memory)
    (checkout / "notebooks/01_fails.ipynb").write_text('{"cells": [')  # cut short
    answer = workshop(checkout, "run", env=surroundings)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert re.search(r"(?m)^00_start_here .* FAILED: DeadKernelError: Kernel died", answer.stdout)
    assert re.search(r"(?m)^01_fails .* FAILED: NotJSONError: ", answer.stdout)
    assert re.search(r"(?m)^02_fine .* ok$", answer.stdout)


# --- full disks ---

class Disk:
    """A file system of its own, so small that it can be filled."""

    def __init__(self, folder):
        self.folder, self._ballast = folder, folder / "ballast"

    def fill(self, leave=0):
        """Leave so many bytes, in pages of 4,096."""
        with open(self._ballast, "wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        os.truncate(self._ballast, self._ballast.stat().st_size - leave)

    def free(self):
        self._ballast.unlink()

    def path(self, name):
        """A new folder on it."""
        (self.folder / name).mkdir(parents=True)
        return self.folder / name


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted only by root, on Linux")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def up_to_a_page(path, but=0):
    """Add a line of another kind, so that the file fills its pages on the disk, except for some bytes."""
    size = path.stat().st_size if path.exists() else 0
    with open(path, "ab") as file:
        file.write(b'{"note": "%s"}\n' % (b"x" * (-(size + 13 + but) % 4096)))
    assert path.stat().st_size % 4096 == -but % 4096


@pytest.fixture
def good(disk, save, monkeypatch):
    """A folder of versions on the small disk, with one in use."""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(disk.folder / "models"))
    registry.promote(save("good"), "the first")
    return disk.folder / "models"


def save_on_a_full_disk(disk, save, room):
    """Save a version where there is so much room; later there is enough, and the same call saves it."""
    before = registry.history()
    disk.fill(leave=room)
    with pytest.raises(OSError, match=re.escape(FULL)):
        save("next", other=True)
    assert registry.current() == registry.load().version == "good" and registry.history() == before
    there = sorted(path.name for path in registry.folder().iterdir())
    disk.free()
    assert save("next", other=True) == "next" and registry.versions() == ["good", "next"]
    registry.promote("next", "there is room")
    assert registry.load().version == "next" and registry.roll_back("on second thoughts") == "good"
    return there


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_version_that_finds_no_room_is_not_there_and_the_same_call_saves_it_later(room, disk, good, save):
    assert save_on_a_full_disk(disk, save, room) == ["good", "history.jsonl"], "not a part of it"


def test_a_version_whose_line_of_history_finds_no_room_is_whole_and_not_in_use(disk, good, save):
    room = sum(-(-file.stat().st_size // 4096) * 4096 for file in (good / "good").iterdir())
    up_to_a_page(good / "history.jsonl")
    assert save_on_a_full_disk(disk, save, room) == ["good", "history.jsonl", "next"]


def test_a_promotion_that_was_cut_short_by_a_full_disk_did_not_happen_and_can_be_repeated(disk, good, save):
    save("next", other=True)
    up_to_a_page(good / "history.jsonl", but=30)
    disk.fill()
    with pytest.raises(OSError, match=re.escape(FULL)):
        registry.promote("next", "better")
    assert not (good / "history.jsonl").read_bytes().endswith(b"\n"), "so it was cut short"
    assert registry.current() == registry.load().version == "good"
    disk.free()
    registry.promote("next", "better")
    events = [(line.get("event"), line.get("version")) for line in registry.history()]
    assert events[-2:] == [(None, None), ("promoted", "next")] and registry.current() == "next"


@pytest.mark.campaign
def test_a_service_whose_disk_is_full_now_and_then_loses_and_invents_no_forecast(
        disk, save, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(save("good"), "the first")
    logs = disk.path("logs")
    service = test_api.Service(tmp_path / "service", "--workers", "2", WORKSHOP_LOG_DIR=str(logs))
    service.logs = logs
    try:
        with clients(service) as (came, broken):
            for _ in range(20):
                def more(status, since):
                    return any(answer.status_code == status for answer in came[since:])
                disk.fill(leave=20_000)
                begin = len(came)
                eventually(lambda: more(503, begin))
                disk.free()
                begin = len(came)
                eventually(lambda: more(200, begin))
        assert not broken and {answer.status_code for answer in came} == {200, 503}
        reasons = {answer.json()["detail"] for answer in came if answer.status_code == 503}
        assert all("the log can't be written: " in reason for reason in reasons)
        for file in service.logs.iterdir():
            assert all(map(json.loads, file.read_bytes().splitlines())), "not one line is cut short"
        logged = [line["request_id"] for line in service.logged() if "forecast" in line]
        answered = [answer.headers["X-Request-ID"] for answer in came if answer.status_code == 200]
        tried("requests to a service whose disk was full 20 times", len(came), len(set(answered) - set(logged)))
        assert sorted(logged) == sorted(answered)
        assert "Traceback" not in service.text("err")
    finally:
        service.kill()


def write_log(folder):
    """A forecast log of one answered storm."""
    folder.mkdir()
    (folder / "forecasts-1.jsonl").write_bytes(records.line(
        at="2022-09-27T12:00:01.000Z", request_id="1", client="harbour", storm=IAN, forecast=answer_of(None)))
    return str(folder)


@pytest.fixture
def job(disk, save, tmp_path, monkeypatch):
    """Run a job whose results go to the small disk."""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(save(), "the first")
    results, log_folder = disk.path("results"), write_log(tmp_path / "logs")
    own = {"report": {"log_folder": log_folder}, "retrain": {"last_season": 2000}, "forecast_season": {}}

    def start(name):
        papermill.execute_notebook(JOBS / f"{name}.ipynb", None, own[name] | {"output_folder": str(results)},
                                   kernel_name="python3", cwd=JOBS, progress_bar=False)
    start.results = results
    return start


@pytest.mark.parametrize("name", ["forecast_season", "report", "retrain"])
@pytest.mark.campaign
def test_a_job_that_finds_no_room_says_so_and_makes_no_half_result_and_works_later(name, disk, job):
    disk.fill(leave=8192)
    with pytest.raises(papermill.PapermillExecutionError) as failed:
        job(name)
    assert (failed.value.ename, failed.value.evalue) == ("OSError", FULL)
    assert list(job.results.iterdir()) == [], "not a part of them"
    disk.free()
    versions = registry.versions()
    job(name)
    whole = {path.name: path.read_bytes() for path in job.results.iterdir() if path.name[0] != "."}
    assert whole and all(whole.values()) and registry.versions() == versions
    disk.fill(leave=8192)
    with pytest.raises(papermill.PapermillExecutionError):
        job(name)
    assert whole == {path.name: path.read_bytes() for path in job.results.iterdir() if path.name[0] != "."}


@pytest.fixture
def my_work(disk, monkeypatch):
    """A learner's folder on the small disk, and we are in it, with an exercise passed."""
    monkeypatch.chdir(disk.path("my_work"))
    assert lesson.check("03.1", category).accepted
    return Path.cwd()


def passed():
    return [line["exercise"] for line in records.read("progress.jsonl") if "exercise" in line]


def test_a_full_disk_spoils_no_check_and_loses_no_progress(disk, my_work):
    up_to_a_page(my_work / "progress.jsonl")
    disk.fill()
    said = lesson.check("03.1", category)
    assert said.accepted and "No space left" in repr(said) and passed() == ["03.1"]
    disk.free()
    assert lesson.check("03.1", category).accepted and passed() == ["03.1"] * 2


def test_progress_that_a_full_disk_has_cut_short_costs_no_later_progress(disk, my_work):
    up_to_a_page(my_work / "progress.jsonl", but=30)
    disk.fill()
    assert lesson.check("03.1", category).accepted
    assert not (my_work / "progress.jsonl").read_bytes().endswith(b"\n"), "so it was cut short"
    disk.free()
    assert lesson.check("03.1", category).accepted and passed() == ["03.1"] * 2


def test_a_full_disk_stops_lab_in_a_line_and_the_next_lab_completes_the_copy(disk, surroundings):
    course = copy_checkout(disk.folder / "course")
    mine = course / "my_work/01_explore_data.ipynb"
    mine.parent.mkdir()
    mine.write_text("my own words")
    disk.fill(leave=60_000)
    env = surroundings | ON_A_HUB | {"JUPYTER_SERVER_ROOT": str(course)}
    assert_in_a_line(workshop(course, "lab", env=env), "`lab` was stopped: ", FULL)
    told = workshop(course, "doctor", env=env, python=(*BARE, "-B"))
    assert told.returncode == 1 and re.search("bad +Free disk .*\n +.*delete what you can spare", told.stdout)
    for copy in course.glob("my_work/**/*.ipynb"):
        assert copy == mine or nbformat.read(copy, 4).cells, "a copy is whole, or not there"
    disk.free()
    assert workshop(course, "lab", env=env).returncode == 0
    here, there = ({path.relative_to(course / name) for path in (course / name).rglob("*.*")}
                   for name in ("my_work", "notebooks"))
    assert here == there and mine.read_text() == "my own words"


@pytest.mark.campaign
def test_a_run_that_finds_no_room_prints_its_report_and_says_so_in_a_line_and_works_later(
        disk, checkout, surroundings):
    def run_again():
        return workshop(checkout, "run", "0", "--output", out, env=surroundings)
    out = disk.path("out")
    assert run_again().returncode == 0
    (out / "report.html").unlink()
    write_notebook(checkout / "notebooks/00_start_here.ipynb", "print('a long text ' * 2000)")
    disk.fill()
    answer = run_again()
    assert_in_a_line(answer, "`run` was stopped: ", FULL)
    assert re.search(r"(?m)^00_start_here +[\d.]+ s  (ok|FAILED.*)$", answer.stdout)
    disk.free()
    assert run_again().returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["00_start_here.ipynb", "report.html"]
    assert "a long text" in nbformat.read(out / "00_start_here.ipynb", 4).cells[1].outputs[0].text


# --- a checkout that can't be written to ---

LOCKED = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd "$1" && shift && exec "$@"'


@pytest.fixture
def locked(checkout, surroundings):
    """Call a verb in a checkout that nobody can write to: also for root, whom no permission bits bind."""
    unshare = ["unshare", "--mount", *(["--map-root-user"] if os.name == "posix" and os.getuid() else [])]
    if not shutil.which("unshare") or subprocess.run(
            [*unshare, "sh", "-c", LOCKED, "-", checkout, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a folder read-only (unshare --mount)")

    def call(*arguments, python=(sys.executable,), start=subprocess.run, **env):
        command = [*unshare, "sh", "-c", LOCKED, "-", checkout, *python, "-m", "workshop", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        if start is subprocess.run:
            options["timeout"] = 120  # if it could write, it might run for ever
        return start(command, env=surroundings | ON_A_HUB | env, **options)
    return call


def test_the_doctor_says_that_a_checkout_can_not_be_written_to_and_what_to_do(locked, checkout):
    answer = locked("doctor", python=BARE)
    assert answer.returncode == 1 and not answer.stderr
    advice = "You can't write here: copy it to a place of yours."
    assert f"bad   Folder       {checkout}\n{'':19}{advice}\n" in answer.stdout
    assert answer.stdout.endswith("Things to mend here: Folder.\n")


VERBS = [("lab", "my_work"), pytest.param("run", "runs", marks=pytest.mark.campaign),
         pytest.param("slides", "results", marks=pytest.mark.campaign),
         pytest.param("serve --port 0", "models", marks=pytest.mark.campaign)]


@pytest.mark.parametrize("verb, place", VERBS)
def test_a_verb_says_in_a_line_what_it_can_not_write_and_what_to_do(verb, place, locked, checkout):
    answer = locked(*verb.split())
    assert_in_a_line(answer, f"`{verb.split()[0]}` was stopped: [Errno 30] Read-only file system: ",
                     str(checkout / place), "python3 -m workshop doctor")


def test_where_the_environment_can_not_be_made_setup_says_so_in_a_line(locked, checkout):
    answer = locked("setup", python=BARE)
    assert_in_a_line(answer, f"could not be made in {checkout / '.venv'}: [Errno 30] Read-only file system")


@pytest.mark.campaign
def test_what_a_verb_needs_to_write_can_lie_elsewhere(locked, checkout, tmp_path):
    assert locked("run", "0", "--output", tmp_path / "out").returncode == 0
    assert nbformat.read(tmp_path / "out/00_start_here.ipynb", 4).cells
    shutil.rmtree(checkout / "tests")
    (checkout / "tests").mkdir()
    (checkout / "tests/nbval_sanitize.cfg").write_text("")
    (checkout / "tests/test_it.py").write_text("def test_a(tmp_path): (tmp_path / 'x').touch()\n")
    tested = locked("test")
    assert tested.returncode == 0 and "1 passed" in tested.stdout and "Traceback" not in tested.stdout


@pytest.mark.campaign
def test_a_service_in_a_checkout_that_can_not_be_written_to_needs_two_folders_elsewhere(
        locked, save, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(save("good"), "the first")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for logs, status in (({}, 503), ({"WORKSHOP_LOG_DIR": str(tmp_path / "logs")}, 200)):
        service = locked("serve", "--port", str(port), start=subprocess.Popen, **logs,
                         WORKSHOP_MODEL_DIR=str(tmp_path / "models"))
        try:
            came = []

            def asked():
                with suppress(requests.ConnectionError):
                    came.append(requests.post(f"http://127.0.0.1:{port}/forecast", json=IAN, timeout=30))
                return came
            eventually(asked)
        finally:
            service.send_signal(signal.SIGINT)
            errors = service.communicate(timeout=30)[1]
        assert came[0].status_code == status and "Traceback" not in errors
        if status == 503:
            assert "the log can't be written: [Errno 30] Read-only file system" in came[0].json()["detail"]


# --- a clock that jumps ---

@pytest.fixture
def clock(tmp_path):
    """Environment variables under which a process sees a clock that `set` moves, by libfaketime."""
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") or [os.environ.get("LIBFAKETIME", "")]
    if not os.path.isfile(found[0]):
        pytest.skip("needs libfaketime (on Debian: apt install libfaketime), or its path in $LIBFAKETIME")
    away = tmp_path / "away"
    away.write_text("+0")
    env = {"LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(away), "FAKETIME_NO_CACHE": "1",
           "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return env, away.write_text


@pytest.mark.campaign
def test_a_service_whose_clock_jumps_answers_logs_and_follows_the_registry_as_ever(
        clock, save, tmp_path, monkeypatch):
    env, set_clock = clock
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(save("good"), "the first")
    save("next", other=True)
    right = {name: answer_of(name) for name in ("good", "next")}
    service, came, jumps = test_api.Service(tmp_path / "service", **env), [], 0
    try:
        for jump in ("+0", "-400d", "+400d", "-3h", "+0", "+1h", "-20y", "+40y", "+0") * 2:
            set_clock(jump)
            wanted = "next" if registry.current() == "good" else "good"
            registry.promote(wanted, f"at {jump}")
            eventually(lambda: service.get("health").json()["model_version"] == wanted)
            came.append(service.post())
            assert came[-1].json() == right[wanted]
            refused = service.post(IAN | {"wind_kt": 500})
            assert refused.status_code == 422 and len(service.logged(refused)) == 1
            jumps += 1
        logged = [line["request_id"] for line in service.logged() if "forecast" in line]
        assert logged == [answer.headers["X-Request-ID"] for answer in came], "in the order of asking"
        years = {line["at"][:4] for line in service.logged()}
        assert len(years) >= 4 and len(monitor.read_log(*service.logs.iterdir())) == 2 * len(came)
        assert "Traceback" not in service.text("err")
        tried("jumps of a service's clock", jumps)
    finally:
        service.kill()


def test_after_a_jump_of_the_clock_the_version_noted_last_is_in_use_whatever_time_it_says(
        save, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path))
    save("good")
    save("next", other=True)
    for at, version in (("2041-01-01T00:00:00.000Z", "good"), ("1970-01-01T00:00:00.000Z", "next")):
        with open(tmp_path / "history.jsonl", "ab") as history:
            history.write(records.line(at=at, event="promoted", version=version, reason="a test"))
    assert registry.current() == "next" and registry.roll_back("a test") == "good"
    assert registry.current() == "good" == registry.load().version


def test_after_a_jump_of_the_clock_the_log_is_the_same_table_in_whatever_order_its_files_are_read(
        save, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    save("good")
    given = answer_of("good")
    days = [f"2022-09-{day}T12:00:00Z" for day in (24, 25, 26, 27)]
    times = ["2041-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z"] * 2
    files = [tmp_path / "forecasts-20410101T000000-a.jsonl", tmp_path / "forecasts-19700101T000000-b.jsonl"]
    for number, (at, day) in enumerate(zip(times, days)):
        with open(files[number // 2], "ab") as log:
            log.write(records.line(at=at, request_id=str(number), client="harbour", storm=IAN | {"time": day},
                                   forecast=given))
    one, other = monitor.read_log(*files), monitor.read_log(*files[::-1])
    assert one.request_id.tolist() == other.request_id.tolist() == ["0", "1", "2", "3"], "by the storm's time"
    assert one.equals(other)


# --- folders from an older version ---

def test_lab_leaves_all_that_an_older_version_left_in_my_work_as_it_is(checkout, surroundings):
    mine = checkout / "my_work"
    write_notebook(mine / "00_start_here.ipynb", "old = 'of another version'")
    old = nbformat.read(mine / "00_start_here.ipynb", 4)
    old.metadata.kernelspec = {"name": "ml-workshop-2024", "display_name": "Gone", "language": "python"}
    nbformat.write(old, mine / "00_start_here.ipynb")
    write_notebook(mine / "05_deploy.ipynb", "'there is no such notebook any more'")
    (mine / "01_fails.ipynb").mkdir()  # a folder where a file is expected
    (mine / "progress.jsonl").write_bytes(PROGRESS)
    (mine / "notes.txt").write_text("mine")
    spec = Path(surroundings["JUPYTER_DATA_DIR"], "kernels/production-ml/kernel.json")
    spec.parent.mkdir(parents=True)
    spec.write_text('{"argv": ["/gone/python"], "display_name": "Old", "language": "python"}')
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    on_a_hub = ON_A_HUB | {"JUPYTER_SERVER_ROOT": str(checkout)}
    answer = workshop(checkout, "lab", env=surroundings | on_a_hub)
    assert answer.returncode == 0 and "never overwritten" in answer.stdout and not answer.stderr
    assert before == {path: path.read_bytes() for path in before} and (mine / "01_fails.ipynb").is_dir()
    assert nbformat.read(mine / "02_fine.ipynb", 4).cells, "what was not there is there now"
    assert json.loads(spec.read_text())["argv"][0] == sys.executable, "the kernel is the one of today"


@pytest.mark.parametrize("place", ["my_work", "my_work/jobs"])
def test_a_file_where_lab_needs_a_folder_is_named_and_stays(place, checkout, surroundings):
    (checkout / place).parent.mkdir(exist_ok=True)
    (checkout / place).write_text("mine")
    answer = workshop(checkout, "lab", env=surroundings | ON_A_HUB | {"JUPYTER_SERVER_ROOT": str(checkout)})
    assert_in_a_line(answer, "`lab` was stopped: [Errno 17] File exists: ", str(checkout / place))
    assert (checkout / place).read_text() == "mine"


PROGRESS = (b'{"at": "2024-05-01T10:00:00.000Z", "exercise": "01.1", "accepted": true}\n'
            b'{"at": "2024-05-01T10:05:00.000Z", "exercise": "99.9", "accepted": true}\n'  # not of today
            b'{"at": "2024-05-01T10:06:00.000Z", "exercise": 7, "accepted": true}\n'
            b'["02.1"]\n\xff\xfe\n\n{"at": "2024-05-01T10:07:00.000Z", "exer\n'
            b'{"at": "2024-05-01T10:08:00.000Z", "exercise": "02.A", "accepted": true, "tries": 3}\n')


@pytest.fixture(scope="module")
def wrapping_up(new_kernel, tmp_path_factory):
    """Run notebook 09's cells of the progress in a folder my_work with the given progress.jsonl."""
    client, sources = new_kernel()[1], [cell.source for cell in cells(NOTEBOOKS[9], "code")]
    begin = next(place for place, source in enumerate(sources) if "progress.jsonl" in source)
    assert 'title="Your progress"' in sources[begin + 1] and "Completion record" in sources[begin + 2]

    def show(progress=None):
        folder = tmp_path_factory.mktemp("course") / "my_work"
        folder.mkdir()
        if progress is not None:
            (folder / "progress.jsonl").write_bytes(progress)
        else:
            (folder / "progress.jsonl").mkdir()
        run(client, "%reset -f", f"import os; os.chdir({str(folder)!r})", sources[0])
        said = [run(client, source) for source in sources[begin:begin + 3]]
        return folder, "\n".join(said), run(client, "print(sorted(tasks[tasks.isin(passed)]))").strip()
    return show


def test_notebook_09_shows_what_an_older_version_noted_as_far_as_there_are_such_exercises(wrapping_up):
    folder, said, known = wrapping_up(PROGRESS)
    assert known == "['01.1', '02.A']" and "written: results/completion.html" in said and "Error" not in said
    assert "has passed\n2 of " in (folder.parent / "results/completion.html").read_text("utf-8")
    assert (folder / "progress.jsonl").read_bytes() == PROGRESS


@pytest.mark.parametrize("odd", [b'{"task": "01.1", "passed": true}\n', b'{"exercise": ["01.1", "02.1"]}\n'])
def test_notebook_09_passes_over_a_record_of_another_kind(odd, wrapping_up):
    assert wrapping_up(PROGRESS + odd)[2] == "['01.1', '02.A']"


def test_notebook_09_names_a_folder_that_lies_where_the_progress_should(wrapping_up):
    folder, said, _ = wrapping_up()
    assert "IsADirectoryError: [Errno 21] Is a directory: 'progress.jsonl'" in said
    assert (folder / "progress.jsonl").is_dir()


def test_a_check_adds_to_the_progress_of_an_older_version(tmp_path, monkeypatch):
    (tmp_path / "my_work").mkdir()
    monkeypatch.chdir(tmp_path / "my_work")
    Path("progress.jsonl").write_bytes(PROGRESS)
    assert lesson.check("03.1", category).accepted
    assert Path("progress.jsonl").read_bytes().startswith(PROGRESS)
    assert passed() == ["01.1", "99.9", 7, "02.A", "03.1"]


def put_version(folder, content, text=b"# A card\n"):
    """Put a version there as somebody else's program may have: its sums are right."""
    folder.mkdir()
    files = {"model.onnx": content, "card.md": text}
    for name, part in files.items():
        (folder / name).write_bytes(part)
    (folder / "SHA256SUMS").write_text("".join(
        f"{hashlib.sha256(part).hexdigest()}  {name}\n" for name, part in files.items()))


def older(path, version, *fields):
    """The content of a version's file, under another name, without some fields of the card."""
    model = onnx.load(path)
    card = json.loads(model.metadata_props[0].value) | {"version": version}
    for field in fields:
        del card[field]
    onnx.helper.set_model_props(model, {"card": json.dumps(card)})
    return model.SerializeToString(deterministic=True)


def test_what_the_registry_does_not_know_is_left_alone_and_does_no_harm(save, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(folder))
    registry.promote(save("good"), "the first")
    strange = {"README.txt": b"mine", "model.pkl": b"\x80", "v0/model.joblib": b"\x80", "v1/notes": b"",
               ".cache/SHA256SUMS": b"", "good/evaluation.json": b"{}",
               "2019/SHA256SUMS": b"0" * 64 + b"  model.pkl\n"}
    for name, content in strange.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with open(folder / "history.jsonl", "ab") as history:
        history.write(b'{"event": "activated", "version": "2019"}\n{"when": 1, "what": "deployed"}\n')
    assert registry.current() == registry.load().version == "good"
    with pytest.raises(registry.RegistryError, match="Version 2019 is damaged"):
        registry.promote("2019", "it is the old one")
    for version in ("v0", "v1", ".cache"):
        with pytest.raises(registry.RegistryError, match="There is no version .+; there are: 2019, good"):
            registry.promote(version, "it is the old one")
    registry.promote(save("next", other=True), "of today")
    assert registry.kept_model(str).version == "next" and registry.roll_back("a test") == "good"
    assert {name: (folder / name).read_bytes() for name in strange} == strange


@pytest.mark.campaign
@pytest.mark.parametrize("served, fields", [
    (False, ["examples"]), (True, ["scores"]), (True, ["training", "features"])], ids=str)
def test_a_version_whose_card_lacks_what_a_card_has_today_is_served_or_refused_by_name(
        served, fields, save, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(save("good"), "the first")
    put_version(tmp_path / "models/old", older(tmp_path / "models/good/model.onnx", "old", *fields))
    with open(tmp_path / "models/history.jsonl", "ab") as history:  # as that version's own `promote` noted it
        history.write(records.line(event="promoted", version="old"))
    service = test_api.Service(tmp_path / "service")
    try:
        version, said = service.post().json()["model_version"], service.text("err")
        assert "Traceback" not in said and (version == "old") == served
        assert served or re.search("Version old can't be used: .*\n.*examples\n.*Field required", said)
        assert service.get("model").json()["version"] == version and service.get("").ok
    finally:
        service.kill()


# --- cells out of order ---

def names_needed(source):
    """The names that a cell reads at once, and does not make itself: functions read theirs when called."""
    tree, later = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            later |= {part for child in ast.iter_child_nodes(node) for part in ast.walk(child)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if not isinstance(node.ctx, ast.Load)} | set(dir(builtins))
    made |= {(name.asname or name.name).split(".")[0] for node in ast.walk(tree)
             if isinstance(node, (ast.Import, ast.ImportFrom)) for name in node.names}
    return {node.id for node in names if node not in later} - made


def middle_cell(path):
    """The first code cell from the middle of a notebook on that needs what cells above it have made."""
    code = [cell.source for cell in cells(path, "code")]
    return next(filter(names_needed, code[len(code) // 2:]))


@pytest.fixture(scope="module")
def alone(new_kernel):
    """Run one cell in a kernel that has run nothing."""
    client = new_kernel()[1]
    return lambda cell: run(client, "%reset -f", cell).strip().splitlines()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_from_the_middle_alone_ends_at_once_in_a_name_error_of_what_it_needs(path, alone):
    *_, last = alone(cell := middle_cell(path))
    name = re.fullmatch(r"NameError: name '(\w+)' is not defined", last)
    assert name and name[1] in names_needed(cell)


@pytest.fixture
def course_kernel(tmp_path, monkeypatch):
    """A client of the kernel that the course registers."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cli.put_kernel()
    manager = KernelManager(kernel_name=cli.KERNEL)
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_courses_kernel_says_what_to_do_where_a_cell_lacks_the_cells_above_it(course_kernel):
    assert "Run All Above Selected Cell" in run(course_kernel, middle_cell(NOTEBOOKS[1]))


def test_the_courses_kernel_keeps_no_history_which_could_hang_it_where_homes_lie_on_a_network(
        course_kernel, tmp_path):
    assert "42" in run(course_kernel, "6 * 7")
    assert not list((tmp_path / "ipython").rglob("history.sqlite*"))
