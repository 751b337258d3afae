"""What is given away with a model: one ONNX file that carries its own card, and the card as text."""
import json
from pathlib import Path

import jinja2
import numpy as np
import onnx
import pandas as pd
import skl2onnx
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from workshop.forecaster import FEATURES, GRAPH, INPUTS
from workshop.model import PRESSURE, IntervalModel, features, strength
from workshop.storms import ARCHIVE


def score(model: IntervalModel, known: pd.DataFrame, later: pd.DataFrame) -> list[dict]:
    """Score the model on the examples `later`, against persistence and a line fitted to `known`.

    One dict for all, each season, each strength, rapid intensification (30 kt or more), unknown pressure:
    mean absolute errors in knots, and the share of truths inside the interval.
    """
    linear = make_pipeline(SimpleImputer(), LinearRegression())
    linear.fit(features(known), known.wind_kt_in_24h - known.wind_kt)
    truth, inputs = later.wind_kt_in_24h, features(later)
    def errors(inputs):
        wind, line = model.predict(inputs), later.wind_kt + linear.predict(inputs)
        guesses = {"model_kt": wind.middle, "persistence_kt": later.wind_kt, "linear_kt": line}
        table = pd.DataFrame({name: (guess - truth).abs() for name, guess in guesses.items()})
        return table.assign(inside_interval=truth.between(wind.low, wind.high))
    table = errors(inputs)
    bands = "wind below 34 kt", "wind 34 to 63 kt", "wind 64 kt and more"
    groups = {"all": table, **{f"season {season}": rows for season, rows in table.groupby(later.season)},
              **{bands[band]: rows for band, rows in table.groupby(strength(later.wind_kt))},
              "rapid intensification": table[truth - later.wind_kt >= 30],
              "pressure unknown": errors(inputs.assign(**dict.fromkeys(PRESSURE, np.float32("nan"))))}
    return [{"group": name, "forecasts": len(rows), **rows.mean().round(3)}
            for name, rows in groups.items() if len(rows)]


def facts(model: IntervalModel, examples: pd.DataFrame, version: str) -> dict:
    """Return the card: all that the file, the text and the API say of the model, ready for JSON."""
    first, last = model.seasons
    known, later = examples[examples.season.between(first, last)], examples[examples.season > last]
    few = examples.set_index(["storm_id", "time"], drop=False).reindex(list(ARCHIVE["shown"].items()))
    few = few if few.wind_kt_in_24h.any() else examples.dropna().nlargest(2, "wind_kt")
    return {
        "version": version,
        "answers": "maximum sustained wind in 24 hours, knots: low, middle, high; low to high is 80 %",
        "features": [{"name": name, "unit": unit} for name, unit in FEATURES.items()],
        "training": {"first_season": first, "last_season": last, "storms": known.storm_id.nunique(),
                     "examples": len(known)},
        "scores": score(model, known, later) if len(later) else [],
        "examples": [{"name": f"{row['name']}, {row.season:.0f}{' (trained on)' * (row.season <= last)}",
                      "storm": {"time": f"{row.time:%Y-%m-%dT%H:%M:%SZ}", **row[list(INPUTS)]},
                      "wind_kt_in_24h": row.wind_kt_in_24h}
                     for _, row in few.dropna(subset="wind_kt_in_24h").iterrows()]}


def to_onnx(model: IntervalModel, card: dict) -> bytes:
    """Return the file: an ONNX graph, (n, 9) `features` in, (n, 3) `wind_kt` out, `card` in its metadata.

    The model's own thresholds are rounded down to float32, as the file's are: no float32 changes sides.
    """
    proto = onnx.parser.parse_model(GRAPH % tuple(map(float, model.margin_kt)))
    for node, estimator in zip(proto.graph.node, (model.high, model.middle, model.low)):
        for tree, in estimator._predictors:
            exact, near = tree.nodes["num_threshold"], tree.nodes["num_threshold"].astype("float32")
            exact[:] = np.where(near > exact, np.nextafter(near, np.float32("-inf")), near)
        part = skl2onnx.to_onnx(estimator, np.zeros((1, 9), "f4"), target_opset={"": 17, "ai.onnx.ml": 3})
        node.attribute.extend(part.graph.node[0].attribute)
    onnx.checker.check_model(proto)  # opsets 17 and 3 are old, so that old runtimes read the file
    onnx.helper.set_model_props(proto, {"card": json.dumps(card)})
    return proto.SerializeToString(deterministic=True)


def text(card: dict) -> str:
    """Return the card as Markdown, for people."""
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return jinja2.Template(template, keep_trailing_newline=True).render(card)
