"""Readers under fire: damage gives the good records, or an error that names its place; no wrong number."""
import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from conftest import posix, tried
from test_storms import EXCERPT, assert_possible
from workshop import ROOT, monitor, records, registry
from workshop.forecaster import Storm, forecasts
from workshop.model import train
from workshop.storms import DATA, build_examples, load_storms, read_hurdat2

# Each test runs twice: some examples in the ordinary tests, twenty times as many in a campaign.
EACH = pytest.mark.parametrize("factor", [1, pytest.param(20, marks=pytest.mark.campaign)])
ROW = [[17, 22.6, -83.6, 100, 15, 963, -2, 1.8, -0.277]]
# A process of its own, with a little memory and time: what it reads may end it.
JUDGE = """import pathlib, resource, sys
import numpy as np
from workshop.forecaster import ModelFile
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
for path in sys.argv[1:]:
    try:
        winds = ModelFile(pathlib.Path(path).read_bytes()).predict(np.linspace(-200, 1100, 900))
        assert winds.shape == (100, 3) and np.isfinite(winds).all() and (np.diff(winds) >= 0).all()
        print("taken", flush=True)
    except ValueError as error:
        assert str(error).startswith("this is not a model file of the course ("), error
        print("refused", flush=True)"""


def for_any(factor, times, strategy):
    """Run a check on so many examples, always the same ones, and return how many there were."""
    def run(check):
        count = 0

        @settings(max_examples=times * factor, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))
        @given(strategy)
        def counted(example):
            nonlocal count
            count += 1
            check(example)

        counted()
        return count
    return run


def damages(length):
    """Ways to damage a content: a byte or bit changed, a piece cut out, doubled or put in, the end lost."""
    place = st.integers(0, length - 1)
    some = st.one_of(st.sampled_from(b'0123456789 ,;-+.eE_:TZ"\'{}[]\n\r\t\0\x80\xff'), st.integers(0, 255))
    return st.lists(st.one_of(st.tuples(st.just("byte"), place, some),
                              st.tuples(st.just("bit"), place, st.integers(0, 7)),
                              st.tuples(st.just("cut"), place, st.integers(1, 120)),
                              st.tuples(st.just("double"), place, st.integers(1, 120)),
                              st.tuples(st.just("put in"), place, st.binary(min_size=1, max_size=8)),
                              st.tuples(st.just("end"), place, st.just(0))), min_size=1, max_size=3)


def damaged(content, damage):
    for kind, place, by in damage:
        before, after = content[:place], content[place:]
        if kind == "byte":
            after = bytes([by]) + after[1:]
        if kind == "bit" and after:
            after = bytes([after[0] ^ 1 << by]) + after[1:]
        if kind == "cut":
            after = after[by:]
        if kind == "double":
            after = after[:by] + after
        if kind == "put in":
            after = by + after
        content = before + after * (kind != "end")
    return content


# --- the archive: HURDAT2's text, and the table ---

TABLE = b"".join((DATA / "storms.csv").read_bytes().splitlines(keepends=True)[:1]
                 + (DATA / "storms.csv").read_bytes().splitlines(keepends=True)[-90:-60])
NAMED = r", line \d+: \w+ is .*, expected .+|: column '\w+' is missing; expected columns "
# What pandas says: a line too long, nothing there, a quotation without an end, a field that has no measure.
NO_TABLE = r"Expected \d+ fields in line \d+, saw|No columns to parse|unexpected end of data|EOF|field limit"


def fits(storms):
    """A season, a time and an identifier say the same year twice; in a storm, time runs on."""
    assert_possible(storms)
    assert (storms.time.dt.year - storms.season).abs().max() <= 1
    assert (storms.storm_id.str[:4] == storms.season.astype(str)).all()
    assert not storms.name.str.contains(r"[\r\n,]").any()


@EACH
def test_a_damaged_table_is_refused_by_line_or_read_as_something_possible(tmp_path, factor):
    path, came = tmp_path / "storms.csv", Counter()

    def check(damage):
        path.write_bytes(damaged(TABLE, damage))
        try:
            storms = load_storms(path)
        except ValueError as refusal:
            assert re.search(f"{NAMED}|{NO_TABLE}", str(refusal), re.DOTALL) and len(str(refusal)) < 600
            came["refused"] += 1
        else:
            fits(storms)
            came["read"] += 1

    tried("tables damaged", for_any(factor, 80, damages(len(TABLE)))(check))
    assert came["refused"] and came["read"]


KARL = TABLE.decode().splitlines()[3]  # 2022-Karl,Karl,2022,2022-10-11T18:00Z,…


@pytest.mark.parametrize("found, put, words", [
    ("2022-Karl", "2022-Carl", "storm_id is '2022-Carl', expected a text: season and name"),
    ("2022-Karl", "2012-Karl", "storm_id is '2012-Karl'"), (",2022,", ",2023,", "storm_id is '2022-Karl'"),
    ("-10-11T18:00Z", "-10", "time is '2022-10'"), ("T18:00Z", "", "time is '2022-10-11'"),
    (",2022-10", ",2012-10", "time is '2012-10-11T18:00Z', expected one like 2005-12-30T00:00Z, in its"),
    (",2022-10", ",0022-10", "time is '0022")])
def test_what_does_not_fit_the_rest_of_its_line_is_refused(tmp_path, found, put, words):
    path = tmp_path / "storms.csv"
    assert KARL.replace(found, put, 1) != KARL
    path.write_text(TABLE.decode().replace(KARL, KARL.replace(found, put, 1), 1))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 4: {words}")):
        load_storms(path)


def test_a_wind_in_other_figures_and_an_exponent_are_no_numbers_and_lines_out_of_order_no_table(tmp_path):
    path, lines = tmp_path / "storms.csv", TABLE.decode().splitlines()
    fields = lines[9].split(",")
    for wind in ("1e1", "4_5", " 45", "+45", "0x2d", "nan", "inf", "\N{FULLWIDTH DIGIT FOUR}5", "4.5.0"):
        changed = ",".join(fields[:7] + [wind] + fields[8:])
        path.write_text("\n".join([*lines[:9], changed, *lines[10:]]), encoding="utf-8")
        with pytest.raises(ValueError, match=f"line 10: wind_kt is {re.escape(repr(wind))}, expected 0 to"):
            load_storms(path)
    path.write_text("\n".join([lines[0], *lines[3:5], lines[2]]))
    with pytest.raises(ValueError, match="line 4: time is .+ not before the record above"):
        load_storms(path)


def test_bytes_that_are_no_text_are_refused_by_their_line(tmp_path):
    path = tmp_path / "storms.csv"
    path.write_bytes(TABLE.replace(b"\n2022-", b"\n20\xff2-", 1))
    with pytest.raises(ValueError, match="line 2: storm_id is '20\N{REPLACEMENT CHARACTER}2-"):
        load_storms(path)


@EACH
def test_hurdat2_with_pieces_doubled_or_put_in_is_refused_by_line_or_possible(tmp_path, factor):
    path, original, came = tmp_path / "season.txt", EXCERPT.read_bytes(), Counter()

    def check(damage):
        path.write_bytes(damaged(original, damage))
        try:
            storms = read_hurdat2(path)
        except ValueError as refusal:
            assert re.search(r", line \d+: found .+, expected .+", str(refusal), re.DOTALL)
            assert len(str(refusal)) < 600
            came["refused"] += 1
        else:
            assert_possible(storms)
            assert not storms.duplicated(["storm_id", "time"]).any()
            came["read"] += 1

    tried("HURDAT2 files damaged", for_any(factor, 150, damages(len(original)))(check))
    assert came["refused"] and came["read"]


@EACH
def test_any_bytes_are_no_archive(tmp_path, factor):
    path = tmp_path / "any"

    def check(content):
        path.write_bytes(content)
        for read in (read_hurdat2, load_storms):
            with pytest.raises(ValueError):
                read(path)

    tried("any bytes read as an archive", 2 * for_any(factor, 60, st.binary(max_size=300))(check))


@pytest.mark.parametrize("piece", [b"9", b"A", b"\xff"])
def test_an_error_stays_short_where_a_field_is_a_megabyte_long(tmp_path, piece):
    path = tmp_path / "archive"
    for original, read in ((EXCERPT.read_bytes(), read_hurdat2), (TABLE, load_storms)):
        for place in (300, len(original) // 2):
            path.write_bytes(original[:place] + piece * 1_000_000 + original[place:])
            with pytest.raises(ValueError) as refusal:
                read(path)
            assert len(str(refusal.value)) < 1000


# --- the forecast log ---

STORM = {"time": "2022-09-27T12:00:00Z", "latitude": 22.6, "longitude": -83.6, "wind_kt": 100.0,
         "pressure_hpa": None, "latitude_12h_ago": 20.8, "longitude_12h_ago": -83.3, "wind_kt_12h_ago": 85.0,
         "pressure_hpa_12h_ago": 969.0}
FORECAST = {"valid_time": "2022-09-28T12:00:00Z", "wind_kt": 105.0, "wind_kt_low": 90.0,
            "wind_kt_high": 120.0, "category": "category 3", "model_version": "1975-2014"}
ANSWERED = {"at": "2026-01-01T00:00:00.000Z", "request_id": "a", "client": "app", "storm": STORM,
            "forecast": FORECAST}
REFUSED = {"at": "2026-01-01T00:00:01.000Z", "request_id": "b", "client": None, "path": "/forecast",
           "status": 422, "refused": [["wind_kt", "missing"]]}
ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                   lambda part: (st.lists(part, max_size=4)
                                 | st.dictionaries(st.text(max_size=9), part, max_size=4)), max_leaves=8)
CHANGED = st.tuples(st.sampled_from([ANSWERED, REFUSED]), st.sampled_from(
    [*((key,) for key in ANSWERED | REFUSED), *(("storm", key) for key in STORM),
     *(("forecast", key) for key in FORECAST)]), st.one_of(ANY, st.just("absent")))


def changed(line, keys, value):
    """The line with something else, or nothing, in one place."""
    line = place = copy.deepcopy(line)
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    if value == "absent":
        del place[keys[-1]]
    return line


def assert_a_log(log, rows):
    """The good rows are there as they were sent, and what else was taken is a forecast or a refusal."""
    assert rows <= len(log) and log.time.notna().all()
    answered = log[log.status == 200]
    assert answered[["latitude", "longitude", "wind_kt", "wind_kt_in_24h"]].notna().all(axis=None)
    assert answered.wind_kt.between(10, 200).all() and log.wind_kt[log.status != 200].isna().all()
    assert set(log.client.dropna().map(type)) <= {str} and set(log.request_id.map(type)) <= {str}
    assert (log.request_id == "good").sum() == rows


@EACH
def test_foreign_torn_and_garbled_lines_of_a_log_are_passed_over_and_the_good_ones_kept(tmp_path, factor):
    path, good = tmp_path / "forecasts-1.jsonl", records.line(**ANSWERED | {"request_id": "good"})
    whole = [records.line(**each) for each in (ANSWERED, REFUSED)]
    foreign = ANY.map(lambda value: json.dumps(value).encode() + b"\n")
    garbled = st.tuples(st.sampled_from(whole), damages(len(whole[1]))).map(lambda case: damaged(*case))
    other = CHANGED.map(lambda case: json.dumps(changed(*case)).encode() + b"\n")
    noise = st.one_of(foreign, other, garbled, st.binary(max_size=60))
    count = 0

    def check(lines):
        nonlocal count
        count += len(lines)
        path.write_bytes(good + b"".join(line + b"\n" + good for line in lines))
        assert all(isinstance(record, dict) for record in records.read(path))
        assert_a_log(monitor.read_log(path), len(lines) + 1)

    for_any(factor, 60, st.lists(noise, min_size=1, max_size=30))(check)
    tried("lines of a log foreign, torn or garbled", count)


@pytest.mark.parametrize("line", [
    b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"1e999", b"null", b'"text"', b"[1, 2]",
    b"\xff\xfe{\0}\0",
    b'{"at": 1}', b'{"event": "Model 1975-2014, kept earlier."}', b'{"storm": null, "forecast": null}',
    b'{"storm": {}, "forecast": {}}', b'{"storm": 5, "forecast": [1]}', b"{}", b"\0" * 4096])
def test_a_line_that_is_no_forecast_and_no_refusal_is_no_row(tmp_path, line):
    path, good = tmp_path / "forecasts-1.jsonl", records.line(**ANSWERED | {"request_id": "good"})
    path.write_bytes(good + line + b"\n" + good)
    assert_a_log(monitor.read_log(path), 2)
    assert len(monitor.read_log(path)) == 2
    path.write_bytes(line)
    assert len(monitor.read_log(path)) == 0, "a log of nothing else is empty"


@EACH
def test_a_log_cut_anywhere_gives_the_lines_before(tmp_path, factor):
    path, lines = tmp_path / "forecasts-1.jsonl", [records.line(**ANSWERED, n=n) for n in range(3)]
    whole = b"".join(lines)
    places = range(0, len(whole) + 1, 1 if factor > 1 else 20)
    for place in places:
        path.write_bytes(whole[:place])
        read = list(records.read(path))
        assert read == [json.loads(line) for line in lines][:len(read)]
        assert len(read) == (place + 1) // len(lines[0]), "complete but for its end, a line counts"
        assert len(monitor.read_log(path)) == len(read)
    tried("logs cut", len(places))


# --- the model's file ---

@pytest.fixture(scope="module")
def small():
    """The model's file, trained on three seasons, and what else its folder holds."""
    examples = build_examples(load_storms()).query("2012 <= season <= 2015")
    return train(examples), examples


@pytest.fixture(scope="module")
def content(small, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path_factory.mktemp("models")))
        return (registry.folder() / registry.save(*small, "small") / "model.onnx").read_bytes()


def judged(tmp_path, contents):
    """What a process of its own says of each of these contents; dead is what it does not survive."""
    paths, said = [], []
    for number, each in enumerate(contents):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(each)
    while len(said) < len(paths):
        try:
            done = subprocess.run([sys.executable, "-c", JUDGE, *paths[len(said):]], cwd=ROOT,
                                  capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired as hung:
            said += [*hung.stdout.decode().split(), "dead: it hangs"]
            continue
        said += done.stdout.split()
        if done.returncode:
            said.append(f"dead: {done.stderr[-300:]}")
    return said


def values(proto, tree, name):
    """The list of one attribute of one of the three forests."""
    each, = (each for each in proto.graph.node[tree].attribute if each.name == name)
    return each.floats if each.type == onnx.AttributeProto.FLOATS else each.ints


def margin_from(location):
    def attack(proto):
        margin = proto.graph.initializer[4]
        margin.ClearField("float_data")
        margin.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": "4"}.items():
            margin.external_data.add(key=key, value=value)
    return attack


def put(tree, name, *numbers):
    """Put these numbers into every place of an attribute, over and over."""
    def attack(proto):
        there = values(proto, tree, name)
        there[:] = (list(numbers) * len(there))[:len(there)]
    return attack


def appended(*arguments, initializers=(), **attributes):
    """One more node, before the last one."""
    def attack(proto):
        proto.graph.initializer.extend(initializers)
        proto.graph.node.insert(len(proto.graph.node) - 1, helper.make_node(*arguments, **attributes))
    return attack


def circle(proto):
    """The runtime takes such a tree, and then never comes to a leaf."""
    values(proto, 1, "nodes_falsenodeids")[1] = values(proto, 1, "nodes_nodeids")[1]
    values(proto, 1, "nodes_values")[1] = -9999


def chain(length):
    """A tree as deep as it has branches."""
    def attack(proto):
        leaves, every = length + 1, 2 * length + 1
        new = {"nodes_treeids": [0] * every, "nodes_nodeids": range(every), "nodes_featureids": [0] * every,
               "nodes_truenodeids": [*range(1, length), every - 1] + [0] * leaves,
               "nodes_falsenodeids": [*range(length, 2 * length)] + [0] * leaves,
               "nodes_values": [999.0] * every, "nodes_hitrates": [1.0] * every,
               "nodes_missing_value_tracks_true": [0] * every, "target_treeids": [0] * leaves,
               "target_nodeids": range(length, every), "target_ids": [0] * leaves,
               "target_weights": [1.0] * leaves}
        for name, numbers in new.items():
            values(proto, 1, name)[:] = list(numbers)
        modes, = (each for each in proto.graph.node[1].attribute if each.name == "nodes_modes")
        modes.strings[:] = [b"BRANCH_LEQ"] * length + [b"LEAF"] * leaves
    return attack


TENSOR = helper.make_tensor
ATTACKS = {
    "external data, absolute": margin_from("/etc/hostname"),
    "external data, upwards": margin_from("../../../etc/hostname"),
    "external data, beside": margin_from("model.onnx"),
    "terabytes declared": lambda proto: proto.graph.initializer.add(name="huge", data_type=1, dims=[1 << 40]),
    "terabytes computed": appended("ConstantOfShape", ["S"], ["big"],
                                   initializers=[TENSOR("S", onnx.TensorProto.INT64, [1], [1 << 40])]),
    "another operator": lambda proto: setattr(proto.graph.node[-1], "op_type", "Min"),
    "one more operator": appended("Identity", ["winds"], ["again"]),
    "another domain": lambda proto: setattr(proto.graph.node[3], "domain", "com.microsoft"),
    "one more domain": lambda proto: proto.opset_import.add(domain="com.microsoft", version=1),
    "another version": lambda proto: setattr(proto.opset_import[0], "version", 12),
    "a function that is named as an operator": lambda proto: proto.functions.add(
        name="Max", input=["a", "b"], output=["c"], node=[helper.make_node("Min", ["a", "b"], ["c"])]),
    "a sparse tensor": lambda proto: proto.graph.sparse_initializer.add(dims=[1 << 34]),
    "training code": lambda proto: proto.training_info.add().algorithm.CopyFrom(
        copy.deepcopy(proto.graph)),
    "another input": lambda proto: setattr(proto.graph.input[0], "name", "gestures"),
    "one more input": lambda proto: proto.graph.input.append(helper.make_tensor_value_info("more", 1, [1])),
    "an input of 12": lambda proto: setattr(
        proto.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 12),
    "an input of text": lambda proto: setattr(proto.graph.input[0].type.tensor_type, "elem_type", 8),
    "another output": lambda proto: setattr(proto.graph.output[0], "name", "winds"),
    "one more output": lambda proto: proto.graph.output.append(
        helper.make_tensor_value_info("now", 1, ["n", 1])),
    "an output of one column": lambda proto: proto.graph.node[-2].input.pop(),
    "another feature as wind": lambda proto: proto.graph.initializer[0].int64_data.__setitem__(0, 1),
    "a feature far away": lambda proto: proto.graph.initializer[0].int64_data.__setitem__(0, 1 << 40),
    "gathered by rows": lambda proto: setattr(proto.graph.node[3].attribute[0], "i", 0),
    "a margin that is no number": lambda proto: proto.graph.initializer[4].float_data.__setitem__(0, np.nan),
    "a margin beyond all": lambda proto: proto.graph.initializer[4].float_data.__setitem__(0, 1e30),
    "a margin twice": lambda proto: proto.graph.initializer[4].float_data.append(1),
    "a leaf that is no number": put(1, "target_weights", np.nan),
    "a leaf without end": put(1, "target_weights", np.inf),
    "a leaf beyond all": put(0, "target_weights", 1e30),
    "a base that is no number": put(2, "base_values", np.nan),
    "a threshold that is no number": put(1, "nodes_values", np.nan),
    "a feature that is not there": put(1, "nodes_featureids", 9),
    "a negative feature": put(1, "nodes_featureids", -1),
    "a feature by overflow": put(1, "nodes_featureids", (1 << 32) + 3),
    "a target that is not there": put(1, "target_ids", 1),
    "a child that is not there": put(1, "nodes_truenodeids", 200),
    "a child far away": put(1, "nodes_truenodeids", 1 << 40), "a circle": put(1, "nodes_truenodeids", 0),
    "another circle": put(2, "nodes_falsenodeids", 0, 1), "a branch to itself": circle,
    "one tree only": put(0, "nodes_treeids", 0),
    "leaves of other trees": put(0, "target_treeids", 5),
    "a tree 2,000 deep": chain(2000), "a tree 100,000 deep": chain(100_000),
    "thresholds lost": lambda proto: values(proto, 1, "nodes_values").__delitem__(slice(9, None)),
    "weights lost": lambda proto: values(proto, 1, "target_weights").__delitem__(slice(9, None)),
    "all weights lost": lambda proto: values(proto, 1, "target_weights").__delitem__(slice(None)),
    "an attribute lost": lambda proto: proto.graph.node[1].attribute.pop(),
    "an attribute twice": lambda proto: proto.graph.node[1].attribute.append(
        copy.deepcopy(proto.graph.node[1].attribute[5])),
    "another attribute": lambda proto: proto.graph.node[1].attribute.append(
        helper.make_attribute("aggregate_function", "MAX")),
    "a graph in an attribute": lambda proto: proto.graph.node[3].attribute[0].g.CopyFrom(
        copy.deepcopy(proto.graph)),
    "two forests": lambda proto: proto.graph.node.__delitem__(0),
    "no graph": lambda proto: proto.ClearField("graph"),
    "a probit": lambda proto: [setattr(each, "s", b"PROBIT") for each in proto.graph.node[1].attribute
                               if each.name == "post_transform"],
    "two cards": lambda proto: proto.metadata_props.add(key="card", value='{"version": "small"}'),
    "no card": lambda proto: proto.ClearField("metadata_props"),
    "a card of another name": lambda proto: setattr(proto.metadata_props[0], "key", "cart"),
}
CARDS = ["", "null", "3", '"small"', "[1]", "{}", '{"version": 3}', '{"version": null}',
         '{"version": ["small"]}', "[" * 200_000,
         '{"version": ' + "9" * 5000 + "}", "\0", '{"version": "small"']


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits memory")
def test_a_model_file_made_to_attack_is_refused_and_the_process_lives(tmp_path, content):
    contents = [content]
    for attack in ATTACKS.values():
        proto = onnx.load_from_string(content)
        attack(proto)
        contents.append(proto.SerializeToString())
    for card in CARDS:
        proto = onnx.load_from_string(content)
        proto.metadata_props[0].value = card
        contents.append(proto.SerializeToString())
    nested = b""
    for _ in range(3000):  # a graph in an attribute of a node of a graph in ...
        for field in (b"\x32", b"\x2a", b"\x0a"):
            length, size = len(nested), b""
            while length > 127:
                length, size = length >> 7, size + bytes([length & 127 | 128])
            nested = field + size + bytes([length]) + nested
    others = {"nested": nested, "a graph alone": b"\x3a" + content, "twice": content * 2,
              "a field of the future": content + b"\xfa\x3f\x03abc", "ORT's own format": b"ORTM" * 9,
              "a million empty cards": b"\x72\x00" * 900_000}
    contents += others.values()
    names = ["the model itself", *ATTACKS, *(f"a card {card[:20]}" for card in CARDS), *others]
    said = dict(zip(names, judged(tmp_path, contents), strict=True))
    assert said.pop("the model itself") == "taken"
    assert {name: each for name, each in said.items() if each != "refused"} == {}


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits memory")
@EACH
def test_a_model_file_cut_or_with_flipped_bits_is_refused_or_still_a_model_of_ours(tmp_path, content, factor):
    chance, contents = random.Random(0), []
    for place in chance.sample(range(len(content)), 40 * factor):
        contents += [content[:place], damaged(content, [("bit", place, chance.randrange(8))])]
    proto = onnx.load_from_string(content)
    for _ in range(40 * factor):  # numbers only: whatever else is damaged is found by its form
        other, (tree, name) = copy.deepcopy(proto), (chance.randrange(3), chance.choice([
            "nodes_treeids", "nodes_nodeids", "nodes_truenodeids", "nodes_falsenodeids", "target_treeids",
            "target_nodeids", "nodes_featureids", "nodes_missing_value_tracks_true"]))
        numbers = values(other, tree, name)
        for _ in range(chance.choice([1, 1, 5, 500])):
            numbers[chance.randrange(len(numbers))] = chance.choice(numbers)
        contents.append(other.SerializeToString())
    said = judged(tmp_path, contents)
    tried("model files cut, flipped or mixed up", len(said), sum(each.startswith("dead") for each in said))
    assert [each for each in said if each not in ("taken", "refused")] == []
    assert all(each == "refused" for each in said[:80 * factor:2]), "a file cut short is no file"


# --- the registry: versions, sums, history ---

@pytest.fixture
def two(tmp_path, monkeypatch, small):
    """The folder of two versions, "good" in use and "next" not yet."""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    registry.promote(registry.save(*small, "good"), "the first")
    registry.save(*small, "next")
    return tmp_path / "models"


def signed(place, **files):
    """Put other contents into a version's folder, and the sums that an attacker would write for them."""
    for name, content in files.items():
        (place / name.replace("_", ".")).write_bytes(content)
    sums = ((place / name).read_bytes() for name in registry.FILES[:2])
    (place / "SHA256SUMS").write_text("".join(
        f"{hashlib.sha256(each).hexdigest()}  {name}\n" for each, name in zip(sums, registry.FILES)))


def with_card(content, change):
    proto = onnx.load_from_string(content)
    card = json.loads(proto.metadata_props[0].value)
    change(card)
    proto.metadata_props[0].value = json.dumps(card)
    return proto.SerializeToString()


def refused(version="next", cause=""):
    words = f"(ersion '?{version}|folder {version} holds)(.|\n)*{cause}"
    with pytest.raises(registry.RegistryError, match=words) as refusal:
        registry.promote(version, "looks fine")
    assert registry.current() == registry.load().version == "good", "the old one stays in use"
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("cause, change", [
    ("version", lambda card: card.pop("version")), ("version", lambda card: card.update(version=3)),
    ("version", lambda card: card.clear()),
    ("name it so", lambda card: card.update(version="good")),
    ("name it so", lambda card: card.update(version="../../x")),
    ("name it so", lambda card: card.update(version="/etc")),
    (r"examples\n.*Field required", lambda card: card.pop("examples")),
    (r"examples\n.*valid list", lambda card: card.update(examples=3)),
    (r"examples\.0\n.*valid dictionary", lambda card: card.update(examples=[3])),
    (r"examples\.0\.storm\n.*Field required", lambda card: card["examples"][0].pop("storm")),
    (r"examples\.0\.name\n.*valid string", lambda card: card["examples"][0].update(name=["a", "list"])),
    (r"examples\.0\.storm\n.*valid dictionary", lambda card: card["examples"][0].update(storm=None)),
    (r"examples\.0\.storm\.wind_kt\n.*valid number",
     lambda card: card["examples"][0]["storm"].update(wind_kt="strong"))])
def test_a_card_of_wrong_types_is_refused_with_the_place_though_its_sums_are_right(two, cause, change):
    signed(two / "next", model_onnx=with_card((two / "next" / "model.onnx").read_bytes(), change))
    refused(cause=cause)


@posix
@pytest.mark.parametrize("name", registry.FILES)
@pytest.mark.parametrize("turn", ["link", "endless", "pipe", "folder", "huge"])
def test_a_version_with_a_file_that_is_no_plain_file_is_refused_and_does_not_hang(two, name, turn):
    path = two / "next" / name
    path.rename(two.parent / "outside")
    if turn == "link":
        path.symlink_to(two.parent / "outside")
    elif turn == "endless":
        path.symlink_to("/dev/zero")
    elif turn == "pipe":
        os.mkfifo(path)
    elif turn == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    refused()


@pytest.mark.parametrize("version", ["../models/good", "../good", "good/../next", "/etc", "good/", "./good",
                                     "", "good\0", "next\n", "*", "history.jsonl", ".", "..", "g" * 5000])
def test_a_version_is_a_name_and_never_a_path(two, version):
    line = records.line(at=records.utc_now(), event="promoted", version=version, reason="an attack")
    with open(two / "history.jsonl", "ab") as file:
        file.write(line)
    with pytest.raises(registry.RegistryError, match="There is no version|No version is in use"):
        registry.load()


@EACH
def test_sums_and_cards_damaged_anywhere_are_noticed(two, factor):
    files = {name: (two / "next" / name).read_bytes() for name in registry.FILES}
    chance, times = random.Random(0), 0
    for name, content in files.items():
        for place in chance.sample(range(len(content)), min(len(content), 10 * factor)):
            for other in (damaged(content, [("bit", place, chance.randrange(8))]), content[:place]):
                (two / "next" / name).write_bytes(other)
                with pytest.raises(registry.RegistryError, match="Version next is damaged"):
                    registry.load("next")
                times += 1
        (two / "next" / name).write_bytes(content)
    assert registry.load("next").version == "next"
    tried("versions damaged, sums as they were", times)


@EACH
def test_a_history_of_any_lines_names_a_version_or_none_and_notes_go_on(tmp_path, monkeypatch, factor):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path))
    path = tmp_path / "history.jsonl"
    promoted = records.line(at="", event="promoted", version="good", reason="")
    event = st.fixed_dictionaries({"event": st.sampled_from(["saved", "promoted", "rolled back"]) | ANY,
                                   "version": ANY})
    noise = st.one_of(event.map(lambda each: json.dumps(each).encode()), st.binary(max_size=40),
                      ANY.map(lambda value: json.dumps(value).encode()),
                      damages(len(promoted)).map(lambda damage: damaged(promoted, damage)))

    def check(lines):
        path.write_bytes(promoted + b"".join(line + b"\n" for line in lines))
        assert isinstance(registry.current(), str), "a garbled line takes no version out of use"
        records.note(path, event="promoted", version="next", reason="at the end")
        assert registry.current() == "next" and registry.history()[-1]["reason"] == "at the end"

    tried("histories garbled", for_any(factor, 60, st.lists(noise, max_size=8))(check))


# --- one more way in: a version from somebody else's folder ---

@EACH
def test_a_foreign_file_with_right_sums_is_refused_or_forecasts_numbers(two, factor):
    chance, content, came = random.Random(1), (two / "next" / "model.onnx").read_bytes(), Counter()
    storm = Storm(**STORM)
    for _ in range(25 * factor):
        flip = ("bit", chance.randrange(len(content)), chance.randrange(8))
        signed(two / "next", model_onnx=damaged(content, [flip]))
        try:
            model = registry.load("next")
        except registry.RegistryError:
            came["refused"] += 1
            continue
        came["read"] += 1
        answer, = forecasts([storm], model)
        assert 0 <= answer.wind_kt_low <= answer.wind_kt <= answer.wind_kt_high < np.inf
    tried("versions damaged, sums made anew", came.total())
    assert came["refused"] and came["read"]
