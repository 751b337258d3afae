"""Exercises: `check` looks at a learner's answer, says what is right, and gives the hint that fits a mistake.

Each exercise is a function whose decorator holds the words: praise, and hints by the mistake's name (`wrong`:
any other). It returns such a name, with what fills the hint's braces, or None if all is well.
"""
import functools
import html
import traceback
from collections import namedtuple
from reprlib import repr as show  # short, and safe where the repr of a learner's object fails

import numpy as np
import pandas as pd

from workshop import forecaster, storms

EXERCISES, RESULTS = {}, {}  # by number: the function and its words; the result of the last check
COMMON = {"untouched": "Not yet: write your answer above, run that cell without an error, then this one.",
          "nothing": "This is None. Is a `return` missing? print(...) and inplace=True give nothing back.",
          "python_and": "`and`, `or`, `not`, `in`, a <= b <= c are not for columns: use & | ~ isin() and ().",
          "status_405": "405: the path is right, the verb is not. Does the exercise say GET or POST?",
          "error": "Your answer could not be checked: {}"}
BLANK = (lambda: None).__code__.co_code  # what a starter's body, three dots, is compiled to
archive = functools.cache(storms.load_storms)
examples = functools.cache(lambda: storms.build_examples(archive()))


class Result(namedtuple("Result", "exercise accepted text mistake")):
    """What a check says. `mistake` is None if all is well, "wrong" if it is no mistake that has a name."""

    def __repr__(self):
        mark = "✔" if self.accepted else "…" if self.mistake == "untouched" else "✘"
        return f"{mark} {self.exercise}: {self.text}"

    def _repr_html_(self):
        kind = "success" if self.accepted else "info" if self.mistake == "untouched" else "warning"
        return f'<div class="alert alert-{kind}">{html.escape(repr(self))}</div>'


def exercise(number, praise, **hints):
    """Register the decorated function as the check of an exercise."""
    return lambda function: EXERCISES.setdefault(number, (function, {"right": praise, **COMMON, **hints}))


def check(number: str, answer) -> Result:
    """Check the answer to an exercise such as "01.1"; never raises, whatever the answer is or does."""
    function, words = EXERCISES[number]
    try:
        blank = answer is ... or getattr(getattr(answer, "__code__", None), "co_code", None) == BLANK
        found = "untouched" if blank else "nothing" if answer is None else function(answer) or "right"
    except KeyboardInterrupt:  # the stop button
        raise
    except BaseException as error:  # the learner's code may fail in any way; its own words are a good hint
        text = traceback.format_exception_only(error)[-1].strip()
        found = "python_and" if "ambiguous" in text or "for &" in text else "error", text
    name, *details = [found] if isinstance(found, str) else found
    name = name if name in words else "wrong"
    text, mistake = words[name].format(*details), None if name == "right" else name
    RESULTS[number] = Result(number, name == "right", text, mistake)
    return RESULTS[number]


def accepted(number: str) -> bool:
    """Tell whether the last check accepted the answer: if so, the solution's cell must not overwrite it."""
    return number in RESULTS and RESULTS[number].accepted


def judge(answer, right, **wrong):
    """Return None if `answer` is `right`, to one decimal and in any order, else which of `wrong` it is."""
    def same(other, one=answer):
        try:
            if isinstance(other, pd.DataFrame):
                one, other = (rows.value_counts(["storm_id", "time", *storms.STATE]) for rows in (one, other))
            if isinstance(other, pd.Series):
                return one.to_dict() == other.to_dict()
            return bool(np.isclose(one, other, 0, 0.05))
        except Exception:  # an answer of another kind
            return False

    names = (name for name, answers in wrong.items() if any(map(same, answers)))
    return None if same(right) else (next(names, "wrong"), type(answer).__name__, show(answer))


@exercise("01.1", "Yes. Storms, not records, and each in the season in which it began.",
          counted_records="These are records, many for each storm. Count different storms: nunique().",
          calendar_year="Nearly: 2006 has one too many. Zeta began in 2005; group by the column `season`.",
          wrong="Not right. Yours is a {}; expected is a Series: one whole number for each of 48 seasons.")
def storms_per_season(answer):
    season, year = (archive().groupby(key) for key in ("season", archive().time.dt.year))
    return judge(answer, season.storm_id.nunique(), counted_records=[season.size()],
                 calendar_year=[year.storm_id.nunique()])


@exercise("01.2", "Yes: every six-hourly record once. The model will stand on these.",
          doubles_left="The hours are right, but some storm-hours have two records: drop_duplicates([...]).",
          kept_the_last="You kept the second of two records, the landfall. The six-hourly one comes first.",
          wrong="Not right. Yours is a {}; expected are rows of `storms` at 00, 06, 12, 18 UTC, each once.")
def six_hourly(answer):
    keys, every = ["storm_id", "time"], archive()[archive().time.dt.hour % 6 == 0]
    return judge(answer, every.drop_duplicates(keys), doubles_left=[every, every.drop_duplicates()],
                 kept_the_last=[every.drop_duplicates(keys, keep="last")])


@exercise("02.1", "Yes. This is the score that any model has to beat.",
          no_absolute_value="Errors of +20 and -20 kt cancel in this mean: take abs() first.",
          all_seasons="That is the score over all seasons. Keep those of season 2017 only.",
          wrong="Not right. Yours is {1} (a {0}); expected is one number in knots, between 10 and 20.")
def score_to_beat(answer):
    every = examples().wind_kt - examples().wind_kt_in_24h
    error = every[examples().season == 2017]
    return judge(answer, error.abs().mean(), no_absolute_value=[error.mean(), -error.mean()],
                 all_seasons=[every.abs().mean()])


@exercise("02.2", "Yes: no storm on both sides, and every example on one of them.",
          not_masks="Return two masks, train and test: for every row True in one, False in the other.",
          storm_on_both_sides="{} storms are on both sides, {} among them: draw storms (storm_id), not rows.",
          wrong_size="{:.0%} of the rows are in the test part, the second mask; about 20 % were asked for.")
def split_by_storm(answer):
    masks, storm_id = answer(examples().copy()), examples().storm_id  # a copy: it may change its table
    if masks is None or [np.size(mask) for mask in masks] != [len(storm_id)] * 2:
        return "not_masks"
    train, test = (pd.Series(mask, dtype=bool).sort_index().to_numpy() for mask in masks)
    if (train == test).any():
        return "not_masks"
    if both := set(storm_id[train]) & set(storm_id[test]):
        return "storm_on_both_sides", len(both), min(both)
    return None if 0.1 < test.mean() < 0.3 else ("wrong_size", test.mean())


@exercise("02.3", "Yes: a share between 0 and 1, and the edges count as inside.",
          edges_outside="A truth that equals an edge is inside: use <= and >=. Winds come in steps of 5 kt.",
          not_a_share="That is how many, or per cent. Return the share: the mean of True and False.",
          wrong="Not right: of ten cases, seven of them inside, it makes {1}; expected is the share, 0.7.")
def coverage(answer):
    truth = pd.Series([30, 60, 60, 40, 45, 50, 55, 10, 80, 90.0], index=range(90, 80, -1))  # rows of a group
    share = answer(pd.Series(30.0, truth.index), pd.Series(60.0, truth.index), truth)
    return judge(share, 0.7, edges_outside=[0.4, 0.5, 0.6], not_a_share=[70, 7])


@exercise("03.1", "Yes, at every edge.", weakest_first="Ask for the strongest first: 34 kt takes all here.",
          edges_too_high="64 kt is already category 1: the edges belong to the stronger side, so use >=.",
          wrong="Not right: for {} kt it returns {}; expected are words, here {!r}.")
def categories(answer):
    for wind in np.add.outer((137, 113, 96, 83, 64, 34), (1, 0.5, 0, -0.5, -1)).ravel():
        word, right = answer(wind), forecaster.category(wind)
        if word != right:
            late, weak = word == forecaster.category(wind - 0.1), word == "tropical storm"
            mistake = "edges_too_high" if late else "weakest_first" if weak else "wrong"
            return mistake, wind, show(word), right


@exercise("03.2", "Yes: your test passes functions that are right, and fails the broken ones.",
          too_strict="Your test fails a function that is right. Its interval may end at the wind: use <=.",
          time_unchecked="A wrong valid_time passes: it must be exactly 24 hours after the storm's time.",
          winds_unchecked="A wrong interval passes: compare all three; the wind lies between low and high.",
          category_unchecked="A wrong category passes: compare it with category(...) of the forecast's wind.")
def a_test(answer):
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

    if not (passes() and passes(up=40) and passes(low=0)):
        return "too_strict"
    tries = {"time_unchecked": [passes(hours=hours) for hours in (0, 12, 48)],
             "winds_unchecked": [passes(low=9, high=-9), passes(low=1), passes(high=-1)],
             "category_unchecked": [passes(name=lambda wind: f"category {5 if wind < 137 else 1}")]}
    return next((name for name, passed in tries.items() if any(passed)), None)


@exercise("04.1", "Yes: a 422, and its text says which field, what is allowed, and what was sent.",
          status_None="Put the whole answer of requests.post(...) into `refused`, not a part of it.",
          status_200="200: the server accepted it. Send a wind that no storm has had, such as 400 kt.",
          status_404="404: nothing lives at that path. It is /forecast, without an s.",
          other_reason="422, not for the wind alone: send json={{**ian, ...}}, another number for wind_kt.",
          wrong="The status is {}; asked for is 422. (A 500 is the server's own fault: see server.log().)")
def refused(answer):
    status = show(getattr(answer, "status_code", None))
    if status != "422":
        return f"status_{status}", status
    first, *more = answer.json()["detail"]
    return "other_reason" if more or first["loc"][-1] != "wind_kt" or "than" not in first["type"] else None


@exercise("04.2", "Yes: a second endpoint, typed, with the right answer.",
          status_404='404: is the path "/category", without wind_kt in it, and did you run the cell?',
          status_422="422: the parameter should be called wind_kt, and be in the address, not a body.",
          status_500="500: it failed. Is it `wind_kt: float`? Does it return a dict? Is it named category?",
          not_typed="It answers wind_kt=strong as well: write `wind_kt: float` and FastAPI refuses that.",
          wrong="For {} kt it answers {}; expected is {}.")
def second_endpoint(answer):
    from fastapi.testclient import TestClient  # only here: it is slow to import
    client = TestClient(answer, raise_server_exceptions=False)
    got = {wind: client.get("/category", params={"wind_kt": wind}) for wind in (70, 20, 140.5, "strong")}
    if (status := got[70].status_code) != 200:
        last = getattr(answer.routes[-1], "path", "")  # the starter ends with this one
        return "untouched" if status == 404 and last == "/forecast" else f"status_{status}"
    if got.pop("strong").status_code != 422:
        return "not_typed"
    for wind, one in got.items():
        if one.json() != {"category": forecaster.category(wind)}:
            return "wrong", wind, show(one.text), {"category": forecaster.category(wind)}


@exercise("05.1", "Yes. What they lack decides: a network, a program, the newest model.",
          ship="On the ship no API can be reached, and no table holds tomorrow's storms: give the model.",
          newspaper="The newspaper asks about the past, and runs no program: a table, made once, will do.",
          app="What you have given away you can't mend the same day: keep the model, and let the app ask.")
def who_gets_what(answer):
    right = {"ship": "model", "newspaper": "results", "app": "API"}
    if ... in answer.values():
        return "untouched"
    return next((who for who in right if answer[who].lower() != right[who].lower()), None)


@exercise("05.2", "Yes: how many, in both directions.",
          agree="You count the rows that agree. Asked is how many do not.",
          one_direction="You miss those where the second one is larger or smaller: take abs() first.",
          every_difference="You count differences below 0.01 kt too; a float32 rounds, and that is fine.",
          not_a_number_of_rows="That is a share, or how far they are apart. Asked is: how many rows.",
          wrong="Not right: of eight rows, three more than 0.01 kt apart, it counts {1}.")
def disagreements(answer):
    same = [60.0, 70, 80]
    found = answer(np.array([10.0, 20, 30, 40, 50, *same]), np.array([10.004, 20.5, 29.5, 40, 50.02, *same]))
    return judge(found, 3, agree=[5], one_direction=[1, 2], every_difference=[4],
                 not_a_number_of_rows=[0.375, 0.5])


@exercise("05.3", "Yes: the mean absolute error of each storm, then the storm where it is largest.",
          signed_error="Errors of +25 and -25 cancel in your mean: take abs() before you group.",
          single_row="You look for the worst single forecast. Take each storm's mean first.",
          added_up="You add up, so long storms look bad. Take each storm's mean.",
          wrong="Not right: yours is {}; expected is a storm_id, as text, here '2022-A'.")
def hardest_storm(answer):
    errors = {"A": [25, -25], "B": [12] * 8, "C": [40, -40, -2, -2], "D": [np.nan], "E": [15, 15],
              "F": [-16, -16]}
    rows = [(f"2022-{storm}", 60.0 + error, 60.0) for storm, some in errors.items() for error in some]
    table = pd.DataFrame(rows, columns=["storm_id", "wind_kt_in_24h", "wind_kt_in_24h_observed"])
    found = answer(table.sample(frac=1, random_state=0))
    mistakes = {"2022-A": None, "2022-B": "added_up", "2022-C": "single_row"}
    mistakes |= dict.fromkeys(("2022-E", "2022-F"), "signed_error")
    return mistakes[found] if isinstance(found, str) and found in mistakes else ("wrong", show(found))
