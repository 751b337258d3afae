"""The notebooks: each runs as a start of its own, gives the outputs it stores, and keeps the one form."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import matplotlib.image
import nbformat
import psutil
import pytest

from conftest import course_files

from workshop import ROOT

NOTEBOOKS = sorted(Path(ROOT, "notebooks").glob("[0-9][0-9]_*.ipynb"))
TWICE = ("03_wrap_in_function", "04_serve_api", "05_share_three_ways")  # they find the second time what they left the first time
ELSEWHERE = ("JPY_PARENT_PID", "JUPYTERHUB_SERVICE_PREFIX", "CODESPACE_NAME", "VSCODE_PROXY_URI",
             "WORKSHOP_MODEL_DIR", "WORKSHOP_LOG_DIR", "WORKSHOP_API_KEY")


def cells(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@pytest.fixture
def clean_copy(tmp_path):
    for name in course_files():
        target = tmp_path / "course" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ROOT, name), target)
    return tmp_path / "course"


def processes_of(folder):
    """The processes that run in the folder or have it in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) or process.cwd().startswith(str(folder)):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            pass  # not ours, or gone
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_from_a_clean_copy_it_gives_its_stored_outputs_and_leaves_nothing(path, clean_copy, monkeypatch):
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    before = {file.relative_to(clean_copy) for file in clean_copy.rglob("*")}
    for _ in range(1 + (path.stem in TWICE)):
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q",
                   "-p", "no:cacheprovider", f"notebooks/{path.name}"]
        done = subprocess.run(command, cwd=clean_copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert f"{len(cells(path, 'code'))} passed" in done.stdout
    _, alive = psutil.wait_procs(processes_of(clean_copy), timeout=5)  # a server's watch looks twice a second
    assert alive == []
    new = {file.relative_to(clean_copy) for file in clean_copy.rglob("*")} - before
    left = {file.parts[0] for file in new if "__pycache__" not in file.parts}
    assert left <= {"models", "logs", "results"}  # which git ignores
    if path.stem == "02_train_model":
        check_the_model_kept_in(clean_copy / "models", monkeypatch)


def test_there_is_a_notebook_for_each_number():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(len(NOTEBOOKS))]
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_it_opens_with_title_minutes_what_one_will_be_able_to_do_and_needs(self, path):
        opening = cells(path, "markdown")[0].source
        assert opening.startswith(f"# {path.stem[:2]} · ")
        assert re.search(r"\*\*\d+ minutes\.\*\* After this notebook you can\n\n(- .+\n){3,}", opening)
        assert "**You need:**" in opening

    def test_it_closes_with_recap_stretch_task_and_next(self, path):
        closing = cells(path, "markdown")[-1].source
        assert re.search(r"## Recap\n\n(- .+\n){3,}\n\*\*Stretch task\.\*\* .+\n\n\*\*Next:\*\* .+", closing)

    def test_code_cells_are_short_and_follow_words(self, path):
        assert max(len(cell.source.splitlines()) for cell in cells(path, "code")) <= 20
        order = [cell.cell_type for cell in nbformat.read(path, 4).cells]
        after_code = sum(a == b == "code" for a, b in zip(order, order[1:]))
        exercises = sum("exercise" in cell.metadata.get("tags", []) for cell in cells(path, "code"))
        assert after_code - 2 * exercises <= 0.2 * len(order)  # a check and a solution follow their starter

    def test_outputs_are_stored_without_errors_and_figures_have_alternative_text(self, path):
        for cell in cells(path, "code"):
            assert cell.execution_count
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output.text  # a warning is an alarm to a learner
                if "image/png" in output.get("data", {}):
                    assert len(output.metadata["image/png"]["alt"]) > 40
                    picture = matplotlib.image.imread(BytesIO(b64decode(output.data["image/png"])))
                    assert picture.shape[2] == 3 or picture[..., 3].min() == 1, "a dark page shows through it"

    def test_outputs_that_are_not_compared_are_few_and_say_why(self, path):
        code = cells(path, "code")
        ignored = [cell for cell in code if "nbval-ignore-output" in cell.metadata.get("tags", [])]
        assert len(ignored) <= max(1, 0.1 * len(code))
        first_lines = [cell.source.splitlines()[0] for cell in ignored]
        assert all(line.startswith("# ") and "not compared" in line for line in first_lines)

    def test_links_lead_somewhere_and_no_address_is_the_learners_localhost(self, path):
        for cell in cells(path, "markdown"):
            for link in re.findall(r"\]\((?!https?://)([^)#]+)", cell.source):
                assert (path.parent / link).exists(), link
            assert "localhost" not in cell.source

    def test_every_figure_has_a_title_and_axes_with_names(self, path):
        for cell in cells(path, "code"):
            if "show(figure" in cell.source:
                assert "title" in cell.source
                assert "xlabel" in cell.source or "basin_map" in cell.source

    def test_it_is_valid_and_unhurried_json(self, path):
        nbformat.validate(nbformat.read(path, 4))
        assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
        assert path.stat().st_size < 800_000
        assert ROOT not in path.read_text(encoding="utf-8"), "an output tells where it was made"


def test_nine_code_cells_of_ten_have_eight_lines_or_fewer_and_fit_a_projectors_width():
    sources = [cell.source for path in NOTEBOOKS for cell in cells(path, "code")]
    assert sum(len(source.splitlines()) <= 8 for source in sources) >= 0.9 * len(sources)
    assert max(len(line) for source in sources for line in source.splitlines()) <= 104


def definitions(path, *names):
    """The text of top-level functions and classes, wherever they stand in the notebook or module."""
    notebook = path.suffix == ".ipynb"
    texts = [cell.source for cell in cells(path, "code")] if notebook else [path.read_text("utf-8")]
    found = {}
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
                found[node.name] = node
    return found


def test_what_notebook_03_writes_is_what_the_package_serves():
    """Same fields, ranges and words; the module adds a stricter time, and what no storm can do."""
    notebook = definitions(NOTEBOOKS[3], "Storm", "Forecast")
    package = definitions(Path(ROOT, "workshop", "forecaster.py"), "Storm", "Forecast")
    package["Storm"].body = [part for part in package["Storm"].body if not isinstance(part, ast.FunctionDef)]
    for name in ("Storm", "Forecast"):
        ours, theirs = (ast.unparse(source[name]) for source in (notebook, package))
        assert ours.replace("AwareDatetime", "Time") == theirs


def check_the_model_kept_in(folder, monkeypatch):
    """What notebook 02 builds cell by cell and keeps is what the package trains where nothing is kept."""
    from workshop import model, registry, storms

    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(folder))
    examples = storms.build_examples(storms.load_storms())
    assert registry.versions() == [registry.current()] == ["1975-2014"]
    assert registry.save(model.train(examples), examples) == "1975-2014", "the same to the byte: no new version"


@pytest.mark.parametrize("page", [Path(ROOT, "README.md"), NOTEBOOKS[0]], ids=lambda page: page.name)
def test_the_minutes_in_a_table_of_notebooks_are_those_of_the_notebooks(page):
    text = page.read_text("utf-8") if page.suffix == ".md" else cells(page, "markdown")[1].source
    for path in NOTEBOOKS[page.suffix == ".ipynb":]:
        minutes = re.search(r"\*\*(\d+) minutes\.\*\*", cells(path, "markdown")[0].source)[1]
        assert re.search(rf"{path.name}\) (\| {minutes} \||\({minutes} min\))", text), path.name


def test_the_readme_fits_on_two_screens_and_its_places_exist():
    readme = Path(ROOT, "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 80 and readme.index("python3 -m workshop test") < 1500
    for place in re.findall(r"\]\((?!https?://)([^)#]+)\)|^\| `([\w./]+)`", readme, re.M):
        assert Path(ROOT, "".join(place)).exists(), place


def test_a_reader_gets_through_the_package_in_one_sitting():
    files = Path(ROOT, "workshop").glob("*.py")
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    assert len(lines) <= 2000 and max(map(len, lines)) <= 110
