"""The jobs, as papermill runs them: the files they write, the same ones each time, or an error that helps."""
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import papermill
import pytest

from workshop import ROOT, cli, registry
from workshop.forecaster import INPUTS, Storm, forecasts
from workshop.storms import load_storms

JOB = Path(ROOT, "notebooks", "jobs", "forecast_season.ipynb")
CSV, PARQUET, PAGE = "forecasts_2022.csv", "forecasts_2022.parquet", "season_2022.html"
WILMA = '<b>"Wil&ma"'  # what no storm is called, and what a damaged or forged archive may hold


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model in use, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path_factory.mktemp("models")))
        yield registry.kept_model()


def run(job, **parameters):
    papermill.execute_notebook(job, None, parameters, kernel_name="python3", cwd=job.parent)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Season 2022, made from the course's folder; and 2005 in a learner's copy, with a dangerous name."""
    place = tmp_path_factory.mktemp("jobs")
    results, course = place / "results", place / "a learner's course"
    command = [sys.executable, "-m", "papermill", "notebooks/jobs/forecast_season.ipynb", place / "out.ipynb",
               "-p", "season", "2022", "-p", "output_folder", results, "-k", "python3"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as terminal:
        for folder in ("workshop", "data"):
            shutil.copytree(Path(ROOT, folder), course / folder)
        archive, quoted = course / "data" / "storms.csv", '"' + WILMA.replace('"', '""') + '"'
        archive.write_text(archive.read_text("utf-8").replace(",Wilma,2005,", f",{quoted},2005,"), "utf-8")
        (course / "my_work" / "jobs").mkdir(parents=True)
        run(shutil.copy(JOB, course / "my_work" / "jobs" / JOB.name), season=2005)
        said = terminal.communicate()[1]
    assert terminal.returncode == 0, said
    return SimpleNamespace(folder=results, page=(results / PAGE).read_text("utf-8"),
                           table=pd.read_csv(results / CSV, parse_dates=["time", "valid_time"]),
                           learners_page=(course / "results" / "season_2005.html").read_text("utf-8"))


def test_it_writes_three_files_and_the_same_bytes_each_time(made, tmp_path):
    run(JOB, output_folder=str(tmp_path))
    first, second = ({file.name: file.read_bytes() for file in folder.iterdir()}
                     for folder in (made.folder, tmp_path))
    assert first == second and set(first) == {CSV, PARQUET, PAGE}


def test_both_tables_hold_the_same_and_their_columns_say_units_and_whether_it_is_now_or_in_24_hours(made):
    parquet = pd.read_parquet(made.folder / PARQUET)
    pd.testing.assert_frame_equal(parquet, made.table, check_dtype=False, rtol=0, atol=0.01)
    assert str(parquet.time.dt.tz) == str(parquet.valid_time.dt.tz) == "UTC"
    assert ",2022-09-27T12:00:00Z,2022-09-28T12:00:00Z,22.60,-83.60," in (made.folder / CSV).read_text()
    names = set(parquet) - {"storm_id", "name", "time", "valid_time", "category_in_24h", "model_version"}
    assert names == {*INPUTS, *("wind_kt_in_24h" + end for end in ("", "_low", "_high", "_observed"))}


def test_each_row_is_what_the_function_answers_for_its_storm(made, model):
    table, names = made.table, ["time", *INPUTS]
    rows = table[names].astype(object).where(table[names].notna(), None).to_dict("records")
    storms = [Storm(**{**row, "time": row["time"].isoformat()}) for row in rows]
    answers = pd.DataFrame([answer.model_dump() for answer in forecasts(storms, model)])
    for ending in ("", "_low", "_high"):
        assert (table["wind_kt_in_24h" + ending] - answers["wind_kt" + ending]).abs().max() <= 0.01
    for name in ("valid_time", "category_in_24h", "model_version"):
        assert table[name].tolist() == answers[name.removesuffix("_in_24h")].tolist()


def test_it_has_the_whole_season_and_its_truth_is_what_the_archive_says_24_hours_later(made):
    records = load_storms().drop_duplicates(["storm_id", "time"]).set_index(["storm_id", "time"]).wind_kt
    scored = made.table.dropna(subset="wind_kt_in_24h_observed").set_index(["storm_id", "valid_time"])
    assert records[scored.index].tolist() == scored.wind_kt_in_24h_observed.tolist()
    assert 100 < len(scored) < len(made.table), "a forecast is made where the truth will never be known, too"


def test_the_page_gives_the_scores_that_the_table_gives(made):
    page, table, truth = made.page, made.table, made.table.wind_kt_in_24h_observed.dropna()
    scored = table.loc[truth.index]
    errors = scored[["wind_kt_in_24h", "wind_kt"]].sub(truth, axis=0).abs()
    inside = 100 * truth.between(scored.wind_kt_in_24h_low, scored.wind_kt_in_24h_high).mean()
    count, *means, share = re.search(r"Over (\d+) .+? by (.+?) kt .+? by (.+?) kt\. (\d+) %", page).groups()
    assert (int(count), int(share)) == (len(scored), round(inside))
    assert [float(mean) for mean in means] == pytest.approx(errors.mean().tolist(), rel=0, abs=0.051)
    cells = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("(?s)<tr>(.*?)</tr>", page)]
    season = load_storms().query("season == 2022").groupby("name", sort=False)
    assert [row[0] for row in cells] == list(season.groups), "a row for each storm, the short ones too"
    for name, _, counts, strongest, *means in cells:
        mine, means = errors[scored.name == name], [float(mean.replace("–", "nan")) for mean in means]
        assert counts == f"{(table.name == name).sum()} ({len(mine)})"
        assert int(strongest) == season.get_group(name).wind_kt.max()
        assert means == pytest.approx(mine.mean().tolist(), rel=0, abs=0.051, nan_ok=True)


def test_the_page_says_what_it_is_worth(made):
    assert "Model 1975-2014 learnt" in made.page and "Season 2022 is not one of them" in made.page
    assert "Season 2005 is one of them" in made.learners_page
    assert "one season proves little" in made.page and "Not for decisions about safety" in made.page


def test_the_page_needs_no_network_and_no_script_and_reads_without_the_map(made):
    page = made.page
    assert not re.search(r"https?://|<script|url\(|@import", page) and '<html lang="en">' in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall('src="([^"]*)', page))
    assert set(re.findall('href="([^"]*)', page)) == {"data:,", CSV, PARQUET}, "relative: beside the page"
    assert re.search('alt="Map of [^"]+16 storms of 2022[^"]+Ian, 140 kt[^"]+"', page)


def test_a_name_from_the_archive_is_text_in_the_page_never_html(made):
    page = made.learners_page
    assert "<b>" not in page and f"<th>{html.escape(WILMA, quote=False)}</th>" in page
    assert re.search(f'alt="[^"]*strongest was {html.escape(WILMA)}, 160 kt[^"]*">', page)


@pytest.mark.parametrize("name, wrong", [("season", 1900), ("season", 2050), ("season", "abc"),
                                         ("model_version", "v9")])
def test_a_wrong_parameter_is_refused_in_a_line_and_nothing_is_written(name, wrong, model, tmp_path):
    right = {"season": "in the archive; there are 48, 1975 to 2022.",
             "model_version": f"in {registry.folder()}; there are: 1975-2014."}
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run(JOB, **{name: wrong}, output_folder=str(tmp_path / "results"))
    assert refused.value.evalue == f"There is no {name.removeprefix('model_')} {wrong!r} {right[name]}"
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_has_parameters_short_cells_after_words_and_its_outputs():
    cells = nbformat.read(JOB, 4).cells
    assert "codecode" not in "".join(cell.cell_type for cell in cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    assert all(cell.execution_count and len(cell.source.splitlines()) <= 20 for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    pictures = [output.metadata["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert [picture["alt"][:3] for picture in pictures] == ["Map"]
    assert ROOT not in JOB.read_text("utf-8"), "an output tells where it was made"


def test_the_call_in_notebook_05_works_with_the_courses_own_kernel(model, tmp_path, monkeypatch):
    """A learner's copy of the job names that kernel, whose command has options of its own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    cli.put_kernel()
    notebook = Path(ROOT, "notebooks", "05_share_three_ways.ipynb")
    call = next(cell.source for cell in nbformat.read(notebook, 4).cells if "extra_arguments=" in cell.source)
    papermill.execute_notebook(JOB, None, {"output_folder": str(tmp_path)}, kernel_name=cli.KERNEL, cwd=ROOT,
                               progress_bar=False, extra_arguments=json.loads(
                                   call.partition("extra_arguments=")[2].partition(")")[0]))
    assert (tmp_path / "season_2022.html").exists()
