"""The glossary and the page for troubles: their words and messages are those that a learner meets."""
import ast
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urljoin

import nbformat
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from test_cli import BARE, checkout, surroundings, workshop  # two of them fixtures
from test_server import jupyter, kernel, new_kernel, run, started_kernel  # all but run are fixtures
from workshop import ROOT, doctor, registry
from workshop.forecaster import Storm
from workshop.web import for_browsers

FOLDER = Path(ROOT, "notebooks")
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
GLOSSARY = Path(FOLDER, "glossary.md").read_text("utf-8")
TROUBLES = Path(FOLDER, "troubleshooting.md").read_text("utf-8")
ELSEWHERE = {  # messages that are not ours, by who says them; those with a test of their own are tried there
    "Python": ["ModuleNotFoundError: No module named 'numpy'", "NameError: name '…' is not defined",
               "ModuleNotFoundError: No module named 'workshop'", "No module named papermill"],
    "an exercise": ["TypeError: 'ellipsis' object is not subscriptable"],
    "the shell": ["papermill: command not found"],
    "requests": ["ConnectionError: … Connection refused", "ProxyError: … host='127.0.0.1' …"],
    "uvloop": ["RuntimeError: Cannot run the event loop while another loop is running"],
    "pydantic": ["Field required", "Input should be …", "Extra inputs are not permitted"],
    "Swagger UI": ["Failed to load API definition."],
    "Jupyter": ["Token authentication is enabled", "404 : Not Found", "500 : Internal Server Error",
                "The kernel for … appears to have died. It will restart automatically."]}


def entries(page):
    """The text below each heading of the third order."""
    return {part.partition("\n")[0]: part.partition("\n")[2].partition("\n## ")[0].strip()
            for part in page.split("\n### ")[1:]}


def code(text):
    """What stands in code font: between two backticks each, or between single ones."""
    return [double or single for double, single in re.findall(r"``(.+?)``|`(.+?)`", text)]


def sources(path, kind=None):
    return [cell.source for cell in nbformat.read(path, 4).cells if kind in (None, cell.cell_type)]


WORDS, ENTRIES = entries(GLOSSARY), entries(TROUBLES)
TEXTS = {path.name: re.sub(r"https?://\S+|\blog in\b", "", "\n".join(sources(path))) for path in NOTEBOOKS}


@pytest.mark.parametrize("page", [GLOSSARY, TROUBLES], ids=["glossary", "troubleshooting"])
def test_each_entry_has_an_address_of_its_own_and_each_link_leads_somewhere(page):
    headings = re.findall("^#+ (.+)", page, re.M)
    anchors = Counter(re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower() for heading in headings)
    assert [anchor for anchor, times in anchors.items() if times > 1] == []
    assert all((FOLDER / link).is_file() for link in re.findall(r"\]\((?!https?:)([^)#]+)", page))


# --- the glossary ---

def pattern(word):
    """The word in a text, also as a plural; capitals are capitals."""
    plain = re.escape(word).replace(r"\ ", r"\s+")
    plural = plain[:-1] + "(y|ies)" if word.endswith("y") else plain + "(s|es)?"
    return re.compile(rf"(?<!\w){plural}(?!\w)", 0 if word.isupper() else re.I)


def first_use(word):
    """The notebook in which a word is met first, in text or code."""
    return next((name for name, text in TEXTS.items() if pattern(word).search(text)), None)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_met_first_in_the_notebook_that_its_entry_names(word):
    number, link = re.findall(r"\[(\d\d)\]\(([^)]+)\)", WORDS[word])[-1]
    assert link.startswith(f"{number}_")
    assert {part: first_use(part) for part in word.split(" and ")} == dict.fromkeys(word.split(" and "), link)

def prose(path):
    """The notebook's text without its opening, headings and code, each link as its words."""
    opening, *rest = sources(path, "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`|^#+ [^\n]*$", "", "\n".join(rest), flags=re.S | re.M)


PROSE = {path.name: prose(path) for path in NOTEBOOKS}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_leads_to_its_entry_from_the_notebook_whose_prose_uses_it_first(word):
    link = f"](glossary.md#{word.replace(' ', '-')})"
    linked = [name for name, text in PROSE.items() if link in text]
    for part in word.split(" and "):
        with_word = [name for name, text in PROSE.items()
                     if pattern(part).search(re.sub(r"\]\([^)]+\)|\blog in\b", "", text))]
        elsewhere = re.search(rf"\[{part}\]\(https://", " ".join(PROSE.values()))  # to a program's own site
        assert elsewhere or linked == [*with_word, first_use(part)][:1]  # async: only in code


def test_the_words_stand_in_the_order_of_the_alphabet_and_each_is_explained_in_three_sentences_at_most():
    assert list(WORDS) == sorted(WORDS, key=str.casefold) and len(WORDS) >= 50
    for word, text in WORDS.items():
        assert re.search(r"\. \[\d\d\]\(\S+\)$", text.replace("\n", " ")), word
        assert len(re.findall(r"[.?](?=\s)", text)) <= 3, word


# --- the page for troubles ---

def strings(source):
    """The texts in Python code: those in brackets joined, with … for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd.]+", "…", node.value)
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


@pytest.fixture(scope="module")
def own_texts():
    """What the course can say: the texts in the package, the jobs and the tests but this one."""
    modules = [*Path(ROOT, "workshop").glob("*.py"), *Path(ROOT, "tests").glob("test_*.py")]
    python = [path.read_text("utf-8") for path in modules if path != Path(__file__)]
    cells = [cell for path in FOLDER.glob("jobs/*.ipynb") for cell in sources(path, "code")]
    python += [cell for cell in cells if not cell.startswith("%%")]  # these are for IPython, not for Python
    others = [path for kind in ("*.toml", "*.html") for path in Path(ROOT, "workshop").glob(kind)]
    texts = [re.sub(r'" \+\s+"', "", path.read_text("utf-8")) for path in others]  # a text over two lines
    return texts + [text for source in python for text in strings(source)]


def test_every_message_is_one_that_the_course_or_a_program_that_it_uses_can_say(own_texts):
    others = {message for messages in ELSEWHERE.values() for message in messages}
    for message in (message for heading in ENTRIES for message in code(heading) if message not in others):
        parts = [part.strip() for part in re.sub(r"^\w+Error: ", "", message).split("…")]
        pattern = re.compile(".{0,150}?".join(map(re.escape, parts)))
        assert any(pattern.search(text) for text in own_texts), message


def test_every_message_of_another_program_that_is_listed_here_stands_on_the_page():
    quoted = {message for heading in ENTRIES for message in code(heading)}
    assert {message for messages in ELSEWHERE.values() for message in messages} <= quoted


def test_every_trouble_has_a_reason_and_something_to_do_and_ends_with_a_test_that_exists_or_as_reported():
    tests = {node.name for path in Path(ROOT, "tests").glob("test_*.py")
             for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}
    assert len(ENTRIES) >= 20
    for symptom, text in ENTRIES.items():
        reason, *to_do, mark = text.split("\n\n")
        assert reason[0] not in "-*" and len(to_do) == 1 and to_do[0].startswith("- "), symptom
        named = re.fullmatch(r"\*\(tested: ([\w,\s]+)\)\*|\*\(reported\)\*", mark)
        assert named, symptom
        assert set(re.findall(r"\w+", named[1] or "")) <= tests, symptom


# --- the troubles themselves, as far as no other test brings them about ---

def test_what_lies_in_the_environments_place_is_named(checkout, surroundings):
    (checkout / ".venv").write_text("a file where a folder should be")
    answer = workshop(checkout, "setup", env=surroundings, python=BARE)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert answer.stderr.startswith(f"The environment could not be made in {checkout / '.venv'}: ")


def test_a_disk_without_locks_stops_no_setup(checkout, surroundings):
    """Networks' disks often have none."""
    (checkout / ".venv").write_text("a file where a folder should be, so that it soon ends")
    without = """import errno, fcntl, runpy, sys
def flock(*_): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock, sys.argv = flock, ["workshop", "setup"]
runpy.run_module("workshop", run_name="__main__")"""
    answer = subprocess.run([*BARE, "-c", without], cwd=checkout, env=surroundings, capture_output=True, text=True)
    assert "could not be made" in answer.stderr and "No locks" not in answer.stderr


def test_the_doctor_says_that_a_disk_is_full(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    told = doctor.report(doctor.checks())
    assert "delete what you can spare" in told and told.endswith("\nThings to mend here: Free disk.")


def run_first_cell(path, folder):
    """Run a notebook's first cell in a bare Python, in a folder; return the last line of what goes wrong."""
    first = sources(path, "code")[0]
    answer = subprocess.run([*BARE, "-E", "-c", first], cwd=folder, capture_output=True, text=True)
    return answer.stderr.strip().rpartition("\n")[2]


def test_another_python_does_not_find_the_courses_packages():
    assert run_first_cell(NOTEBOOKS[1], FOLDER) == "ModuleNotFoundError: No module named 'numpy'"


def test_a_notebook_that_was_moved_does_not_find_the_package(tmp_path):
    assert run_first_cell(NOTEBOOKS[0], FOLDER) == ""
    assert run_first_cell(NOTEBOOKS[0], tmp_path) == "ModuleNotFoundError: No module named 'workshop'"


def test_what_jupyter_says_without_a_token_and_where_no_server_answers(jupyter):
    _, address, _ = jupyter
    assert "Token authentication is enabled" in requests.get(f"{address}lab").text
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = {"Authorization": "token secret"}
    stopped = requests.get(f"{address}proxy/{port}/docs", headers=token)
    no_prefix = requests.get(urljoin(address, f"/proxy/{port}/docs"), headers=token)
    for answer, message in ((stopped, "500 : Internal Server Error"), (no_prefix, "404 : Not Found")):
        assert message in answer.text and "Jupyter" in answer.text


def test_a_cell_without_the_cells_above_it_ends_in_a_name_error(kernel):
    for path in NOTEBOOKS[1:]:
        assert re.search("NameError: name '.+' is not defined", run(kernel, sources(path, "code")[-1])), path


def test_three_dots_that_nobody_has_replaced_end_in_a_type_error(kernel):
    assert ELSEWHERE["an exercise"][0] in run(kernel, "six_hourly = ...", "six_hourly['wind_kt']")


def test_uvicorn_can_not_be_run_in_a_cell(kernel):
    shown = run(kernel, "import uvicorn, fastapi", "uvicorn.run(fastapi.FastAPI())")
    assert re.findall("^RuntimeError: (.+)", shown, re.M)[-1] in TROUBLES


def test_where_nobody_listens_the_connection_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = "Connection refused" if os.name == "posix" else "refused"  # Windows says it in more words
    with pytest.raises(requests.ConnectionError, match=words):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


def test_a_copy_that_was_renamed_is_made_anew_and_the_old_one_stays(checkout, surroundings):
    on_a_hub = surroundings | {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTER_SERVER_ROOT": str(checkout)}
    assert workshop(checkout, "lab", env=on_a_hub).returncode == 0
    mine, spoilt = (checkout / "my_work" / name for name in ("02_fine.ipynb", "spoilt.ipynb"))
    as_it_came = mine.read_bytes()
    mine.rename(spoilt)
    spoilt.write_text("my own words")
    assert workshop(checkout, "lab", env=on_a_hub).returncode == 0
    assert mine.read_bytes() == as_it_came and spoilt.read_text() == "my own words"


def test_a_422_has_the_words_that_the_page_quotes():
    ian = {"time": "2022-09-27T12:00:00Z", "latitude": 22.6, "longitude": -83.6, "wind_kt": 100,
           "latitude_12h_ago": 20.8, "longitude_12h_ago": -83.3, "wind_kt_12h_ago": 85}
    missing = {name: value for name, value in ian.items() if name != "wind_kt"}
    said = []
    for storm in (missing, ian | {"wind_kt": "100"}, ian | {"wind": 100}, ian | {"longitude": 3.6}):
        with pytest.raises(ValidationError) as refused:
            Storm(**storm)
        said += [problem["msg"] for problem in refused.value.errors()]
    heading = next(heading for heading in ENTRIES if heading.startswith("422"))
    for message, quoted in zip(said, code(heading), strict=True):
        assert message.startswith(quoted.removesuffix("…"))


def test_the_docs_of_a_plain_app_need_the_web_and_those_of_the_course_do_not():
    plain, ours = (TestClient(app).get("/docs").text for app in (FastAPI(), for_browsers(FastAPI())))
    for sign in ('src="https://', "url: '/openapi.json'"):
        assert sign in plain and sign not in ours


def test_where_no_model_was_trained_the_registry_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path))
    with pytest.raises(registry.RegistryError, match="^No version is in use in .+; there are: none"):
        registry.load()


def test_outside_of_the_environment_there_is_no_papermill():
    bare = subprocess.run([*BARE, "-E", "-m", "papermill"], capture_output=True, text=True)
    assert bare.stderr.endswith("No module named papermill\n")
    if bash := shutil.which("bash"):
        nowhere = {"PATH": "/nowhere"}
        shell = subprocess.run([bash, "-c", "papermill"], env=nowhere, capture_output=True, text=True)
        assert shell.stderr.endswith("papermill: command not found\n")
