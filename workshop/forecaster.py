"""The function: a storm in, a forecast out. Notebook 03 writes it line by line; a test holds the two together."""
import functools
from datetime import datetime, timedelta, timezone
from typing import Annotated

import pandas as pd
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from workshop import model as models
from workshop.storms import build_examples, load_storms


def category(wind_kt: float) -> str:
    """Return the Saffir-Simpson category of a sustained wind in knots, as text.

    Source: National Hurricane Center, https://www.nhc.noaa.gov/aboutsshws.php
    """
    steps = [(137, "category 5"), (113, "category 4"), (96, "category 3"), (83, "category 2"), (64, "category 1"),
             (34, "tropical storm")]
    return next((name for at_least, name in steps if wind_kt >= at_least), "tropical depression")


def text_only(value):
    """Refuse a number where a time is expected, in quotes too: 2022 would be 2,022 seconds after 1970."""
    if isinstance(value, datetime) or isinstance(value, str) and "-" in value[1:]:
        return value
    raise ValueError("a time is a text such as 2022-09-27T12:00:00Z")


def possible_year(time):
    """Refuse what pydantic can read and the function can't answer, such as the year 9999."""
    if 1851 <= time.year <= 2100:
        return time
    raise ValueError(f"the year is {time.year}, and should be 1851 to 2100")


Time = Annotated[AwareDatetime, BeforeValidator(text_only, json_schema_input_type=AwareDatetime),
                 AfterValidator(possible_year)]
Latitude = Annotated[float, Field(ge=0, le=75, strict=True, description="°N", examples=[22.6])]
Longitude = Annotated[float, Field(ge=-140, le=20, strict=True,
                                   description="°E: west is negative", examples=[-83.6])]
Wind = Annotated[float, Field(ge=10, le=200, strict=True,
                              description="maximum sustained wind, knots", examples=[100])]
Pressure = Annotated[float, Field(ge=850, le=1050, strict=True,
                                  description="central pressure, hPa", examples=[963])]


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


class Forecast(BaseModel):
    """The storm's maximum sustained wind 24 hours later, in knots, with an 80 % interval."""

    valid_time: datetime
    wind_kt: float
    wind_kt_low: float
    wind_kt_high: float
    category: str
    model_version: str


def forecast(storm: Storm, model: models.IntervalModel | None = None) -> Forecast:
    """Return the forecast for one storm; the same storm and model always give the same answer.

    Without `model` the kept one is used (`kept_model`). Winds are rounded to 0.01 kt.
    """
    model = model or kept_model()
    row = pd.DataFrame([storm.model_dump(exclude={"time"})], dtype=float)
    row["time"] = pd.to_datetime([storm.time], utc=True)
    wind = model.predict(models.features(row)).iloc[0].round(2)
    return Forecast(valid_time=storm.time.astimezone(timezone.utc) + timedelta(hours=24),
                    wind_kt=wind.middle, wind_kt_low=wind.low, wind_kt_high=wind.high,
                    category=category(wind.middle), model_version=model.version)


@functools.cache
def kept_model() -> models.IntervalModel:
    """Return the model that notebook 02 kept; where there is none, train it, keep it, and say so."""
    model = models.load()
    if model:
        print(f"Model {model.version}, kept earlier.")
        return model
    print("No model is kept here: training one, as notebook 02 does, takes some seconds ...", end=" ", flush=True)
    model = models.train(build_examples(load_storms()))
    models.keep(model)
    print(f"done: model {model.version}.")
    return model
