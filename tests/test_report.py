"""The job `report`: one page of the state of a service, from any forecast log, and what it says is so."""
import html
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import requests

from test_api import Browser
from test_server import eventually

from workshop import ROOT, model, records, registry, server
from workshop.forecaster import INPUTS
from workshop.storms import build_examples, load_storms

JOB = Path(ROOT, "notebooks", "jobs", "report.ipynb")
SHIP = "<b>ship</b>"  # what a client may call itself
CLIENTS = ["app", "newspaper", SHIP]
SCRIPT, FIELD = "<script>alert(1)</script>", "<script>alert(2)</script>"
REASON = "<img src=x onerror=alert(3)>"
FORMULA = r"_$\frac{" + "very-" * 18  # what a picture could take for a formula, leave out, or burst with
DAYS = {"since": "2010-08-22", "until": "2010-08-31"}


def storms_of(cases):
    text = cases[["time", *INPUTS]].assign(time=cases.time.dt.strftime("%Y-%m-%dT%H:%MZ"))
    return text.astype(object).where(text.notna(), None).to_dict("records")


def metres(storm):
    """A client that sends metres per second, rounded as the archive's winds are."""
    return storm | {key: 5 * round(storm[key] * 0.5144 / 5) for key in ("wind_kt", "wind_kt_12h_ago")}


def renamed(storm):
    """A client that was never updated and uses other names."""
    return {key.replace("_kt", ""): value for key, value in storm.items()}


def ask(service, cases, faults):
    """All ask in the order of time; `faults`: what a client sends wrong, from which request to which."""
    sent, session = dict.fromkeys(CLIENTS, 0), requests.Session()
    for client, storm in zip(cases.client, storms_of(cases)):
        fault, first, last = faults.get(client, (None, 0, 0))
        storm = fault(storm) if first <= sent[client] < last else storm
        sent[client] += 1
        answer = session.post(f"{service.url}/forecast", json=storm, headers={"X-Client": client})
        assert answer.status_code == (422 if "wind" in storm else 200)


def copied(log, lines, name="forecasts-a-part.jsonl"):
    """A log folder with these lines."""
    log.mkdir()
    (log / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A model of 2008, and logs that the real service wrote while clients asked for two seasons."""
    place, examples = tmp_path_factory.mktemp("report"), build_examples(load_storms())
    cases = build_examples(load_storms(), with_truth=False).sort_values(["time", "storm_id"])
    cases = cases[cases.season.isin([2009, 2010])].reset_index(drop=True)
    cases["client"] = np.random.default_rng(0).choice(CLIENTS, len(cases))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(place / "models"))
        registry.promote(registry.save(model.train(examples, 2008), examples), reason=REASON)
        for name, faults in {"clean": {}, "odd": {}, "broken": {
                "newspaper": (metres, 60, 120), SHIP: (renamed, 150, 1000)}}.items():
            patch.setenv("WORKSHOP_LOG_DIR", str(place / name))
            service = server.launch_service(name="report")
            try:
                if name != "odd":
                    ask(service, cases, faults)
                for client in (SCRIPT, FORMULA) * (name == "odd"):
                    refused = requests.post(f"{service.url}/forecast", json={FIELD: 1},
                                            headers={"X-Client": client})
                    assert refused.status_code == 422
            finally:
                server._running.pop("report").stop()
    clean = list(records.read(*(place / "clean").iterdir()))
    copied(place / "one", clean[:1])
    copied(place / "elsewhere", [line | {"client": None, "storm": line["storm"] | {"latitude": 1.23}}
                                 for line in clean])
    copied(place / "empty", [])
    return place


def run(place, name, log=None, **parameters):
    """Run the job; return the page, or in what words it failed."""
    parameters = {"log_folder": str(place / (log or name)), "output_folder": str(place / "pages" / name),
                  **parameters}
    try:
        papermill.execute_notebook(JOB, None, parameters, kernel_name="python3", cwd=JOB.parent,
                                   progress_bar=False)
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    return (place / "pages" / name / "report.html").read_bytes().decode()


@pytest.fixture(scope="session")
def pages(place):
    """The pages of all logs, by name, two at a time."""
    calls = {"broken": {}, "clean": {}, "again": {"log": "broken"}, "elsewhere": DAYS, "odd": {}, "one": {},
             "empty": {}, "missing": {}, "wrong": {"log": "one", "since": 2010}}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as two:
        patch.setenv("WORKSHOP_MODEL_DIR", str(place / "models"))
        runs = {name: two.submit(run, place, name, **given) for name, given in calls.items()}
        return SimpleNamespace(**{name: each.result() for name, each in runs.items()})


def text(page):
    """What a reader sees, a space where a tag was."""
    page = re.sub("(?s)<style>.*?</style>", "", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", page))).strip()


def answer(page):
    return text(re.search(r'(?s)<p class="short">(.*?)</p>', page)[1])


def incidents(page):
    return [text(item) for item in re.findall("<li>(.*?)</li>", page)]


def table(page, corner):
    """The rows of the table with that corner, as texts by their names."""
    found = next(part for part in re.findall("(?s)<table.*?</table>", page) if f"<th>{corner}</th>" in part)
    rows = [[text(cell) for cell in re.findall("(?s)<t[hd]>(.*?)</t[hd]>", row)]
            for row in re.findall("(?s)<tr.*?>(.*?)</tr>", found)]
    return {row[0]: dict(zip(rows[0][1:], row[1:])) for row in rows[1:]}


def lines_of(place, log):
    return list(records.read(*(place / log).iterdir()))


# --- what is wrong ---

def test_it_names_what_was_injected_client_and_signal_and_nothing_else(pages):
    found = incidents(pages.broken)
    assert [one.partition(".")[0] for one in found] == [
        "newspaper: wind for its pressure", f"{SHIP}: requests refused"]
    assert "below the others" in found[0] and "Metres per second" in found[0]
    assert "Most often: wind_kt, wind_kt_12h_ago: Field required" in found[1]
    assert answer(pages.broken) == "Yes: 1 incident when the log ends, and 1 earlier."
    assert "and not over" in found[1] and "and not over" not in found[0]


def test_the_stretch_of_an_alarm_lies_where_the_client_was_broken(pages, place):
    sent = [line for line in lines_of(place, "broken") if line["client"] == "newspaper"]
    times = pd.to_datetime([line["storm"]["time"] for line in sent], utc=True)
    first, last = (pd.Timestamp(day, tz="UTC") for day in re.search(
        r"In alarm from (.+?) to (.+?): ", incidents(pages.broken)[0]).groups())
    assert times[60].floor("D") <= first <= times[119], "it begins while the wind is wrong"
    assert times[119].floor("D") <= last <= times[171], "and goes on as long as most of the last 80 are"
    assert len(times) == 172


def test_a_clean_log_is_said_to_be_so_and_what_was_watched(pages):
    assert answer(pages.clean) == "Nothing is wrong, as far as this report can see."
    assert incidents(pages.clean) == [] and 'class="answer"' in pages.clean
    assert f"5 signals of 3 clients ({SHIP}, app, newspaper)" in text(pages.clean)
    assert "a signal rings in about one season of 500" in text(pages.clean)


# --- its numbers ---

@pytest.mark.parametrize("log", ["broken", "clean"])
def test_the_traffic_is_what_the_log_holds(log, pages, place):
    lines, page = lines_of(place, log), getattr(pages, log)
    rows = table(page, "Client")
    assert sorted(rows) == sorted(CLIENTS)
    for client, row in rows.items():
        own = [line["status"] if "status" in line else 200 for line in lines if line["client"] == client]
        refused = len(own) - own.count(200)
        assert (row["Forecasts"], row["Refused"]) == (str(own.count(200)), str(refused))
        assert row["Refused (%)"] == f"{100 * refused / len(own):.1f}"
    refused = sum("refused" in line for line in lines)
    assert f"{len(lines) - refused} forecasts and {refused} refused requests" in text(page)
    assert f"In all {len(lines) - refused} forecasts, {refused} refused" in page, "in the picture's text"


def test_the_scores_are_those_of_the_log_and_the_archive(pages, place):
    rows = [{"time": pd.Timestamp(line["storm"]["time"]), **{
        name: line["storm"][name] for name in ("latitude", "longitude", "wind_kt")}, **{
        f"forecast{end}": line["forecast"]["wind_kt" + end] for end in ("", "_low", "_high")}}
        for line in lines_of(place, "broken") if "forecast" in line]
    truth = build_examples(load_storms())[["season", "time", "latitude", "longitude", "wind_kt_in_24h"]]
    scored = pd.DataFrame(rows).merge(truth, on=["time", "latitude", "longitude"])
    observed, shown = scored.wind_kt_in_24h, table(pages.broken, "Season")
    errors = pd.DataFrame({"Model (kt)": (scored.forecast - observed).abs(),
                           "Persistence (kt)": (scored.wind_kt - observed).abs(),
                           "Inside (%)": 100.0 * observed.between(scored.forecast_low, scored.forecast_high)})
    errors["Gain (kt)"] = errors["Persistence (kt)"] - errors["Model (kt)"]
    groups = {"all": errors} | {str(season): part for season, part in errors.groupby(scored.season)}
    assert sorted(shown) == sorted(groups) == ["2009", "2010", "all"]
    for group, part in groups.items():
        assert int(shown[group]["Scored"]) == len(part)
        for name, mean in part.mean().items():
            value, *ends = map(float, re.findall(r"-?[\d.]+", shown[group][name]))
            assert value == pytest.approx(mean, abs=0.51 if "%" in name else 0.051)
            assert not ends or ends[0] < value < ends[1]
    assert f"{len(scored)} forecasts for" in text(pages.broken)


def test_whether_it_beats_persistence_is_said_only_beyond_chance(pages):
    gain = table(pages.clean, "Season")["all"]["Gain (kt)"]
    low, high = re.search(r"\((-?[\d.]+) to (-?[\d.]+)\)", gain).groups()
    side = "better than" if float(low) > 0 else "worse than" if float(high) < 0 else "not to be told from"
    assert text(pages.clean).count(f"By their errors, the forecasts are {side} persistence") == 2
    assert "are not to be told from persistence" in text(pages.one) and "(no interval)" in text(pages.one)
    wide = float(re.search(r"to ([\d.]+)\)", table(pages.broken, "Season")["all"]["Inside (%)"])[1])
    assert wide < 80 and "80 % intervals hold fewer of the truths than they should" in text(pages.broken)
    assert "fewer of the truths" not in text(pages.clean)


def test_the_versions_are_those_of_the_log_and_of_the_registry(pages, place):
    answered = [line["at"] for line in lines_of(place, "broken") if "forecast" in line]
    first, last = (f"{pd.Timestamp(at):%Y-%m-%d %H:%M}" for at in (min(answered), max(answered)))
    assert table(pages.broken, "Version") == {"1975-2008": {
        "Forecasts": str(len(answered)), "First (UTC)": first, "Last (UTC)": last}}
    history = re.search(r'(?s)<div class="texts">.*', pages.broken)[0]
    assert re.findall(r"<td>(saved|promoted)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>", history) == [
        ("saved", "1975-2008", "trained"), ("promoted", "1975-2008", html.escape(REASON))]


def test_since_and_until_bound_the_storms_and_both_days_are_in(pages, place):
    days = [line["storm"]["time"][:10] for line in lines_of(place, "elsewhere")]
    given = sum(DAYS["since"] <= day <= DAYS["until"] for day in days)
    assert 0 < given < len(days) and {*DAYS.values()} <= {*days}
    assert f" {given} forecasts and " in text(pages.elsewhere)


# --- any log ---

def test_a_log_of_one_request_makes_a_page_that_admits_how_little_that_is(pages):
    assert answer(pages.one) == "Nothing that shows; but there is too little to compare clients."
    assert "Comparing needs two clients" in text(pages.one)
    assert "1 forecast and 0 refused requests (0.0 % of all) from 1 client" in text(pages.one)


def test_where_all_was_refused_it_says_that_nobody_got_a_forecast(pages):
    assert answer(pages.odd) == "Yes: nobody got a forecast. 2 requests came, all refused."
    assert "No forecast was given, so there is none to score." in text(pages.odd)


def test_storms_that_the_archive_does_not_know_and_clients_without_a_name_are_reported_too(pages):
    assert "None of these forecasts can be scored" in text(pages.elsewhere)
    assert list(table(pages.elsewhere, "Client")) == ["(no name)"]


def test_an_empty_log_is_a_page_and_a_folder_that_is_not_there_an_error(pages, place):
    assert answer(pages.empty) == "Nothing was asked: there is nothing to report."
    assert pages.missing.startswith(f"ValueError: There is no folder {place / 'missing'}. A forecast log")
    assert pages.wrong == "ValueError: since is 2010; right is a day such as 2010-08-31, or nothing."
    made = {path.relative_to(place / "pages").as_posix() for path in (place / "pages").rglob("*.*")}
    assert made == {f"{name}/report.html" for name in vars(pages) if name not in ("missing", "wrong")}


def test_texts_of_strangers_are_text_in_the_page(pages):
    assert "<script" not in pages.odd and "<img src=x" not in pages.odd and "<b>" not in pages.broken
    assert list(table(pages.odd, "Client")) == [SCRIPT, FORMULA]
    assert any(FIELD in reason for reason in table(pages.odd, "Reason")) and REASON in text(pages.odd)


# --- the page ---

def test_the_same_log_gives_the_same_bytes(pages):
    assert pages.again == pages.broken


def test_it_needs_no_network_and_no_script_and_reads_without_its_pictures(pages):
    for page in (pages.broken, pages.one, pages.odd, pages.empty):
        assert not re.search(r"https?://|<script|url\(|@import", page) and '<html lang="en">' in page
        assert all(source.startswith("data:image/png;base64,") for source in re.findall('src="([^"]*)', page))
        assert all(len(alt) > 80 and re.search(r"\d", alt) for alt in re.findall('alt="([^"]*)', page))
    assert pages.broken.count("<img") == pages.broken.count(' alt="') == 3


class Witness(Browser):
    """A browser of which all is kept that it told while we asked."""

    def call(self, method, **parameters):
        self.told = getattr(self, "told", [])
        self.tab.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while (message := json.loads(self.tab.recv())).get("id") != 1:
            self.told.append(message)
        return message["result"]

    def ask(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_in_a_browser_it_fits_a_desk_and_a_phone_and_asks_nobody_for_anything(pages, place, tmp_path):
    browser = Witness(tmp_path)
    try:
        for domain in ("Network", "Log", "Runtime", "Page"):
            browser.call(f"{domain}.enable")
        for name in ("broken", "odd", "one", "empty"):
            address = (place / "pages" / name / "report.html").as_uri()
            for width in (1280, 390):
                browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                             deviceScaleFactor=1, mobile=False)
                browser.call("Page.navigate", url=address)
                eventually(lambda: browser.ask("location.href + document.readyState") == f"{address}complete")
                browser.ask("document.querySelectorAll('details').forEach(one => { one.open = true })+''")
                assert browser.ask("document.documentElement.scrollWidth") <= width, name
                pictures = "[...document.images].every(one => one.naturalWidth && one.alt.length > 80)"
                assert browser.ask(pictures), name
        wrong = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        assert [message for message in browser.told if message["method"] in wrong] == []
        asked = [message["params"]["request"]["url"] for message in browser.told
                 if message["method"] == "Network.requestWillBeSent"]
        assert len(asked) >= 8 and all(url.startswith(("file:", "data:")) for url in asked)
    finally:
        browser.call("Browser.close")
        browser.process.wait(20)


def test_the_notebook_has_parameters_short_cells_after_words_and_its_outputs():
    cells = nbformat.read(JOB, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"] and cells[0].cell_type == "markdown"
    assert "codecode" not in "".join(cell.cell_type for cell in cells)
    assert all(cell.execution_count and len(cell.source.splitlines()) <= 20 for cell in code)
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 104
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    pictures = [output.metadata["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3 and all(len(picture["alt"]) > 80 for picture in pictures)
    assert ROOT not in JOB.read_text("utf-8"), "an output tells where it was made"
