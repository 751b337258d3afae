"""Exercises: `check` looks at a learner's answer, says what is right, and gives the hint that fits a mistake.

A check is a generator: for each thing that must be so it yields whether it is, the name of the hint if not
(`wrong` if none fits), and what fills the hint's braces; the first that is not so counts. The hints, and the
exercises that need no code of their own, are in hints.toml; `exercise_01_2` checks exercise 01.2.
"""
import functools
import html
import inspect
import io
import json
import time
import tomllib
import traceback
from collections import namedtuple
from itertools import chain, takewhile
from pathlib import Path
from reprlib import repr as show  # short, and safe where the repr of a learner's object fails
from urllib.request import urlopen

import numpy as np
import pandas as pd

from workshop import forecaster, records, registry, server, storms

WORDS = tomllib.loads(Path(__file__).with_name("hints.toml").read_text(encoding="utf-8"))
COMMON, QUIZZES, CALLS, QUESTIONS, STORM = map(WORDS.pop, "common quizzes calls questions storm".split())
RESULTS = {}  # by number: what the last check said
BLANK = (lambda: None).__code__.co_code  # what a starter's body, three dots, is compiled to
archive = functools.cache(storms.load_storms)
examples = functools.cache(lambda: storms.build_examples(archive()))


class Result(namedtuple("Result", "exercise accepted text mistake")):
    """What a check says. `mistake` is None if all is well, "wrong" if it is no mistake that has a name."""
    def __repr__(self):
        mark = "✔" if self.accepted else "…" if self.mistake in ("untouched", "choose") else "✘"
        return f"{mark} {self.exercise}: {self.text}"

    def _repr_html_(self):
        kind = {"✔": "success", "…": "info", "✘": "warning"}[repr(self)[0]]
        return f'<div class="alert alert-{kind}" style="color: black">{html.escape(repr(self))}</div>'


def check(number: str, answer) -> Result:
    """Check the answer to an exercise such as "01.1"; never raises, whatever the answer is or does."""
    words = COMMON | WORDS[number]
    try:
        blank = answer is ... or getattr(getattr(answer, "__code__", None), "co_code", None) == BLANK
        steps = chain([(not blank, "untouched"), (answer is not None, "nothing")], EXERCISES[number](answer))
        name, *details = next((rest for right, *rest in steps if not right), ["right"])
    except KeyboardInterrupt:  # the stop button
        raise
    except BaseException as error:  # the learner's code may fail in any way; its own words are a good hint
        details = [traceback.format_exception_only(error)[0].strip()]
        name = "python_and" if "ambiguous" in details[0] or "for &" in details[0] else "error"
    name = name if name in words else "wrong"
    text, mistake = words[name].format(*details), None if name == "right" else name
    if name == "right" and Path.cwd().name == "my_work":  # the learner's copy; notebook 09 shows it
        try:
            records.note(Path("progress.jsonl"), exercise=number, accepted=True)
        except OSError as error:
            text += f" (Your progress could not be noted: {error}.)"
    RESULTS[number] = Result(number, name == "right", text, mistake)
    return RESULTS[number]


def accepted(number: str) -> bool:
    """Tell whether the last check accepted the answer: if so, the solution's cell must not overwrite it."""
    return number in RESULTS and RESULTS[number].accepted


def same(one, other) -> bool:
    """Tell whether two answers agree: numbers to half a per cent, records in any order."""
    try:
        if isinstance(other, pd.DataFrame):
            one, other = (rows[["storm_id", "time", *storms.STATE]].value_counts() for rows in (one, other))
        if isinstance(other, pd.Series):
            one, other = one.to_dict(), other.to_dict()
        if isinstance(np.atleast_1d(other)[0], (str, dict)):
            return bool(one == other)
        return np.shape(one) == np.shape(other) and np.allclose(one, other, 0.005, 0)
    except Exception:  # an answer of another kind
        return False


def compare(answer, right, **wrong):
    """Return a step: whether the answer is right, else which of `wrong` it is, and how it looks."""
    names = (name for name, answers in wrong.items() if any(same(answer, other) for other in answers))
    shown = answer.item() if isinstance(answer, np.generic) else answer
    return same(answer, right), next(names, "wrong"), type(answer).__name__, show(shown)


def ask(app, path, storm=None):
    """Ask an app as a client would, without a server: POST a storm, if there is one, or else GET."""
    from fastapi.testclient import TestClient  # only here: it is slow to import
    client = TestClient(app, raise_server_exceptions=False)
    return client.post(path, json=storm) if storm else client.get(path)


def quiz(right, answer):
    """Check a dict of words; a mistake has the name of the key where it is."""
    yield isinstance(answer, dict), "wrong"
    yield ... not in answer.values(), "untouched"
    for key, word in right.items():
        yield str(answer.get(key)).lower() == word.lower(), key


def question(right, answer):
    """Check a letter; each has its own words."""
    yield answer != "", "choose"
    yield str(answer).lower() == right, str(answer).lower()


def made(part):
    """Return an argument of a call: a column for a list, a table for a text of several lines (CSV)."""
    table = isinstance(part, str) and "\n" in part
    return pd.read_csv(io.StringIO(part)) if table else pd.Series(part) if isinstance(part, list) else part


def called(case, answer):
    """Check a function by what it gives for cases of arguments, or an answer as it is; see `compare`."""
    answers = json.loads(json.dumps(case))  # a copy: a function may change what it is given
    found = [answer(*map(made, arguments)) for arguments in answers.pop("cases", [])] or [answer]
    yield all(one is not None for one in found), "nothing"
    yield compare(found if found[1:] else found[0], **answers)


def exercise_01_1(answer):
    season, year = (archive().groupby(key) for key in ("season", archive().time.dt.year))
    yield compare(answer, season.storm_id.nunique(), counted_records=[season.size()],
                  calendar_year=[year.storm_id.nunique()])


def exercise_01_2(answer):
    keys, every = ["storm_id", "time"], archive()[archive().time.dt.hour % 6 == 0]
    yield compare(answer, every.drop_duplicates(keys), doubles_left=[every, every.drop_duplicates()],
                  kept_the_last=[every.drop_duplicates(keys, keep="last")])


def exercise_02_2(answer):
    masks, storm_id = answer(examples().copy()), examples().storm_id  # a copy: it may change its table
    yield masks is not None and [np.size(mask) for mask in masks] == [len(storm_id)] * 2, "not_masks"
    train, test = (pd.Series(mask, dtype=bool).sort_index().to_numpy() for mask in masks)
    yield (train != test).all(), "not_masks"
    both = set(storm_id[train]) & set(storm_id[test])
    yield not both, "storm_on_both_sides", len(both), min(both, default=None)
    yield 0.1 < test.mean() < 0.3, "wrong_size", test.mean()


def exercise_03_2(answer):
    def passes(hours=24, up=0, low=-9, high=9, name=forecaster.category):
        def forecast(storm):
            Forecast = answer.__globals__.get("Forecast", forecaster.Forecast)  # the notebook has its own
            wind, time = storm.wind_kt + up, storm.time + pd.Timedelta(hours=hours)
            return Forecast(valid_time=time, wind_kt=wind, wind_kt_low=wind + low, wind_kt_high=wind + high,
                            category=name(wind), model_version="test")
        try:
            answer(forecast)
        except AssertionError:
            return False
        return True

    yield passes() and passes(up=40) and passes(low=0), "too_strict"
    yield not any(passes(hours=hours) for hours in (0, 12, 48)), "time_unchecked"
    yield not (passes(low=9, high=-9) or passes(low=1) or passes(high=-1)), "winds_unchecked"
    yield not passes(name=lambda wind: f"category {5 if wind < 137 else 1}"), "category_unchecked"


def exercise_04_1(answer):
    status = show(getattr(answer, "status_code", None))
    yield status == "422", f"status_{status}", status
    first, *more = answer.json()["detail"]
    yield not more and first["loc"][-1] == "wind_kt" and "than" in first["type"], "other_reason"


def exercise_04_2(answer):
    status, last = ask(answer, "/category?wind_kt=70").status_code, getattr(answer.routes[-1], "path", "")
    mistake = "untouched" if status == 404 and last == "/forecast" else f"status_{status}"  # the starter's
    for wind in (70, 20, 140.5):
        got, right = ask(answer, f"/category?wind_kt={wind}"), {"category": forecaster.category(wind)}
        yield got.status_code == 200, mistake, wind, show(got.text), right
        yield ask(answer, "/category?wind_kt=strong").status_code == 422, "not_typed"
        yield got.json() == right, "wrong", wind, show(got.text), right


def exercise_06_2(app):
    functions = [inspect.unwrap(route.endpoint) for route in app.routes
                 if getattr(route, "path", "") == "/forecast"]
    names = {name for function in functions for name in function.__code__.co_names}
    begun = any(isinstance(function.__globals__.get("model"), forecaster.ModelFile) for function in functions)
    yield "DataFrame" not in names, "still_a_table" if begun else "untouched"
    yield not {"load", "kept_model"} & names, "loads_each_time"
    got = ask(app, "/forecast", STORM)
    yield got.status_code == 200, f"status_{got.status_code}", got.status_code
    answer, right = got.json(), forecaster.forecast(forecaster.Storm(**STORM), registry.load()).wind_kt
    yield isinstance(answer, dict) and same(answer.get("wind_kt"), right), "wrong", show(got.text), right
    yield all(map(inspect.iscoroutinefunction, functions)), "plain_def"


def exercise_08_3(answer):
    health = lambda: json.loads(urlopen(server._running["service"].url + "/health", timeout=5).read())
    known = takewhile(lambda line: line["version"] in registry.versions(), registry.history())
    good, deadline = [line["version"] for line in known][-1], time.monotonic() + 3
    if (now := health())["refused_version"] or now["model_version"] != good:  # a second check mends nothing
        answer()
    while (now := health())["refused_version"] not in (None, registry.current()):  # it will look there soon
        yield time.monotonic() < deadline, "wrong"
    yield not now["refused_version"], "still_refused", now["refused_version"]
    yield now["model_version"] == good, "other_version", now["model_version"], good


def exercise_09_3(answer):
    late = examples()[examples().season >= 2015]
    said = np.asarray(answer(late.drop(columns="wind_kt_in_24h")), float)
    yield said.shape == (len(late),) and ((0 <= said) & (said <= 1)).all(), "wrong", show(said.tolist())
    yield len(np.unique(said)) > 2, "yes_or_no"
    score = ((said - (late.wind_kt_in_24h >= 64)) ** 2).mean()
    yield score > 0.095, "knows_the_future", score
    yield score < 0.174, "worse_than_persistence", score


def exercise_09_5(app):
    weak, said = {"wind_kt": 35, "wind_kt_12h_ago": 35, "pressure_hpa": 1005}, []
    for change, right in ((weak, 200), ({}, 200), ({"pressure_hpa": None}, 200), ({"wind": 40}, 422)):
        status = (got := ask(app, "/hurricane", STORM | change)).status_code
        yield status == right, "untouched" if status == 404 else f"status_{status}"
        said += [got.json()["probability"]] if status == 200 else []
    yield 0 <= said[0] < said[1] <= 1, "wrong", said[:2]


EXERCISES = {name[-4:].replace("_", "."): one for name, one in list(vars().items()) if "exercise_" in name}
EXERCISES |= {number: functools.partial(kind, what) for kind, given in (
    (quiz, QUIZZES), (question, QUESTIONS), (called, CALLS)) for number, what in given.items()}
