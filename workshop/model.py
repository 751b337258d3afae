"""The model: features, baselines, a gradient-boosted forecast of the wind's change with an 80 % interval.

Notebook 02 builds the same step by step; a test holds the two together.
"""
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

# One thread for each fit and forecast: more gain little on data of this size, and on busy cores, where they
# wait for each other, they make a fit last minutes and a forecast seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import joblib
import numpy as np
import pandas as pd
import sklearn
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict

from workshop import ROOT

PEAK_DAY = 253  # 10 September, the climatological peak of the Atlantic season (National Hurricane Center)
PRESSURE = ["pressure_hpa", "pressure_change_hpa"]
STRENGTH_KT = (34, 64)  # where tropical storms and hurricanes begin
LAST_TRAINING_SEASON = 2014


def features(examples: pd.DataFrame) -> pd.DataFrame:
    """Return the model's inputs, shape (n, 9), float32, from the columns that a forecaster knows at the time.

    Changes and motion are over the last 12 hours; the way east is in degrees of latitude (60 nautical miles).
    """
    east = (examples.longitude - examples.longitude_12h_ago) * np.cos(np.radians(examples.latitude))
    return pd.DataFrame({
        "days_from_peak": (examples.time.dt.day_of_year - PEAK_DAY).abs(),
        "latitude": examples.latitude, "longitude": examples.longitude,
        "wind_kt": examples.wind_kt, "wind_change_kt": examples.wind_kt - examples.wind_kt_12h_ago,
        "pressure_hpa": examples.pressure_hpa,
        "pressure_change_hpa": examples.pressure_hpa - examples.pressure_hpa_12h_ago,
        "moved_north_deg": examples.latitude - examples.latitude_12h_ago, "moved_east_deg": east,
    }).astype("float32")  # what every runtime that may serve the model computes with


def mask_pressure(inputs: pd.DataFrame, share=0.2, seed=0) -> pd.DataFrame:
    """Return a copy in which the pressure is missing from a random `share` of the rows."""
    hidden = np.random.default_rng(seed).random(len(inputs)) < share
    return inputs.mask(np.outer(hidden, inputs.columns.isin(PRESSURE)))


def booster(loss="absolute_error", quantile=None) -> HistGradientBoostingRegressor:
    """Return the unfitted estimator of the course; it predicts the wind's change over 24 hours, in knots."""
    return HistGradientBoostingRegressor(loss=loss, quantile=quantile, max_iter=150, learning_rate=0.05,
                                         min_samples_leaf=40, random_state=0)


def strength(wind_kt) -> np.ndarray:
    """Return 0, 1 or 2: below tropical storm, tropical storm, hurricane; shape like `wind_kt`."""
    return np.digitize(wind_kt, STRENGTH_KT)


@dataclass(frozen=True)
class IntervalModel:
    """Three estimators of the wind's change, and for each strength the margin that widens the interval."""

    middle: HistGradientBoostingRegressor
    low: HistGradientBoostingRegressor
    high: HistGradientBoostingRegressor
    margin_kt: tuple[float, float, float]
    version: str

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Return the wind in 24 hours in knots, as low, middle, high, for `features(...)`, shape (n, 9)."""
        margin, wind = np.array(self.margin_kt)[strength(inputs.wind_kt)], inputs.wind_kt.to_numpy(float)
        middle = wind + self.middle.predict(inputs)
        low = np.minimum(middle, wind + self.low.predict(inputs) - margin)
        high = np.maximum(middle, wind + self.high.predict(inputs) + margin)
        return pd.DataFrame({"low": low, "middle": middle, "high": high}, index=inputs.index).clip(lower=0)


def calibrate(inputs, change_kt, storm_id) -> tuple[float, ...]:
    """Return for each strength the margin in knots that brings the interval to 80 % on storms not trained on.

    Conformalized quantile regression (Romano, Patterson, Candès 2019), with storms kept whole in five folds.
    """
    low, high = (cross_val_predict(booster("quantile", q), inputs, change_kt, groups=storm_id,
                                   cv=GroupKFold(5)) for q in (0.1, 0.9))
    outside_by = pd.Series(np.maximum(low - change_kt, change_kt - high))
    margins = outside_by.groupby(strength(inputs.wind_kt)).quantile(0.8)
    return tuple(margins.reindex(range(3), fill_value=outside_by.quantile(0.8)))  # a strength never seen


def train(examples: pd.DataFrame, last_season=LAST_TRAINING_SEASON) -> IntervalModel:
    """Train on the examples of the seasons up to `last_season`; takes some seconds on two cores."""
    known = examples[examples.season <= last_season].reset_index(drop=True)
    if known.storm_id.nunique() < 10:
        raise ValueError(f"{known.storm_id.nunique()} storms up to {last_season}, 10 or more are needed; "
                         f"the first season is {examples.season.min()}")
    inputs, change_kt = mask_pressure(features(known)), known.wind_kt_in_24h - known.wind_kt
    fitted = [booster(*how).fit(inputs, change_kt) for how in ((), ("quantile", 0.1), ("quantile", 0.9))]
    margin_kt = calibrate(inputs, change_kt, known.storm_id)
    return IntervalModel(*fitted, margin_kt, version=f"{known.season.min()}-{last_season}")


def model_file() -> Path:
    """Return where the kept model lies: below $WORKSHOP_MODEL_DIR, or models/ in the checkout."""
    return Path(os.environ.get("WORKSHOP_MODEL_DIR") or Path(ROOT) / "models") / "model.joblib"


def keep(model: IntervalModel) -> Path:
    """Write the model to `model_file()` in one step, so that no reader sees half a file; return the path."""
    path = model_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        joblib.dump({"sklearn": sklearn.__version__, "model": model}, file)
    os.replace(file.name, path)
    return path


def load() -> IntervalModel | None:
    """Return the kept model, or None where there is none that this version of scikit-learn can use.

    A joblib file can run code while it is read: this reads only the file that `keep` wrote on this machine.
    """
    try:
        kept = joblib.load(model_file())
        usable = kept["sklearn"] == sklearn.__version__ and isinstance(kept["model"], IntervalModel)
        return kept["model"] if usable else None
    except Exception:  # whatever is wrong with the file, the way out is the same: train again
        return None
