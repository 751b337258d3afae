"""The function: a storm in, a forecast out (see notebook 03); the model's file. No pandas: it starts fast."""
import json
import math
import tomllib
from bisect import bisect
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
from pydantic import (AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, create_model,
                      model_validator)
from pydantic_core import PydanticCustomError

FACTS = tomllib.loads(Path(__file__).with_name("forecaster.toml").read_text(encoding="utf-8"))
FEATURES, TREES, PEAK_DAY = FACTS["features"], FACTS["trees"], FACTS["peak_day"]
GRAPH = Path(__file__).with_name("interval.onnx.txt").read_text(encoding="utf-8")  # IntervalModel.predict
CATEGORIES, EDGES_KT = zip(*FACTS["categories"].items())
MOST_KM, MOST_GAIN_KT, MOST_LOSS_KT = FACTS["most_in_12_hours"].values()


def category(wind_kt: float) -> str:
    """Return the Saffir-Simpson category of a sustained wind in knots, or what stands below it, as text."""
    return CATEGORIES[bisect(EDGES_KT, wind_kt) - 1]


def time_of(value):
    """Read a time as text only: pydantic alone would take 2022 for 2,022 seconds after 1970."""
    with suppress(TypeError, ValueError):
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if 1851 <= time.year <= 2100:
            return time
    raise PydanticCustomError("time", "Input should be a time like 2022-09-27T12:00:00Z, from 1851 to 2100")


Time = Annotated[AwareDatetime, BeforeValidator(time_of, json_schema_input_type=AwareDatetime)]
Latitude, Longitude, Wind, Pressure = (Annotated[float, Field(strict=True, **limits)]
                                       for limits in FACTS["limits"].values())


class Storm(BaseModel):
    """A storm now and 12 hours ago. Units stand in the names; a pressure may be missing (null)."""
    model_config = ConfigDict(extra="forbid")
    time: Time
    latitude: Latitude
    longitude: Longitude
    wind_kt: Wind
    pressure_hpa: Pressure | None = None
    latitude_12h_ago: Latitude
    longitude_12h_ago: Longitude
    wind_kt_12h_ago: Wind
    pressure_hpa_12h_ago: Pressure | None = None

    @model_validator(mode="after")
    def possible(self):
        """Refuse what each field allows by itself, and no storm could do from 12 hours ago until now."""
        gain_kt, north = self.wind_kt - self.wind_kt_12h_ago, self.latitude - self.latitude_12h_ago
        east = (self.longitude - self.longitude_12h_ago) * math.cos(math.radians(self.latitude - north / 2))
        km = 111.2 * math.hypot(north, east)
        if km > MOST_KM:
            raise PydanticCustomError(
                "impossible_motion", f"A storm should move at most {MOST_KM} km in 12 hours, this one moved "
                f"{math.ceil(km)} km; is the sign of a longitude lost (west is negative)?")
        if not -MOST_LOSS_KT <= gain_kt <= MOST_GAIN_KT:
            allowed = f"-{MOST_LOSS_KT} to {MOST_GAIN_KT} knots in 12 hours, this one changed by {gain_kt:g}"
            raise PydanticCustomError("impossible_gain", f"A wind should change by {allowed}")
        return self


INPUTS = tuple(name for name in Storm.model_fields if name != "time")  # what FEATURES are made of
Card = create_model("Card", examples=(list[create_model("Known", name=(str, ...), storm=(Storm, ...))], ...))


class Forecast(BaseModel):
    """The storm's maximum sustained wind 24 hours later, in knots, with an 80 % interval."""
    valid_time: datetime
    wind_kt: float
    wind_kt_low: float
    wind_kt_high: float
    category: str
    model_version: str


def features(day_of_year, latitude, longitude, wind_kt, pressure_hpa, latitude_12h_ago, longitude_12h_ago,
             wind_kt_12h_ago, pressure_hpa_12h_ago) -> tuple:
    """Return the inputs of `FEATURES`: numbers for numbers, arrays for arrays; an unknown pressure is NaN."""
    cosine = math.cos(math.radians(latitude)) if isinstance(latitude, float) else np.cos(np.radians(latitude))
    return (abs(day_of_year - PEAK_DAY), latitude, longitude, wind_kt, wind_kt - wind_kt_12h_ago,
            pressure_hpa, pressure_hpa - pressure_hpa_12h_ago, latitude - latitude_12h_ago,
            (longitude - longitude_12h_ago) * cosine)


class ModelFile:
    """A model as it is handed over: the content of an ONNX file. Reading it runs no code from the file.

    `card` holds what the file says of itself (see `workshop.handover`), `version` its name. Raises ValueError
    if the content is not such a file, or holds anything but the course's graph with other numbers.
    """
    def __init__(self, content: bytes):
        options = onnxruntime.SessionOptions()
        # One thread: more gain nothing on trees of this size, and fight each other where many are served.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong, the exception says
        try:
            import onnx  # only here: the notebooks' own Storm and category do without
            # What runs is made anew from the file's numbers; if that is not the file again, it holds more.
            given = onnx.load_from_string(content)
            margin_kt, numbers = [each.float_data[0] for each in given.graph.initializer[4:]], {}  # see GRAPH
            graph = onnx.parser.parse_model(GRAPH % tuple(margin_kt))
            for node, theirs in zip(graph.graph.node[:3], given.graph.node):
                for each in theirs.attribute:
                    value, (least, most) = onnx.helper.get_attribute_value(each), TREES[each.name]
                    values = np.array(value).astype("U" if isinstance(least, str) else float)
                    numbers[each.name.removeprefix("nodes_")] = values
                    if not np.all((least <= values) & (values <= most)):
                        raise ValueError(f"{each.name} of {node.name} should be from {least} to {most}")
                    node.attribute.append(onnx.helper.make_attribute(each.name, value))
                ahead = np.minimum(numbers["truenodeids"], numbers["falsenodeids"]) > numbers["nodeids"]
                if not np.all(ahead | (numbers["modes"] == "LEAF")):
                    raise ValueError(f"a tree of {node.name} goes in circles")
            onnx.helper.set_model_props(graph, {"card": given.metadata_props[0].value})
            self.card = json.loads(given.metadata_props[0].value)
            self.version = isinstance(self.card, dict) and self.card.get("version")
            if not isinstance(self.version, str) or graph != given or not np.max(np.abs(margin_kt)) <= 250:
                raise ValueError("it holds no card with a version, or more than the course's graph")
            content = graph.SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each kind of damage, and no common one
            raise ValueError(f"this is not a model file of the course ({str(error)[:100]})") from None

    def predict(self, inputs) -> np.ndarray:
        """Return the wind in 24 hours, knots: columns low, middle, high, shape (n, 3), for (n, 9) inputs."""
        inputs = np.asarray(inputs, dtype=np.float32).reshape(-1, len(FEATURES))  # as it was trained: see 05
        return self._session.run(["wind_kt"], {"features": inputs})[0].astype(float)


def forecasts(storms: list[Storm], model: ModelFile) -> list[Forecast]:
    """Return a forecast for each storm, in order; winds in knots, rounded to 0.01."""
    times = [storm.time.astimezone(timezone.utc) for storm in storms]
    days, states = [time.timetuple().tm_yday for time in times], list(map(attrgetter(*INPUTS), storms))
    if len(storms) > 20:  # from here on, arrays are quicker
        inputs = np.array(features(np.array(days), *np.array(states, dtype=float).T)).T
    else:
        inputs = [features(day, *(math.nan if number is None else number for number in state))
                  for day, state in zip(days, states)]
    return [Forecast(valid_time=time + timedelta(days=1), wind_kt=middle, wind_kt_low=low, wind_kt_high=high,
                     category=category(middle), model_version=model.version)
            for time, (low, middle, high) in zip(times, model.predict(inputs).round(2).tolist())]


def forecast(storm: Storm, model: ModelFile) -> Forecast:
    """Return the forecast for one storm: the same storm and the same model give the same answer, always."""
    return forecasts([storm], model)[0]
