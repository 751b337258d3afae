"""The model: its features, what it scores on seasons that it has never seen, its interval."""
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from workshop import ROOT, forecaster
from workshop.model import (PRESSURE, booster, features, mask_pressure, strength,
                            train)
from workshop.storms import build_examples, load_storms

LAST_TRAINING_SEASON = 2014  # of the model that the course makes
TEST_SEASONS = range(LAST_TRAINING_SEASON + 1, 2023)


@pytest.fixture(scope="module")
def examples():
    return build_examples(load_storms())


@pytest.fixture(scope="module")
def later(examples):
    """The examples of the seasons after training."""
    return examples[examples.season.isin(TEST_SEASONS)]


@pytest.fixture(scope="module")
def model(examples):
    return train(examples)


@pytest.fixture(scope="module")
def small_model(examples):
    """Trained on three seasons: enough where the forecast need not be good."""
    return train(examples[examples.season >= 2012])


def without_pressure(inputs):
    return inputs.assign(**dict.fromkeys(PRESSURE, np.float32("nan")))


# --- features ---

def test_features_are_nine_columns_of_float32_without_gaps(examples):
    inputs = features(examples)
    assert inputs.shape == (len(examples), 9) and set(PRESSURE) < set(inputs)
    assert (inputs.dtypes == np.float32).all() and not inputs.isna().any(axis=None)
    assert inputs.index.equals(examples.index)


def test_unknown_pressure_leaves_a_gap_in_the_features_of_pressure_alone(examples):
    now = features(examples.head(50).assign(pressure_hpa=np.nan)).isna()
    before = features(examples.head(50).assign(pressure_hpa_12h_ago=np.nan)).isna()
    assert now.columns[now.all()].tolist() == PRESSURE and now.any().sum() == 2
    assert before.columns[before.all()].tolist() == ["pressure_change_hpa"] and before.any().sum() == 1


def test_features_mean_what_their_names_say():
    example = pd.DataFrame({
        "time": [pd.Timestamp("2022-09-08T00:00Z")], "latitude": [60.0], "longitude": [-50.0],
        "wind_kt": [70.0], "pressure_hpa": [980.0], "latitude_12h_ago": [58.5], "longitude_12h_ago": [-54.0],
        "wind_kt_12h_ago": [85.0], "pressure_hpa_12h_ago": [972.0]})
    expected = {"days_from_peak": 2, "latitude": 60, "longitude": -50, "wind_kt": 70, "wind_change_kt": -15,
                "pressure_hpa": 980, "pressure_change_hpa": 8, "moved_north_deg": 1.5,
                "moved_east_deg": 4 * 0.5}  # at 60 °N a degree of longitude is half as wide
    assert features(example).iloc[0].to_dict() == pytest.approx(expected)


def test_numbers_of_one_storm_and_a_whole_table_have_the_same_features(examples):
    """Two forms of one rule: a served storm never sees pandas, training never loops over rows."""
    some = examples.iloc[::50]
    one_by_one = [forecaster.features(example.time.day_of_year, *example[list(forecaster.INPUTS)])
                  for _, example in some.iterrows()]
    assert len(one_by_one) > 200 and list(features(some)) == list(forecaster.FEATURES)
    assert np.array_equal(np.float32(one_by_one), features(some))


def test_masking_takes_both_pressures_from_a_fifth_of_the_rows(examples):
    inputs = features(examples)
    masked = mask_pressure(inputs)
    assert masked.pressure_hpa.isna().mean() == pytest.approx(0.2, abs=0.02)
    assert masked.pressure_hpa.isna().equals(masked.pressure_change_hpa.isna())
    others = [name for name in inputs if name not in PRESSURE]
    pd.testing.assert_frame_equal(masked[others], inputs[others])
    assert not inputs.isna().any(axis=None), "the original stays as it was"
    pd.testing.assert_frame_equal(masked, mask_pressure(inputs))


@pytest.mark.parametrize("wind_kt, band", [(33.9, 0), (34, 1), (63.9, 1), (64, 2), (165, 2)])
def test_strength_begins_at_34_and_64_kt(wind_kt, band):
    assert strength([wind_kt]) == [band]


# --- scores on later seasons ---

def test_it_beats_persistence_by_18_and_a_linear_model_by_8_percent(examples):
    """2015–2022, each season forecast by a model of the seasons before it alone."""
    inputs, change_kt = features(examples), examples.wind_kt_in_24h - examples.wind_kt
    errors = []
    for season in TEST_SEASONS:
        known, new = (examples.season < season).to_numpy(), (examples.season == season).to_numpy()
        assert not set(examples.storm_id[known]) & set(examples.storm_id[new])
        boosted = booster().fit(mask_pressure(inputs[known]), change_kt[known])
        linear = LinearRegression().fit(inputs[known], change_kt[known])
        errors.append(pd.DataFrame({"persistence": change_kt[new],
                                    "linear": change_kt[new] - linear.predict(inputs[new]),
                                    "model": change_kt[new] - boosted.predict(inputs[new])}).abs())
    mean = pd.concat(errors).mean()
    assert 12 < mean.persistence < 14, "the yardstick itself has not moved"
    assert mean.model <= 0.82 * mean.persistence, mean.to_dict()
    assert mean.model <= 0.92 * mean.linear, mean.to_dict()


def covered(model, inputs, truth_kt):
    wind = model.predict(inputs)
    return truth_kt.between(wind.low, wind.high)


def test_the_interval_covers_80_percent_in_every_strength(model, later):
    hits = covered(model, features(later), later.wind_kt_in_24h)
    assert 0.77 <= hits.mean() <= 0.83
    in_band = hits.groupby(strength(later.wind_kt)).mean()
    assert len(in_band) == 3 and in_band.between(0.70, 0.90).all(), in_band.to_dict()


def test_the_interval_holds_without_pressure(model, later):
    hits = covered(model, without_pressure(features(later)), later.wind_kt_in_24h)
    assert 0.75 <= hits.mean() <= 0.90


def test_training_again_gives_the_same_model_whatever_happened_after_its_seasons(examples, small_model):
    changed = examples[examples.season >= 2012].copy()
    changed.loc[changed.season > LAST_TRAINING_SEASON, "wind_kt_in_24h"] += 50
    again, inputs = train(changed), features(examples.tail(500))
    assert again.margin_kt == small_model.margin_kt and again.seasons == small_model.seasons == (2012, 2014)
    pd.testing.assert_frame_equal(again.predict(inputs), small_model.predict(inputs), check_exact=True)


def test_a_model_knows_the_first_and_the_last_season_of_its_training(model, small_model, examples):
    assert (model.seasons, small_model.seasons) == ((1975, 2014), (2012, 2014))
    assert train(examples[examples.season.between(2005, 2007)], 2100).seasons == (2005, 2007)


@pytest.mark.parametrize("inputs_of", [features, lambda examples: without_pressure(features(examples))])
def test_low_middle_high_stand_in_order_and_above_zero(model, examples, inputs_of):
    wind = model.predict(inputs_of(examples))
    assert list(wind) == ["low", "middle", "high"] and wind.index.equals(examples.index)
    assert (wind.low <= wind.middle).all() and (wind.middle <= wind.high).all() and (wind >= 0).all(axis=None)
    assert not wind.isna().any(axis=None) and (wind.high < 250).all()


def test_the_forecast_of_a_row_does_not_depend_on_its_neighbours(model, examples):
    inputs = features(examples)
    one_by_one = pd.concat(model.predict(inputs.iloc[[row]]) for row in range(0, len(inputs), 400))
    pd.testing.assert_frame_equal(one_by_one, model.predict(inputs).iloc[::400])


@pytest.mark.parametrize("last_season", [1900, 1974])
def test_too_few_seasons_are_refused_with_what_is_needed(examples, last_season):
    words = f"0 storms up to {last_season}, 10 or more are needed; the first season is 1975"
    with pytest.raises(ValueError, match=re.escape(words)):
        train(examples, last_season=last_season)


def test_a_strength_that_training_never_saw_still_has_an_interval(examples):
    weak = train(examples[(examples.season >= 2012) & (examples.wind_kt < 64)])
    wind = weak.predict(features(examples[examples.wind_kt >= 64].head(100)))
    assert (wind.low < wind.middle).all() and (wind.middle < wind.high).all()


# --- threads ---

@pytest.mark.parametrize("first", ["model", "handover"])
def test_training_has_one_thread_whichever_module_is_imported_first(first):
    """More would wait for each other where cores are busy, and a fit of seconds lasts a minute."""
    count = "from sklearn.utils import _openmp_helpers as omp; print(omp._openmp_effective_n_threads())"
    told = subprocess.check_output([sys.executable, "-c", f"import workshop.{first}; {count}"], cwd=ROOT,
                                   env=os.environ | {"OMP_NUM_THREADS": "64"}, text=True)  # as a hub may say
    assert told == "1\n"
