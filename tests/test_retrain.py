"""The job that makes a candidate: what it keeps, what it says of it, and the schedules that start it."""
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from conftest import course_files

from workshop import ROOT, monitor, registry
from workshop.model import features, train
from workshop.storms import build_examples, load_storms

JOB = Path(ROOT, "notebooks", "jobs", "retrain.ipynb")
SCHEDULE = JOB.parent / "schedule"
OLD, LAST, NEW, TESTED = "1975-1976", 1979, "1975-1979", ["1977", "1978", "1979"]  # early: quick to train
NUMBERS = ["model_kt", "persistence_kt", "gain_kt", "inside_interval"]
HOSTILE = """<script>alert("1")</script> $(touch hacked) `touch hacked`"; exit 9 # ${{ github.token }} 'é"""


@pytest.fixture(scope="module")
def examples():
    return build_examples(load_storms())


@pytest.fixture(scope="module")
def models(examples, tmp_path_factory):
    """A folder of versions with a model of 1976 in use."""
    folder = tmp_path_factory.mktemp("versions") / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(folder))
        known = examples[examples.season <= 1976]
        registry.promote(registry.save(train(known, 1976), known), "the first")
    return folder


@pytest.fixture
def versions(models, tmp_path, monkeypatch):
    """The same, as a copy for one test."""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    return shutil.copytree(models, tmp_path / "models")


@pytest.fixture(scope="module")
def made(models, tmp_path_factory):
    """The candidate of 1979 and its reports, made from the course's folder by a command, as in the job."""
    place = tmp_path_factory.mktemp("made")
    env = os.environ | {"WORKSHOP_MODEL_DIR": str(shutil.copytree(models, place / "models"))}
    command = [sys.executable, "-m", "papermill", "notebooks/jobs/retrain.ipynb", place / "out.ipynb",
               "-p", "last_season", str(LAST), "-p", "output_folder", place / "results", "-k", "python3"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(**reports(place / "results", NEW), models=place / "models")


def run(**parameters):
    return papermill.execute_notebook(JOB, None, parameters, kernel_name="python3", cwd=JOB.parent)


def reports(folder, version):
    names = {f"retrain_{version}.html", f"retrain_{version}.json"}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert names <= set(files) and not any(name.endswith(".part") for name in files)
    text, said = (files[name].decode() for name in sorted(names))
    return {"files": files, "page": text, "words": html.unescape(re.sub("<[^>]*>", "", text)),
            "json": json.loads(said), "folder": folder}


def content(folder, version):
    return {path.name: path.read_bytes() for path in (folder / version).iterdir()}


def test_the_candidate_is_what_the_package_trains_on_the_same_seasons_and_is_sound(
        made, examples, tmp_path, monkeypatch):
    known = examples[examples.season <= LAST]
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path))
    assert registry.save(train(known, LAST), known) == NEW
    assert content(tmp_path, NEW) == content(made.models, NEW)
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(made.models))
    model, row = registry.load(NEW), features(known.tail(1))
    assert model.predict(row).tolist()[0] == pytest.approx(
        train(examples, LAST).predict(row).to_numpy().tolist()[0], rel=0, abs=0.01)


def test_the_candidate_is_not_in_use_and_the_history_says_why_it_is_there(made, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(made.models))
    assert registry.current() == OLD
    last = registry.history()[-1]
    assert (last["event"], last["version"], last["reason"]) == ("saved", NEW, "the season has ended")


def test_the_scores_are_those_of_models_that_had_not_seen_the_season(made, examples):
    parts = []
    for season in map(int, TESTED):
        now = examples[examples.season == season].reset_index(drop=True)
        wind = train(examples[examples.season < season], season - 1).predict(features(now))
        model, persistence = (abs(guess - now.wind_kt_in_24h) for guess in (wind.middle, now.wind_kt))
        inside = (wind.low <= now.wind_kt_in_24h) & (now.wind_kt_in_24h <= wind.high)
        numbers = dict(zip(NUMBERS, (model, persistence, persistence - model, inside.astype(float))))
        parts.append(now[["storm_id", "season"]].assign(**numbers))
    rows = pd.concat(parts, ignore_index=True)
    assert list(made.json["scores"]) == [*TESTED, "all"]
    for group, told in made.json["scores"].items():
        mine = rows[(rows.season.astype(str) == group) | (group == "all")]
        assert (told["forecasts"], told["storms"]) == (len(mine), mine.storm_id.nunique())
        drawn = monitor.scores(mine[NUMBERS], mine.storm_id, pd.Series(0, mine.index)).loc[0]
        for name in NUMBERS:
            assert told[name] == pytest.approx(drawn[name].to_dict(), rel=0, abs=6e-4)
            assert told[name]["mean"] == pytest.approx(mine[name].mean(), rel=0, abs=6e-4)


def shown(value, name):
    """A number as the page writes it, give or take one in the last place."""
    scale = 100 if name == "inside_interval" else 1
    return pytest.approx(scale * value, rel=0, abs=0.51 if scale == 100 else 0.0506)


def test_the_pages_table_and_words_say_what_the_json_says(made):
    scores, page = made.json["scores"], made.page.replace("−", "-")
    body = re.search("(?s)<tbody>(.*?)</tbody>", page)[1]
    rows = [re.findall("(?s)<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("(?s)<tr>(.*?)</tr>", body)]
    assert [row[0] for row in rows] == [f"{group}\n({told['storms']})" for group, told in scores.items()]
    for (_, *cells), told in zip(rows, scores.values()):
        for cell, name in zip(cells, NUMBERS, strict=True):
            mean, low, high = re.fullmatch(r"(\S+)\n(\S+) to (\S+)", cell).groups()
            for text, end in ((mean, "mean"), (low, "low"), (high, "high")):
                assert float(text) == shown(told[name][end], name)
    total = scores["all"]
    over, storms, model, persistence, gain = re.search(
        r"over ([\d,]+) forecasts for (\d+) storms they were off by (\S+) kt on average, persistence by "
        r"(\S+) kt\. The gain is (\S+) kt", page).groups()
    assert (int(over.replace(",", "")), int(storms)) == (total["forecasts"], total["storms"])
    for text, name in zip((model, persistence, gain), NUMBERS):
        assert float(text) == shown(total[name]["mean"], name)
    alt = re.search('<img [^>]*alt="([^"]+)"', page)[1]
    for group, told in scores.items():
        group = group.replace("all", "All seasons")
        assert f"{group}: model {told['model_kt']['mean']:.1f} kt, persistence " in alt


def verdict(scores):
    """What may be said of the model, by the interval of its gain."""
    gain = scores["all"]["gain_kt"]
    low, high = (round(gain[end], 1) for end in ("low", "high"))  # as they are shown
    side = "better" if low > 0 else "worse" if high < 0 else None
    return f"Models made like this are {side} than persistence" if side else "It cannot be told whether"


def test_the_page_says_why_what_it_was_trained_on_and_how_it_differs_from_the_version_in_use(made, examples):
    known, before = examples[examples.season <= LAST], examples[examples.season <= 1976]
    storms, fewer = known.storm_id.nunique(), before.storm_id.nunique()
    for words in (
            "Reason: the season has ended.", verdict(made.json["scores"]), "Its truths are the archive's.",
            f"{NEW} was trained on the seasons 1975 to {LAST}: {len(known)} examples of {storms} storms.",
            f"In use is {OLD}, trained on the seasons 1975 to 1976: {len(before)} examples of {fewer} storms",
            f"has seen {storms - fewer} storms more and {len(known) - len(before)} examples more",
            "this job does not decide that", "the model is wrong and its scores can still look fine",
            "teaching model, not for decisions about safety", "maximum sustained wind in 24 hours, knots",
            "pressure_change_hpa (hPa in 12 hours)"):
        assert words in made.words
    assert {key: made.json[key] for key in ("version", "reason", "last_season", "in_use")} == {
        "version": NEW, "reason": "the season has ended", "last_season": LAST, "in_use": OLD}
    assert set(made.json) == {"version", "reason", "last_season", "scores", "in_use"}


def test_the_page_needs_no_network_and_no_script(made):
    assert not re.search(r"https?://|<script|url\(|@import", made.page) and '<html lang="en">' in made.page
    sources = re.findall('src="([^"]*)', made.page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_same_parameters_give_the_same_bytes_and_no_second_version(made, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(made.models))
    versions, history = registry.versions(), registry.history()
    notebook = run(last_season=LAST, output_folder=str(tmp_path))
    assert reports(tmp_path, NEW)["files"] == made.files
    assert (registry.versions(), registry.history()) == (versions, history)
    assert f"Candidate {NEW}: it was there already" in str(notebook.cells)


def test_truths_from_elsewhere_replace_the_archives_and_the_words_follow_the_numbers(
        versions, examples, tmp_path, monkeypatch):
    """In a world where the wind stays in 1977, nothing beats persistence; later rows change nothing."""
    stays = examples[examples.season.between(1977, 1978)].assign(wind_kt_in_24h=lambda rows: rows.wind_kt)
    stays[["storm_id", "time", "wind_kt_in_24h"]].to_csv(tmp_path / "other <winds>.csv", index=False)
    run(last_season=1977, observed_winds=f"{tmp_path}/other <winds>.csv", output_folder=f"{tmp_path}/to")
    told = SimpleNamespace(**reports(tmp_path / "to", "1975-1977"))
    scores, count = told.json["scores"], (stays.season == 1977).sum()
    assert scores["all"]["persistence_kt"]["mean"] == 0 < scores["all"]["model_kt"]["mean"]
    assert "worse" in verdict(scores) and verdict(scores) in told.words
    assert f"{count} of its truths are not the archive's: they come from other <winds>.csv." in told.words
    replaced = examples[examples.season <= 1977].copy()
    replaced.loc[replaced.season == 1977, "wind_kt_in_24h"] = replaced.wind_kt
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "mine"))
    registry.save(train(replaced, 1977), replaced)
    assert content(tmp_path / "mine", "1975-1977") == content(versions, "1975-1977")


GOOD = "1977-Anita,1977-08-30T06:00Z,"  # an example of the archive, without its truth
WINDS = {
    "storm_id,time\n": "winds.csv: column 'wind_kt_in_24h' is missing; expected storm_id, time, wind_kt",
    "": "winds.csv: there is no row; expected storm_id, time, wind_kt_in_24h.",
    "1977-Nobody,1977-08-30T06:00Z,50": "no such example: '1977-Nobody', '1977-08-30T06:00Z', '50'.",
    "1977-Anita,yesterday,50": "no such example: '1977-Anita', 'yesterday', '50'.",
    f"{GOOD}50\n{GOOD}55": "it is there twice: '1977-Anita', '1977-08-30T06:00Z', '55'.",
    f"{GOOD}251": "not a number from 0 to 250, in knots: '1977-Anita', '1977-08-30T06:00Z', '251'.",
    f"{GOOD}": "not a number from 0 to 250, in knots: '1977-Anita', '1977-08-30T06:00Z', ''."}
WRONG = [({"last_season": 1900}, "There is no season 1900 in the archive; there are 48, 1975 to 2022."),
         ({"last_season": "all"}, "There is no season 'all' in the archive; there are 48, 1975 to 2022."),
         ({"last_season": 1976}, "Season 1976 is too early: up to it, none has the 10 storms before it"),
         ({"reason": " "}, "The reason is empty; say why there is a new candidate")]


@pytest.mark.parametrize("wrong, words", WRONG)
def test_a_wrong_parameter_is_refused_in_a_line_and_nothing_is_written(
        wrong, words, versions, tmp_path, monkeypatch):
    assert words in refused(wrong, tmp_path, monkeypatch)


@pytest.mark.parametrize("rows, words", WINDS.items())
def test_truths_that_cannot_be_used_are_refused_in_a_line_and_nothing_is_written(
        rows, words, versions, tmp_path, monkeypatch):
    names = "" if rows.startswith("storm_id") else "storm_id,time,wind_kt_in_24h\n"
    (tmp_path / "winds.csv").write_text(names + rows)
    assert words in refused({"observed_winds": str(tmp_path / "winds.csv")}, tmp_path, monkeypatch)


def refused(wrong, tmp_path, monkeypatch):
    """Run the job's cells one by one in this process, quicker than in a kernel; return the error's text."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    parameters, *rest = [cell.source for cell in nbformat.read(JOB, 4).cells if cell.cell_type == "code"]
    namespace = {}
    exec(parameters, namespace)
    assert set(wrong) < set(namespace)
    namespace.update(wrong, output_folder=str(tmp_path / "results"))
    with pytest.raises(ValueError) as error:
        for source in rest:
            exec(source, namespace)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    return str(error.value)


def test_a_refusal_ends_the_run_of_papermill_too(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run(last_season="1984; 1985", output_folder=str(tmp_path / "results"))
    assert error.value.evalue == "There is no season '1984; 1985' in the archive; there are 48, 1975 to 2022."
    assert list(tmp_path.iterdir()) == []


# --- the schedules ---

def checkout(folder):
    """A copy of the course's files, whose environment is the one that runs here."""
    for name in course_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ROOT, name), folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture
def bare(tmp_path):
    """The few variables that a schedule's command gets."""
    return {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
            "MPLCONFIGDIR": matplotlib.get_configdir()}  # to look for fonts in a new home takes seconds


@pytest.mark.skipif(os.name == "nt", reason="cron and sh are not there on Windows")
def test_the_crontabs_line_makes_a_candidate_and_it_knows_nothing_of_later_seasons(
        made, models, bare, tmp_path):
    """In a copy whose archive ends in 1979, all is as the job makes it of the whole archive, to the byte."""
    lines = [line for line in (SCHEDULE / "retrain.cron").read_text("utf-8").splitlines()
             if line and not line.startswith("#")]
    settings, (line,) = dict(line.split("=", 1) for line in lines[:-1]), lines[-1:]
    *when, command = line.split(None, 5)
    assert when == ["15", "6", "1", "12", "*"], "once a year: 06:15 on 1 December, whatever day that is"
    assert not re.search(r"(?<!\\)%", command), "cron would end the command there"
    course = checkout(tmp_path / settings["COURSE"])
    shutil.copytree(models, course / "models")
    archive = course / "data" / "storms.csv"
    rows = archive.read_text("utf-8").splitlines(keepends=True)
    archive.write_text("".join(rows[:1] + [row for row in rows[1:] if int(row[:4]) <= LAST]), "utf-8")
    done = subprocess.run([settings["SHELL"], "-c", command.replace(r"\%", "%")], cwd=tmp_path,
                          env=bare | settings, capture_output=True, text=True)
    log = (course / "runs" / "retrain.log").read_text("utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), log
    assert reports(course / "results", NEW)["files"] == made.files
    assert content(course / "models", NEW) == content(made.models, NEW)
    kept, = (course / "runs").glob("retrain_20??-??-??.ipynb")
    assert f"Candidate {NEW}: saved" in kept.read_text("utf-8")


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((SCHEDULE / "retrain.yml").read_text("utf-8"))


def test_the_workflow_starts_once_a_year_or_by_hand_and_may_change_nothing(workflow):
    starts = workflow[True]  # `on`, which YAML 1.1 takes for a yes
    assert starts["schedule"] == [{"cron": "15 6 1 12 *"}]
    assert set(starts["workflow_dispatch"]["inputs"]) == {"last_season", "reason"}
    assert workflow["permissions"] == {"contents": "read"}


def test_what_somebody_types_into_the_workflows_form_is_no_part_of_a_program(workflow):
    steps = workflow["jobs"]["retrain"]["steps"]
    assert all("${{" not in step.get("run", "") for step in steps)
    inputs, values = workflow[True]["workflow_dispatch"]["inputs"], job_step(workflow)["env"].values()
    asked = [re.fullmatch(r"\$\{\{ inputs\.(\w+) \|\| '(.*)' \}\}", value).groups() for value in values]
    code = next(cell.source for cell in nbformat.read(JOB, 4).cells if cell.metadata.get("tags"))
    for name, otherwise in asked:
        assert name in inputs and re.search(rf'^{name} = "?{otherwise}"?  #', code, re.M), "the job's own"


def job_step(workflow):
    return next(step for step in workflow["jobs"]["retrain"]["steps"] if "papermill" in step.get("run", ""))


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_workflows_steps_make_a_candidate_and_keep_it(workflow, bare, tmp_path):
    first, second, setup, step, keep = workflow["jobs"]["retrain"]["steps"]
    assert [first["uses"], second["uses"]] == ["actions/checkout@v4", "actions/setup-python@v5"]
    assert shlex.split(setup["run"]) == ["python3", "-m", "workshop", "setup"]
    course = checkout(tmp_path / "course")
    given = {"LAST_SEASON": "1977", "REASON": HOSTILE}
    assert set(step["env"]) == set(given)
    done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=course, env=bare | given,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = SimpleNamespace(**reports(course / "results", "1975-1977"))
    assert not list(course.rglob("hacked")), "what was typed has been run"
    assert told.json["reason"] == HOSTILE and f"<p>Reason: {html.escape(HOSTILE)}.</p>" in told.page
    assert "<script" not in told.page and told.json["in_use"] is None
    assert "No version is in use yet." in told.words
    history = (course / "models" / "history.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in history] == [HOSTILE]
    assert keep["uses"] == "actions/upload-artifact@v4"
    kept = {path for place in keep["with"]["path"].split() for path in (course / place).rglob("*.*")}
    assert {"retrain_1975-1977.html", "retrain_1975-1977.json", "retrain.ipynb",
            "model.onnx"} <= {path.name for path in kept}


# --- the page, and the notebook ---

@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_the_page_fits_has_its_picture_and_asks_for_nothing(made, width, tmp_path):
    from test_api import Browser, eventually
    browser = Browser(tmp_path)

    def ask(script):
        told = browser.call("Runtime.evaluate", expression=script, returnByValue=True)
        return told["result"].get("value")

    try:
        browser.call("Network.enable")
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
                     mobile=width < 800)
        page = (made.folder / f"retrain_{NEW}.html").as_uri()
        browser.call("Page.navigate", url=page)
        eventually(lambda: ask("document.readyState") == "complete" and NEW in ask("document.title"))
        assert ask("document.documentElement.scrollWidth") <= width
        pictures = ask("[...document.images].map(image => [image.alt, image.naturalWidth])")
        assert pictures and all(len(alt) > 40 and size > 0 for alt, size in pictures)
    finally:
        browser.call("Browser.close")
        browser.process.wait(20)
    assert page in browser.requested
    assert all(url == page or url.startswith("data:") for url in browser.requested)


def test_the_notebook_has_parameters_short_cells_after_words_and_its_outputs():
    cells = nbformat.read(JOB, 4).cells
    assert "codecode" not in "".join(cell.cell_type for cell in cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    lines = [cell.source.splitlines() for cell in code]
    assert max(map(len, lines)) <= 20 and max(len(line) for cell in lines for line in cell) <= 104
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    pictures = [output.metadata["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert [picture["alt"][:11] for picture in pictures] == ["Mean errors"]
    assert ROOT not in JOB.read_text("utf-8"), "an output tells where it was made"
