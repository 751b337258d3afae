"""The archive that ships, the reader of NOAA's own format, and the training examples made from them."""
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workshop.storms import (COLUMNS, DATA, LIMITS, STATE, STATUS, VERIFIED, build_examples,
                             load_storms, read_hurdat2, synoptic)

EXCERPT = Path(__file__).parent / "fixtures" / "hurdat2-excerpt.txt"
SEASON_2023 = Path(__file__).parents[2] / "shared" / "data" / "hurdat2-2023.txt"  # not part of the project
HOUR = pd.Timedelta(hours=1)
quick = settings(deadline=None, max_examples=60, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def storms():
    return load_storms()


@pytest.fixture(scope="module")
def examples(storms):
    return build_examples(storms)


def assert_possible(storms):
    """Every value within its range, and time running on within every storm."""
    assert list(storms) == COLUMNS and len(storms) > 0
    for column, (low, high) in LIMITS.items():
        known = storms[column].dropna()
        assert known.between(low, high).all(), column
    assert storms[["storm_id", "name", "time", "status", "latitude", "longitude"]].notna().all(axis=None)
    assert storms.status.isin(STATUS.values()).all()
    assert (storms.time.groupby(storms.storm_id).diff().dropna() >= 0 * HOUR).all()


# --- the archive that ships ---

def test_every_record_of_654_storms_is_there(storms):
    assert_possible(storms)
    assert len(storms) == 19_537 and storms.storm_id.nunique() == 654
    assert (storms.storm_id != storms.storm_id.shift()).sum() == 654, "a storm's records stand together"
    assert storms.season.unique().tolist() == list(range(1975, 2023))
    assert (storms.storm_id == storms.season.astype(str) + "-" + storms.name).all()
    assert str(storms.time.dt.tz) == "UTC" and storms.wind_kt.dtype == storms.pressure_hpa.dtype == float


def test_a_storm_that_lives_through_new_year_stays_one(storms):
    zeta = storms[storms.storm_id == "2005-Zeta"]
    assert set(zeta.time.dt.year) == {2005, 2006} and set(zeta.season) == {2005}
    assert (storms.groupby("storm_id").time.min().dt.year == storms.groupby("storm_id").season.first()).all()


def test_a_name_of_eight_years_is_eight_storms(storms):
    ana = storms[storms.name == "Ana"].groupby("storm_id").season.unique().map(list)
    assert ana.to_dict() == {f"{year}-Ana": [year] for year in range(1979, 2022, 6)}


def test_of_two_records_in_one_hour_the_first_is_kept(storms):
    hours = storms[storms.duplicated(["storm_id", "time"], keep=False)].groupby(["storm_id", "time"])
    assert hours.ngroups == 24 and (hours.size() == 2).all()
    kept = synoptic(storms)
    for (storm_id, time), pair in hours:
        found = kept[(kept.storm_id == storm_id) & (kept.time == time)]
        if time.hour % 6 == 0:
            pd.testing.assert_frame_equal(found, pair.iloc[:1])
        else:  # Gustav in 2002, at 04 UTC: neither is six-hourly
            assert storm_id == "2002-Gustav" and found.empty
    assert not kept.duplicated(["storm_id", "time"]).any() and set(kept.time.dt.hour) == {0, 6, 12, 18}


def test_the_data_card_says_what_the_file_says(storms):
    """Each number of data/README.md, counted again."""
    card = " ".join((DATA / "README.md").read_text(encoding="utf-8").split())
    gap = storms.time.groupby(storms.storm_id).diff()
    wide, longest = storms[gap > 6 * HOUR], storms.loc[gap.idxmax()]
    names = storms.groupby("name").season.nunique()
    diameters = COLUMNS[-2:]
    empty = storms[(storms.season >= 2004) & storms[diameters[0]].isna()]
    first_of_hour = ~storms.duplicated(["storm_id", "time"])
    zeta = storms[storms.storm_id == "2005-Zeta"].time

    def limits(column):
        return (f"{value:,g}".replace("-", "−") for value in (storms[column].min(), storms[column].max()))

    said = [
        f"{len(storms):,} records of {storms.storm_id.nunique()} storms",
        *("{} to {}".format(*limits(column)) for column in list(LIMITS)[3:]),
        f"{storms.latitude.min():.1f} to {storms.latitude.max():.1f}",
        f"{storms.season.min()} to {storms.season.max()}: the year",
        f"{storms.time.min():%Y-%m-%dT%H:%MZ} to {storms.time.max():%Y-%m-%dT%H:%MZ}, whole hours",
        f"{(names > 1).sum()} of the {len(names)} names", ", ".join(sorted(names[names == 8].index)),
        f"from {zeta.min():%d %B} to {zeta.max().day} {zeta.max():%B}",
        f"{(storms.time.dt.hour % 6 != 0).sum()} records are not at 00, 06, 12 or 18 UTC",
        f"{storms.duplicated(['storm_id', 'time']).sum()} storm-hours two records",
        f"{len(wide)} gaps of more than 6 hours in {wide.storm_id.nunique()} storms, "
        f"{(wide.season < 1979).sum()} of them in 1976 to 1978",
        f"the longest {gap.max() // HOUR} hours ({longest['name']} {longest.season})",
        f"from then on {len(empty)} are empty",
        f"{storms[storms.longitude < -110].storm_id.unique().item()[5:]} crossed into the Pacific in 2022",
    ]
    assert [words for words in said if words not in card] == []
    assert names.max() == 8 and (storms.time.dt.minute == 0).all() and (storms.wind_kt % 5 == 0).all()
    assert storms[storms.time.dt.hour % 6 != 0].season.min() == 1983
    assert set(wide.storm_id[wide.season >= 1979]) == {"1981-Dennis", "1990-Fran"}
    assert storms[storms.season < 2004][diameters].isna().all(axis=None)
    assert not (empty.time.dt.hour % 6 == 0)[first_of_hour].any()
    assert storms[[column for column in COLUMNS if column not in diameters]].notna().all(axis=None)
    assert "2011-AL202011" in set(storms.storm_id) and not storms.name.str.match(r"Al\d").any()
    assert len(card) < 7_500, "a data card is read in one sitting"


def test_the_coast_is_the_basins_and_small():
    coast = pd.read_csv(DATA / "coastline.csv")
    assert (DATA / "coastline.csv").stat().st_size < 120_000
    assert coast.longitude.dropna().between(-112, 16).all() and coast.latitude.dropna().between(4, 72).all()
    assert (coast.longitude.isna() == coast.latitude.isna()).all()
    assert 100 < coast.longitude.isna().sum() < 1_000, "many lines, parted by empty rows"
    florida = coast[coast.longitude.between(-88, -79) & coast.latitude.between(24, 31)]
    assert len(florida) > 50


# --- training examples ---

def test_examples_hold_the_state_now_before_and_the_wind_24_hours_later(storms, examples):
    assert len(examples) == 11_433 and examples.storm_id.nunique() == 614
    assert not examples.isna().any(axis=None) and not examples.duplicated(["storm_id", "time"]).any()
    records = synoptic(storms).set_index(["storm_id", "time"])
    at = {hours: records.loc[pd.MultiIndex.from_arrays([examples.storm_id, examples.time + hours * HOUR])]
          for hours in (-12, 0, 24)}
    for column in STATE:
        np.testing.assert_array_equal(examples[column], at[0][column])
        np.testing.assert_array_equal(examples[f"{column}_12h_ago"], at[-12][column])
    np.testing.assert_array_equal(examples.wind_kt_in_24h, at[24].wind_kt)
    assert at[0].status.isin(VERIFIED).all() and at[24].status.isin(VERIFIED).all()


def test_an_unknown_wind_is_neither_an_input_nor_a_truth(storms):
    ian = storms[storms.storm_id == "2022-Ian"].reset_index(drop=True)
    unknown = ian.wind_kt.where(ian.index != 20)
    made, known = build_examples(ian.assign(wind_kt=unknown)), build_examples(ian)
    assert 0 < len(made) < len(known) and not made.isna().any(axis=None)
    pd.testing.assert_frame_equal(made, known[known.time.isin(made.time)].reset_index(drop=True))
    assert len(known) - len(made) == 3, "the record itself, and those 12 hours after and 24 hours before it"


def test_what_happens_later_changes_no_feature(storms, examples):
    """Cut in the middle of every storm and let the rest go otherwise: only `wind_kt_in_24h` may notice."""
    place = storms.groupby("storm_id").cumcount()
    later = place >= storms.groupby("storm_id").time.transform("size") // 2
    changed = storms.assign(**{column: storms[column].where(~later, storms[column] + 7) for column in STATE})
    begins = storms[later].groupby("storm_id").time.min()
    known = examples[examples.time < examples.storm_id.map(begins)].drop(columns="wind_kt_in_24h")
    again = build_examples(changed)
    again = again[again.time < again.storm_id.map(begins)]
    assert len(known) > 4_000
    pd.testing.assert_frame_equal(known, again.drop(columns="wind_kt_in_24h"))


@pytest.mark.parametrize("storm_id", ["2005-Zeta", "1988-Gilbert", "2021-Ida"])
def test_a_storms_examples_come_from_that_storm_alone(storms, examples, storm_id):
    alone = build_examples(storms[storms.storm_id == storm_id])
    together = examples[examples.storm_id == storm_id].reset_index(drop=True)
    assert len(alone) > 5
    pd.testing.assert_frame_equal(alone, together)


# --- damaged copies of the CSV ---

HEAD = "\n".join((DATA / "storms.csv").read_text(encoding="utf-8").splitlines()[:6]) + "\n"


@pytest.mark.parametrize("found, put, words", [
    ("wind_kt", "wind", "column 'wind_kt' is missing"),
    ("storm_id,", "", "column 'storm_id' is missing"),
    ("28.5,-79.0,25", "28.5,-79.0,999", "line 3: wind_kt is '999', expected 0 to 250"),
    ("28.5,-79.0,25", "28.5,-79.0,strong", "line 3: wind_kt is 'strong', expected 0 to 250"),
    ("28.5,-79.0", "128.5,-79.0", "line 3: latitude is '128.5', expected -90 to 90"),
    ("28.5,-79.0", ",-79.0", "line 3: latitude is '', expected -90 to 90"),
    ("1975-06-27T06:00Z", "27 June, six", "line 3: time is '27 June, six'"),
    ("1975-06-27T06:00Z", "1975-02-30T06:00Z", "line 3: time is '1975-02-30T06:00Z'"),
    ("06:00Z,tropical depression", "06:00Z,breeze", "line 3: status is 'breeze', expected one of tropical"),
    ("Amy,1975,1975-06-27T06", "Amy,75,1975-06-27T06", "line 3: season is '75', expected 1851 to 2100"),
    ("1975-Amy,Amy,1975,1975-06-27T06", ",Amy,1975,1975-06-27T06", "line 3: storm_id is '', expected a text"),
    ("\n1975-Amy,Amy,1975,1975-06-27T12", "\n\n1975-Amy,Amy,1975,1975-06-27T12", "line 4: storm_id is ''"),
    ("28.5,-79.0,25,1013,,", "28.5,-79.0,25,1013,,,,", "line 3"),
])
def test_a_damaged_csv_is_refused_by_line_or_column(tmp_path, found, put, words):
    path = tmp_path / "storms.csv"
    text = HEAD.replace(found, put.replace("27 June, six", '"27 June, six"'), 1)
    assert text != HEAD
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(words)):
        load_storms(path)


@pytest.mark.parametrize("length", [0, 40, 196, 220, 240, 266])
def test_a_csv_cut_off_is_refused(tmp_path, length):
    path = tmp_path / "storms.csv"
    path.write_text(HEAD[:length], encoding="utf-8")
    with pytest.raises(ValueError, match="line [23]: |is missing|No columns"):
        load_storms(path)


# --- the archive's own format ---

def read(tmp_path, text):
    path = tmp_path / "season.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_hurdat2(path)


def test_the_reader_keeps_what_the_text_says():
    storms = read_hurdat2(EXCERPT)
    assert_possible(storms)
    assert storms.storm_id.unique().tolist() == ["2021-Ida", "1851-AL011851", "2023-AL012023", "2023-Arlene"]
    landfall = storms.iloc[1]  # 20210829, 1655, L, HU, 29.1N, 90.2W, 130, 931, 130, 110, 80, 110, …
    assert landfall.time == pd.Timestamp("2021-08-29T16:55Z") and landfall.status == "hurricane"
    assert landfall[STATE].tolist() == [29.1, -90.2, 130, 931]
    assert landfall.tropical_storm_diameter_nmi == max(130 + 80, 110 + 110)
    assert landfall.hurricane_diameter_nmi == max(45 + 20, 35 + 30)
    assert storms[storms.season == 1851][COLUMNS[-3:]].isna().all(axis=None), "-999 is unknown"
    assert 12 == len(synoptic(storms).query("storm_id == '2023-AL012023' and time < '2023-01-17T13:00Z'")) + 1


def test_the_reader_agrees_with_the_archive_that_ships(storms):
    ida = read_hurdat2(EXCERPT).iloc[:4].assign(time=lambda text: text.time.dt.floor("h"))
    shipped = storms[(storms.storm_id == "2021-Ida") & storms.time.isin(ida.time)].reset_index(drop=True)
    pd.testing.assert_frame_equal(ida, shipped)


@pytest.mark.skipif(not SEASON_2023.exists(), reason="the whole season 2023 is not part of the project")
def test_a_whole_season_is_read_and_made_into_examples(storms, tmp_path):
    season = read_hurdat2(SEASON_2023)
    assert_possible(season)
    pd.testing.assert_series_equal(season.dtypes, storms.dtypes)
    lines = SEASON_2023.read_text().splitlines()
    headers = [line for line in lines if line.startswith("AL")]
    assert len(season) == len(lines) - len(headers) and season.storm_id.nunique() == len(headers)
    assert set(season.season) == {2023} and (season.time.dt.minute != 0).any()
    assert set(build_examples(season).columns) == set(build_examples(storms[storms.season == 2022]).columns)
    assert len(build_examples(season)) > 300
    season.to_csv(tmp_path / "season.csv", index=False)  # what was read can be kept beside the archive
    pd.testing.assert_frame_equal(load_storms(tmp_path / "season.csv"), season)


LINES = EXCERPT.read_text(encoding="ascii").splitlines(keepends=True)
# AL022023,             ARLENE,      3,
# 20230602, 0600,  , TS, 27.3N,  86.4W,  35, 1004,   60,    0,    0,   60,    0,  …  40
# 20230602, 1200,  , TS, 27.0N,  86.3W,  35, 1002,   60,    0,    0,   60,    0,  …  40
# 20230602, 1800,  , TS, 26.7N,  86.0W,  35, 1000,   60,    0,    0,   60,    0,  …  40
ARLENE = "".join([LINES[24].replace(" 15,", "  3,"), *LINES[31:34]])
HEADER, _, SECOND, _ = ARLENE.splitlines(keepends=True)


@pytest.mark.parametrize("found, put, words", [
    ("", "", None),  # as it stands it is read
    (",      3,", ",      4,", "line 5: found 'the end of the file', expected a record of 20 or 21 fields"),
    (",      3,", ",      2,", "line 4: found '20230602,1800,,TS,26.7N,86.0W"),
    (",      3,", ",  three,", "line 1: found 'AL022023,ARLENE,three', expected the next header"),
    (",      3,", ",      0,", "line 1: found 'AL022023,ARLENE,0', expected the next header"),
    ("AL022023", "02AL2023", "line 1: found '02AL2023,ARLENE,3', expected the next header"),
    ("AL022023", "AL022021", "line 2: found time 202306020600, expected a moment after 2020"),
    ("ARLENE", "      ", "line 1: found 'AL022023,,3', expected the next header"),
    (SECOND, HEADER, "line 3: found 'AL022023,ARLENE,3', expected a record"),
    (HEADER, "", "line 1: found '20230602,0600"),
    ("1200,  , TS", "1200,  , XX", "line 3: found status 'XX', expected one of TD TS HU"),
    ("1200,  , TS", "1200, Q, TS", "line 3: found record identifier 'Q', expected one of C G"),
    ("20230602, 1200", "20230231, 1200", "line 3: found time 202302311200, expected a moment after"),
    ("20230602, 1200", "2 June 23, 1200", "line 3: found date '2 June 23', expected YYYYMMDD"),
    ("20230602, 1200", "20230602, noon", "line 3: found time 'noon', expected HHMM"),
    ("20230602, 1200", "20230602, 2500", "line 3: found time 202306022500, expected a moment after"),
    ("20230602, 1200", "20230602, 0000", "line 3: found time 202306020000, expected a moment after"),
    ("20230602, 1200", "20230602, 0600", "line 3: found time 202306020600, expected a moment after"),
    ("20230602, 1200", "20830602, 1200", "line 3: found time 208306021200, expected a moment after"),
    ("27.0N", "97.0N", "line 3: found latitude '97.0N', expected 0.0 to 89.9 and N or S"),
    ("27.0N", "27.0", "line 3: found latitude '27.0', expected"),
    ("86.3W", "86.3", "line 3: found longitude '86.3', expected 0.0 to 359.9 and E or W"),
    ("86.3W", "863.W", "line 3: found longitude '863.W', expected"),
    ("86.3W,  35", "86.3W, 999", "line 3: found wind '999', expected 0 to 249, or -99 where unknown"),
    ("86.3W,  35", "86.3W,  -5", "line 3: found wind '-5', expected"),
    ("86.3W,  35", "86.3W,    ", "line 3: found wind '', expected"),
    ("86.3W,  35,", "86.3W,", "line 3: found wind '1002', expected"),
    ("1002", " 102", "line 3: found pressure '102', expected 800 to 1099, or -999 where unknown"),
    ("1002,   60", "1002,  6O ", "line 3: found wind radius '6O', expected 0 to 1999, or -999 where unknown"),
    ("86.3W", "86.3\N{MASCULINE ORDINAL INDICATOR}W", "line 3: found longitude"),  # a byte that is not ASCII
    ("ARLENE", "ARL\N{LATIN CAPITAL LETTER E WITH ACUTE}NE", "line 1: found"),
    (SECOND, SECOND[:60] + "\n", "line 3: found '20230602,1200,,TS,27.0N,86.3W,35,1002"),
    (SECOND, SECOND.rstrip() + ", 1, 2\n", "line 3: found '20230602,1200,,TS,27.0N,86.3W,35,1002"),
    (ARLENE, ARLENE[:200], "line 3: found '20230602,1200"),  # the download broke off
    (ARLENE, ARLENE + ARLENE, "line 5: found AL022023 again, expected each storm once"),
    (ARLENE, "", "line 1: found an empty file, expected a storm's header"),
    (ARLENE, "<html><body>404 Not Found</body></html>\n", "line 1: found '<html>"),
])
def test_damage_is_named_by_line_with_what_was_found_and_expected(tmp_path, found, put, words):
    text = ARLENE.replace(found, put, 1)
    if words is None:
        assert len(read(tmp_path, text)) == 3
    else:
        with pytest.raises(ValueError, match=re.escape(f"season.txt, {words}")) as refusal:
            read(tmp_path, text)
        assert ", expected " in str(refusal.value)


def test_forms_that_the_archive_really_has_are_read(tmp_path):
    older = re.sub(r",   40$", ",", ARLENE, flags=re.MULTILINE)  # before 2022 a comma stood at the end
    windows = ARLENE.replace("\n", "\r\n") + "\r\n"
    pd.testing.assert_frame_equal(read(tmp_path, older), read(tmp_path, ARLENE))
    pd.testing.assert_frame_equal(read(tmp_path, windows), read(tmp_path, ARLENE))
    assert read(tmp_path, ARLENE.replace(" 86.4W", "359.1W")).longitude[0] == 0.9
    assert np.isnan(read(tmp_path, ARLENE.replace("  35, 1004", " -99, -999")).wind_kt[0])
    half = read(tmp_path, ARLENE.replace("1004,   60,    0,    0", "1004,   60,    0, -999"))
    assert np.isnan(half.tropical_storm_diameter_nmi[0]), "which diagonal is larger is unknown"


def test_a_name_used_twice_in_one_season_is_two_storms(tmp_path):
    """As Alice was in 1954, in June and again in December."""
    twice = read(tmp_path, ARLENE + ARLENE.replace("AL02", "AL09").replace("202306", "202312"))
    assert twice.storm_id.unique().tolist() == ["2023-Arlene", "2023-AL092023"]
    assert set(twice.name) == {"Arlene"}


def test_a_file_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        read_hurdat2(tmp_path / "nothing.txt")


# --- any damage, any valid file ---

ORIGINAL = EXCERPT.read_bytes()
PLACE = st.integers(0, len(ORIGINAL) - 1)
DAMAGE = st.one_of(st.tuples(st.just("byte"), PLACE, st.one_of(st.sampled_from(b"0123456789 ,-NSEWLTHU\n\r"),
                                                              st.integers(0, 255))),
                   st.tuples(st.just("cut"), PLACE, st.integers(1, 130)),
                   st.tuples(st.just("swap"), PLACE, PLACE), st.tuples(st.just("end"), PLACE, st.just(0)))


def damaged(text, kind, place, by):
    lines = text.splitlines(keepends=True)
    if kind == "byte":
        return text[:place] + bytes([by]) + text[place + 1:]
    if kind == "cut":
        return text[:place] + text[place + by:]
    if kind == "end":
        return text[:place]
    if lines:
        one, other = place % len(lines), by % len(lines)
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


@settings(quick, max_examples=300)
@given(damage=st.lists(DAMAGE, min_size=1, max_size=3))
def test_a_damaged_file_is_refused_or_read_as_something_possible(tmp_path, damage):
    text = ORIGINAL
    for how in damage:
        text = damaged(text, *how)
    try:
        storms = read(tmp_path, text)
    except ValueError as refusal:
        assert re.search(r", line \d+: found .+, expected .+", str(refusal), flags=re.DOTALL)
    else:
        assert_possible(storms)
        assert not storms.duplicated(["storm_id", "time"]).any()


RADIUS = st.sampled_from([-999, 0, 30, 145, 600])
RECORD = st.tuples(st.integers(1, 1_500), st.sampled_from(["", *"CGILPRSTW"]), st.sampled_from(list(STATUS)),
                   st.integers(0, 899), st.sampled_from("NS"), st.integers(1, 1799), st.sampled_from("EW"),
                   st.sampled_from([-99, 0, 5, 35, 165, 249]), st.sampled_from([-999, 800, 882, 1013, 1099]),
                   st.lists(RADIUS, min_size=13, max_size=13))
STORM = st.tuples(st.integers(1851, 2099), st.sampled_from(["UNNAMED", "ZETA", "TWENTY-ONE"]),
                  st.lists(RECORD, min_size=1, max_size=5))


@quick
@given(archive=st.lists(STORM, min_size=1, max_size=4))
def test_valid_records_written_as_text_are_read_back_exactly(tmp_path, archive):
    lines, expected = [], []
    for number, (season, name, records) in enumerate(archive, 1):
        time = datetime(season, 6, 1, tzinfo=timezone.utc)
        lines.append(f"AL{number:02}{season},{name:>19},{len(records):7},")
        for minutes, mark, code, north, ns, east, ew, wind, pressure, radii in records:
            time += timedelta(minutes=minutes)
            latitude, longitude = f"{north / 10}{ns}", f"{east / 10}{ew}"
            lines.append(f"{time:%Y%m%d, %H%M}, {mark:1}, {code}, {latitude:>5}, {longitude:>6}, {wind:3}, "
                         f"{pressure:4}, " + ", ".join(f"{radius:4}" for radius in radii))
            north, east = north if ns == "N" else -north, east if ew == "E" else -east
            known = [np.nan if radius == -999 else radius for radius in radii]
            expected.append([f"AL{number:02}{season}" if name == "UNNAMED" else name.title(), season, time,
                             STATUS[code], north / 10, east / 10, np.nan if wind == -99 else wind,
                             np.nan if pressure == -999 else pressure,
                             np.maximum(known[0] + known[2], known[1] + known[3]),
                             np.maximum(known[8] + known[10], known[9] + known[11])])
    storms = read(tmp_path, "\n".join(lines) + "\n")
    expected = pd.DataFrame(expected, columns=COLUMNS[1:])
    pd.testing.assert_frame_equal(storms[COLUMNS[1:]], expected, check_exact=True, check_dtype=False)
    assert storms.storm_id.nunique() == len(archive)


def test_depressions_are_in_the_archive_from_1991_on_only(storms):
    strongest = storms.groupby(["season", "storm_id"]).wind_kt.max()
    assert strongest[strongest < 34].index.get_level_values("season").min() == 1991


def test_what_the_notebooks_say_of_ian_and_ida_is_what_the_archive_says(storms):
    ian, ida = (storms[storms.storm_id == name].set_index("time") for name in ("2022-Ian", "2021-Ida"))
    assert ian.loc["2022-09-27T12:00Z", STATE].tolist() == [22.6, -83.6, 100, 963]  # 03 and 04: Ian now,
    assert ian.loc["2022-09-27T00:00Z", STATE].tolist() == [20.8, -83.3, 85, 965]  # twelve hours ago,
    assert ian.loc["2022-09-28T12:00Z", "wind_kt"] == 140  # and what came; no more came later (02)
    assert ian.wind_kt.max() == 140
    assert ida.wind_kt.idxmax().day == 29 and ida.wind_kt.max() == 130  # 01: the figure's text
    assert ida.loc["2021-08-30T12:00Z", "wind_kt"] == 40
