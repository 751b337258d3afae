"""The command line, as a learner types it: each test calls `python -m workshop` in a copy of the checkout."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import nbformat
import psutil
import pytest

from conftest import course_files

from workshop import ROOT, doctor
from workshop.cli import VERBS

JUPYTER_AROUND_US = ("JUPYTERHUB_", "JUPYTER_", "JPY_", "WORKSHOP_")


def copy_checkout(folder):
    for name in course_files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ROOT, name), target)
    return folder


def write_notebook(path, *sources):
    """A notebook that was run before: every code cell carries an old output and an execution count."""
    old = nbformat.v4.new_output("stream", text="from an earlier run")
    cells = [nbformat.v4.new_markdown_cell("# A title")]
    cells += [nbformat.v4.new_code_cell(source, execution_count=7, outputs=[old]) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with three small notebooks of its own: two that run, one that fails."""
    assert doctor.lacking() == [], "these tests need the locked packages: python3 -m workshop test"
    folder = copy_checkout(tmp_path / "a course's folder")  # a name with a blank, as people have them
    shutil.rmtree(folder / "notebooks", ignore_errors=True)
    write_notebook(folder / "notebooks/00_start_here.ipynb", "import sys; print(sys.executable)")
    write_notebook(folder / "notebooks/01_fails.ipynb", "'fine'", "1 / 0")
    write_notebook(folder / "notebooks/02_fine.ipynb", "open('here.txt', 'w').close()")
    write_notebook(folder / "notebooks/jobs/nightly.ipynb", "'a job'")
    Path(folder, "notebooks/jobs/nightly.cron").write_text("0 3 * * * true\n")
    return folder


@pytest.fixture
def surroundings(tmp_path):
    """Environment variables without a Jupyter around us, and with a place for kernels of their own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(JUPYTER_AROUND_US)}
    return clean | {"JUPYTER_DATA_DIR": str(tmp_path / "data")}


def workshop(folder, *arguments, env, python=(sys.executable,)):
    command = [*python, "-m", "workshop", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)


def descendants_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


def answers(address, seconds=10):
    """Whether a page comes; Jupyter prints its address a moment before it listens there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(address, timeout=30).status == 200
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- what needs no environment ---

BARE = (sys.executable, "-S")  # a Python without any site-packages

# Before a command: it has no network, and not even loopback; or loopback, which the lines below bring up.
NOTHING = "unshare", "-rn"
ALONE = *NOTHING, sys.executable, "-c", """
import fcntl, os, socket, struct, sys
name, flags = 0x8914, struct.pack("16sh14x", b"lo", 1)
fcntl.ioctl(socket.socket(), name, flags)
os.execv(sys.argv[1], sys.argv[1:])"""
no_network = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NOTHING, "true"], stderr=subprocess.DEVNULL).returncode,
    reason="needs a network namespace of its own")


def test_a_wrong_verb_is_refused_and_the_verbs_are_named(checkout, surroundings):
    answer = workshop(checkout, "lob", env=surroundings, python=BARE)
    assert answer.returncode == 2
    usage, error = answer.stderr.splitlines()
    assert "'lob'" in error and all(verb in error for verb in VERBS)
    assert workshop(checkout, env=surroundings, python=BARE).returncode == 2


def test_an_option_that_a_verb_does_not_have_is_refused(checkout, surroundings):
    answer = workshop(checkout, "run", "02", "--out-put", "here", env=surroundings)
    assert answer.returncode == 2 and "unknown: --out-put here" in answer.stderr


def test_help_lists_every_verb(checkout, surroundings):
    answer = workshop(checkout, "--help", env=surroundings, python=BARE)
    assert answer.returncode == 0
    assert all(re.search(rf"^ +{verb} +[A-Z]", answer.stdout, re.M) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_an_example(verb, checkout, surroundings):
    answer = workshop(checkout, verb, "--help", env=surroundings, python=BARE)
    assert answer.returncode == 0
    assert f"Example: python3 -m workshop {verb}" in answer.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("old", ["2.7", "3.6", "3.8", "3.10"])
def test_a_python_that_is_too_old_gets_one_line(old, checkout, surroundings):
    installed = sorted(Path.home().glob(f".pyenv/versions/{old}.*/bin/python"))
    python = str(installed[0]) if installed else shutil.which(f"python{old}")
    if not python:
        pytest.skip(f"no Python {old} on this machine")
    answer = workshop(checkout, "lab", env=surroundings, python=(python, "-B"))
    assert answer.returncode == 1
    line = rf"The course needs Python 3\.11, 3\.12 or 3\.13; this is {re.escape(old)}\.\d+ .*\n"
    assert re.fullmatch(line, answer.stderr)


def test_the_doctor_answers_on_a_bare_python(checkout, surroundings):
    answer = workshop(checkout, "doctor", env=surroundings, python=BARE)
    assert answer.returncode == 0, answer
    assert re.search(r"^warn +Environment .*\n +Run: python3 -m workshop setup$", answer.stdout, re.M)
    assert answer.stdout.endswith("This workspace is ready.\n")
    assert not (checkout / ".venv").exists()


# --- the doctor ---

def test_the_doctor_reports_what_it_found_and_how_to_mend_it():
    rows = doctor.checks()
    for name, level, found, fix in rows:
        assert level in ("ok", "warn", "bad")
        assert (level == "ok") == (fix == ""), f"{name}: a problem has a fix, a thing that is well has none"
        assert f"{name:12} {found}" in doctor.report(rows) and fix in doctor.report(rows)
    told = doctor.report([("Disk", "bad", "0 GB", "Delete."), ("CPU", "warn", "1", "")])
    assert told.endswith("\nThings to mend here: Disk.")


def test_the_doctor_fails_where_something_is_bad(checkout, surroundings):
    """A program that only asks for the exit code hears it too."""
    (checkout / "sitecustomize.py").write_text("import os\nos.access = lambda *_: False\n")
    answer = workshop(checkout, "doctor", env=surroundings | {"PYTHONPATH": str(checkout)})
    assert answer.returncode == 1 and answer.stdout.endswith("\nThings to mend here: Folder.\n")


def row_of(name, told):
    """Level and finding of one row that the doctor has printed, and the line after it."""
    return re.search(rf"^(\w+) +{name} +(.+)\n(.+)", told, re.M).groups()


def test_the_doctor_tells_whether_a_server_finds_its_port(checkout, surroundings):
    with ExitStack() as stack:
        with suppress(OSError):  # if somebody else has it, all the better
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        told = workshop(checkout, "doctor", env=surroundings).stdout
    assert row_of("Ports", told)[:2] == ("ok", "8000 is taken: a server uses another one")


@no_network
@pytest.mark.parametrize("network, ports", [(ALONE, "ok"), (NOTHING, "bad")], ids=["loopback", "nothing"])
def test_the_doctor_tells_what_a_workspace_without_network_lacks(network, ports, checkout, surroundings):
    def told(**env):
        return subprocess.run([*network, *BARE, "-m", "workshop", "doctor"], cwd=checkout, text=True,
                              env=surroundings | env, stdout=subprocess.PIPE).stdout
    level, _, after = row_of("Ports", told())
    assert level == ports and (level == "ok" or "127.0.0.1" in after)
    assert row_of("Network", told()) == (
        "warn", "none (only the set-up needs it)", " " * 19 + "Connect, for the set-up.")
    assert row_of("Network", told(https_proxy="http://proxy.test:3128"))[:2] == (
        "ok", "by a proxy (only the set-up needs it)")


@pytest.mark.parametrize("own, files", [
    ("0::/\n", {"cpu.max": "150000 100000", "memory.max": str(2**30)}),
    ("0::/user/me\n", {"user/cpu.max": "150000 100000", "user/me/cpu.max": "max 100000",
                       "user/memory.max": str(2**30)}),
    ("3:cpu,cpuacct:/box\n0::/box\n", {"box/cpu.max": "150000 100000", "memory.max": str(2**30)}),
], ids=["a container's", "limits in different groups", "beside groups of version 1"])
def test_a_containers_limits_count_not_the_machines(own, files, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    cpus, memory = doctor.limits(tmp_path / "cgroup", tmp_path / "own")
    assert cpus == 1.5 or os.cpu_count() == 1
    assert memory == 1


# --- setup and test ---

def test_setup_registers_this_interpreter_as_the_courses_kernel(checkout, surroundings):
    answer = workshop(checkout, "setup", env=surroundings)
    assert answer.returncode == 0, answer
    kernels = Path(surroundings["JUPYTER_DATA_DIR"], "kernels")
    kernel = json.loads((kernels / "production-ml/kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable and kernel["display_name"] == "Production ML workshop"
    assert sys.prefix in answer.stdout and "production-ml" in answer.stdout


def test_an_environment_that_satisfies_the_lock_is_used_as_it_is(checkout, surroundings):
    assert workshop(checkout, "setup", env=surroundings).returncode == 0
    assert not (checkout / ".venv").exists() or sys.prefix == str(Path(ROOT, ".venv"))


def test_arguments_go_to_pytest_and_its_exit_code_comes_back(checkout, surroundings):
    shutil.rmtree(checkout / "tests")
    (checkout / "tests").mkdir()
    (checkout / "tests/nbval_sanitize.cfg").write_text("")
    (checkout / "tests/test_it.py").write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n"
                                               "@pytest.mark.campaign\ndef test_c(): pass\n")
    for arguments, code, outcome in [((), 1, "1 failed, 1 passed"),
                                     (("-k", "test_a"), 0, "1 passed, 2 deselected"),
                                     (("-m", "campaign"), 0, "1 passed, 2 deselected")]:
        answer = workshop(checkout, "test", *arguments, env=surroundings)
        assert answer.returncode == code and outcome in answer.stdout


# --- lab ---

def test_the_learners_copy_has_no_outputs_and_is_never_overwritten(checkout, surroundings):
    mine = checkout / "my_work/01_fails.ipynb"
    mine.parent.mkdir()
    mine.write_text("my own words")
    on_a_hub = surroundings | {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTER_SERVER_ROOT": str(checkout)}
    for _ in range(2):
        assert workshop(checkout, "lab", env=on_a_hub).returncode == 0
        assert mine.read_text() == "my own words"
        copies = sorted(str(path.relative_to(mine.parent)) for path in mine.parent.rglob("*.*"))
        assert copies == ["00_start_here.ipynb", "01_fails.ipynb", "02_fine.ipynb", "jobs/nightly.cron",
                          "jobs/nightly.ipynb"]
    notebook = nbformat.read(mine.with_name("00_start_here.ipynb"), 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "production-ml"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_a_newer_version_is_named_and_on_request_put_beside_the_learners_own(checkout, surroundings):
    on_a_hub = surroundings | {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTER_SERVER_ROOT": str(checkout)}

    def lab(*options):
        answer = workshop(checkout, "lab", *options, env=on_a_hub)
        assert answer.returncode == 0
        return re.findall(r"02_fine\.\w+\.ipynb", answer.stdout)

    assert lab() == []
    mine, course = (checkout / folder / "02_fine.ipynb" for folder in ("my_work", "notebooks"))
    mine.write_text(mine.read_text().replace("here.txt", "there.txt"))  # the learner saves something
    assert lab() == []
    notebook = nbformat.read(course, 4)
    notebook.cells[1].outputs = []  # it was only executed again
    nbformat.write(notebook, course)
    assert lab() == []
    notebook.cells[0].source = "# A better title"
    nbformat.write(notebook, course)
    (name,) = lab()
    assert not mine.with_name(name).exists()
    assert lab("--newer") == [name] and lab() == lab("--newer") == []
    assert "there.txt" in mine.read_text() and "better" not in mine.read_text()
    newer = nbformat.read(mine.with_name(name), 4)
    assert newer.cells[0].source == "# A better title" and newer.cells[1].outputs == []


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_lab_prints_an_address_that_works_and_ends_with_nothing_left(ending, checkout, surroundings):
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so Jupyter has to move on to another port
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "workshop", "lab", "--no-browser", "--port", str(port)]
        lab = subprocess.Popen(command, cwd=checkout, env=surroundings, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            lines = iter(lab.stdout.readline, "")
            address = next(line.strip() for line in lines if "token=" in line)
            start = "lab/tree/my_work/00_start_here.ipynb"
            assert re.fullmatch(rf"http://localhost:\d+/{start}\?token=\w+", address)
            assert f":{port}/" not in address
            assert answers(address)
            server, token = address.split("lab/")[0], address.split("=")[1]
            kernel = urllib.request.Request(f"{server}api/kernels?token={token}", data=b"{}")
            assert urllib.request.urlopen(kernel, timeout=60).status == 201  # one more that has to end
            sockets = psutil.Process(lab.pid).net_connections()
            assert {one.laddr.ip for one in sockets if one.status == "LISTEN"} <= {"127.0.0.1", "::1"}
            children = psutil.Process(lab.pid).children(recursive=True)
            assert children
            lab.send_signal(ending)
            assert lab.wait(timeout=30) == 0
            assert descendants_gone(children)
        finally:
            lab.kill()
            lab.wait()
            lab.stdout.close()


@pytest.mark.parametrize("around, link", [
    ({"JUPYTERHUB_SERVICE_PREFIX": "/user/me/"}, "/user/me/"),
    ({"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTER_SERVER_URL": "http://localhost:8888/user/me/"},
     "/user/me/"),
    ({"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTERHUB_PUBLIC_URL": "https://hub.org/user/me/"},
     "https://hub.org/user/me/"),
    ({"JUPYTER_SERVER_URL": "http://localhost:8888/"}, "http://localhost:8888/"),
], ids=["hub", "hub's terminal", "hub with an address", "JupyterLab's terminal"])
def test_inside_a_jupyter_lab_starts_nothing_and_prints_the_link(around, link, checkout, surroundings):
    env = surroundings | around | {"JUPYTER_SERVER_ROOT": str(checkout.parent)}
    answer = workshop(checkout, "lab", env=env)  # comes back, so nothing was started that would stay
    assert answer.returncode == 0, answer
    assert f"\n    {link}lab/tree/a%20course%27s%20folder/my_work/00_start_here.ipynb\n" in answer.stdout
    assert "Production ML workshop" in answer.stdout
    assert (checkout / "my_work/00_start_here.ipynb").exists()
    assert not (checkout / ".workshop/jupyter").exists()


def test_a_jupyter_that_cannot_show_the_course_says_what_to_do(checkout, surroundings, tmp_path):
    (tmp_path / "home").mkdir()
    elsewhere = {"JUPYTER_SERVER_URL": "http://localhost:88/", "JUPYTER_SERVER_ROOT": str(tmp_path / "home")}
    answer = workshop(checkout, "lab", env=surroundings | elsewhere)
    assert answer.returncode == 1
    assert f"Move {checkout} into it" in answer.stdout


# --- run ---

def test_run_executes_all_reports_and_goes_on_after_a_failure(checkout, surroundings, tmp_path):
    liar = tmp_path / "data/kernels/python3"  # a "python3" kernel on this machine that is another program
    liar.mkdir(parents=True)
    (liar / "kernel.json").write_text('{"argv": ["false"], "display_name": "x", "language": "python"}')
    before = set(checkout.rglob("*"))
    answer = workshop(checkout, "run", "--output", "out", env=surroundings)
    assert answer.returncode == 1
    assert re.search("01_fails .* FAILED in cell 3: ZeroDivisionError: division by zero\n", answer.stdout)
    ran = nbformat.read(checkout / "out/00_start_here.ipynb", 4)
    assert ran.cells[1].outputs[0].text.strip() == sys.executable
    report = (checkout / "out/report.html").read_text()
    for name, result in [("00_start_here", "ok"), ("01_fails", "FAILED"), ("02_fine", "ok")]:
        assert re.search(rf"<td>{name}</td>\s*<td>[\d.]+</td>\s*<td>{result}", report)
    new = {path for path in set(checkout.rglob("*")) - before if "__pycache__" not in path.parts}
    strays = {path for path in new if not {"out", ".workshop"} & set(path.parts)}
    assert strays == {checkout / "notebooks/here.txt"}  # the notebook's own, written in its folder


def test_slides_runs_its_job_and_tells_it_where_to_write(checkout, surroundings, tmp_path):
    job = nbformat.v4.new_code_cell("output_folder = 'nowhere'", metadata={"tags": ["parameters"]})
    write = nbformat.v4.new_code_cell("open(output_folder + '/deck.html', 'w').close()")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[job, write], metadata=kernel)
    nbformat.write(notebook, checkout / "notebooks/jobs/slides.ipynb")
    done = workshop(checkout, "slides", "--output", tmp_path / "talk", env=surroundings)
    assert done.returncode == 0 and f"More in {tmp_path / 'talk'}" in done.stdout
    assert (tmp_path / "talk/deck.html").exists() and not (checkout / "runs").exists()


def test_run_takes_a_number_or_a_name_and_runs_a_notebook_once(checkout, surroundings):
    answer = workshop(checkout, "run", "2", "02", "02_fine", "notebooks/02_fine.ipynb", env=surroundings)
    assert answer.returncode == 0, answer
    assert sorted(path.name for path in (checkout / "runs").iterdir()) == ["02_fine.ipynb", "report.html"]


def test_run_of_a_notebook_that_is_not_there_names_those_that_are(checkout, surroundings):
    answer = workshop(checkout, "run", "7", "02", env=surroundings)
    assert answer.returncode == 2
    assert answer.stderr == "No such notebook: 07. There are: 00_start_here, 01_fails, 02_fine.\n"


def test_a_run_that_is_terminated_leaves_no_kernel(checkout, surroundings):
    endless = "open('started', 'w').close(); import time; time.sleep(600)"
    write_notebook(checkout / "notebooks/00_start_here.ipynb", endless)
    run = subprocess.Popen([sys.executable, "-m", "workshop", "run", "0"], cwd=checkout, env=surroundings,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (checkout / "notebooks/started").exists():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        assert children
        run.terminate()
        assert run.wait(timeout=30) == 143
        assert descendants_gone(children)
    finally:
        run.kill()
        run.wait()
