"""The model, as notebook 02 builds it: a gradient-boosted forecast of the wind's change, 80 % interval."""
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict

from workshop import forecaster

PRESSURE = ["pressure_hpa", "pressure_change_hpa"]


def features(examples: pd.DataFrame) -> pd.DataFrame:
    """Return the model's inputs (see forecaster.features) as a table of n rows, float32."""
    # The runtimes that may serve the model compute with float32; trained on more, they would disagree.
    inputs = forecaster.features(examples.time.dt.day_of_year, *(examples[key] for key in forecaster.INPUTS))
    return pd.DataFrame(dict(zip(forecaster.FEATURES, inputs))).astype("float32")


def mask_pressure(inputs: pd.DataFrame, share=0.2, seed=0) -> pd.DataFrame:
    """Return a copy in which the pressure is missing from a random `share` of the rows."""
    hidden = np.random.default_rng(seed).random(len(inputs)) < share
    return inputs.mask(np.outer(hidden, inputs.columns.isin(PRESSURE)))


def booster(loss="absolute_error", quantile=None) -> HistGradientBoostingRegressor:
    """Return the unfitted estimator of the course; it predicts the wind's change over 24 hours, in knots."""
    return HistGradientBoostingRegressor(loss=loss, quantile=quantile, max_iter=75, max_leaf_nodes=15,
                                         min_samples_leaf=40, random_state=0)


def strength(wind_kt) -> np.ndarray:
    """Return 0, 1 or 2: below tropical storm (34 kt), tropical storm, hurricane (64 kt), for each wind."""
    return np.digitize(wind_kt, (34, 64))


@dataclass(frozen=True)
class IntervalModel:
    """Three estimators of the wind's change, and for each strength the margin that widens the interval."""
    middle: HistGradientBoostingRegressor
    low: HistGradientBoostingRegressor
    high: HistGradientBoostingRegressor
    margin_kt: tuple[float, float, float]
    seasons: tuple[int, int]  # the first and the last that it was trained on

    def predict(self, inputs: pd.DataFrame) -> pd.DataFrame:
        """Return the wind in 24 hours in knots, as low, middle, high, for `features(...)`, shape (n, 9)."""
        margin, wind = np.array(self.margin_kt)[strength(inputs.wind_kt)], inputs.wind_kt.to_numpy(float)
        middle = wind + self.middle.predict(inputs)
        low = np.minimum(middle, wind + self.low.predict(inputs) - margin)
        high = np.maximum(middle, wind + self.high.predict(inputs) + margin)
        return pd.DataFrame({"low": low, "middle": middle, "high": high}, index=inputs.index).clip(lower=0)


def calibrate(inputs, change_kt, storm_id) -> tuple[float, ...]:
    """Return for each strength the margin, in knots, that brings the interval to 80 % on unknown storms."""
    # Conformalized quantile regression (Romano, Patterson, Candès 2019), storms kept whole in five folds.
    low, high = (cross_val_predict(booster("quantile", q), inputs, change_kt, groups=storm_id,
                                   cv=GroupKFold(5)) for q in (0.1, 0.9))
    outside_by = pd.Series(np.maximum(low - change_kt, change_kt - high))
    margins = outside_by.groupby(strength(inputs.wind_kt)).quantile(0.8)
    return tuple(margins.reindex(range(3), fill_value=outside_by.quantile(0.8)))  # a strength never seen


def train(examples: pd.DataFrame, last_season=2014) -> IntervalModel:
    """Train on the examples of the seasons up to `last_season`; takes some seconds on two cores."""
    known = examples[examples.season <= last_season].reset_index(drop=True)
    if known.storm_id.nunique() < 10:
        raise ValueError(f"{known.storm_id.nunique()} storms up to {last_season}, 10 or more are needed; "
                         f"the first season is {examples.season.min()}")
    inputs, change_kt = mask_pressure(features(known)), known.wind_kt_in_24h - known.wind_kt
    fitted = [booster(*how).fit(inputs, change_kt) for how in ((), ("quantile", 0.1), ("quantile", 0.9))]
    margin_kt = calibrate(inputs, change_kt, known.storm_id)
    return IntervalModel(*fitted, margin_kt, (int(known.season.min()), int(known.season.max())))
