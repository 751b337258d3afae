"""Ray Serve, which is not in everybody's environment: its lock, its job, and how notebook 06 runs it."""
import json
import os
import re
import signal
import subprocess
import time
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import psutil
import pytest

from test_cli import copy_checkout, workshop
from test_setup import bare
from workshop import ROOT

JOB = Path(ROOT, "notebooks", "jobs", "ray_serve.ipynb")
STORED = Path(ROOT, "data", "ray_serve.json")
PLACES = "WORKSHOP_MODEL_DIR", "WORKSHOP_LOG_DIR"
long_run = [pytest.mark.campaign, pytest.mark.skipif(os.name == "nt", reason="Ray is not for Windows here")]


def test_the_lock_with_ray_has_everything_of_the_other_lock_in_the_same_version():
    def entries(name):
        blocks = re.findall(r"(?m)^[a-z0-9].*(?:\n    --hash.*)*", Path(ROOT, name).read_text())
        assert all("--hash=sha256:" in block for block in blocks)
        return set(blocks)

    more = entries("requirements-scale.txt") - entries("requirements.txt")
    assert not entries("requirements.txt") - entries("requirements-scale.txt")
    assert "ray" in {re.match(r"[\w-]+", block)[0] for block in more}


@pytest.mark.skipif(bool(util.find_spec("ray")), reason="Ray is here")
def test_without_ray_the_job_says_how_to_get_it_and_writes_nothing(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        papermill.execute_notebook(JOB, None, {"output_folder": str(tmp_path / "results")}, cwd=JOB.parent,
                                   kernel_name="python3", progress_bar=False)
    assert refused.value.evalue.endswith("python -m pip install --require-hashes -r requirements-scale.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_job_has_parameters_short_cells_and_outputs_and_is_passed_over_where_ray_may_be_missing():
    code = [cell for cell in nbformat.read(JOB, 4).cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    assert all(cell.execution_count and len(cell.source.splitlines()) <= 13 for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" or output.get("name") == "stderr"
                               for output in outputs)
    assert ROOT not in JOB.read_text("utf-8"), "an output tells where it was made"
    plain = [cell for cell in code if "nbval-skip" not in cell.metadata.get("tags", [])]
    assert plain == code[:2], "`pytest --nbval notebooks` would need Ray"


# --- the long runs: with Ray, in an environment of its own ---

@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A checkout with the course's own environment, and on top of it, as notebook 06 says, Ray."""
    folder = copy_checkout(tmp_path_factory.mktemp("ray") / "a course's folder")
    env = {name: value for name, value in os.environ.items() if name not in PLACES}
    env["JUPYTER_DATA_DIR"] = str(tmp_path_factory.mktemp("jupyter"))
    assert workshop(folder, "setup", env=env, python=bare()).returncode == 0
    python = folder / ".venv/bin/python"
    advice = re.search(r"%(pip install .*-r) \.\./(\S+?)\"", call_in_06())
    subprocess.run([python, "-m", *advice[1].split(), advice[2]], cwd=folder, env=env, check=True)
    copy = "from workshop import cli; cli.learners_copy()"
    subprocess.run([python, "-c", copy], cwd=folder, env=env, check=True)
    home, temporary = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("temporary")
    return SimpleNamespace(folder=folder, python=python, home=home, temporary=temporary,
                           env=env | {"HOME": str(home), "TMPDIR": str(temporary)})


def call_in_06():
    """The text of the cell of notebook 06 that runs the job."""
    (path,) = Path(ROOT, "notebooks").glob("06_*.ipynb")
    (text,) = [cell.source for cell in nbformat.read(path, 4).cells
               if cell.cell_type == "code" and "jobs/ray_serve.ipynb" in cell.source]
    return text


def start_as_a_learner(course):
    """Run the cell of notebook 06 in the learner's copy; the process stands for that notebook's kernel."""
    imports = "import importlib.util, papermill\nfrom IPython.display import clear_output\n"
    return subprocess.Popen([course.python, "-c", imports + call_in_06()], cwd=course.folder / "my_work",
                            env=course.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def job(course):
    """The learner's copy of the job, to be changed: its cells by the names in their ids."""
    path = course.folder / "my_work" / "jobs" / JOB.name
    before, notebook = path.read_bytes(), nbformat.read(path, 4)
    cells = {cell.id.partition("-")[2]: cell for cell in notebook.cells}
    yield SimpleNamespace(cells=cells, save=lambda: nbformat.write(notebook, path))
    path.write_bytes(before)


def traces(course):
    """What Ray could have left: processes, its folder in /tmp, a password at home, temporary files."""
    alive = []
    for one in psutil.process_iter(["cmdline"]):
        text = " ".join(one.info["cmdline"] or [])
        if text.startswith("ray::") or str(course.folder) in text:
            alive.append(one)
    folders = [path for path in Path("/tmp").iterdir() if re.fullmatch(r"ray(\w{8})?", path.name)
               and path.stat().st_uid == os.getuid()]
    return alive + folders + list(course.home.glob(".ray")) + list(course.temporary.iterdir())


def nothing_left(course, seconds=30):
    deadline = time.monotonic() + seconds
    while left := traces(course):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    return True


def ours(course):
    return json.loads((course.folder / "results" / STORED.name).read_text())


def check_what_was_seen(seen):
    stored = json.loads(STORED.read_text())
    assert seen.keys() == stored.keys() and [row.keys() for row in seen["loads"]] == [
        row.keys() for row in stored["loads"]], "the stored run was made by other code"
    for run in (seen, stored):
        assert 0 <= run["failed"] <= 32 and run["new_s"] > 0
        assert run["log_lines"] >= run["requests"] - run["failed"] > 100, "an answer is not in a log"
        assert [row["errors"] for row in run["loads"]] == [0] * 5


class TestWithRay:
    pytestmark = long_run

    def test_an_environment_with_ray_is_still_the_courses_own(self, course):
        code = "from workshop import __main__ as m, doctor as d; print(m.finished(), d.lacking())"
        command = [course.python, "-c", code]
        answer = subprocess.run(command, cwd=course.folder, capture_output=True, text=True)
        assert answer.stdout == "True []\n"

    def test_every_name_in_the_deployment_file_is_one_that_ray_knows(self, course, job):
        """Ray's schema refuses wrong values; a misspelt name in a deployment it passes over."""
        code = """if True:
            import sys, yaml
            from ray.serve import schema
            config = yaml.safe_load(sys.stdin)
            schema.ServeDeploySchema.model_validate(config)
            for part, known in ((config, schema.ServeDeploySchema),
                                (config["applications"][0], schema.ServeApplicationSchema),
                                (config["applications"][0]["deployments"][0], schema.DeploymentSchema)):
                print(sorted(set(part) - set(known.model_fields)))
            """
        answer = subprocess.run([course.python, "-c", code], cwd=course.folder, env=course.env, text=True,
                                input=job.cells["file"].source.partition("\n")[2], capture_output=True)
        assert answer.stdout == "[]\n[]\n[]\n", answer.stderr

    def test_notebook_06_runs_it_and_shows_what_was_seen(self, course):
        answer = workshop(course.folder, "run", "06", env=course.env, python=(course.python,))
        assert answer.returncode == 0, answer
        (executed,) = (course.folder / "runs").glob("06_*.ipynb")
        outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", [])]
        assert not [output for output in outputs if output.get("name") == "stderr"]
        check_what_was_seen(ours(course))
        said = "".join(output.get("text", "") for output in outputs)
        assert f"{ours(course)['log_lines']:,} requests logged" in said
        assert nothing_left(course)

    def test_a_learners_copy_runs_it_and_replicas_answer_as_the_service_does(self, course, job):
        (course.folder / "results" / STORED.name).unlink(missing_ok=True)
        job.cells["deploy-it"].source += """
import requests
from fastapi.testclient import TestClient
from workshop.api import create_app
def ask(what): return requests.post(url + "/forecast", json=what, timeout=10)
assert ask(storm).json() == TestClient(create_app()).post("/forecast", json=storm).json()
assert ask({"wind_kt": 50}).status_code == 422
mine = [os.getpid(), *(one.pid for one in psutil.Process().children(recursive=True)
                       if not one.name().startswith("ray::ServeRepl"))]
open_at = {one.laddr.ip for one in psutil.net_connections("tcp")
           if one.status == "LISTEN" and one.pid in mine}
assert open_at <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, open_at
"""
        job.cells["logs"].source += """
assert set(failed.status) <= {500, 503}, failed.status.value_counts()
ends = failed.due_s + failed.latency_ms / 1000
assert not len(failed) or failed.due_s.max() < ends.min(), "not all of them were in flight at one moment"
assert len([one for one in family() if one.name().startswith("ray::ServeRepl")]) == 2
"""
        job.save()
        kernel = start_as_a_learner(course)
        said, errors = kernel.communicate(timeout=300)
        assert kernel.returncode == 0, errors
        assert said.endswith("Your own run:\n")
        check_what_was_seen(ours(course))
        assert nothing_left(course)

    def test_a_wrong_value_fails_in_the_middle_with_rays_own_words_and_leaves_nothing(self, course, job):
        file = job.cells["file"]
        file.source = file.source.replace("max_ongoing_requests: 100", "max_ongoing_requests: -1")
        job.save()
        kernel = start_as_a_learner(course)
        _, errors = kernel.communicate(timeout=300)
        assert kernel.returncode == 1 and "max_ongoing_requests" in errors, errors
        assert nothing_left(course)

    def test_when_the_notebooks_kernel_is_killed_all_of_ray_goes_with_it(self, course, job):
        job.cells["deploy-it"].source += "\n(folder / 'deployed').touch()"
        job.save()
        deployed = course.folder / "results" / "deployed"
        kernel, deadline = start_as_a_learner(course), time.monotonic() + 200
        while not deployed.exists():
            assert time.monotonic() < deadline and kernel.poll() is None, "Ray did not start"
            time.sleep(0.1)
        assert len(traces(course)) > 5
        kernel.send_signal(signal.SIGKILL)
        kernel.communicate()
        deployed.unlink()
        for file in course.temporary.glob("tmp*.json"):  # Jupyter's: how to reach the job's kernel
            file.unlink()
        assert nothing_left(course)
