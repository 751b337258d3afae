"""The function: what it refuses, what it answers, and that it is one function wherever it is called."""
import re
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workshop import registry
from workshop.forecaster import (INPUTS, MOST_GAIN_KT, MOST_KM, MOST_LOSS_KT, Forecast, Storm, category,
                                 forecast, forecasts)
from workshop.model import features
from workshop.storms import STATE, build_examples, load_storms, synoptic

IAN = {"time": "2022-09-27T12:00:00Z",
       "latitude": 23.5, "longitude": -83.3, "wind_kt": 100, "pressure_hpa": 963,
       "latitude_12h_ago": 22.1, "longitude_12h_ago": -83.7, "wind_kt_12h_ago": 110,
       "pressure_hpa_12h_ago": 952}
NUMBERS = [name for name in IAN if name != "time"]
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))
quick = settings(deadline=None, max_examples=40, database=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path_factory.mktemp("models")))
        return registry.kept_model(say=lambda text: None)


@pytest.fixture(scope="module")
def examples():
    return build_examples(load_storms())


def storms_of(examples):
    fields = examples[["time", *INPUTS]].assign(time=examples.time.map(pd.Timestamp.isoformat))
    return [Storm(**record) for record in fields.to_dict("records")]


# --- the category ---

@pytest.mark.parametrize("wind_kt, name", [
    (0, "tropical depression"), (33.9, "tropical depression"), (34, "tropical storm"),
    (63.9, "tropical storm"), (64, "category 1"), (82.9, "category 1"), (83, "category 2"),
    (95.9, "category 2"), (96, "category 3"), (112.9, "category 3"), (113, "category 4"),
    (136.9, "category 4"), (137, "category 5"), (200, "category 5")])
def test_category_changes_at_each_threshold(wind_kt, name):
    assert category(wind_kt) == name


# --- what is refused ---

def refusal(**changes):
    """The fields and messages of the refusal."""
    with pytest.raises(ValidationError) as refused:
        Storm(**{**IAN, **changes})
    return {error["loc"][0]: error["msg"] for error in refused.value.errors()}


def test_whole_numbers_fractions_and_the_ends_of_the_ranges_are_accepted():
    Storm(**IAN)
    for ends in ((0, -140, 10, 850), (75.0, 20.0, 200.0, 1050.0)):
        state = dict(zip(STATE, ends))
        Storm(**{**IAN, **state, **{f"{name}_12h_ago": end for name, end in state.items()}})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [True, "20", "", [20], float("nan"), float("inf")])
def test_what_only_looks_like_a_number_is_refused(name, value):
    assert list(refusal(**{name: value})) == [name]


@pytest.mark.parametrize("names, low, high", [
    (("latitude", "latitude_12h_ago"), 0, 75), (("longitude", "longitude_12h_ago"), -140, 20),
    (("wind_kt", "wind_kt_12h_ago"), 10, 200), (("pressure_hpa", "pressure_hpa_12h_ago"), 850, 1050)])
def test_a_value_out_of_range_is_refused_and_the_range_is_said(names, low, high):
    for name in names:
        assert f"greater than or equal to {low}" in refusal(**{name: low - 0.1})[name]
        assert f"less than or equal to {high}" in refusal(**{name: high + 0.1})[name]


@pytest.mark.parametrize("time", ["2022-09-27T12:00:00", "2022-09-27", datetime(2022, 9, 27, 12)])
def test_a_time_without_a_zone_is_refused(time):
    assert refusal(time=time) == {"time": "Input should have timezone info"}


@pytest.mark.parametrize("time", [1664280000, 1664280000.0, True, None, ["2022-09-27T12:00:00Z"]])
def test_a_time_that_is_a_number_is_refused_with_an_example(time):
    assert "Input should be a time like 2022-09-27T12:00:00Z" in refusal(time=time)["time"]


@pytest.mark.parametrize("time", ["yesterday", "2022-09-31T12:00:00Z", "2022-09-27T25:00:00Z", ""])
def test_a_text_that_is_no_time_is_refused(time):
    assert list(refusal(time=time)) == ["time"]


@pytest.mark.parametrize("time", ["2022", "1664280000", "1664280000000", "1664280000.5"])
def test_a_number_in_quotation_marks_is_no_time_either(time):
    assert list(refusal(time=time)) == ["time"]


@pytest.mark.parametrize("time", ["9999-12-31T12:00:00Z", "0001-01-01T00:00:00+14:00", "1850-12-31T00:00:00Z",
                                  "2101-01-01T00:00:00Z"])
def test_a_time_outside_1851_to_2100_is_refused(time):
    assert "1851" in refusal(time=time)["time"] and "2100" in refusal(time=time)["time"]


@pytest.mark.parametrize("name", ["wind", "wind_ms", "Latitude", "time_utc"])
def test_a_field_that_is_not_known_is_refused(name):
    assert refusal(**{name: 20}) == {name: "Extra inputs are not permitted"}


@pytest.mark.parametrize("name", [name for name in IAN if "pressure" not in name])
def test_all_but_the_pressures_are_required(name):
    with pytest.raises(ValidationError, match=f"{name}\n  Field required"):
        Storm(**{key: value for key, value in IAN.items() if key != name})
    assert list(refusal(**{name: None})) == [name]


# --- what no storm can do from 12 hours ago until now ---

def impossible(**changes):
    """The kind of the refusal, and its words."""
    with pytest.raises(ValidationError) as refused:
        Storm(**{**IAN, **changes})
    error, = refused.value.errors()
    return error["type"], error["msg"]


def test_every_example_of_the_archive_is_a_possible_storm(examples):
    assert len(storms_of(examples)) == 11_433


def test_the_limits_leave_a_margin_over_the_records_of_the_archive():
    records = synoptic(load_storms())
    before = records[["storm_id", "time", *STATE]].assign(time=records.time + pd.Timedelta(hours=12))
    pairs = records.merge(before, on=["storm_id", "time"], suffixes=("", "_12h_ago")).set_index("storm_id")
    gain_kt = pairs.wind_kt - pairs.wind_kt_12h_ago
    assert (gain_kt.idxmax(), gain_kt.max()) == ("2005-Wilma", 75) and 75 < MOST_GAIN_KT < 1.3 * 75
    assert (gain_kt.idxmin(), gain_kt.min()) == ("2001-Iris", -95) and 95 < MOST_LOSS_KT < 1.3 * 95
    # The great circle, by the haversine formula: another way than the one that Storm takes.
    there, here = (np.radians(pairs[[f"latitude{when}", f"longitude{when}"]].to_numpy()).T
                   for when in ("_12h_ago", ""))
    half = np.sin((here - there) / 2) ** 2
    km = 2 * 6371 * np.arcsin(np.sqrt(half[0] + np.cos(here[0]) * np.cos(there[0]) * half[1]))
    assert (pairs.index[km.argmax()], round(km.max())) == ("1999-Irene", 1466) and 1466 < MOST_KM < 1.3 * 1466


@pytest.mark.parametrize("moved", [
    {"latitude": 20 + 2000 / 111.2, "latitude_12h_ago": 20, "longitude": -60, "longitude_12h_ago": -60},
    {"latitude": 60, "latitude_12h_ago": 60, "longitude": -60, "longitude_12h_ago": -60 + 2 * 2000 / 111.2}])
def test_a_storm_that_moved_2000_km_in_12_hours_is_refused_and_the_distance_is_said(moved):
    kind, words = impossible(**moved)
    assert kind == "impossible_motion" and "at most 1600 km in 12 hours" in words and re.search("moved 200[01] km", words)


def test_the_lost_sign_of_a_longitude_is_refused_and_suspected():
    """15 is a longitude in range, so the range alone would not see it."""
    kind, words = impossible(longitude=15, longitude_12h_ago=-14.4)
    assert kind == "impossible_motion" and "sign of a longitude lost" in words and "west" in words


@pytest.mark.parametrize("wind_kt, before, changed_by", [(150, 55, "95"), (40, 165, "-125")])
def test_a_wind_that_no_storm_gains_or_loses_is_refused_and_the_limits_are_said(wind_kt, before, changed_by):
    kind, words = impossible(wind_kt=wind_kt, wind_kt_12h_ago=before)
    assert kind == "impossible_gain" and "-120 to 90 knots in 12 hours" in words
    assert words.endswith(f"changed by {changed_by}")


@pytest.mark.parametrize("wind_kt, before", [(150, 60), (40, 160)])
def test_a_wind_at_the_limits_is_accepted(wind_kt, before):
    Storm(**{**IAN, "wind_kt": wind_kt, "wind_kt_12h_ago": before})


def test_a_value_out_of_range_is_not_called_impossible_motion_as_well():
    assert list(refusal(longitude=83.3)) == ["longitude"]


# --- what is answered ---

def test_an_answer_has_a_wind_an_interval_a_category_and_the_models_version(model):
    answer = forecast(Storm(**IAN), model)
    assert isinstance(answer, Forecast) and answer.model_version == model.version == "1975-2014"
    assert 0 <= answer.wind_kt_low < answer.wind_kt < answer.wind_kt_high
    assert answer.category == category(answer.wind_kt)
    assert answer.valid_time == datetime(2022, 9, 28, 12, tzinfo=timezone.utc)
    assert '"valid_time":"2022-09-28T12:00:00Z"' in answer.model_dump_json()


@pytest.mark.parametrize("names", [["pressure_hpa"], ["pressure_hpa_12h_ago"],
                                   ["pressure_hpa", "pressure_hpa_12h_ago"]])
def test_null_and_absent_pressure_give_the_same_answer(model, names):
    null = Storm(**{**IAN, **dict.fromkeys(names)})
    absent = Storm(**{key: value for key, value in IAN.items() if key not in names})
    assert forecast(null, model) == forecast(absent, model) != forecast(Storm(**IAN), model)


def test_the_same_storm_has_the_same_forecast_and_stays_as_it_was(model):
    storm = Storm(**IAN)
    before = storm.model_copy(deep=True)
    first = forecast(storm, model)
    forecast(Storm(**{**IAN, "wind_kt": 40}), model)  # another in between leaves nothing behind
    assert forecast(storm, model) == first and storm == before


def test_one_storm_at_a_time_many_and_the_whole_table_agree(model, examples):
    some = examples.iloc[::57].head(200)
    storms, table = storms_of(some), model.predict(features(some))
    together = forecasts(storms, model)
    assert len(together) == 200 and together == [forecast(storm, model) for storm in storms]
    for answer, (low, middle, high) in zip(together, table):
        assert (answer.wind_kt_low, answer.wind_kt, answer.wind_kt_high) == pytest.approx(
            (low, middle, high), rel=0, abs=0.005 + 1e-9)


@quick
@given(time=TIMES, minutes_east=st.integers(-14 * 60, 14 * 60))
def test_valid_time_is_24_hours_later_in_utc_from_any_zone(model, time, minutes_east):
    zone = timezone(timedelta(minutes=minutes_east))
    local = time.replace(tzinfo=timezone.utc).astimezone(zone)
    answer = forecast(Storm(**{**IAN, "time": local.isoformat()}), model)
    assert answer.valid_time == time.replace(tzinfo=timezone.utc) + timedelta(hours=24)
    assert answer.valid_time.utcoffset() == timedelta(0)
    in_utc = forecast(Storm(**{**IAN, "time": time.isoformat() + "Z"}), model)
    assert answer == in_utc, "the same moment, however it is written, has the same forecast"


@st.composite
def possible_storms(draw):
    """Anywhere, as weak or strong as can be, and 12 hours ago no farther away than a storm can move."""
    storm = {"time": draw(TIMES).isoformat() + "Z"}
    for name, low, high, fall, rise in [("latitude", 0, 75, 10, 10), ("longitude", -140, 20, 10, 10),
                                        ("wind_kt", 10, 200, 119, 89), ("pressure_hpa", 850, 1050, 200, 200)]:
        now = draw(st.floats(low, high))
        before = draw(st.floats(max(low, now - rise), min(high, now + fall)))
        storm |= {name: now, f"{name}_12h_ago": before}
    return storm | dict.fromkeys(draw(st.sets(st.sampled_from(["pressure_hpa", "pressure_hpa_12h_ago"]))))


@quick
@given(possible_storms())
def test_any_possible_storm_has_a_forecast(model, storm):
    answer = forecast(Storm(**storm), model)
    assert 0 <= answer.wind_kt_low <= answer.wind_kt <= answer.wind_kt_high < 400
    assert answer.category == category(answer.wind_kt)
