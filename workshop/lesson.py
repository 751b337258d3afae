"""Exercises: `check` looks at the learner's object, says what is right, and gives the hint that fits a mistake.

Each exercise is one function below: it holds the right answer and, by name, the mistakes that people make, each
with its hint. Nothing is sent anywhere.
"""
import functools
import html
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workshop import forecaster, storms

EXERCISES, RESULTS = {}, {}


@dataclass(frozen=True)
class Result:
    """What a check says; `mistake` names the known mistake that it recognized, if any."""

    exercise: str
    accepted: bool
    text: str
    mistake: str | None = None

    def __repr__(self):
        return f"{self.mark} {self.exercise}: {self.text}"

    @property
    def mark(self):
        return "✔" if self.accepted else "…" if self.mistake == "untouched" else "✘"

    def _repr_html_(self):
        kind = "success" if self.accepted else "info" if self.mistake == "untouched" else "warning"
        return (f'<div class="alert alert-{kind}"><b>{self.mark} Exercise {self.exercise}</b> '
                f"{html.escape(self.text)}</div>")


class Mistake(Exception):
    """Raised inside a check: the name of a mistake, and the hint that fits it."""


def exercise(number, praise):
    """Register the decorated function as the check of an exercise; it raises Mistake, or returns if all is well."""
    def register(function):
        EXERCISES[number] = (function, praise)
        return function
    return register


def check(number: str, answer) -> Result:
    """Check the answer to an exercise such as "01.1"; never raises, whatever the answer does."""
    if number not in EXERCISES:
        raise ValueError(f"there is no exercise {number!r}; there are {', '.join(EXERCISES)}")
    function, praise = EXERCISES[number]
    try:
        if answer is ... or answer is None or is_blank(answer):
            raise Mistake("untouched", "Not yet: replace the dots in the cell above, run it, then run this one.")
        function(answer)
        result = Result(number, True, praise)
    except Mistake as mistake:
        name, hint = mistake.args
        result = Result(number, False, hint, name)
    except Exception as error:  # the learner's code may fail in any way; what it says is the best hint there is
        result = Result(number, False, f"Your answer could not be checked: {type(error).__name__}: {error}", "error")
    RESULTS[number] = result
    return result


def is_blank(answer) -> bool:
    """Tell whether the answer is a function whose body is still the three dots of the starter."""
    def blank():
        ...

    return getattr(getattr(answer, "__code__", None), "co_code", None) == blank.__code__.co_code


def accepted(number: str) -> bool:
    """Tell whether the last check accepted the answer: solution cells ask, so as not to overwrite such an answer."""
    return number in RESULTS and RESULTS[number].accepted


def same(one, other) -> bool:
    """Tell whether two numbers, texts, sequences, Series or DataFrames hold the same, whatever their exact type."""
    try:
        if isinstance(other, pd.DataFrame):
            return one[list(other)].reset_index(drop=True).equals(other.reset_index(drop=True))
        if isinstance(other, pd.Series):
            return bool(one.sort_index().index.equals(other.index)) and np.allclose(one.sort_index(), other)
        if isinstance(other, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        if isinstance(other, (str, bool)) or isinstance(one, (str, bool)):
            return type(one) is type(other) and one == other
        if isinstance(other, dict):
            return one == other
        return bool(np.isclose(one, other, rtol=0, atol=0.005))
    except (TypeError, ValueError, KeyError, AttributeError):
        return False


def judge(answer, right, mistakes, otherwise):
    """Raise the Mistake that fits unless `answer` is `right`; `mistakes` maps names to (wrong answer, hint)."""
    if same(answer, right):
        return
    for name, (wrong, hint) in mistakes.items():
        if same(answer, wrong):
            raise Mistake(name, hint)
    raise Mistake(None, otherwise)


@functools.cache
def archive():
    """Return the archive as shipped, read once."""
    return storms.load_storms()


@functools.cache
def examples():
    """Return the training examples, built once."""
    return storms.build_examples(archive())


@exercise("01.1", "Yes. Storms, not records, and each in the season in which it began.")
def storms_per_season(answer):
    of = archive().groupby("season")
    year = archive().time.dt.year.rename("season")
    judge(answer, of.storm_id.nunique(), {
        "counted records": (of.size(), "These are records, many for each storm. Count different storms: nunique()."),
        "calendar year": (archive().groupby(year).storm_id.nunique(),
                          "Nearly: 2006 has one storm too many. Zeta began in 2005; group by the column `season`."),
        "one number": (archive().storm_id.nunique(), "That is the whole archive. Group by season before you count."),
    }, "Not right. Expected is a Series with one whole number for each of the 48 seasons, indexed by season.")


@exercise("01.2", "Yes: every six-hourly record once. The model will stand on these.")
def six_hourly(answer):
    records = archive()
    every = records[records.time.dt.hour % 6 == 0]
    keys = ["storm_id", "time"]
    judge(answer, every.drop_duplicates(keys), {
        "doubles left": (every, "The hours are right, but 24 storm-hours still have two records: drop_duplicates."),
        "kept the last": (every.drop_duplicates(keys, keep="last"),
                          "You kept the second of two records, the landfall. The six-hourly one comes first."),
        "one storm a time": (every.drop_duplicates("time"),
                             "Two storms can live at the same time: a double has the same storm_id and the same time."),
        "all hours": (records.drop_duplicates(keys), "No doubles are left, but there are hours such as 07:00."),
    }, "Not right. Expected are the rows of `storms` at 00, 06, 12 and 18 UTC, the first where there are two.")


@exercise("02.1", "Yes. This is the score that any model has to beat.")
def score_to_beat(answer):
    season = examples()[examples().season == 2017]
    error = season.wind_kt - season.wind_kt_in_24h
    every = examples().wind_kt - examples().wind_kt_in_24h
    judge(answer, error.abs().mean(), {
        "no absolute value": (error.mean(), "Errors of +20 and -20 kt cancel in this mean: take abs() first."),
        "sign turned": (-error.mean(), "Errors of +20 and -20 kt cancel in this mean: take abs() first."),
        "squared": ((error**2).mean() ** 0.5, "That is the root mean squared error. Asked is the mean absolute one."),
        "all seasons": (every.abs().mean(), "That is the score over all seasons. Keep those of season 2017 only."),
    }, "Not right. Expected is one number in knots, between 10 and 20.")


@exercise("02.2", "Yes: no storm on both sides, and every example on one of them.")
def split_by_storm(answer):
    train, test = (np.asarray(mask, dtype=bool) for mask in answer(examples()))
    if len(train) != len(examples()) or len(test) != len(examples()):
        raise Mistake(None, "Return two masks, each with one True or False for every row of `examples`.")
    if (train & test).any():
        raise Mistake("row on both sides", f"{(train & test).sum()} rows are in both parts: a row is in exactly one.")
    if not (train | test).all():
        raise Mistake("row left out", f"{(~train & ~test).sum()} rows are in neither part: a row is in exactly one.")
    if not 0.1 < test.mean() < 0.4:
        raise Mistake("wrong size", f"{test.mean():.0%} of the rows are in the test part; about 20 % were asked for.")
    both = set(examples().storm_id[train]) & set(examples().storm_id[test])
    if both:
        raise Mistake("storm on both sides", f"{len(both)} storms are on both sides, {sorted(both)[0]} among them: "
                                             "draw storms (storm_id), not rows.")


@exercise("02.3", "Yes: a share between 0 and 1, and the edges count as inside.")
def coverage(answer):
    low, high, truth = np.array([20, 30, 40, 50.0]), np.array([30, 45, 60, 70.0]), np.array([30, 50, 45, 30.0])
    judge(answer(low, high, truth), 0.5, {
        "edges outside": (0.25, "A truth that equals an edge is inside: use <= and >=. Winds come in steps of 5 kt."),
        "per cent": (50, "That is per cent; return the share, between 0 and 1."),
        "a count": (2, "That is how many are inside; return the share: the mean of True and False."),
        "only the upper edge": (0.75, "You looked at one edge only: inside means low <= truth and truth <= high."),
    }, "Not right: for low 20 30 40 50, high 30 45 60 70 and truth 30 50 45 30 the share is 0.5.")


@exercise("03.1", "Yes, at every edge.")
def categories(answer):
    winds = [20, 33, 34, 63, 64, 82, 83, 95, 96, 112, 113, 136, 137, 165]
    right = [forecaster.category(wind) for wind in winds]
    judge([answer(wind) for wind in winds], right, {
        "edges too high": ([forecaster.category(wind - 1) for wind in winds],
                           "64 kt is already category 1: the edges belong to the stronger side, so use >=."),
        "miles an hour": ([forecaster.category(wind / 1.15078) for wind in winds],
                          "These edges are in miles an hour (74 and so on). In knots a hurricane begins at 64."),
        "numbers": ([max(0, i) for i in (0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)],
                    'Return words, such as "category 1": a bare 1 says nothing to a reader.'),
    }, "Not right. For 20, 34, 64, 96 and 137 kt expected are 'tropical depression', 'tropical storm', "
       "'category 1', 'category 3' and 'category 5'.")


@exercise("03.2", "Yes: your test passes the good function and catches all three broken ones.")
def a_test(answer):
    def good(storm):
        given = storm.wind_kt
        return forecaster.Forecast(valid_time=storm.time + pd.Timedelta(hours=24), wind_kt=given, wind_kt_low=given - 9,
                                   wind_kt_high=given + 9, category=forecaster.category(given), model_version="test")

    def passes(function):
        try:
            return answer(function) is not False
        except Exception:
            return False

    def broken(change):
        return lambda storm: good(storm).model_copy(update=change(good(storm)))

    if not passes(good):
        raise Mistake("refuses the good one", "Your test fails a function that is right: loosen what it asks.")
    faults = {
        "interval turned": (lambda f: {"wind_kt_low": f.wind_kt_high, "wind_kt_high": f.wind_kt_low},
                            "a function that swaps the interval's ends passes: compare low, wind and high"),
        "category of now": (lambda f: {"category": "category 5" if f.wind_kt < 137 else "tropical storm"},
                            "a function that gives the wrong category passes: compare with category(...)"),
        "time not moved": (lambda f: {"valid_time": f.valid_time - pd.Timedelta(hours=24)},
                           "a function whose valid_time is now passes: it must be 24 hours after storm.time"),
    }
    missed = {name: hint for name, (change, hint) in faults.items() if passes(broken(change))}
    if len(missed) == len(faults):
        raise Mistake("asserts nothing", "It catches none of three broken functions: assert something of the forecast.")
    for name, hint in missed.items():
        raise Mistake(name, f"{len(faults) - len(missed)} of 3 broken functions are caught; {hint}.")


@exercise("04.1", "Yes: a 422, and its text says which field, what is allowed, and what was sent.")
def refused(answer):
    status = getattr(answer, "status_code", None)
    hints = {None: (None, "Put the whole answer of requests.post(...) into `refused`, not a part of it."),
             200: ("accepted", "200: the server accepted it. Send a wind that no storm has had, such as 400 kt."),
             404: ("wrong path", "404: nothing lives at that path. It is /forecast, without an s."),
             405: ("wrong verb", "405: the path is right, the verb is not. A forecast is asked for with POST."),
             500: ("server error", "500: the server itself failed; look at server.log().")}
    if status != 422:
        raise Mistake(*hints.get(status, (None, f"The status is {status}; asked for is 422.")))
    if "json" not in answer.request.headers.get("Content-Type", ""):
        raise Mistake("form, not JSON", "422, but because no JSON arrived: send json=..., not data=...")
    if not any(part["loc"][-1] == "wind_kt" and part["type"] == "less_than_equal" for part in answer.json()["detail"]):
        raise Mistake("other reason", "422, but for another reason than the wind: change wind_kt only, to a number.")


@exercise("04.2", "Yes: a second endpoint, typed, with the right answer.")
def second_endpoint(answer):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    if {route.path for route in answer.routes} <= {"/forecast", *(route.path for route in FastAPI().routes)}:
        raise Mistake("untouched", "Not yet: add the endpoint to the cell above, run it, then run this one.")
    client = TestClient(answer, raise_server_exceptions=False)
    got = client.get("/category", params={"wind_kt": 70})
    hints = {404: ("no such path", 'GET /category is not there: is the path "/category", and did you run the cell?'),
             405: ("other verb", "405: /category is there, but not for GET: use @app.get."),
             422: ("other parameter", "422: the parameter should be called wind_kt, and be in the address, not a body."),
             500: ("not a number", "500: your function failed. Without `wind_kt: float` a text arrives.")}
    if got.status_code in hints:
        raise Mistake(*hints[got.status_code])
    if client.get("/category", params={"wind_kt": "strong"}).status_code != 422:
        raise Mistake("not typed", "It answers wind_kt=strong as well: write `wind_kt: float` and FastAPI refuses that.")
    judge(got.json(), {"category": "category 1"}, {
        "bare text": ("category 1", 'Right, but bare: return {"category": ...}, so that more can be added later.'),
    }, f"For 70 kt it answers {got.text}; expected is {{'category': 'category 1'}}.")
