"""The storms: read and check NOAA's archive, HURDAT2 (see data/README.md), and build training examples."""
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd

from workshop import ROOT

DATA = Path(ROOT, "data")
ARCHIVE = tomllib.loads(Path(__file__).with_name("archive.toml").read_text(encoding="utf-8"))
STATUS, LIMITS, LOOKS, FIELDS = (ARCHIVE[name] for name in ("status", "limits", "looks", "fields"))
VERIFIED = [STATUS[code] for code in ARCHIVE["verified"]]
STATE = ["latitude", "longitude", "wind_kt", "pressure_hpa"]
COLUMNS = ["storm_id", "name", "season", "time", "status", *list(LIMITS)[1:]]


def load_storms(path=DATA / "storms.csv") -> pd.DataFrame:
    """Return the archive, one row a record, in the order of the archive.

    Columns: `COLUMNS`; `time` is UTC, wind in knots (kt), pressure in hPa, diameters in nautical miles (nmi),
    latitude in °N, longitude in °E (negative in the Atlantic). Raises ValueError where a column is missing
    or a value is impossible, or does not fit the others, naming the line of the file.
    """
    text = pd.read_csv(path, dtype=str, **ARCHIVE["csv"])
    if missing := [column for column in COLUMNS if column not in text]:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; expected columns {', '.join(COLUMNS)}")
    text = text[COLUMNS]
    right = ARCHIVE["right"] | {"status": f"one of {', '.join(STATUS.values())}"}
    looks = lambda column, how=None: text[column].where(text[column].str.fullmatch(LOOKS[how or column]))
    time = pd.to_datetime(looks("time"), format="ISO8601", utc=True, errors="coerce")
    storms = text.assign(name=looks("name"), status=text.status.where(text.status.isin(STATUS.values())))
    for column, (low, high) in LIMITS.items():
        value = pd.to_numeric(looks(column, "number"), errors="coerce").astype(float)
        storms[column], right[column] = value.where(value.between(low, high)), f"{low} to {high}"
    expected_id = text.season + "-" + text.groupby(["season", "name"]).storm_id.transform("first").str[5:]
    named = text.storm_id.eq(expected_id) | looks("storm_id", "nameless").notna()
    storms["storm_id"] = text.storm_id.where(named | storms.season.isna())  # which is then reported
    fits = (time.dt.year - storms.season).abs().le(1) & ~(time < time.groupby(text.storm_id).shift())
    storms["time"] = time.where(fits)
    unknown = text.eq("") & np.isin(COLUMNS, COLUMNS[COLUMNS.index("wind_kt"):])  # these may be left empty
    wrong = (storms.isna() | text.eq("")) & ~unknown  # NaN: it made no sense, or the line was cut off
    for row, at in np.argwhere(wrong)[:1]:
        found, expected = text.fillna("").iat[row, at][:60], right.get(COLUMNS[at], "a text")
        raise ValueError(f"{path}, line {row + 2}: {COLUMNS[at]} is {found!r}, expected {expected}")
    return storms.astype({"season": int})


def synoptic(storms: pd.DataFrame) -> pd.DataFrame:
    """Keep the records of 00, 06, 12, 18 UTC; of two in one hour the first (data/README.md tells why)."""
    hour = storms.time.dt.floor("h")
    return storms[hour.dt.hour % 6 == 0].assign(time=hour).drop_duplicates(["storm_id", "time"])


def build_examples(storms: pd.DataFrame, with_truth=True) -> pd.DataFrame:
    """Return one training example a row: a storm now, 12 hours ago, and its wind 24 hours later.

    The state columns (latitude, longitude, wind_kt, pressure_hpa) also come with the suffix `_12h_ago`;
    `wind_kt_in_24h` is the truth. Kept: six-hourly records whose storm was tropical or subtropical now and
    24 hours later, the verification rule of the National Hurricane Center. Without `with_truth`, also those
    whose truth can't be scored by that rule, or is not known yet: `wind_kt_in_24h` is NaN there.
    """
    records = synoptic(storms).dropna(subset="wind_kt")  # an unknown wind is neither an input nor a truth
    now = records.loc[records.status.isin(VERIFIED), ["storm_id", "name", "season", "time", "status", *STATE]]
    earlier = records[["storm_id", "time", *STATE]].assign(time=records.time + pd.Timedelta(hours=12))
    later = now[["storm_id", "time", "wind_kt"]].assign(time=now.time - pd.Timedelta(hours=24))
    now = now.merge(earlier, on=["storm_id", "time"], suffixes=("", "_12h_ago"))
    return now.merge(later, "inner" if with_truth else "left", ["storm_id", "time"], suffixes=("", "_in_24h"))


def read_hurdat2(path) -> pd.DataFrame:
    """Read NOAA's HURDAT2 text file into the columns of `load_storms`; data/README.md says how they map.

    Minutes are kept in `time`; -99 and -999 become NaN; a storm without a name bears its identifier.
    Raises ValueError where the file is damaged: the line, what was found there and what was expected.
    """
    rows, storm_ids, number = [], {}, 1  # of the line that is read
    def expect(right, found, expected):
        if not right:
            raise ValueError(f"{path}, line {number}: found {found}, expected {expected}")
    texts = Path(path).read_text("ascii", errors="replace").split("\n")  # no field fits the sign that it puts
    lines = ((at, [field.strip() for field in line.strip().removesuffix(",").split(",")])
             for at, line in enumerate(texts, 1) if line.strip())
    for number, fields in lines:
        header = re.fullmatch(ARCHIVE["header"], ",".join(fields))
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
            for field, (what, pattern, words) in zip(fields, FIELDS + FIELDS[-1:] * 12):  # 13 wind radii
                expect(re.fullmatch(pattern, field), f"{what} {field[:60]!r}", words)
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
