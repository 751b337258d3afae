"""Monitoring (notebook 07): the forecast log as a table, drift between clients, scores with intervals."""
import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter, create_model
from scipy import stats

from workshop import records
from workshop.forecaster import INPUTS, Forecast, Storm, Time

ALL, SENT = dict(at=Time, request_id=str, client=str | None), create_model("Sent", **Storm.__annotations__)
LINE = TypeAdapter(create_model("Answered", **ALL, status=(None, None), storm=SENT, forecast=Forecast)
    | create_model("Refused", **ALL, status=(int, Field(ge=400)), storm=(None, None), forecast=(None, None)))


def read_log(*paths) -> pd.DataFrame:
    """Return forecast logs as a table: one row a forecast, or a refused request, by the storms' times.

    Columns: `at`, `request_id`, `client`, `status` (200 where a forecast was given), `refused` (why not); the
    storm as it was sent; the forecast, its winds as `wind_kt_in_24h`, `..._low`, `..._high`, knots. Times are
    UTC. A refused request, whose storm is not in the log (NaN), has the time of the forecast before it.
    """
    rows = [line | {"status": line.get("status") or 200} | (line.get("storm") or {}) | {
        key.replace("wind_kt", "wind_kt_in_24h"): each for key, each in (line.get("forecast") or {}).items()}
        for line in records.read(*paths, check=LINE.validate_python)]
    numbers = [*INPUTS, "wind_kt_in_24h", "wind_kt_in_24h_low", "wind_kt_in_24h_high"]
    log = pd.DataFrame(rows, columns=["at", "request_id", "client", "status", "refused", "time", *numbers,
                                      "category", "model_version"]).astype(dict.fromkeys(numbers, float))
    log = log.sort_values("at", kind="stable", ignore_index=True)
    log["time"] = pd.to_datetime(log.time, utc=True, format="ISO8601").ffill().bfill()
    return log.sort_values("time", kind="stable", ignore_index=True)


def drift(signals, client, window=80) -> pd.DataFrame:
    """Return how far each row's client is from all others, in a column for each of the `signals`.

    That is the mean of its last `window` values, less the mean of the others' last two windows; NaN as long
    as there are fewer. What changes for all, as the weather does, cancels out.
    """
    apart = pd.DataFrame(np.nan, signals.index, signals.columns)
    for name in client.dropna().unique():
        for column, values in signals.items():
            own = values[client == name].dropna().rolling(window).mean()
            others = values[client != name].dropna().rolling(2 * window).mean()
            apart.loc[own.index, column] = own - others.reindex(signals.index).ffill()[own.index]
    return apart.round(9)  # or a rolling mean of zeros might be 1e-17


def scores(values, storm_id, by, resamples=1000) -> pd.DataFrame:
    """Return the mean of each column of `values` (a row a forecast), in groups `by`, with a 95 % interval.

    Columns: (name, "mean" | "low" | "high"). The interval comes from drawing whole storms anew (the rows
    of one are alike), and is somewhat too narrow where they are few; NaN where there is one.
    """
    rows, mean = {}, lambda total, count, axis: total.sum(axis) / count.sum(axis)
    for group, part in values.groupby(by):
        totals, counts = part.groupby(storm_id).sum(), part.groupby(storm_id).count()
        for name, total in totals.items():
            low, high = (np.nan, np.nan) if len(total) < 2 else stats.bootstrap((total, counts[name]), mean,
                paired=True, n_resamples=resamples, rng=0, method="percentile").confidence_interval
            rows.setdefault(group, {}).update({(name, "mean"): part[name].mean(), (name, "low"): low,
                                               (name, "high"): high})
    return pd.DataFrame(rows).T
