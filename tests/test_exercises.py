"""Exercises: their form in the notebooks, and what their checks say to answers that learners give.

Starters, checks and solutions are read from the notebooks; answers are written as a learner would type them.
"""
import ast
import importlib.util
import re
import time
from pathlib import Path
from textwrap import dedent

import joblib
import nbformat
import pytest
import requests
from sklearn.ensemble import HistGradientBoostingClassifier

from workshop import ROOT, lesson, records, registry, server
from workshop.forecaster import category
from workshop.model import features, train

NOTEBOOKS = sorted(Path(ROOT, "notebooks").glob("[0-9]*.ipynb"))
PARTS = ["exercise", "check", "solution"]


def read_exercises():
    """Every exercise of every notebook, by number: notebook, prompt, starter, check and solution cell."""
    found = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        tagged = [i for i, cell in enumerate(cells) if set(cell.metadata.get("tags", [])) & set(PARTS)]
        assert len(tagged) % 3 == 0, f"{path.name}: an exercise lacks its starter, check or solution"
        for i in tagged[::3]:
            prompt, *rest = cells[i - 1:i + 3]
            assert [cell.metadata.tags for cell in rest] == [[part] for part in PARTS], f"{path.name}: {i}"
            number = prompt.source.removeprefix("### Exercise ")[:4]
            assert number not in found, f"{number} stands twice"
            found[number] = (path.name, prompt, *rest)
    return found


EXERCISES = read_exercises()
each_exercise = pytest.mark.parametrize("number", EXERCISES)

# What the cells before an exercise have defined, as far as it needs it.
BEFORE = {
    "01": """
        import numpy as np, pandas as pd
        from workshop.storms import load_storms
        storms = load_storms()""",
    "02": """
        import numpy as np, pandas as pd
        from workshop.storms import build_examples, load_storms
        examples = build_examples(load_storms())
        change_kt = examples.wind_kt_in_24h - examples.wind_kt""",
    "03": """
        import bisect
        from datetime import timedelta
        import numpy as np, pandas as pd
        from pydantic import BaseModel
        from workshop.forecaster import Storm, category
        class Forecast(BaseModel):  # the notebook has its own
            valid_time: object
            wind_kt: float
            wind_kt_low: float
            wind_kt_high: float
            category: str
            model_version: str
        ian = Storm(time="2022-09-27T12:00:00Z", latitude=22.6, longitude=-83.6, wind_kt=100,
                    latitude_12h_ago=20.8, longitude_12h_ago=-83.3, wind_kt_12h_ago=85)""",
    "04": """
        import json, requests
        from typing import Annotated
        from fastapi import APIRouter, Query
        from pydantic import BaseModel
        from workshop.forecaster import category
        ian = {"time": "2022-09-27T12:00:00Z", "latitude": 22.6, "longitude": -83.6, "wind_kt": 100,
               "latitude_12h_ago": 20.8, "longitude_12h_ago": -83.3, "wind_kt_12h_ago": 85}""",
    "05": "import numpy as np, pandas as pd",
    "06": "import functools, json, math, sys\nimport numpy as np, pandas as pd",
    "07": """
        import random
        import numpy as np, pandas as pd
        def winds_times(factor, storm):
            return storm | {key: 5 * round(storm[key] * factor / 5) for key in ("wind_kt", "wind_kt_12h_ago")}
        faults = ["metres", "miles", "sign", "stuck", "gone", "version"]
        patients = dict(zip("ABC", random.Random(41).sample(faults, 3)))""",
    "08": "import numpy as np, pandas as pd\nfrom workshop import registry",
    "09": """
        import numpy as np, pandas as pd
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression
        from workshop import model as models
        from workshop.storms import build_examples, load_storms
        examples = build_examples(load_storms())
        def becomes_hurricane(examples):
            return examples.wind_kt_in_24h >= 64
        def fitted(last_season, classifier=HistGradientBoostingClassifier):
            known = examples[examples.season <= last_season]
            return classifier(random_state=0).fit(models.features(known), becomes_hurricane(known))""",
}
APP = """
from fastapi import FastAPI
from workshop.forecaster import Storm
app = FastAPI()
@app.post("/forecast")
def post_forecast(storm: Storm) -> dict:
    return {"wind_kt": 1 / (150 - storm.wind_kt)}
"""

# Pieces of answers below.
SCORE = "persistence_2017 = "
SPLIT = "def split_by_storm(table):\n    return "
COVERAGE = "def coverage(low, high, truth):\n    return "
NAMES = "names = ['tropical depression', 'tropical storm', *(f'category {i}' for i in range(1, 6))]\n"
NAMES += "EDGES = [34, 64, 83, 96, 113, 137]\n"
CATEGORY = "def category(wind_kt):\n    return "
TEST = "def test_forecast(forecast):\n    a = forecast(ian)\n"
TIME = "    assert a.valid_time == ian.time + timedelta(hours=24)\n"
WINDS = "    assert a.wind_kt_low <= a.wind_kt <= a.wind_kt_high\n"
NAMED = "    assert a.category == category(a.wind_kt)"
POST = "refused = requests.post(server.url + '/forecast', "
GET = "@app.get('/category')\ndef get_category("
WHO = "who_gets = "
COUNT = "def disagreements(first, second):\n    return "
WAIT = "def wait_ms(users, requests_per_s):\n    return "
RUNG = "app, model = FastAPI(), kept_model()\n@app.post('/forecast')\n"
ENDPOINT = "async def post_forecast(storm: Storm):\n    return "
TABLE = "async def post_forecast(storm: Storm):\n    row = pd.DataFrame([storm.model_dump()])\n    return "
ILL = "diagnosis = "
HURRICANE = "app = FastAPI()\n@app.post('/hurricane')\n"
ROW = "    row = pd.DataFrame([storm.model_dump()])\n"
WORKERS = "def workers_needed(requests_per_s, service_ms):\n    return "
HARDEST = ("def hardest_storm(results):\n    truth = results.wind_kt_in_24h_observed\n"
           "    error = results.wind_kt_in_24h - truth\n    return ")

DRAW = "def resampled_mean(table, drawn):\n    by = table.error_kt.groupby(table.storm_id)\n    return "
SICK = "ill_with = "
MEND = "def mend(storm):\n    return "
KNOWN = "def known_before(table, season, storms):\n    earlier = table[table.season < season]\n    return "
DECIDE = "def decide(low, high):\n    return "
CALL = "def mend():\n    "
LABEL = "def becomes_hurricane(table):\n    return "
BRIER = "def brier_score(probability, happened):\n    return "
CHANCE = "def hurricane_probability(storms):\n    return "
GROUPS = "def reliability(probability, happened):\n    return happened.groupby("

# "right": answers in other ways than the solution's; "wrong": what nobody foresaw; the rest by mistake.
ANSWERS = {
    "01.1": {
        "right": ["per_season = storms.drop_duplicates('storm_id').season.value_counts()",
                  "ids = {s: set(rows.storm_id) for s, rows in storms.groupby('season')}\n"
                  "per_season = pd.Series({s: float(len(ids[s])) for s in ids})"],
        "counted_records": ["per_season = storms.groupby('season').size()",
                            "per_season = storms.season.value_counts()"],
        "calendar_year": ["per_season = storms.groupby(storms.time.dt.year).storm_id.nunique()"],
        "wrong": ["per_season = storms.groupby('season').name.unique()",
                  "per_season = storms.storm_id.nunique()", "per_season = {1975: 8}",
                  "per_season = storms.groupby('season')[['storm_id']].nunique()", "per_season = [1, 2]"],
    },
    "01.2": {
        "right": ["double = storms.duplicated(['storm_id', 'time'])\n"
                  "six_hourly = storms[storms.time.dt.hour.isin([0, 6, 12, 18]) & ~double]\n"
                  "six_hourly = six_hourly.reset_index(drop=True).astype({'wind_kt': int})",
                  "six_hourly = storms.groupby(['storm_id', 'time']).head(1).query('time.dt.hour % 6 == 0')\n"
                  "six_hourly = six_hourly.sort_values('wind_kt')"],
        "doubles_left": ["six_hourly = storms[storms.time.dt.hour % 6 == 0]",
                         "six_hourly = storms[storms.time.dt.hour % 6 == 0].drop_duplicates()"],
        "kept_the_last": ["six_hourly = storms[storms.time.dt.hour % 6 == 0]\n"
                          "six_hourly = six_hourly.drop_duplicates(['storm_id', 'time'], keep='last')"],
        "wrong": ["six_hourly = storms[storms.time.dt.hour % 6 == 0].drop_duplicates('time')",
                  "six_hourly = storms.drop_duplicates(['storm_id', 'time'])",
                  "six_hourly = storms[storms.time.dt.hour % 6 == 0].groupby(['storm_id', 'time']).first()",
                  "six_hourly = storms.time.dt.hour % 6 == 0", "six_hourly = storms.iloc[::6]",
                  "six_hourly = storms[['storm_id', 'wind_kt']]", "six_hourly = 19054"],
    },
    "02.1": {
        "right": ["columns = ['wind_kt_in_24h', 'wind_kt']\n"
                  "then, now = examples.loc[examples.season == 2017, columns].to_numpy().T\n"
                  + SCORE + "float(sum(abs(then - now)) / len(now))",
                  SCORE + "round(change_kt.abs().groupby(examples.season).mean()[2017], 1)"],
        "no_absolute_value": [SCORE + "change_kt[examples.season == 2017].mean()",
                              SCORE + "-change_kt[examples.season == 2017].mean()"],
        "all_seasons": [SCORE + "change_kt.abs().mean()"],
        "wrong": [SCORE + "change_kt[examples.season == 2017].abs()", SCORE + "'15.0'",
                  SCORE + "change_kt[examples.season == '2017'].abs()",  # no row at all
                  SCORE + "(change_kt[examples.season == 2017] ** 2).mean() ** 0.5",
                  SCORE + "change_kt[examples.season == 2016].abs().mean()", SCORE + "np.nan"],
    },
    "02.2": {
        "right": ["def split_by_storm(table):\n"
                  "    fold = table.storm_id.factorize()[0] % 5\n"
                  "    return list(fold != 0), [int(f == 0) for f in fold]",
                  "from sklearn.model_selection import GroupShuffleSplit\n"
                  "def split_by_storm(table):\n"
                  "    splitter = GroupShuffleSplit(test_size=0.2, random_state=0)\n"
                  "    train, test = next(splitter.split(table, groups=table.storm_id))\n"
                  "    test = np.isin(np.arange(len(table)), test)\n"
                  "    return np.array([~test, test])",
                  "def split_by_storm(table):\n"
                  "    table = table.sample(frac=1, random_state=0)  # masks keep the rows' names\n"
                  "    return table.season < 2015, table.season >= 2015"],
        "not_masks": ["def split_by_storm(table):\n    print(table.storm_id.isin(['2022-Ian']))",
                      SPLIT + "table[table.season < 2015], table[table.season >= 2015]",
                      SPLIT + "np.arange(9000), np.arange(9000, len(table))",
                      SPLIT + "table.season < 2015",
                      SPLIT + "table.season <= 2015, table.season >= 2015",
                      SPLIT + "table.season < 2014, table.season > 2014"],
        "storm_on_both_sides": ["def split_by_storm(table):\n"
                                "    test = np.random.default_rng(0).random(len(table)) < 0.2\n"
                                "    return ~test, test"],
        "wrong_size": [SPLIT + "table.season >= 2015, table.season < 2015",
                       SPLIT + "table.season < 2022, table.season >= 2022"],
        "error": [SPLIT + "tabel", "split_by_storm = 0.2"],
    },
    "02.3": {
        "right": [COVERAGE + "truth.between(low, high).mean()",
                  "def coverage(low, high, truth):\n"
                  "    inside = [a <= b <= c for a, b, c in zip(low, truth, high)]\n"
                  "    return sum(inside) / len(inside)"],
        "edges_outside": [COVERAGE + "((low < truth) & (truth < high)).mean()",
                          COVERAGE + "((low <= truth) & (truth < high)).mean()",
                          COVERAGE + "((low < truth) & (truth <= high)).mean()"],
        "not_a_share": [COVERAGE + "truth.between(low, high).mean() * 100",
                        COVERAGE + "truth.between(low, high).sum()"],
        "python_and": [COVERAGE + "(low <= truth <= high).mean()",
                       COVERAGE + "(low <= truth and truth <= high).mean()",
                       COVERAGE + "(low <= truth & truth <= high).mean()"],
        "wrong": [COVERAGE + "(truth <= high).mean()",
                  COVERAGE + "(low <= truth).mean()",
                  COVERAGE + "((low <= truth) | (truth <= high)).mean()",
                  COVERAGE + "1 - truth.between(low, high).mean()",
                  COVERAGE + "truth.between(low, high)"],
        "nothing": ["def coverage(low, high, truth):\n    print(truth.between(low, high).mean())"],
        "error": [COVERAGE + "truth.inside(low, high).mean()"],
    },
    "03.1": {
        "right": ["def category(wind_kt):\n"
                  "    if wind_kt < 34: return 'tropical depression'\n"
                  "    if wind_kt < 64: return 'tropical storm'\n"
                  "    return f'category {1 + sum(wind_kt >= edge for edge in (83, 96, 113, 137))}'",
                  NAMES + CATEGORY + "np.array(names)[bisect.bisect(EDGES, wind_kt)]"],
        "edges_too_high": [NAMES + CATEGORY + "names[bisect.bisect_left(EDGES, wind_kt)]"],
        "weakest_first": ["def category(wind_kt):\n"
                          "    if wind_kt >= 34: return 'tropical storm'\n"
                          "    elif wind_kt >= 64: return 'category 1'\n"
                          "    return 'tropical depression'"],
        "wrong": [NAMES + CATEGORY + "names[bisect.bisect([39, 74, 96, 111, 130, 157], wind_kt)]",
                  NAMES + CATEGORY + "names[bisect.bisect([34, 64, 82, 96, 113, 137], wind_kt)]",  # by one
                  CATEGORY + "bisect.bisect([64, 83, 96, 113, 137], wind_kt)",
                  CATEGORY + "solution(wind_kt).title()"],
        "nothing": ["def category(wind_kt):\n    print('category 1')",
                    CATEGORY + "solution(wind_kt) if wind_kt == int(wind_kt) else None"],
        "error": ["def category(): return 'category 1'"],
    },
    "03.2": {
        "right": ["def test_forecast(forecast):\n"
                  "    for wind in (20, 64, 150):\n"
                  "        a = forecast(ian.model_copy(update={'wind_kt': wind}))\n"
                  "        assert isinstance(a, Forecast)\n"
                  "        assert (a.valid_time - ian.time).total_seconds() == 24 * 3600\n"
                  "        assert sorted([a.wind_kt_high, a.wind_kt_low, a.wind_kt]) == "
                  "[a.wind_kt_low, a.wind_kt, a.wind_kt_high]\n"
                  "        assert category(a.wind_kt) in a.category",
                  "def test_forecast(forecast):\n"
                  "    a = forecast(storm=ian).model_dump()\n"
                  "    if a['valid_time'] != ian.time + pd.Timedelta(days=1): raise AssertionError('time')\n"
                  "    low, wind, high = (a['wind_kt' + end] for end in ('_low', '', '_high'))\n"
                  "    if wind < low or wind > high: raise AssertionError('winds')\n"
                  "    if a['category'] != category(a['wind_kt']): raise AssertionError('category')"],
        "too_strict": ["def test_forecast(forecast):\n    assert forecast(ian).wind_kt == 100",
                       "def test_forecast(forecast):\n    assert forecast(ian).category == 'category 3'"],
        "time_unchecked": ["def test_forecast(forecast):\n    print(forecast(ian))",
                           TEST + "    a.wind_kt >= 0",
                           TEST + "    return a.category == category(a.wind_kt)",
                           TEST + "    assert a.valid_time > ian.time\n" + WINDS + NAMED],
        "winds_unchecked": [TEST + TIME + "    assert a.wind_kt_low <= a.wind_kt_high\n" + NAMED],
        "category_unchecked": [TEST + TIME + WINDS + "    assert a.category.startswith('category')"],
        "error": ["def test_forecast(forecast):\n    assert answer.wind_kt > 0",
                  "def test_forecast(forecast):\n    import pytest\n    pytest.fail('always')"],
    },
    "04.1": {
        "right": ["ian['wind_kt'] = -5\n"
                  "refused = requests.request('POST', server.url + '/forecast', json=ian)",
                  POST + "data=json.dumps(ian | {'wind_kt': 1e6}),\n"
                  "                        headers={'Content-Type': 'application/json'})"],
        "status_None": [POST + "json=ian | {'wind_kt': 400}).json()",
                        "refused = 422"],
        "status_200": [POST + "json=ian)"],
        "status_404": ["refused = requests.post(f'{server.url}/forecasts', json=ian | {'wind_kt': 400})"],
        "status_405": ["refused = requests.get(f'{server.url}/forecast', json=ian | {'wind_kt': 400})"],
        "other_reason": [POST + "data=ian | {'wind_kt': 400})",
                         POST + "json=ian | {'latitude': 400})",
                         POST + "json=ian | {'wind_kt': '400'})",
                         POST + "json={'wind_kt': 400})"],
        "wrong": [POST + "json=ian | {'wind_kt': 150})"],
    },
    "04.2": {
        "right": ["class Answer(BaseModel):\n    category: str\n"
                  "@app.get('/category', response_model=Answer)\n"
                  "async def get_category(wind_kt: Annotated[float, Query(ge=0, le=250)]):\n"
                  "    return Answer(category=category(wind_kt))",
                  "router = APIRouter()\n"
                  "@router.get('/')\n"
                  "def get_category(wind_kt: float = 0): return dict(category=category(wind_kt))\n"
                  "app.include_router(router, prefix='/category')"],
        "status_404": ["@app.get('/categories')\n"
                       "def get_category(wind_kt: float): return {'category': category(wind_kt)}",
                       "@app.get('/category/{wind_kt}')\n"
                       "def get_category(wind_kt: float): return {'category': category(wind_kt)}"],
        "status_405": ["@app.post('/category')\n"
                       "def get_category(wind_kt: float): return {'category': category(wind_kt)}"],
        "status_422": [GET + "wind: float): return {'category': category(wind)}"],
        "status_500": ["@app.get('/category')\n"
                       "def category(wind_kt: float): return {'category': category(wind_kt)}",
                       GET + "wind_kt): return {'category': category(wind_kt)}",
                       GET + "wind_kt: float) -> dict: return category(wind_kt)"],
        "not_typed": [GET + "wind_kt): return {'category': category(float(wind_kt))}"],
        "wrong": [GET + "wind_kt: float): return category(wind_kt)",
                  GET + "wind_kt: float): return {'category': 'category 1'}",
                  GET + "wind_kt: int): return {'category': category(wind_kt)}",
                  GET + "wind_kt: float): return {'kind': category(wind_kt)}"],
        "error": ["app = 'http://127.0.0.1:8000'"],
    },
    "05.1": {
        "right": [WHO + "dict(app='api', newspaper='results', ship='model')",
                  WHO + "dict(zip(('ship', 'newspaper', 'app'), ('model', 'results', 'API')))"],
        "ship": [WHO + "{'ship': 'API', 'newspaper': 'results', 'app': 'API'}"],
        "newspaper": [WHO + "{'ship': 'model', 'newspaper': 'the table', 'app': 'API'}",
                      WHO + "{'ship': 'model', 'newspaper': 'API', 'app': 'API'}"],
        "app": [WHO + "{'ship': 'model', 'newspaper': 'results', 'app': 'model'}"],
        "wrong": [WHO + "['model', 'results', 'API']", WHO + "'model results API'"],
    },
    "05.2": {
        "right": [COUNT + "sum(abs(a - b) > 0.01 for a, b in zip(first, second))",
                  COUNT + "np.count_nonzero(~np.isclose(first, second, rtol=0, atol=0.01))"],
        "agree": [COUNT + "(np.abs(first - second) <= 0.01).sum()"],
        "one_direction": [COUNT + "(first - second > 0.01).sum()", COUNT + "(second - first > 0.01).sum()"],
        "every_difference": [COUNT + "(first != second).sum()"],
        "not_a_number_of_rows": [COUNT + "np.mean(np.abs(first - second) > 0.01)",
                                 COUNT + "np.abs(first - second).max()"],
        "nothing": [COUNT + "print(3)"],
        "wrong": [COUNT + "len(first)", COUNT + "np.abs(first - second) > 0.01"],
    },
    "05.3": {
        "right": [HARDEST + "max(results.storm_id[truth.notna()].unique(),"
                  " key=lambda storm: np.mean(np.abs(error[results.storm_id == storm])))",
                  HARDEST + "error.abs().groupby(results.storm_id).mean().sort_values().dropna().index[-1]"],
        "signed_error": [HARDEST + "error.groupby(results.storm_id).mean().idxmax()",
                         HARDEST + "(-error).groupby(results.storm_id).mean().idxmax()"],
        "single_row": [HARDEST + "results.storm_id[error.abs().idxmax()]",
                       HARDEST + "results.storm_id[(-error).idxmax()]"],
        "added_up": [HARDEST + "error.abs().groupby(results.storm_id).sum().idxmax()"],
        "wrong": [HARDEST + "error.abs().groupby(results.storm_id).mean().max()",
                  HARDEST + "'Bonnie'"],
    },
    "06.1": {
        "right": [WAIT + "1000 * users // requests_per_s",
                  "wait_ms = lambda users, requests_per_s: np.float64(users) / (requests_per_s / 1e3)",
                  "def wait_ms(users, requests_per_s):\n"
                  "    one_ms = 1000 / requests_per_s\n"
                  "    return sum(one_ms for _ in range(users))"],
        "seconds": [WAIT + "users / requests_per_s", WAIT + "round(users / requests_per_s, 2)"],
        "upside_down": [WAIT + "requests_per_s / users * 1000", WAIT + "requests_per_s / users"],
        "one_user": [WAIT + "1000 / requests_per_s"],
        "wrong": [WAIT + "users * requests_per_s", WAIT + "users / requests_per_s / 1000",
                  WAIT + "users // requests_per_s * 1000", WAIT + "1 / requests_per_s",
                  WAIT + "(users - 1) / requests_per_s * 1000",
                  WAIT + "f'{1000 * users / requests_per_s} ms'"],
        "nothing": ["def wait_ms(users, requests_per_s):\n    print(1000 * users / requests_per_s)"],
        "error": ["def wait_ms(users):\n    return users * 10", "wait_ms = 640", WAIT + "user / 0"],
    },
    "06.2": {
        "right": [RUNG + ENDPOINT + "forecast(storm, model)",
                  "from workshop import registry\nfrom workshop.forecaster import Forecast\n"
                  "api = FastAPI(title='Mine')\nkept = registry.load()\n"
                  "@api.post('/forecast', response_model=Forecast)\n"
                  "async def answer(case: Storm):\n    return forecast(case, kept).model_dump()\napp = api",
                  "class Rung:\n"
                  "    def __init__(self):\n        self.model = kept_model()\n"
                  "    async def post(self, storm: Storm):\n        return forecast(storm, self.model)\n"
                  "app = FastAPI()\napp.add_api_route('/forecast', Rung().post, methods=['POST'])",
                  "from fastapi import APIRouter\nrouter, model = APIRouter(), kept_model()\n"
                  "@router.post('/forecast')\n" + ENDPOINT + "forecast(storm, model)\n"
                  "app = FastAPI()\napp.include_router(router)",
                  "def logged(function):\n"
                  "    @functools.wraps(function)\n"
                  "    async def both(*args, **kwargs):\n        return await function(*args, **kwargs)\n"
                  "    return both\n" + RUNG + "@logged\n" + ENDPOINT + "forecast(storm, model)",
                  RUNG + "async def post_forecast(storm: Storm):\n    answer = forecast(storm, model)\n"
                  "    return {'wind_kt': answer.wind_kt, 'low': answer.wind_kt_low}"],
        "still_a_table": [RUNG + TABLE + "forecast(storm, model)",
                          RUNG + TABLE + "forecast(Storm(**row.iloc[0]), model)",
                          RUNG + TABLE.removeprefix("async ") + "forecast(storm, model)",
                          RUNG + "def post_forecast(storm: Storm):\n"  # two of the four lines are done
                          "    row = pd.DataFrame([storm.model_dump()])\n"
                          "    wind = model.predict(features(row)).iloc[0]\n"
                          "    return wind.round(2).to_dict()",
                          "from pandas import DataFrame\n" + RUNG + "async def post_forecast(storm: Storm):\n"
                          "    return forecast(DataFrame([dict(storm)]), model)"],
        "plain_def": [RUNG + ENDPOINT.removeprefix("async ") + "forecast(storm, model)",
                      RUNG + "@functools.lru_cache\n" + ENDPOINT.removeprefix("async ") + "keep(storm)\n"
                      "Storm.__hash__ = object.__hash__\nkeep = lambda storm: forecast(storm, model)"],
        "loads_each_time": [RUNG + ENDPOINT + "forecast(storm, kept_model())",
                            RUNG + "def post_forecast(storm: Storm):\n"
                            "    import workshop.registry\n"
                            "    return forecast(storm, workshop.registry.load())"],
        "status_404": [RUNG.replace("/forecast", "/forecasts") + ENDPOINT + "forecast(storm, model)",
                       "app, model = FastAPI(), kept_model()\n" + ENDPOINT + "forecast(storm, model)"],
        "status_405": [RUNG.replace("post", "get") + ENDPOINT + "forecast(storm, model)"],
        "status_422": [RUNG + "async def post_forecast(storms: list[Storm]):\n"
                       "    return forecast(storms[0], model)",
                       RUNG + "async def post_forecast(storm: Storm, model):\n"
                       "    return forecast(storm, model)"],
        "status_500": [RUNG.replace("kept_model()", "joblib.load('../results/model.joblib')")
                       + ENDPOINT + "forecast(storm, model)",
                       RUNG + ENDPOINT + "forecast(storm)",
                       RUNG + ENDPOINT + "model.predict(features(storm))"],
        "wrong": [RUNG + ENDPOINT + "[forecast(storm, model)]",
                  RUNG + "async def post_forecast(storm: Storm) -> list:\n    return forecast(storm, model)",
                  RUNG + ENDPOINT + "{'wind_kt': forecast(storm, model)}",
                  RUNG + ENDPOINT + "{'forecast': forecast(storm, model)}",
                  RUNG + ENDPOINT + "{'wind_kt': None}",
                  RUNG + ENDPOINT + "{'wind_kt': storm.wind_kt}",
                  RUNG + ENDPOINT + "forecast(storm, model).model_dump_json()",
                  RUNG + ENDPOINT + "forecast(storm, model).category",
                  RUNG + ENDPOINT + "float(forecast(storm, model).wind_kt)",
                  RUNG + ENDPOINT.replace("return ", "") + "forecast(storm, model)",
                  RUNG + ENDPOINT + "{'wind_kt': str(forecast(storm, model).wind_kt)}"],
        "error": ["app = 'http://127.0.0.1:8000'", "app = post_forecast"],
    },
    "06.3": {
        "right": [ILL + "dict(zip('CBA', ('THREADS', 'Loads', 'waits')))",
                  ILL + "{'A': 'waits', 'B': 'loads', 'C': 'threads', 'rung 0': 'tables'}"],
        "A": [ILL + "{'A': 'loads', 'B': 'waits', 'C': 'threads'}",
              ILL + "{'A': 'threads', 'B': 'threads', 'C': 'threads'}", ILL + "{'A': ''}", ILL + "{'A': None}",
              ILL + "{'a': 'waits', 'b': 'loads', 'c': 'threads'}",
              ILL + "{'A': ['waits'], 'B': ['loads'], 'C': ['threads']}"],
        "B": [ILL + "{'A': 'waits', 'B': 'threads', 'C': 'loads'}", ILL + "{'A': 'waits', 'B': 'waits'}"],
        "C": [ILL + "{'A': 'waits', 'B': 'loads', 'C': 'loads'}", ILL + "{'A': 'waits', 'B': 'loads'}"],
        "wrong": [ILL + "['waits', 'loads', 'threads']", ILL + "'waits loads threads'"],
    },
    "06.4": {
        "right": [WORKERS + "int(np.ceil(requests_per_s * service_ms / 1000 * 1.5))",
                  WORKERS + "math.ceil(requests_per_s / (2 / 3 * 1000 / service_ms))",
                  "def workers_needed(requests_per_s, service_ms):\n"
                  "    workers = 1\n"
                  "    while requests_per_s / workers > 1000 / service_ms * 2 / 3:\n        workers += 1\n"
                  "    return float(workers)"],
        "no_headroom": [WORKERS + "math.ceil(requests_per_s * service_ms / 1000)",
                        WORKERS + "requests_per_s * service_ms / 1000"],
        "not_whole": [WORKERS + "requests_per_s * service_ms / 1000 / (2 / 3)"],
        "rounded_down": [WORKERS + "int(requests_per_s * service_ms / 1000 * 1.5)",
                         WORKERS + "round(requests_per_s * service_ms / 1000 * 1.5)",
                         WORKERS + "max(1, round(requests_per_s * service_ms / 1000 * 1.5))",
                         WORKERS + "max(1, int(requests_per_s * service_ms / 1000 * 1.5))"],
        "milliseconds": [WORKERS + "math.ceil(requests_per_s * service_ms / (2 / 3))"],
        "wrong": [WORKERS + "math.ceil(requests_per_s * service_ms / 1000 * (2 / 3))",
                  WORKERS + "math.ceil(requests_per_s / service_ms / 1000 / (2 / 3))",
                  WORKERS + "'15'", WORKERS + "[15, 1, 2]", WORKERS + "math.inf"],
        "nothing": ["def workers_needed(requests_per_s, service_ms):\n"
                    "    print(math.ceil(requests_per_s * service_ms / 1000 / (2 / 3)))"],
        "error": [WORKERS + "math.ceil(requests_per_s * cost_ms / 1000 / (2 / 3))",
                  "workers_needed = 15", WORKERS + "requests_per_s / 0"],
    },
    "07.1": {
        "right": ["def resampled_mean(table, drawn):\n"
                  "    errors = [error for storm in drawn for error in table.error_kt[table.storm_id == storm]]\n"
                  "    return sum(errors) / len(errors)",
                  "def resampled_mean(table, drawn):\n"
                  "    return pd.DataFrame({'storm_id': drawn}).merge(table).error_kt.mean()",
                  DRAW + "by.sum().loc[list(drawn)].sum() / by.size().loc[list(drawn)].sum()"],
        "repeats_lost": ["def resampled_mean(table, drawn):\n"
                         "    return table.error_kt[table.storm_id.isin(drawn)].mean()",
                         "def resampled_mean(table, drawn):\n"
                         "    return table[table.storm_id.isin(set(drawn))].error_kt.mean()"],
        "means_of_storms": [DRAW + "by.mean().loc[list(drawn)].mean()",
                            DRAW + "np.mean([by.get_group(storm).mean() for storm in drawn])"],
        "all_rows": [DRAW + "table.error_kt.mean()"],
        "divided_wrongly": [DRAW + "by.sum().loc[list(drawn)].sum() / len(table)",
                            DRAW + "by.sum().loc[list(drawn)].sum() / len(drawn)"],
        "early_return": ["def resampled_mean(table, drawn):\n    for storm in drawn:\n"
                         "        return table[table.storm_id == storm].error_kt.mean()"],
        "nothing": ["def resampled_mean(table, drawn):\n    print(table.error_kt.mean())"],
        "wrong": [DRAW + "by.mean()", DRAW + "by.sum().loc[list(drawn)].sum()", DRAW + "0"],
        "error": [DRAW + "table.loc[drawn].error_kt.mean()"],
    },
    "07.2": {
        "right": [SICK + "{'A': 'stuck', 'B': 'sign', 'C': 'miles'}",
                  SICK + "dict(C='Miles', A='STUCK', B='sign')"],
        "A": [SICK + "{'A': 'gone', 'B': 'sign', 'C': 'miles'}"],
        "B": [SICK + "{'A': 'stuck', 'B': 'version', 'C': 'miles'}"],
        "C": [SICK + "{'A': 'stuck', 'B': 'sign', 'C': 'metres'}", SICK + "{'A': 'stuck', 'B': 'sign'}"],
        "wrong": [SICK + "['stuck', 'sign', 'miles']"],
    },
    "07.3": {
        "right": [MEND + "storm | {name: round(storm[name] / 1.852 / 5) * 5 for name in storm if 'wind' in name}",
                  "def mend(storm):\n"
                  "    for name in ('wind_kt', 'wind_kt_12h_ago'):\n"
                  "        storm[name] = 5.0 * np.round(storm[name] * 0.54 / 5)\n    return storm"],
        "only_now": [MEND + "storm | {'wind_kt': 5 * round(storm['wind_kt'] / 1.852 / 5)}"],
        "upside_down": [MEND + "winds_times(1.852, storm)"],
        "miles": [MEND + "winds_times(1 / 1.151, storm)"],
        "others_lost": [MEND + "{name: 5 * round(storm[name] / 1.852 / 5)"
                        " for name in ('wind_kt', 'wind_kt_12h_ago')}"],
        "wrong": [MEND + "winds_times(1 / 0.514, storm)", MEND + "storm['wind_kt'] / 1.852"],
        "error": [MEND + "storm.wind_kt / 1.852"],
    },
    "08.1": {
        "right": [KNOWN + "table.storm_id.isin(earlier.storm_id.drop_duplicates()[-storms:])",
                  KNOWN + "[storm in list(dict.fromkeys(earlier.storm_id))[-storms:] for storm in table.storm_id]",
                  KNOWN + "np.isin(table.storm_id, earlier.storm_id.unique()[-storms:])"],
        "future": [KNOWN + "table.storm_id.isin(table.storm_id[table.season <= season].unique()[-storms:])",
                   KNOWN + "table.storm_id.isin(table.storm_id.unique()[-storms:])"],
        "first_storms": [KNOWN + "table.storm_id.isin(earlier.storm_id.unique()[:storms])"],
        "rows_not_storms": [KNOWN + "table.index.isin(earlier.index[-storms:])",
                            KNOWN + "table.storm_id.isin(earlier.storm_id[-storms:])"],
        "all_before": [KNOWN + "table.season < season"],
        "wrong": [KNOWN + "table.season >= season", KNOWN + "earlier.storm_id.unique()[-storms:]"],
        "error": [KNOWN + "table.storm_id.isin(earlier.storm.unique())"],
    },
    "08.2": {
        "right": ["def decide(low, high):\n    if low > 0:\n        return 'promote'\n"
                  "    if high < 0:\n        return 'refuse'\n    return 'wait'",
                  DECIDE + "{(1, 1): 'promote', (-1, -1): 'refuse'}.get((np.sign(low), np.sign(high)), 'wait')"],
        "from_one_end": [DECIDE + "'promote' if low > 0 else 'refuse'", DECIDE + "'promote' if high > 0 else 'refuse'",
                         DECIDE + "'promote' if high > 0 else 'wait'",
                         DECIDE + "'promote' if low + high > 1 else 'refuse' if high < 0 else 'wait'"],
        "upside_down": [DECIDE + "'promote' if high < 0 else 'refuse' if low > 0 else 'wait'"],
        "wrong": [DECIDE + "'promote'", DECIDE + "low > 0"],
        "error": [DECIDE + "'promote' if mean > 0 else 'refuse'"],
    },
    "08.3": {
        "right": [CALL + "registry.roll_back('it was never here')", CALL + "registry.promote('kept', 'the last good one')",
                  CALL + "return registry.roll_back(reason='1975-2010 is on a laptop')"],
        "still_refused": [CALL + "return registry.current()", CALL + "return registry.history()"],
        "other_version": [CALL + "registry.promote('older', 'back to the roots')"],
        "error": [CALL + "registry.rollback('wrong name')", CALL + "registry.promote('1975-2010', 'once more')"],
    },
    "09.1": {
        "right": [LABEL + "~(table.wind_kt_in_24h < 64)", LABEL + "[wind >= 64 for wind in table.wind_kt_in_24h]",
                  LABEL + "(table['wind_kt_in_24h'] >= 64).astype(int)"],
        "edge": [LABEL + "table.wind_kt_in_24h > 64"],
        "today": [LABEL + "table.wind_kt >= 64"],
        "winds": [LABEL + "table.wind_kt_in_24h"],
        "wrong": [LABEL + "table.wind_kt_in_24h < 64", LABEL + "(table.wind_kt_in_24h >= 64).mean()"],
        "error": [LABEL + "table.wind_in_24h >= 64"],
    },
    "09.2": {
        "right": [BRIER + "np.mean((happened - probability) ** 2)",
                  BRIER + "sum((p - h) ** 2 for p, h in zip(probability, happened)) / len(happened)"],
        "not_squared": [BRIER + "(probability - happened).abs().mean()", BRIER + "(probability - happened).mean()"],
        "not_a_mean": [BRIER + "((probability - happened) ** 2).sum()"],
        "root": [BRIER + "((probability - happened) ** 2).mean() ** 0.5"],
        "wrong": [BRIER + "(probability - happened) ** 2", BRIER + "(probability == happened).mean()"],
        "error": [BRIER + "(probability - truth).mean()"],
    },
    "09.3": {
        "right": ["best = fitted(2014)\n" + CHANCE + "best.predict_proba(models.features(storms))[:, 1]",
                  "best = fitted(2005)\n" + CHANCE + "list(best.predict_proba(models.features(storms)).T[1])"],
        "yes_or_no": ["best = fitted(2014)\n" + CHANCE + "best.predict(models.features(storms))",
                      CHANCE + "(storms.wind_kt >= 64).astype(float)"],
        "knows_the_future": ["best = fitted(2022)\n" + CHANCE + "best.predict_proba(models.features(storms))[:, 1]"],
        "worse_than_persistence": ["best = fitted(2014)\n"
                                   + CHANCE + "best.predict_proba(models.features(storms))[:, 0]",
                                   CHANCE + "np.linspace(0, 1, len(storms))"],
        "wrong": [CHANCE + "0.4", "best = fitted(2014)\n" + CHANCE + "best.predict_proba(models.features(storms))",
                  CHANCE + "storms.wind_kt"],
        "error": [CHANCE + "becomes_hurricane(storms)"],
    },
    "09.4": {
        "right": [GROUPS + "np.digitize(probability, [0.2, 0.4, 0.6, 0.8])).mean().tolist()",
                  GROUPS + "pd.cut(probability, [-1, 0.2, 0.4, 0.6, 0.8, 2], right=False)).mean()",
                  "def reliability(probability, happened):\n"
                  "    group = (probability * 5).astype(int).clip(upper=4)\n"
                  "    return [happened[group == number].mean() for number in range(5)]"],
        "edges_below": [GROUPS + "pd.cut(probability, [-0.1, 0.2, 0.4, 0.6, 0.8, 1])).mean().tolist()"],
        "six_groups": [GROUPS + "np.floor(probability * 5)).mean().tolist()"],
        "said_not_happened": ["def reliability(probability, happened):\n"
                              "    return probability.groupby((probability * 5).astype(int).clip(upper=4)).mean().tolist()"],
        "counts": [GROUPS + "(probability * 5).astype(int).clip(upper=4)).sum().tolist()",
                   GROUPS + "(probability * 5).astype(int).clip(upper=4)).size().tolist()"],
        "wrong": [GROUPS + "probability.round()).mean().tolist()", GROUPS + "pd.qcut(probability, 5)).mean().tolist()"],
        "error": [GROUPS + "group).mean()"],
    },
    "09.5": {
        "right": [HURRICANE + "async def ask(storm: Storm) -> dict:\n" + ROW
                  + "    return {'probability': round(classifier.predict_proba(models.features(row)).item(1), 3)}",
                  HURRICANE + "def ask(storm: Storm):\n    return {'version': 'by hand', 'probability': storm.wind_kt / 200}"],
        "status_200": [HURRICANE + "def ask(storm: dict):\n    return {'probability': 0.5}"],
        "status_422": [HURRICANE + "def ask(wind_kt: float):\n    return {'probability': 0.5}",
                       HURRICANE + "def ask(examples: list[Storm]):\n    return {'probability': 0.5}"],
        "status_500": [HURRICANE + "def ask(storm: Storm):\n" + ROW + "    return classifier.predict_proba(row)",
                       HURRICANE + "def ask(storm: Storm):\n    return {'probability': storm.pressure_hpa / 1000}"],
        "wrong": [HURRICANE + "def ask(storm: Storm):\n    return {'probability': 0.5}",
                  HURRICANE + "def ask(storm: Storm):\n    return {'probability': storm.wind_kt}",
                  HURRICANE + "def ask(storm: Storm):\n" + ROW
                  + "    return {'probability': float(classifier.predict_proba(models.features(row))[0, 0])}"],
        "error": [HURRICANE + "def ask(storm: Storm):\n    return 0.87", HURRICANE + "def ask(storm: Storm):\n    return {'p': 1}"],
    },
}
CASES = [(number, mistake, text)
         for number in ANSWERS for mistake, texts in ANSWERS[number].items() for text in texts]


@pytest.fixture(scope="module")
def live_server(tmp_path_factory):
    path = tmp_path_factory.mktemp("app") / "exercise_app.py"
    path.write_text(APP)
    spec = importlib.util.spec_from_file_location("exercise_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    started = server.launch(module.app, name="exercise_app")
    yield started
    server._running.pop("exercise_app").stop()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course's folder as 06 and 09 find it: the estimators they have kept in results, and models."""
    folder = tmp_path_factory.mktemp("course")
    for name in ("notebooks", "results"):
        (folder / name).mkdir()
    model = train(lesson.examples())
    joblib.dump(model, folder / "results" / "model.joblib")
    late = lesson.examples()[lesson.examples().season >= 2015]
    classifier = HistGradientBoostingClassifier(max_iter=9)
    classifier.fit(features(late), late.wind_kt_in_24h >= 64)
    joblib.dump(classifier, folder / "results" / "hurricane.joblib")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(folder / "models"))
        registry.promote(registry.save(model, lesson.examples()), "the first one")
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with two versions, as notebook 08 has it before its last exercise."""
    folder = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(folder / "models"))
        patch.setenv("WORKSHOP_LOG_DIR", str(folder / "logs"))
        model = train(lesson.examples(), 1984)
        for version in ("older", "kept"):
            registry.promote(registry.save(model, lesson.examples(), version), "a good one")
        launched = server.launch_service()
        launched.models = str(folder / "models")
        yield launched
    server._running.pop("service").stop()


def break_it(service):
    """Have the history name a version that is not there, and wait until the service has seen it."""
    for version, refused in (("kept", None), ("1975-2010", "1975-2010")):
        with open(registry.folder() / "history.jsonl", "ab") as file:
            file.write(records.line(at=records.utc_now(), event="promoted", version=version, reason="test"))
        wanted = {"status": "ok", "model_version": "kept", "refused_version": refused}
        deadline = time.monotonic() + 10
        while (health := requests.get(f"{service.url}/health", timeout=5).json()) != wanted:
            assert time.monotonic() < deadline, health


@pytest.fixture(scope="module")
def befores():
    """The names that each notebook has defined before its exercises, made once."""
    made = {}
    for notebook, text in BEFORE.items():
        made[notebook] = {}
        exec(dedent(text), made[notebook])
    return made


class Learner:
    """A learner's kernel at one exercise: runs its cells, or an answer of the learner's own."""

    def __init__(self, number, names):
        _, _, self.starter, self.question, self.solution = (
            getattr(cell, "source", cell) for cell in EXERCISES[number])
        self.names = dict(names) | {"check": lesson.check, "accepted": lesson.accepted}
        self.variable = ast.parse(self.question).body[0].value.args[1].id

    def run(self, text):
        """Run the text of a cell, then the check cell; return what the check says."""
        exec(text, self.names)
        return eval(self.question, self.names)

    @property
    def answer(self):
        return self.names[self.variable]


@pytest.fixture
def learner(befores, request, monkeypatch):
    """Begin an exercise with its starter run, in a fresh kernel."""
    def begin(number):
        names = befores[number[:2]]
        if number == "04.1":
            names = names | {"server": request.getfixturevalue("live_server"), "ian": dict(names["ian"])}
        if number[:2] == "06" or number == "09.5":
            folder = request.getfixturevalue("course")
            monkeypatch.chdir(folder / "notebooks")
            monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(folder / "models"))
        if number == "08.3":
            service = request.getfixturevalue("service")
            monkeypatch.setenv("WORKSHOP_MODEL_DIR", service.models)
            break_it(service)
        person = Learner(number, names)
        exec(person.starter, person.names)
        return person
    lesson.RESULTS.clear()
    yield begin
    lesson.RESULTS.clear()


# --- the form ---

def test_the_checks_and_the_notebooks_know_the_same_exercises_and_each_notebook_has_two():
    known = [number for number in sorted(lesson.EXERCISES) if number not in lesson.QUESTIONS]
    assert sorted(EXERCISES) == known == sorted(lesson.WORDS.keys() - lesson.QUESTIONS) == sorted(ANSWERS)
    for number, (notebook, *_) in EXERCISES.items():
        assert number[:2] == notebook[:2]
    for notebook in BEFORE:
        assert sum(number[:2] == notebook for number in EXERCISES) >= 2, f"notebook {notebook}"


@each_exercise
def test_every_exercise_has_the_same_form(number):
    _, prompt, starter, check, solution = EXERCISES[number]
    title, _, task = prompt.source.partition("\n\n")
    assert prompt.cell_type == "markdown" and title.startswith(f"### Exercise {number} · ") and task
    call = ast.parse(check.source).body
    assert len(call) == 1 and call[0].value.func.id == "check" and call[0].value.args[0].value == number
    assert solution.source.startswith(f"# Solution of {number}: open me when you have tried")
    assert solution.metadata.jupyter.source_hidden is True
    assert f'if not accepted("{number}"):' in solution.source
    assert "jupyter" not in starter.metadata and "jupyter" not in check.metadata  # both are seen


# --- the checks ---

@each_exercise
def test_an_untouched_starter_is_not_yet_and_the_solution_is_accepted(number, learner):
    person = learner(number)
    result = person.run("")
    assert result.mistake == "untouched" and not result.accepted and result.text.startswith("Not yet")
    assert not lesson.accepted(number)
    assert person.run(person.solution).accepted


@pytest.mark.parametrize("number, mistake, text", CASES)
def test_an_answer_gets_what_fits_it(number, mistake, text, learner):
    person = learner(number)
    if "solution" in text:
        person.run(person.solution.replace("category(", "solution("))
    result = person.run(text)
    assert (result.mistake or "right") == mistake, result
    assert result.accepted == lesson.accepted(number) == (mistake == "right")
    assert "{}" not in result.text
    if mistake == "error":  # it ends with the error's own words: there should be some
        assert result.text.strip()[-1] != ":" and "StopIteration" not in result.text


@each_exercise
def test_every_mistake_that_a_check_names_is_tried_and_has_its_own_hint(number):
    words = lesson.COMMON | lesson.WORDS[number]
    named = words.keys() - lesson.COMMON.keys() - {"right", "wrong"}
    assert len(named) >= 2 and named <= ANSWERS[number].keys() <= words.keys()
    assert len(ANSWERS[number]["right"]) >= 2
    assert {"wrong", "error"} & ANSWERS[number].keys(), "an answer that nobody foresaw"
    assert len(set(words.values())) == len(words), "two mistakes share a hint"


@pytest.mark.parametrize("number", lesson.CALLS)
def test_each_mistake_that_a_value_gives_away_has_a_hint(number):
    assert lesson.CALLS[number].keys() - {"cases", "right"} <= lesson.WORDS[number].keys() | lesson.COMMON.keys()


def test_every_mistake_that_is_common_to_all_exercises_is_tried():
    tried = {mistake for answers in ANSWERS.values() for mistake in answers}
    assert lesson.COMMON.keys() - tried == {"untouched", "choose"}, "these two have tests of their own"


@each_exercise
def test_an_answer_that_was_accepted_outlives_the_solution_and_a_wrong_one_does_not(number, learner):
    person = learner(number)
    assert person.run(ANSWERS[number]["right"][0]).accepted
    mine = person.answer
    exec(person.solution, person.names)
    assert person.answer is mine
    assert person.run(person.solution).accepted and person.answer is mine
    exec(person.starter, person.names)
    assert not person.run("").accepted
    assert person.run(person.solution).accepted and person.answer is not mine


def test_a_dict_of_which_a_part_is_still_to_be_filled_in_is_not_yet(learner):
    for number, text in (("05.1", WHO + "{'ship': 'model', 'newspaper': ..., 'app': ...}"),
                         ("06.3", ILL + "{'A': 'loads', 'B': 'waits', 'C': ...}")):
        assert learner(number).run(text).mistake == "untouched"


# --- questions: two or more in each notebook, each letter with words of its own ---

def read_questions():
    """Every question of every notebook, by number: the text that asks, the cell that checks."""
    found = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        for ask, cell in zip(cells, cells[1:]):
            if "quiz" in cell.metadata.get("tags", []):
                found[re.search(r"### Question (\d\d\.[A-Z]) · ", ask.source)[1]] = path.name[:2], ask, cell
    return found


QUESTIONS = read_questions()


def test_each_notebook_but_the_last_has_two_questions_and_the_checks_know_them_all():
    assert sorted(QUESTIONS) == sorted(lesson.QUESTIONS)
    for path in NOTEBOOKS[:-1]:
        assert sum(number[:2] == notebook == path.name[:2] for number, (notebook, *_) in QUESTIONS.items()) >= 2


@pytest.mark.parametrize("number", QUESTIONS)
def test_a_question_says_why_for_each_of_its_letters_and_accepts_one(number):
    _, ask, cell = QUESTIONS[number]
    letters = re.findall(r"^- \*\*([a-z])\*\* \S", ask.source, re.M)
    assert letters == ["a", "b", "c"] and cell.source.endswith(f'check("{number}", "")')
    blank = lesson.check(number, "")
    assert repr(blank) == repr(eval(cell.source.splitlines()[-1], {"check": lesson.check})) and repr(blank)[0] == "…"
    results = [lesson.check(number, letter) for letter in letters]
    assert sum(result.accepted for result in results) == 1 and len({result.text for result in results}) == 3
    right, = (letter for letter, result in zip(letters, results) if result.accepted)
    assert lesson.check(number, right.upper()).accepted
    for odd in ("d", "ab", 1, None, ["a"]):
        assert not lesson.check(number, odd).accepted


def test_the_letters_that_are_right_are_of_all_kinds():
    assert set(lesson.QUESTIONS.values()) == set("abc")


# --- what was passed is kept with the learner's copy, and nowhere else ---

def test_what_was_passed_is_written_down_in_the_learners_folder_alone(tmp_path, monkeypatch):
    for name, kept in (("notebooks", False), ("my_work", True)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        lesson.check("03.1", category)
        lesson.check("03.1", ...)
        lesson.check("03.1", lambda wind_kt: "storm")
        assert Path("progress.jsonl").exists() == kept
    line, = records.read("progress.jsonl")
    assert (line["exercise"], line["accepted"]) == ("03.1", True)


def test_a_folder_that_cannot_be_written_to_does_not_spoil_a_check(tmp_path, monkeypatch):
    (tmp_path / "my_work" / "progress.jsonl").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my_work")
    assert lesson.check("03.1", category).accepted


# --- checks never raise, whatever the answer is or does ---

class Hostile:
    """An object of which nothing works."""

    def fail(self, *args, **kwargs):
        raise RuntimeError("hostile")

    __eq__ = __hash__ = __repr__ = __str__ = __len__ = __iter__ = __bool__ = __getattr__ = __getitem__ = fail
    __array__ = __float__ = __format__ = __call__ = fail


class HostileError(Exception):
    """An error that does not say what is wrong."""

    __repr__ = __str__ = Hostile.fail


def gives(value):
    return lambda *args, **kwargs: value


def raises(error):
    def function(*args, **kwargs):
        raise error
    return function


def recurses(*args, **kwargs):
    return recurses(*args, **kwargs)


ODD = [0, -1.5, float("nan"), True, "", "category 1", b"\xff", [], {}, (), object(), object, len,
       Hostile(), Hostile, gives(0), gives(""), gives([]), gives((1, 2)), gives(...), gives(Hostile()),
       gives([Hostile(), Hostile()]), raises(ValueError("<b>&</b>")), raises(HostileError()), recurses,
       raises(SystemExit(1)), raises(AssertionError()), raises(pytest.fail.Exception("no"))]


@each_exercise
def test_a_check_refuses_anything_odd_with_words_and_never_raises(number, learner):
    learner(number)
    for odd in ODD:
        result = lesson.check(number, odd)
        assert not result.accepted and result.text and result.mistake != "untouched"


def test_the_error_of_an_answer_is_told_and_not_the_note_that_was_added_to_it():
    def category(wind_kt):
        error = KeyError("wind")
        error.add_note("Did you mean something else?")
        raise error
    assert "KeyError: 'wind'" in lesson.check("03.1", category).text


@each_exercise
def test_none_is_not_taken_for_an_untouched_starter(number):
    result = lesson.check(number, None)
    assert result.mistake == "nothing" and "return" in result.text


def test_the_stop_button_stops_a_check():
    with pytest.raises(KeyboardInterrupt):
        lesson.check("03.1", raises(KeyboardInterrupt()))


def test_a_function_that_spoils_its_table_does_not_spoil_the_next_check(learner):
    person = learner("02.2")
    spoil = """
def split_by_storm(table):
    table['storm_id'] = 'x'
    table['season'] -= 1
    table.loc[:, 'wind_kt'] *= 2
    return table, table"""
    assert person.run(spoil).mistake == "not_masks"
    assert person.run(person.solution).accepted
    person = learner("02.1")
    assert person.run(person.solution).accepted


def test_a_result_shows_as_text_and_as_html_in_which_the_hint_is_text():
    result = lesson.check("02.3", raises(ValueError("<b>&</b>")))
    assert repr(result) == "✘ 02.3: Your answer could not be checked: ValueError: <b>&</b>"
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in result._repr_html_() and "<b>&" not in result._repr_html_()
    assert [repr(lesson.check("03.1", answer))[0] for answer in (..., category)] == ["…", "✔"]
    assert "alert-info" in lesson.check("03.1", ...)._repr_html_()
    assert "alert-success" in lesson.check("03.1", category)._repr_html_()
