"""What is given away with a model: one ONNX file that carries its own card, and the card as text."""
import json

import numpy as np
import onnx
import pandas as pd
import skl2onnx
from onnx import helper
from skl2onnx.common.data_types import FloatTensorType
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from workshop.forecaster import FEATURES, INPUTS
from workshop.model import PRESSURE, IntervalModel, features, strength

# The versions of ONNX that the file is written in: as old as it can be, so that old runtimes read it.
OPSETS, IR_VERSION = {"": 17, "ai.onnx.ml": 3}, 8
# IntervalModel.predict once more, in ONNX's own words; the three changes come from the trees.
INTERVAL = """<ir_version: 8, opset_import: ["": 17]>
interval (float[n,9] features, float[n,1] low, float[n,1] middle, float[n,1] high) => (float[n,3] wind_kt)
<int64[1] WIND = {{3}}, float STORM = {{34.0}}, float HURRICANE = {{64.0}}, float ZERO = {{0.0}},
 float WEAK_KT = {{{}}}, float STORM_KT = {{{}}}, float HURRICANE_KT = {{{}}}> {{
    now = Gather<axis=1>(features, WIND)
    below_storm = Less(now, STORM)
    below_hurricane = Less(now, HURRICANE)
    margin_if_strong = Where(below_hurricane, STORM_KT, HURRICANE_KT)
    margin = Where(below_storm, WEAK_KT, margin_if_strong)
    wind_middle = Add(now, middle)
    wind_low = Add(now, low)
    wind_high = Add(now, high)
    wider_low = Sub(wind_low, margin)
    wider_high = Add(wind_high, margin)
    ordered_low = Min(wider_low, wind_middle)
    ordered_high = Max(wider_high, wind_middle)
    winds = Concat<axis=1>(ordered_low, wind_middle, ordered_high)
    wind_kt = Max(winds, ZERO)
}}"""
STORMS = {"Ian, 2022": ("2022-Ian", "2022-09-27T12:00Z"), "Ida, 2021": ("2021-Ida", "2021-08-28T12:00Z"),
          "Sandy, 2012": ("2012-Sandy", "2012-10-28T12:00Z"),
          "Katrina, 2005": ("2005-Katrina", "2005-08-27T12:00Z"),
          "Wilma, 2005": ("2005-Wilma", "2005-10-18T12:00Z")}  # real ones, for the API's docs and page

TEXT = """# Model card: hurricane winds in 24 hours, version {version}

**A teaching model. Not for safety decisions: follow the forecasts of the National Hurricane Center.**

## What it is for
- Given an Atlantic storm now and 12 hours ago, it answers with the {answers}.
- It is for learning how a model is shared, served, watched and corrected.
- It is not for warnings, insurance, other oceans, or systems that are not (sub)tropical.

## Data
NOAA's best-track archive HURDAT2 (public domain), seasons {first_season} to {last_season}: {examples}
examples of {storms} storms. It is a reanalysis, made after the season: in real time one knows less, so
real-time scores would be worse. The pressure was hidden in 20 % of the examples, so it may be unknown.

## How to use it
`model.onnx` holds numbers, and no code that runs when it is read. With nothing but `numpy` and `onnxruntime`:

```python
import numpy, onnxruntime
model = onnxruntime.InferenceSession("model.onnx")
print(model.get_modelmeta().custom_metadata_map["card"])  # all that stands here, as JSON
storm = numpy.array([[{row}]], dtype="float32")  # in the order below
low, middle, high = model.run(None, {{"features": storm}})[0][0]  # knots
```

| feature | unit |
| --- | --- |
{features}

Changes and motion are over 12 hours; `days_from_peak` counts from 10 September; unknown pressures are NaN.

## Scores on later seasons
Mean absolute errors in knots, on seasons after its training: persistence ("the wind stays"), a straight line
through the same features, and this model; and how often the truth was inside the 80 % interval.

| | forecasts | persistence | line | model | inside |
| --- | --- | --- | --- | --- | --- |
{scores}

## Known failures
- Rapid intensification: it sees too little of it coming, and too late (its line above).
- It knows nothing of land, warm water or wind shear: before a landfall its forecast is often too strong.
- The interval keeps its promise on average over many storms, less so for hurricanes.
- A wind in another unit, if it is in range, is believed: 51 m/s is read as 51 knots.
"""


def score(model: IntervalModel, known: pd.DataFrame, later: pd.DataFrame) -> list[dict]:
    """Score the model on the examples `later`, against persistence and a line fitted to `known`.

    One dict for all, each season, each strength, rapid intensification (30 kt or more), unknown pressure:
    mean absolute errors in knots, and the share of truths inside the interval.
    """
    linear = make_pipeline(SimpleImputer(), LinearRegression())
    linear.fit(features(known), known.wind_kt_in_24h - known.wind_kt)

    def errors(inputs):
        wind, truth = model.predict(inputs), later.wind_kt_in_24h
        return pd.DataFrame({
            "model_kt": (wind.middle - truth).abs(), "persistence_kt": (later.wind_kt - truth).abs(),
            "linear_kt": (later.wind_kt + linear.predict(inputs) - truth).abs(),
            "inside_interval": truth.between(wind.low, wind.high)})

    inputs = features(later)
    table, blind = errors(inputs), errors(inputs.assign(**dict.fromkeys(PRESSURE, np.float32("nan"))))
    bands = "wind below 34 kt", "wind 34 to 63 kt", "wind 64 kt and more"
    groups = {"all": table, **{f"season {season}": rows for season, rows in table.groupby(later.season)},
              **{bands[band]: rows for band, rows in table.groupby(strength(later.wind_kt))},
              "rapid intensification": table[later.wind_kt_in_24h - later.wind_kt >= 30],
              "pressure unknown": blind}
    return [{"group": name, "forecasts": len(rows), **rows.mean().round(3)}
            for name, rows in groups.items() if len(rows)]


def facts(model: IntervalModel, examples: pd.DataFrame, version: str) -> dict:
    """Return the card: all that the file, the text and the API say of the model, ready for JSON."""
    first, last = model.seasons
    known, later = examples[examples.season.between(first, last)], examples[examples.season > last]
    shown = {name: examples[(examples.storm_id == storm_id) & (examples.time == pd.Timestamp(time))]
             for name, (storm_id, time) in STORMS.items()}
    return {
        "version": version,
        "answers": "maximum sustained wind in 24 hours, knots: low, middle, high; low to high is 80 %",
        "features": [{"name": name, "unit": unit} for name, unit in FEATURES.items()],
        "training": {"first_season": first, "last_season": last, "storms": known.storm_id.nunique(),
                     "examples": len(known)},
        "scores": score(model, known, later),
        "examples": [{"name": name + " (a season of its training)" * bool(row.season <= last),
                      "storm": {"time": f"{row.time:%Y-%m-%dT%H:%M:%SZ}", **row[list(INPUTS)]},
                      "wind_kt_in_24h": row.wind_kt_in_24h}
                     for name, rows in shown.items() for _, row in rows.iterrows()]}


def to_onnx(model: IntervalModel) -> onnx.ModelProto:
    """Return the model as one ONNX graph: `features`, float32 (n, 9), in; `wind_kt`, (n, 3), out."""
    graph = onnx.parser.parse_model(INTERVAL.format(*map(float, model.margin_kt))).graph
    trees = []
    for name in ("low", "middle", "high"):
        part = skl2onnx.to_onnx(getattr(model, name), target_opset=OPSETS,
                                initial_types=[("features", FloatTensorType([None, len(FEATURES)]))])
        ensemble, = part.graph.node
        ensemble.name = ensemble.output[0] = name
        trees.append(ensemble)
    whole = helper.make_graph([*trees, *graph.node], "forecast", graph.input[:1], graph.output,
                              graph.initializer)
    opsets = [helper.make_opsetid(*pair) for pair in OPSETS.items()]
    proto = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(proto)
    return proto


def with_card(proto: onnx.ModelProto, card: dict) -> bytes:
    """Return the content of the file that is handed over: the graph, and the card in its metadata."""
    helper.set_model_props(proto, {"card": json.dumps(card)})
    return proto.SerializeToString(deterministic=True)


def text(card: dict) -> str:
    """Return the card as Markdown, for people."""
    line = ("| {group} | {forecasts} | {persistence_kt:.1f} | {linear_kt:.1f} | {model_kt:.1f} |"
            " {inside_interval:.0%} |")
    scores = [line.format(**row) for row in card["scores"]] or ["| no later season is known | | | | | |"]
    row = "17, 22.6, -83.6, 100, 15, 963, -2, 1.8, -0.277"  # Ian on 27 September 2022, 12 UTC
    units = ["| `{name}` | {unit} |".format(**feature) for feature in card["features"]]
    return TEXT.format(**card["training"], version=card["version"], answers=card["answers"], row=row,
                       features="\n".join(units), scores="\n".join(scores))
