"""The environment: what is named, locked and installed agrees; a set-up gets there from whatever it finds."""
import ast
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from conftest import CAMPAIGN, posix, tried
from test_cli import ALONE, checkout, copy_checkout, no_network, surroundings, workshop
from workshop import ROOT

PROJECT = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]


def locked():
    """The lock's entries that apply here: name -> (Requirement, number of hashes)."""
    blocks = re.findall(r"(?m)^[a-z0-9].*(?:\n[ \t].*)*", Path(ROOT, "requirements.txt").read_text())
    entries = [(Requirement(block.split("\\")[0].strip()), block.count("--hash=sha256:")) for block in blocks]
    return {canonicalize_name(need.name): (need, hashes) for need, hashes in entries
            if need.marker is None or need.marker.evaluate()}


def test_the_lock_holds_exactly_what_the_project_needs():
    lock, seen = locked(), set()
    applies = lambda need, extra="": need.marker is None or need.marker.evaluate({"extra": extra})
    queue = list(filter(applies, map(Requirement, PROJECT["dependencies"])))
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        assert name in lock, f"{need} is needed, and is not in requirements.txt"
        entry, hashes = lock[name]
        (pin,) = entry.specifier
        assert pin.operator == "==" and hashes, f"{entry} has no exact version with hashes"
        assert need.specifier.contains(pin.version, prereleases=True), f"{need} is needed, not {entry}"
        for extra in {"", *need.extras} - {done for known, done in seen if known == name}:
            seen.add((name, extra))
            queue += [need for need in map(Requirement, metadata.requires(name) or ()) if applies(need, extra)]
    assert set(lock) == {name for name, _ in seen}, "the lock has entries that nothing needs"


def test_environment_yml_brings_python_and_hands_over_to_the_lock():
    environment = yaml.safe_load(Path(ROOT, "environment.yml").read_text())
    python, pip, handed_over = environment["dependencies"]
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])
    assert (pip, handed_over) == ("pip", {"pip": ["-r requirements.txt"]})
    assert environment["channels"] == ["conda-forge"]


def test_the_hosted_ci_runs_the_same_script_on_every_python_we_name():
    job = yaml.safe_load(Path(ROOT, ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert {"run": "bash .ci/run"} in job["steps"]
    supported = SpecifierSet(PROJECT["requires-python"]).filter(f"3.{minor}" for minor in range(30))
    assert job["strategy"]["matrix"]["python"] == list(supported)
    assert "python3 -m workshop test" in Path(ROOT, ".ci/run").read_text().splitlines()


# --- the long runs: whole environments ---

def bare(version=f"3.{sys.version_info.minor}"):
    """Command of a Python without packages of its own, as a fresh machine has it."""
    if version == f"3.{sys.version_info.minor}":
        return os.path.realpath(sys.executable), "-S"
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    python = str(found[0]) if found else shutil.which(f"python{version}")
    if not python:
        pytest.skip(f"no Python {version} on this machine")
    return python, "-S"


def installed(folder):
    """Whether the folder's .venv is finished, has the course's packages, and its doctor is content."""
    python = folder / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    check = "from workshop import __main__ as m, doctor as d; print(m.finished(), d.lacking())"
    answer = subprocess.run([python, "-c", check], cwd=folder, capture_output=True, text=True)
    return answer.stdout == "True []\n"


def kill_when(process, condition, with_signal):
    """Send a signal to a process and its children once a condition holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, "too late to interrupt it"
        time.sleep(0.01)
    os.killpg(process.pid, with_signal)
    return process.wait(timeout=60)


@pytest.mark.campaign
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_fresh_clone_sets_itself_up_and_is_used_from_then_on(version, checkout, surroundings):
    astray = {"PYTHONPATH": "/nowhere", "VIRTUAL_ENV": "/nowhere", "PIP_USER": "1", "PIP_TARGET": "/nowhere"}
    first = workshop(checkout, "run", "00", env=surroundings | astray, python=bare(version))
    assert first.returncode == 0, first
    assert installed(checkout)
    second = workshop(checkout, "run", "00", env=surroundings, python=bare(version))
    assert second.returncode == 0 and "environment" not in second.stdout + second.stderr


@posix
@pytest.mark.campaign
@pytest.mark.parametrize("with_signal", ["SIGKILL", "SIGINT"])
@pytest.mark.parametrize("stage", ["bin/python", "bin/uv", "lib/python3*/site-packages/pandas"])
def test_an_interrupted_setup_is_repaired(stage, with_signal, checkout, surroundings):
    process = subprocess.Popen([*bare(), "-m", "workshop", "setup"], cwd=checkout, env=surroundings, text=True,
                               stderr=subprocess.PIPE, start_new_session=True)
    code = kill_when(process, lambda: any((checkout / ".venv").glob(stage)), getattr(signal, with_signal))
    errors = process.stderr.read()
    process.stderr.close()
    if with_signal == "SIGINT":
        assert code == 130 and "Interrupted. The same command goes on from here." in errors
    assert not installed(checkout)
    assert workshop(checkout, "setup", env=surroundings, python=bare()).returncode == 0
    assert installed(checkout)


@pytest.mark.campaign
def test_a_finished_environment_that_broke_or_aged_is_repaired(checkout, surroundings):
    def setup(verb="setup"):
        answer = workshop(checkout, verb, *(["00"] if verb == "run" else []), env=surroundings, python=bare())
        assert answer.returncode == 0, answer
        assert installed(checkout)

    setup()
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python")  # as after the system's Python was upgraded
    setup("run")
    with open(checkout / "requirements.txt", "a") as lock:
        lock.write("# another lock\n")
    setup("run")
    subprocess.run([checkout / ".venv/bin/python", "-m", "pip", "uninstall", "--yes", "pandas"], check=True)
    setup()


@pytest.mark.campaign
def test_two_setups_at_once_do_not_disturb_each_other(checkout, surroundings):
    command = [*bare(), "-m", "workshop", "setup"]
    both = [subprocess.Popen(command, cwd=checkout, env=surroundings) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert installed(checkout)


@pytest.mark.campaign
def test_no_network_gets_a_clear_line_and_the_next_attempt_goes_on(checkout, surroundings):
    nowhere = "http://127.0.0.1:9/simple"
    offline = {"PIP_INDEX_URL": nowhere, "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0", "PIP_FIND_LINKS": "",
               "PIP_CONFIG_FILE": os.devnull}
    answer = workshop(checkout, "lab", env=surroundings | offline, python=bare())
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    assert "Is there a network? The same command tries again" in answer.stderr.splitlines()[-1]
    assert workshop(checkout, "setup", env=surroundings, python=bare()).returncode == 0
    assert installed(checkout)


@pytest.mark.campaign
def test_where_the_fast_installer_cannot_work_pip_goes_on(checkout, surroundings):
    broken = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0"}
    answer = workshop(checkout, "setup", env=surroundings | broken, python=bare())
    assert answer.returncode == 0, answer
    assert "The fast installer uv does not work here: going on with pip, which is slower." in answer.stdout
    assert installed(checkout)


@pytest.mark.campaign
@pytest.mark.skipif(os.name == "nt", reason="Debian's Python is not for Windows")
def test_a_python_without_ensurepip_gets_the_line_that_mends_it(checkout, surroundings, tmp_path):
    stdlib = Path(sysconfig.get_path("stdlib"))
    home = tmp_path / "home" / "lib" / stdlib.name  # the same library, but as Debian ships it
    home.mkdir(parents=True)
    for part in stdlib.iterdir():
        if part.name not in ("ensurepip", "site-packages"):
            (home / part.name).symlink_to(part)
    env = surroundings | {"PYTHONHOME": str(tmp_path / "home")}
    answer = workshop(checkout, "lab", env=env, python=bare())
    assert answer.returncode == 1
    assert answer.stderr.endswith(f" sudo apt install python3.{sys.version_info.minor}-venv\n")
    assert "apt install" in workshop(checkout, "doctor", env=env, python=bare()).stdout


@pytest.mark.campaign
def test_plain_commands_work_in_a_plain_environment(surroundings, tmp_path):
    folder = copy_checkout(tmp_path / "clone")
    subprocess.run([*bare(), "-m", "venv", tmp_path / "env"], check=True)
    tools = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")

    def plain(*command, **options):
        command = [tools / command[0], *command[1:]]
        return subprocess.run(command, cwd=folder, env=surroundings, check=True, **options)

    plain("pip", "install", "--quiet", "--require-hashes", "-r", "requirements.txt")
    assert workshop(folder, "setup", env=surroundings, python=(tools / "python",)).returncode == 0
    assert not (folder / ".venv").exists()
    assert plain("jupyter", "lab", "--version", capture_output=True, text=True).stdout.startswith("4.")
    plain("pytest", "--nbval", "notebooks")


@pytest.mark.campaign
@no_network
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python_passes_all_tests_and_after_the_setup_with_no_network(version, tmp_path, surroundings):
    copy, python = copy_checkout(tmp_path / "course"), bare(version)
    done = workshop(copy, "setup", env=surroundings, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [*ALONE, *python, "-m", "workshop", "test"]
    done = subprocess.run(command, cwd=copy, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-9000:]
    passed = re.search(r"(\d+) passed", done.stdout)[1]
    tried(f"tests on Python {version}, with no network but loopback", int(passed))


PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "x86_64-pc-windows-msvc",
             "aarch64-apple-darwin", "x86_64-apple-darwin"]


@pytest.mark.campaign
def test_each_package_of_the_lock_is_ready_built_for_every_laptop(tmp_path):
    """A learner has no compiler; macOS counts from 14 on, as the README says."""
    pythons = list(SpecifierSet(PROJECT["requires-python"]).filter(f"3.{minor}" for minor in range(30)))
    for python, platform in itertools.product(pythons, PLATFORMS):
        asked = subprocess.run(
            [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--only-binary", ":all:", "--require-hashes",
             "-r", Path(ROOT, "requirements.txt"), "--target", tmp_path / "nothing", "--python-version", python,
             "--python-platform", platform], cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"})
        if "dns error" in asked.stderr or "error sending request" in asked.stderr:
            pytest.skip("needs the network")
        assert asked.returncode == 0, f"{platform}, {python}: {asked.stderr}"
    tried("platforms and Pythons for which the whole lock is ready-built", len(pythons) * len(PLATFORMS))


# --- what we stand on ---

# Licences that let anybody use, change and pass on what they got; MPL asks for its own files to stay open.
FREE = ("MIT", "BSD", "0BSD", "Apache", "ISC", "PSF", "Python Software Foundation", "MPL", "Mozilla", "Zlib", "CC0",
        "3-Clause BSD")


def test_the_licence_of_each_package_allows_what_ours_allows():
    for name in locked():
        facts = metadata.metadata(name)
        named = [line.split(" :: ")[-1] for line in facts.get_all("Classifier", []) if line.startswith("License ::")]
        named = [facts.get("License-Expression")] if "License-Expression" in facts else named
        named = named or facts["License"].splitlines()[:1]
        parts = [part for text in named for part in re.split(" AND | OR ", text) if part != "OSI Approved"]
        assert parts and all(part.startswith(FREE) for part in parts), f"{name}: {parts}"


@pytest.mark.campaign
def test_no_package_of_the_lock_is_known_to_be_vulnerable(tmp_path):
    pins = re.findall(r"(?m)^([\w.-]+==[^\s;]+(?: ; [^\\\n]+)?)", Path(ROOT, "requirements.txt").read_text())
    script = "".join(f"#   {pin.strip()!r},\n" for pin in pins)
    script = f"# /// script\n# requires-python = '>=3.11'\n# dependencies = [\n{script}# ]\n# ///\n"
    (tmp_path / "locked.py").write_text(script)
    audit = [sys.executable, "-m", "uv", "audit", "--preview-features", "audit", "--script", "locked.py"]
    done = subprocess.run(audit, cwd=tmp_path, capture_output=True, text=True)
    if "error sending request" in done.stderr:
        pytest.skip("the database of vulnerabilities, osv.dev, can't be reached from here")
    assert done.returncode == 0, done.stdout + done.stderr
    tried("packages of the lock looked up among known vulnerabilities", len(pins))


POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "fork", "getppid", "getuid", "geteuid", "killpg", "setsid",
         "sysconf", "sched_getaffinity", "execve", "mkfifo", "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1"}


def test_what_windows_does_not_have_is_used_only_where_the_code_asks_for_it():
    """Nothing here runs on Windows: the next best thing is that no name of Python's that it lacks is used unasked."""
    cells = [cell["source"] for path in Path(ROOT, "notebooks").glob("[0-9]*.ipynb")
             for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    texts = [path.read_text("utf-8") for path in Path(ROOT, "workshop").glob("*.py")] + ["".join(cell) for cell in cells]
    for path in Path(ROOT, "tests").glob("test_*.py"):  # of these, what is read before any test is chosen
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = [ast.Pass()]
        texts.append(ast.unparse(tree))
    used = set()
    for text in texts:
        tree, guarded = ast.parse(text), set()
        for node in ast.walk(tree):
            body = getattr(node, "body", []) if isinstance(node, (ast.If, ast.FunctionDef)) else []
            leaves = any(isinstance(part, ast.If) and "os.name" in ast.unparse(part.test) for part in body)
            if leaves or isinstance(node, (ast.If, ast.IfExp)) and re.search("os.name|hasattr", ast.unparse(node.test)):
                guarded |= {id(part) for part in ast.walk(node)}
        for node in ast.walk(tree):
            names = {getattr(node, "attr", ""), getattr(node, "id", ""), *(
                name.name for name in getattr(node, "names", []) if isinstance(name, ast.alias))} & POSIX
            assert not names or id(node) in guarded, f"{names} in: {ast.unparse(node)}"
            used |= names
    assert {"fcntl", "getppid", "SIGKILL", "execve"} <= used


def test_the_long_runs_have_written_their_rows_and_nobody_else_has():
    rows = re.findall(r"^\| (.+?) \| [\d,]+ \| [\d,]* \| ", CAMPAIGN.read_text("utf-8"), re.M)
    calls = [node.args[0] for path in Path(ROOT, "tests").glob("test_*.py")
             for node in ast.walk(ast.parse(path.read_text("utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tried"]
    assert all(isinstance(call, (ast.Constant, ast.JoinedStr)) for call in calls)
    words = ["".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                     for part in getattr(call, "values", [call])) for call in calls]
    written = {word: [row for row in rows if re.fullmatch(word, row)] for word in words}
    assert {row for known in written.values() for row in known} == set(rows)
    unwritten = {word for word, known in written.items() if not known}
    assert unwritten <= {re.escape("packages of the lock looked up among known vulnerabilities")}, "needs osv.dev"
