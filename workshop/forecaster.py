"""The function: a storm in, a forecast out. Notebook 03 writes it too; a test holds the two together."""
from datetime import datetime, timedelta, timezone
from typing import Annotated

import pandas as pd
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from workshop import model as models
from workshop.storms import build_examples, load_storms


def category(wind_kt: float) -> str:
    """Return the Saffir-Simpson category of a sustained wind in knots, or what stands below it, as text.

    Source: National Hurricane Center, https://www.nhc.noaa.gov/aboutsshws.php
    """
    number = sum(wind_kt >= edge for edge in (64, 83, 96, 113, 137))
    return f"category {number}" if number else "tropical storm" if wind_kt >= 34 else "tropical depression"


def time_of(value):
    """Read a time as text only: pydantic alone would take 2022 for 2,022 seconds after 1970."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            pass
    if isinstance(value, datetime) and 1851 <= value.year <= 2100:
        return value
    raise PydanticCustomError("time", "Input should be a time like 2022-09-27T12:00:00Z, from 1851 to 2100")


Time = Annotated[AwareDatetime, BeforeValidator(time_of, json_schema_input_type=AwareDatetime)]
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


def forecast(storm: Storm, model: models.IntervalModel) -> Forecast:
    """Return the forecast for one storm, winds rounded to 0.01 kt; the same input gives the same answer."""
    row = pd.DataFrame([storm.model_dump(exclude={"time"})], dtype=float)
    row["time"] = pd.to_datetime([storm.time], utc=True)
    wind = model.predict(models.features(row)).iloc[0].round(2)
    return Forecast(valid_time=storm.time.astimezone(timezone.utc) + timedelta(hours=24),
                    wind_kt=wind.middle, wind_kt_low=wind.low, wind_kt_high=wind.high,
                    category=category(wind.middle), model_version=model.version)


def kept_model() -> models.IntervalModel:
    """Return the model that notebook 02 kept; where there is none, train it, keep it, and say so."""
    model = models.load()
    if model:
        print(f"Model {model.version}, kept earlier.")
        return model
    print("No model is kept here: training one as in notebook 02, some seconds ...", end=" ", flush=True)
    model = models.train(build_examples(load_storms()))
    models.keep(model)
    print(f"done: model {model.version}.")
    return model
