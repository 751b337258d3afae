"""Monitoring: the log as a table, drift between clients, scores with intervals; and the alarms of notebook 07."""
import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from workshop import ROOT, monitor
from workshop.forecaster import INPUTS, Storm
from workshop.storms import load_storms

STORM = {"time": "2022-09-27T12:00:00Z", "latitude": 22.6, "longitude": -83.6, "wind_kt": 100.0,
         "pressure_hpa": 963.0, "latitude_12h_ago": 20.8, "longitude_12h_ago": -83.3, "wind_kt_12h_ago": 85.0,
         "pressure_hpa_12h_ago": 969.0}


def answered(at, time, client="app", **storm):
    forecast = {"valid_time": "2022-09-28T12:00:00Z", "wind_kt": 105.0, "wind_kt_low": 90.0,
                "wind_kt_high": 120.0, "category": "category 3", "model_version": "1975-2014"}
    return {"at": at, "request_id": "r", "client": client, "storm": STORM | {"time": time} | storm,
            "forecast": forecast}


def refused(at, client="app"):
    return {"at": at, "request_id": "r", "client": client, "path": "/forecast", "status": 422, "refused": []}


@pytest.fixture
def log_of(tmp_path):
    def write(*lines):
        path = tmp_path / "forecasts-1.jsonl"
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
        return monitor.read_log(path)
    return write


# --- the log as a table ---

def test_the_log_is_a_table_with_the_storm_as_it_was_sent_and_the_forecast_under_a_name_of_its_own(log_of):
    log = log_of(answered("2026-01-01T00:00:00.000Z", "2022-09-27T12:00:00Z", pressure_hpa=None))
    row = log.iloc[0]
    assert {name: row[name] for name in INPUTS if name != "pressure_hpa"} == {
        name: STORM[name] for name in INPUTS if name != "pressure_hpa"}
    assert np.isnan(row.pressure_hpa) and row.status == 200
    assert (row.wind_kt_in_24h, row.wind_kt_in_24h_low, row.wind_kt_in_24h_high) == (105, 90, 120)
    assert row.time == pd.Timestamp("2022-09-27T12:00Z")


def test_the_log_is_in_the_order_of_the_storms_times_whatever_the_order_of_asking(log_of):
    log = log_of(answered("2026-01-02T00:00:00.000Z", "2005-08-28T12:00:00Z"),
                 answered("2026-01-01T00:00:00.000Z", "2022-09-27T12:00:00Z"),
                 answered("2026-01-03T00:00:00.000Z", "1999-09-27T12:00:00+02:00"))
    assert log.time.dt.year.tolist() == [1999, 2005, 2022]
    assert log.time.dt.hour.iloc[0] == 10, "in UTC, whatever zone the client has used"


def test_a_refused_request_has_the_time_of_the_forecast_before_it_whoever_asked(log_of):
    log = log_of(refused("2026-01-01T00:00:00.000Z", "app"),
                 answered("2026-01-01T00:00:01.000Z", "2005-08-28T12:00:00Z", "ship"),
                 refused("2026-01-01T00:00:03.000Z", "app"),
                 answered("2026-01-01T00:00:04.000Z", "2005-08-29T12:00:00Z", "ship"),
                 answered("2026-01-01T00:00:05.000Z", "2004-08-29T12:00:00Z", "newspaper"))
    assert list(zip(log.client, log.status)) == [("newspaper", 200), ("app", 422), ("ship", 200), ("app", 422),
                                                 ("ship", 200)]
    assert log.time[1] == log.time[2] == log.time[3] and log.wind_kt[[1, 3]].isna().all()


def test_logs_of_refused_requests_only_and_of_nobody_in_particular_can_be_read(log_of):
    log = log_of(refused("2026-01-01T00:00:00.000Z", None), refused("2026-01-01T00:00:01.000Z", None))
    assert log.status.tolist() == [422, 422] and log.time.isna().all()


def test_a_line_that_a_crash_has_cut_short_is_passed_over(log_of):
    whole = answered("2026-01-01T00:00:00.000Z", "2022-09-27T12:00:00Z")
    assert len(log_of(whole, whole, json.dumps(whole)[:80])) == 2


# --- drift: one client against the others ---

def drift_of(own, others, window=10):
    client = pd.Series(["ship", "app"] * len(own))
    values = pd.DataFrame({"wind": np.column_stack([own, others]).ravel()})
    return monitor.drift(values, client, window)["wind"][client == "ship"].to_numpy()


def test_what_changes_for_all_is_no_drift():
    step = np.repeat([50.0, 80.0], 50)
    assert np.nanmax(np.abs(drift_of(step, step))[70:]) == 0, "a storm came, for everybody"


def test_what_one_client_does_is_drift_of_the_size_of_its_mistake():
    drift = drift_of(np.repeat([50.0, 80.0], 50), np.full(100, 50.0))
    assert drift[49] == 0 and drift[54] == pytest.approx(15) and drift[-1] == pytest.approx(30)


def test_there_is_no_drift_until_there_are_enough_requests_to_compare():
    drift = drift_of(np.full(100, 50.0), np.full(100, 50.0))
    assert np.isnan(drift[:20]).all() and (drift[20:] == 0).all(), "10 of its own, 20 of the others"


def test_a_value_that_is_missing_is_no_value_and_a_client_without_a_name_is_one_of_the_others():
    own = np.where(np.arange(100) % 2, np.nan, 50.0)
    assert np.nanmax(np.abs(drift_of(own, np.full(100, 50.0)))) == 0
    values, client = pd.DataFrame({"wind": [1.0] * 60}), pd.Series(["ship", None] * 30)
    drift = monitor.drift(values, client, 10)["wind"]
    assert drift[client.isna()].isna().all() and (drift[client.notna()].iloc[20:] == 0).all()


# --- scores with intervals ---

def test_scores_are_the_means_of_the_rows_by_group():
    values = pd.DataFrame({"error_kt": [1.0, 2, 3, 10], "inside": [1.0, 0, 1, 1]})
    table = monitor.scores(values, pd.Series(["a", "a", "b", "c"]), pd.Series([2001, 2001, 2001, 2002]))
    assert table["error_kt", "mean"].tolist() == [2, 10] and table["inside", "mean"].tolist() == [2 / 3, 1]
    assert table.loc[2002].drop("mean", level=1).isna().all(), "of one storm, chance says nothing"


def test_a_row_without_a_value_counts_neither_in_the_mean_nor_in_its_interval():
    values, storms = pd.DataFrame({"kt": [10, np.nan, 20, np.nan, 30]}), pd.Series(["a", "a", "b", "b", "c"])
    score = monitor.scores(values, storms, pd.Series(0, values.index))["kt"].iloc[0]
    assert score["mean"] == 20 and 10 <= score.low < 20 < score.high <= 30


def test_the_interval_holds_the_truth_about_as_often_as_it_says_where_storms_are_what_differs():
    chance, found = np.random.default_rng(0), []
    for _ in range(60):
        storm = np.repeat(np.arange(25), 20)
        error = pd.DataFrame({"kt": chance.normal(0, 5, 25)[storm] + chance.normal(0, 1, 500)})
        table = monitor.scores(error, pd.Series(storm), pd.Series(0, error.index), resamples=300)["kt"].iloc[0]
        found.append(table.low <= 0 <= table.high)
    assert 0.85 < np.mean(found) <= 1, "rows resampled instead of storms would find it in a third of the cases"


def test_the_same_table_gives_the_same_interval():
    values, storm = pd.DataFrame({"kt": np.arange(40.0)}), pd.Series(np.arange(40) // 4)
    one, other = (monitor.scores(values, storm, pd.Series(1, storm.index)) for _ in range(2))
    assert one.equals(other)


# --- notebook 07: its alarms, on what its own cells define ---

@pytest.fixture(scope="module")
def notebook():
    """What those cells of notebook 07 define that make its signals, its limits and its faults."""
    cells = nbformat.read(Path(ROOT, "notebooks", "07_monitor.ipynb"), as_version=4).cells
    names = {"shipped": "1975-1984", "archive": load_storms(), "chance": np.random.default_rng(0)}
    for first in ("import sys", "CLIENTS =", "line =", "def signals", "rows_of =", "needed =", "largest =",
                  "def winds_times", "FAULTS ="):
        source, = (cell.source for cell in cells if cell.cell_type == "code" and cell.source.startswith(first))
        exec(source, names)
    return names


def rows_of_a_log(cases, fault=lambda storm: storm):
    """The rows that monitor.read_log would give for these cases, sent by a client with this fault."""
    sent = cases.assign(status=200, model_version="1975-1984")
    storms = cases[["time", *INPUTS]].assign(time=cases.time.dt.strftime("%Y-%m-%dT%H:%MZ"))
    wrong = [fault(storm) for storm in storms.to_dict("records")]
    taken = pd.DataFrame([{name: storm.get(name) for name in INPUTS} if accepts(storm) else {} for storm in wrong],
                         columns=INPUTS, index=cases.index, dtype=float)
    sent[list(INPUTS)] = taken
    sent["status"] = np.where(taken.latitude.isna(), 422, 200)
    return sent


def accepts(storm):
    try:
        Storm(**storm)
    except ValueError:
        return False
    return True


def requests_until_an_alarm(notebook, fault, chance):
    """Break one client at random in a season, until the end of the next; None where no alarm rings."""
    season, live = chance.integers(1987, 2022), notebook["live"]
    rows = live[live.season.between(season - 2, season + 1)].assign(status=200, model_version="1975-1984")
    rows["client"] = chance.choice(notebook["CLIENTS"], len(rows))
    own = rows.index[rows.client == chance.choice(notebook["CLIENTS"])]
    here = own[rows.season[own] == season]
    wrong = own[own >= here[chance.integers(len(here) * 3 // 4)]]
    rows.loc[wrong] = rows_of_a_log(rows.loc[wrong], fault)
    rings = (monitor.drift(notebook["signals"](rows), rows.client).abs() > notebook["limit"]).any(axis=1)[wrong]
    return int(np.argmax(rings)) + 1 if rings.any() else None


@pytest.mark.parametrize("fault, most", {"metres": 50, "miles": 100, "sign": 1, "stuck": 50, "gone": 1,
                                         "version": 1}.items())
def test_a_client_that_goes_wrong_anywhere_is_seen_nineteen_times_of_twenty(notebook, fault, most):
    chance = np.random.default_rng(1)
    late = [requests_until_an_alarm(notebook, notebook["FAULTS"][fault], chance) for _ in range(20)]
    found = [requests for requests in late if requests]
    print(fault, len(found), "of 20, median", np.median(found))
    assert len(found) >= 19 and np.median(found) <= most


@pytest.mark.parametrize("split", range(5))
def test_seasons_without_a_mistake_ring_twice_in_38_at_the_most_however_the_clients_share_them(notebook, split):
    live = notebook["live"].assign(status=200, model_version="1975-1984")
    live["client"] = np.random.default_rng(split).choice(notebook["CLIENTS"], len(live))
    apart = monitor.drift(notebook["signals"](live), live.client)
    assert (apart.abs() > notebook["limit"]).any(axis=1).groupby(live.season).any().sum() <= 2
