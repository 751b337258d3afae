"""The storms: read and check NOAA's archive, HURDAT2 (see data/README.md), and build training examples."""
import re
from pathlib import Path

import numpy as np
import pandas as pd

from workshop import ROOT

DATA = Path(ROOT) / "data"
STATUS = {"TD": "tropical depression", "TS": "tropical storm", "HU": "hurricane", "EX": "extratropical",
          "SD": "subtropical depression", "SS": "subtropical storm", "LO": "other low",
          "WV": "tropical wave", "DB": "disturbance"}
# The National Hurricane Center scores forecasts of tropical and subtropical systems only.
VERIFIED = [STATUS[code] for code in ("TD", "TS", "HU", "SD", "SS")]
STATE = ["latitude", "longitude", "wind_kt", "pressure_hpa"]
LIMITS = {"season": (1851, 2100), "latitude": (-90, 90), "longitude": (-180, 180), "wind_kt": (0, 250),
          "pressure_hpa": (800, 1100), "tropical_storm_diameter_nmi": (0, 4000),
          "hurricane_diameter_nmi": (0, 4000)}  # what can be, with a margin
COLUMNS = ["storm_id", "name", "season", "time", "status", *list(LIMITS)[1:]]


def load_storms(path=DATA / "storms.csv") -> pd.DataFrame:
    """Return the archive, one row a record, in the order of the archive.

    Columns: `COLUMNS`; `time` is UTC, wind in knots (kt), pressure in hPa, diameters in nautical miles (nmi),
    latitude in °N, longitude in °E (negative in the Atlantic). Raises ValueError where a column is missing
    or a value is impossible, naming the line of the file.
    """
    text = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, engine="python")
    if missing := [column for column in COLUMNS if column not in text]:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; expected columns {', '.join(COLUMNS)}")
    text = text[COLUMNS]
    storms = text.assign(status=text.status.where(text.status.isin(STATUS.values())),
                         time=pd.to_datetime(text.time, format="ISO8601", utc=True, errors="coerce"))
    for column, (low, high) in LIMITS.items():
        value = pd.to_numeric(text[column], errors="coerce").astype(float)
        storms[column] = value.where(value.between(low, high))
    # NaN is what made no sense or was cut off. Only wind, pressure and diameters may be empty, for unknown.
    wrong = (storms.isna() | text.eq("")) & ~(text.eq("") & np.isin(COLUMNS, COLUMNS[7:]))
    for row, at in np.argwhere(wrong)[:1]:
        words = {column: f"{low} to {high}" for column, (low, high) in LIMITS.items()}
        words |= {"time": "one like 2005-12-30T00:00Z", "status": f"one of {', '.join(STATUS.values())}"}
        raise ValueError(f"{path}, line {row + 2}: {COLUMNS[at]} is {text.fillna('').iat[row, at]!r}, "
                         f"expected {words.get(COLUMNS[at], 'a text')}")
    return storms.astype({"season": int})


def load_coastline(path=DATA / "coastline.csv") -> pd.DataFrame:
    """Return the Atlantic basin's coast: longitude (°E) and latitude (°N), an empty row between two lines."""
    return pd.read_csv(path, skip_blank_lines=False)


def synoptic(storms: pd.DataFrame) -> pd.DataFrame:
    """Keep the records of 00, 06, 12 and 18 UTC, the first where a storm has two in one hour.

    The archive adds landfalls and other moments. The shipped file has lost the minutes, so that one at 06:20
    reads as a second record of 06:00; the archive is in order of time: the first is the six-hourly one.
    """
    hour = storms.time.dt.floor("h")
    return storms[hour.dt.hour % 6 == 0].assign(time=hour).drop_duplicates(["storm_id", "time"])


def build_examples(storms: pd.DataFrame, with_truth=True) -> pd.DataFrame:
    """Return one training example a row: a storm now, 12 hours ago, and its wind 24 hours later.

    The state columns (latitude, longitude, wind_kt, pressure_hpa) also come with the suffix `_12h_ago`;
    `wind_kt_in_24h` is the truth. Kept: six-hourly records whose storm was tropical or subtropical now and
    24 hours later, the verification rule of the National Hurricane Center. Without `with_truth`, also those
    whose truth can't be scored by that rule, or is not known yet: `wind_kt_in_24h` is NaN there.
    """
    records = synoptic(storms)
    now = records.loc[records.status.isin(VERIFIED), ["storm_id", "name", "season", "time", "status", *STATE]]
    earlier = records[["storm_id", "time", *STATE]].assign(time=records.time + pd.Timedelta(hours=12))
    later = now[["storm_id", "time", "wind_kt"]].assign(time=now.time - pd.Timedelta(hours=24))
    examples = now.merge(earlier, on=["storm_id", "time"], suffixes=("", "_12h_ago"))
    return examples.merge(later, "inner" if with_truth else "left", ["storm_id", "time"],
                          suffixes=("", "_in_24h"))


HEADER = re.compile(r"([A-Z]{2}\d\d((?:18|19|20)\d\d)),([A-Z][A-Z0-9 -]*),([1-9]\d{0,2})")
# A record's fields: what each one is, how it looks, and the same in words.
FIELDS = [("date", r"\d{8}", "YYYYMMDD"), ("time", r"\d{4}", "HHMM"),
          ("record identifier", "[CGILPRSTW]?", "one of C G I L P R S T W or nothing"),
          ("status", "|".join(STATUS), f"one of {' '.join(STATUS)}"),
          ("latitude", r"[0-8]?\d\.\d[NS]", "0.0 to 89.9 and N or S"),
          ("longitude", r"([0-2]?\d?\d|3[0-5]\d)\.\d[EW]", "0.0 to 359.9 and E or W"),
          ("wind", r"-99|1?\d?\d|2[0-4]\d", "0 to 249, or -99 where unknown"),
          ("pressure", r"-999|[89]\d\d|10\d\d", "800 to 1099, or -999 where unknown"),
          *[("wind radius", r"-999|1?\d{1,3}", "0 to 1999, or -999 where unknown")] * 13]


def read_hurdat2(path) -> pd.DataFrame:
    """Read NOAA's HURDAT2 text file into the columns of `load_storms`; data/README.md says how they map.

    Minutes are kept in `time`; -99 and -999 become NaN; a storm without a name bears its identifier.
    Raises ValueError where the file is damaged: the line, what was found there and what was expected.
    """
    def expect(right, found, expected):
        if not right:
            raise ValueError(f"{path}, line {number}: found {found}, expected {expected}")

    lines = Path(path).read_text("ascii", errors="replace").split("\n")  # no field may hold the sign it puts
    lines = ((at, [field.strip() for field in line.strip().removesuffix(",").split(",")])
             for at, line in enumerate(lines, 1) if line.strip())
    rows, storm_ids, number = [], {}, 1
    for number, fields in lines:
        header = HEADER.fullmatch(",".join(fields))
        expect(header, repr(",".join(fields)[:60]), "the next header, such as 'AL022023, ARLENE, 15,'")
        identifier, season, count = header[1], int(header[2]), int(header[4])
        name = identifier if header[3] == "UNNAMED" else header[3].title()
        expect(identifier not in storm_ids, f"{identifier} again", "each storm once")
        again = f"{season}-{name}" in storm_ids.values()  # Alice was the name of two storms of 1954
        storm_ids[identifier] = f"{season}-{identifier if again else name}"
        time = pd.Timestamp(season - 1, 12, 1, tz="UTC")  # no record of the season is older
        for left in range(count, 0, -1):
            number, fields = next(lines, (number + 1, ["the end of the file"]))
            expect(len(fields) in (20, 21), repr(",".join(fields)[:60]),
                   f"a record of 20 or 21 fields: {left} more of the {count} of {identifier}")
            for field, (what, pattern, words) in zip(fields, FIELDS):
                expect(re.fullmatch(pattern, field), f"{what} {field!r}", words)
            previous, digits = time, "".join(fields[:2])
            time = pd.to_datetime(digits, format="%Y%m%d%H%M", utc=True, errors="coerce")  # NaT is not after
            expect(previous < time and time.year <= season + 1, f"time {digits}",
                   f"a moment after {previous:%Y-%m-%d %H:%M} in the season {season}")
            latitude, longitude = (float(text[:-1]) * (1 if text[-1] in "NE" else -1) for text in fields[4:6])
            longitude = round((longitude + 180) % 360 - 180, 1)  # the archive has a 359.1W, which is 0.9E
            wind, pressure, *radii = (np.nan if text[0] == "-" else float(text) for text in fields[6:20])
            diameters = (np.max([ne + sw, nw + se]) for ne, se, sw, nw in (radii[:4], radii[8:]))
            rows.append((storm_ids[identifier], name, season, time, STATUS[fields[3]], latitude, longitude,
                         wind, pressure, *diameters))
    expect(rows, "an empty file", "a storm's header")
    return pd.DataFrame(rows, columns=COLUMNS)
