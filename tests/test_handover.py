"""What is handed over: that estimator, file and function agree on every example; the file; the card."""
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest

from workshop.forecaster import FEATURES, INPUTS, ModelFile, Storm, forecasts
from workshop.model import booster, features, mask_pressure, strength, train
from workshop.storms import build_examples, load_storms
from workshop import ROOT, forecaster, handover, registry

LAST_TRAINING_SEASON = 2014  # of the model that the course makes


@pytest.fixture(scope="module")
def examples():
    return build_examples(load_storms())


@pytest.fixture(scope="module")
def model(examples):
    return train(examples)


@pytest.fixture(scope="module")
def place(model, examples, tmp_path_factory):
    """The folder of the version, as it is handed over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path_factory.mktemp("models")))
        return registry.folder() / registry.save(model, examples)


@pytest.fixture(scope="module")
def file(place):
    return ModelFile((place / "model.onnx").read_bytes())


@pytest.fixture(scope="module")
def text(place):
    return (place / "card.md").read_text()


# --- parity: the same winds, whichever way the model is asked ---

def storms_of(examples):
    fields = examples[["time", *INPUTS]].astype(object).assign(time=examples.time.map(pd.Timestamp.isoformat))
    return [Storm(**record) for record in fields.where(fields.notna(), None).to_dict("records")]


@pytest.mark.parametrize("pressures", ["known", "hidden"])
def test_estimator_file_and_function_agree_on_every_example_of_the_archive(examples, model, file, pressures):
    if pressures == "hidden":
        examples = examples.assign(pressure_hpa=np.nan, pressure_hpa_12h_ago=np.nan)
    inputs = features(examples)
    by_estimator, by_file = model.predict(inputs).to_numpy(), file.predict(inputs)
    row_by_row = np.vstack([file.predict([row]) for row in inputs.to_numpy()])
    by_function = np.array([(answer.wind_kt_low, answer.wind_kt, answer.wind_kt_high)
                            for answer in forecasts(storms_of(examples), file)])
    assert by_estimator.shape == by_file.shape == by_function.shape == (11_433, 3)
    for winds in (by_file, row_by_row, by_function):
        assert np.abs(winds - by_estimator).max() <= 0.01


@pytest.mark.parametrize("last_season", [1979, 1984])
def test_a_model_of_few_seasons_agrees_with_its_file_on_values_it_has_never_seen(examples, last_season):
    """A threshold lies between two values, in float64; rounded up in the file, it would be one of them."""
    model, inputs = train(examples, last_season), features(examples)
    before = model.predict(inputs)
    its_file = ModelFile(handover.to_onnx(model, {"version": "young"}))
    assert np.abs(its_file.predict(inputs) - before.to_numpy()).max() <= 0.01
    assert model.predict(inputs).equals(before), "handing over changes nothing in the model itself"


def test_a_model_of_early_seasons_has_examples_on_its_card_too(examples):
    known = examples[examples.season <= 1984]
    card = handover.facts(train(known, 1984), known, "1975-1984")
    assert len(card["examples"]) == 2 and all(Storm(**one["storm"]) for one in card["examples"])
    strongest = known.pressure_hpa.where(known.wind_kt < known.wind_kt.max())  # unknown, as it often was then
    card = handover.facts(train(known, 1984), known.assign(pressure_hpa=strongest), "1975-1984")
    assert len(card["examples"]) == 2 and json.dumps(card, allow_nan=False)


def test_a_model_trained_on_float64_would_disagree_with_its_file(examples, model):
    """So the test above can fail: thresholds then fall between numbers that are one number in float32."""
    columns = forecaster.features(examples.time.dt.day_of_year, *(examples[name] for name in INPUTS))
    wide = pd.DataFrame(dict(zip(FEATURES, columns)))
    known = examples.season <= LAST_TRAINING_SEASON
    change_kt = (examples.wind_kt_in_24h - examples.wind_kt)[known]
    ways = {"middle": (), "low": ("quantile", 0.1), "high": ("quantile", 0.9)}
    fitted = {name: booster(*way).fit(mask_pressure(wide[known]), change_kt) for name, way in ways.items()}
    careless = dataclasses.replace(model, **fitted)
    its_file = ModelFile(handover.to_onnx(careless, {"version": "careless"}))
    apart = np.abs(its_file.predict(wide) - careless.predict(wide).to_numpy()) > 0.01
    assert apart.any(axis=1).mean() > 1 / 20


# --- the file ---

def test_the_file_takes_nine_features_in_float32_and_answers_three_winds(place, file, examples):
    session = onnxruntime.InferenceSession(place / "model.onnx")
    (taken,), (answered,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1]) == ("features", "tensor(float)", 9)
    assert answered.shape[1] == 3
    wind = file.predict(features(examples.head(7)))
    assert wind.shape == (7, 3) and (np.diff(wind) >= 0).all(), "low, middle, high"


def test_the_file_carries_its_card(file, examples, place):
    known = examples[examples.season <= LAST_TRAINING_SEASON]
    assert file.version == file.card["version"] == place.name == "1975-2014"
    assert [(each["name"], each["unit"]) for each in file.card["features"]] == list(FEATURES.items())
    assert list(FEATURES) == list(features(examples.head(1))), "the order is that of the inputs"
    assert file.card["training"] == {"first_season": 1975, "last_season": 2014, "examples": len(known),
                                     "storms": known.storm_id.nunique()}
    groups = [row["group"] for row in file.card["scores"]]
    assert groups == ["all", *(f"season {season}" for season in range(2015, 2023)), "wind below 34 kt",
                      "wind 34 to 63 kt", "wind 64 kt and more", "rapid intensification", "pressure unknown"]


def test_the_scores_on_the_card_are_those_of_the_file(file, examples):
    later = examples[examples.season > LAST_TRAINING_SEASON]
    low, middle, high = file.predict(features(later)).T
    truth, rows = later.wind_kt_in_24h, {row["group"]: row for row in file.card["scores"]}
    inside, hurricane = truth.between(low, high), strength(later.wind_kt) == 2
    for row, chosen in [(rows["all"], later.season > 0), (rows["season 2022"], later.season == 2022),
                        (rows["wind 64 kt and more"], hurricane),
                        (rows["rapid intensification"], truth - later.wind_kt >= 30)]:
        assert row["forecasts"] == chosen.sum() > 0
        assert row["model_kt"] == pytest.approx((middle - truth).abs()[chosen].mean(), abs=0.001)
        assert row["persistence_kt"] == pytest.approx((later.wind_kt - truth).abs()[chosen].mean(), abs=0.001)
        assert row["inside_interval"] == pytest.approx(inside[chosen].mean(), abs=0.001)
    assert rows["all"]["model_kt"] < rows["all"]["linear_kt"] < rows["all"]["persistence_kt"]


def test_in_season_2022_alone_persistence_was_better_than_the_model(file):
    """The story of notebooks 02 and 05: fifteen storms prove nothing, for a model or against it."""
    season, = (row for row in file.card["scores"] if row["group"] == "season 2022")
    assert season["persistence_kt"] < season["model_kt"]


def test_the_examples_on_the_card_are_real_storms_that_can_be_forecast(file, examples):
    for card in file.card["examples"]:
        wind_kt, time = card["storm"]["wind_kt"], card["storm"]["time"]
        real = examples[(examples.wind_kt == wind_kt) & (examples.time == time)]
        assert real.name.item() in card["name"] and real.wind_kt_in_24h.item() == card["wind_kt_in_24h"]
        assert forecasts([Storm(**card["storm"])], file)[0].wind_kt > 0


def test_the_same_model_gives_the_same_bytes(model, examples, place):
    again = handover.to_onnx(model, handover.facts(model, examples, place.name))
    assert again == (place / "model.onnx").read_bytes()


def test_a_model_of_all_seasons_has_a_card_without_scores(examples):
    card = handover.facts(train(examples[examples.season >= 2020], 2022), examples, "2020-2022")
    assert card["scores"] == [] and "no later season" in handover.text(card)


def without_card(content):
    proto = onnx.load_from_string(content)
    del proto.metadata_props[:]
    return proto.SerializeToString()


@pytest.mark.parametrize("made_of", [
    lambda whole, _: b"", lambda whole, _: whole[:len(whole) // 2], lambda whole, _: whole[:-1],
    lambda whole, _: without_card(whole),
    lambda *_: b"not a model at all", lambda *_: pickle.dumps(["a", "list"])])
def test_what_is_no_model_file_is_refused(place, model, made_of):
    with pytest.raises(ValueError, match="^this is not a model file of the course .+"):
        ModelFile(made_of((place / "model.onnx").read_bytes(), model))


class Armed:
    def __reduce__(self):
        return os.mkdir, ("gone off",)  # what an attacker would rather do


def test_reading_runs_no_code_even_where_the_content_is_an_armed_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        ModelFile(pickle.dumps(Armed()))
    assert not Path("gone off").exists()
    pickle.loads(pickle.dumps(Armed()))
    assert Path("gone off").exists(), "it was armed"


@pytest.mark.parametrize("module", ["forecaster", "registry"])
def test_what_serves_forecasts_needs_neither_scikit_learn_nor_pandas(module):
    command = [sys.executable, "-c", f"import workshop.{module}, sys; print(*sys.modules)"]
    modules = set(subprocess.check_output(command, cwd=ROOT, text=True).split())
    assert "onnxruntime" in modules
    assert not {"sklearn", "pandas", "joblib", "skl2onnx", "onnx", "cloudpickle"} & modules


# --- the card, for people ---

def table(text, first):
    """The rows of the Markdown table whose first header is `first`, split into cells."""
    rows = re.search(rf"^\|{first}\|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def test_the_card_says_what_it_is_for_and_not_for_and_where_it_fails(text):
    assert re.match("# Model card.+ version 1975-2014\n", text)
    assert "Not for safety decisions" in text and "It is not for warnings" in text and "It is for " in text
    failures = text.partition("## Known failures")[2]
    assert "Rapid intensification" in failures and "land" in failures and "51 m/s" in failures


def test_the_numbers_of_the_card_are_those_in_the_file(text, file):
    assert table(text, " feature ") == [[f"`{each['name']}`", each["unit"]] for each in file.card["features"]]
    assert "| | forecasts | persistence | line | model | inside |" in text
    shown = table(text, " ")
    assert len(shown) == len(file.card["scores"])
    for (group, number, *errors, inside), row in zip(shown, file.card["scores"]):
        assert (group, int(number)) == (row["group"], row["forecasts"])
        assert [float(error) for error in errors] == pytest.approx(
            [row["persistence_kt"], row["linear_kt"], row["model_kt"]], abs=0.0501)
        assert float(inside.rstrip("% ")) == pytest.approx(100 * row["inside_interval"], abs=0.501)
    data = text.partition("## Data")[2].partition("##")[0]
    assert {str(number) for number in file.card["training"].values()} <= set(re.findall(r"\d+", data))


def test_its_five_lines_run_with_nothing_but_numpy_and_onnxruntime(text, place, file, examples, tmp_path):
    block, = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    assert len(block.splitlines()) == 5 and max(map(len, block.splitlines())) <= 110
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    bare, = (path for path in tmp_path.rglob("site-packages") if not path.parent.parent.is_symlink())
    for package in (np, onnxruntime):
        for part in Path(package.__file__).parents[1].glob(package.__name__ + "*"):
            (bare / part.name).symlink_to(part)
    command = [tmp_path / "bin" / "python", "-I", "-c", f"{block}\nprint(low, middle, high)\nimport pandas"]
    told = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert "No module named 'pandas'" in told.stderr.splitlines()[-1], "so little is there, and so far it ran"
    card, winds = told.stdout.splitlines()
    row = [float(number) for number in re.search(r"\[\[(.+?)\]\]", block)[1].split(",")]
    assert json.loads(card) == file.card
    assert [float(wind) for wind in winds.split()] == pytest.approx(file.predict([row])[0], abs=0.001)
    ian = examples[(examples.storm_id == "2022-Ian") & (examples.time == "2022-09-27T12:00Z")]
    assert row == pytest.approx(features(ian).iloc[0].tolist(), abs=0.001), "the row is a real storm"
