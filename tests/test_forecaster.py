"""The function: what it refuses, what it answers, and that it is one function wherever it is called."""
import contextlib
import dataclasses
import io
import re
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workshop.forecaster import Forecast, Storm, category, forecast, kept_model
from workshop.model import features, keep
from workshop.storms import STATE, build_examples, load_storms

IAN = {"time": "2022-09-27T12:00:00Z",
       "latitude": 23.5, "longitude": -83.3, "wind_kt": 100, "pressure_hpa": 963,
       "latitude_12h_ago": 22.1, "longitude_12h_ago": -83.7, "wind_kt_12h_ago": 110,
       "pressure_hpa_12h_ago": 952}
NUMBERS = [name for name in IAN if name != "time"]
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))
quick = settings(deadline=None, max_examples=40, database=None)


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """What happens where no model is kept yet: the model, what was printed, the folder."""
    folder = tmp_path_factory.mktemp("first") / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(folder))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            model = kept_model()
        yield model, said.getvalue(), folder


@pytest.fixture(scope="module")
def model(first_use):
    return first_use[0]


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
    Storm(**{**IAN, "latitude": 0, "longitude": -140, "wind_kt": 10, "pressure_hpa": 850})
    Storm(**{**IAN, "latitude": 75.0, "longitude": 20.0, "wind_kt": 200.0, "pressure_hpa": 1050.0})


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


def test_one_storm_at_a_time_agrees_with_the_whole_table(model):
    examples = build_examples(load_storms()).iloc[::57].head(200)
    table = model.predict(features(examples))
    fields = ["time", *STATE, *(f"{name}_12h_ago" for name in STATE)]
    assert len(examples) == 200
    for record, (low, middle, high) in zip(examples[fields].to_dict("records"), table.to_numpy()):
        answer = forecast(Storm(**{**record, "time": record["time"].isoformat()}), model)
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


@quick
@given(st.fixed_dictionaries({
    "time": TIMES.map(lambda time: time.isoformat() + "Z"),
    **{f"{name}{when}": known | unknown for when in ("", "_12h_ago") for name, known, unknown in [
        ("latitude", st.floats(0, 75), st.nothing()), ("longitude", st.floats(-140, 20), st.nothing()),
        ("wind_kt", st.floats(10, 200), st.nothing()), ("pressure_hpa", st.floats(850, 1050), st.none())]}}))
def test_any_storm_that_is_accepted_has_a_forecast(model, storm):
    answer = forecast(Storm(**storm), model)
    assert 0 <= answer.wind_kt_low <= answer.wind_kt <= answer.wind_kt_high < 400
    assert answer.category == category(answer.wind_kt)


# --- the kept model ---

def test_the_first_use_trains_keeps_and_says_so(first_use):
    model, said, folder = first_use
    assert re.fullmatch("No model is kept here: .+ done: model 1975-2014.\n", said)
    assert [path.name for path in folder.iterdir()] == ["model.joblib"]


def test_the_next_use_takes_the_kept_file_and_says_so(first_use, capsys):
    trained, _, folder = first_use
    keep(dataclasses.replace(trained, version="kept by notebook 02"))
    assert kept_model().version == "kept by notebook 02"
    assert capsys.readouterr().out == "Model kept by notebook 02, kept earlier.\n"
