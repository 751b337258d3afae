"""The registry: versions that survive crashes, damage and haste; and the records they are noted in."""
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from workshop.model import train
from workshop.storms import build_examples, load_storms
from workshop import ROOT, records, registry

SMALL = "2012-2014"  # trained on three seasons: enough where the forecast need not be good
# "once FOLDER": saves the small model there and promotes it. "forever FOLDER": a child saves on and on.
HELPER = """import itertools, os, sys
from workshop.model import train
from workshop.storms import build_examples, load_storms
from workshop import registry
examples = build_examples(load_storms()).query("2012 <= season <= 2015")
model = train(examples)
for line in sys.stdin:
    how, os.environ["WORKSHOP_MODEL_DIR"] = line.strip().split(" ", 1)
    if how == "once":
        registry.promote(registry.save(model, examples), "it is good")
    elif child := os.fork():
        print(child, flush=True)
        os.waitpid(child, 0)
    else:
        for number in itertools.count(): registry.save(model, examples, f"v{number}")
    print("done", flush=True)"""
FULL_DISK = """import pathlib, resource, sys
from workshop import records
writer = records.Writer(pathlib.Path(sys.argv[1]), "log")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
while True: writer.write(3 * records.line(number=1))  # 42 bytes"""


@pytest.fixture(scope="module")
def save():
    """Saves the small model, or with `other` another one, and returns the version's name."""
    examples = build_examples(load_storms()).query("2012 <= season <= 2015")
    small = train(examples)
    models = {False: small, True: dataclasses.replace(small, margin_kt=(1, 2, 3))}
    return lambda version=None, reason="trained", other=False: registry.save(
        models[other], examples, version, reason)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "new" / "models"))
    return tmp_path / "new" / "models"


@pytest.fixture
def two(folder, save):
    """The folder of two versions, "good" in use and "next" not yet."""
    registry.promote(save("good"), "the first")
    save("next", "another try", other=True)
    return folder


@pytest.fixture(scope="module")
def pair():
    """Two processes of HELPER."""
    pytest.importorskip("resource", reason="only POSIX forks")
    pipes = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (subprocess.Popen([sys.executable, "-c", HELPER], **pipes) as one,
          subprocess.Popen([sys.executable, "-c", HELPER], **pipes) as other):
        yield one, other


def change_a_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])


def test_versions_are_saved_promoted_and_rolled_back_and_the_history_says_why(folder, save):
    assert (registry.versions(), registry.current(), registry.history()) == ([], None, [])
    assert save() == SMALL and save("new", "more data", other=True) == "new"
    assert registry.versions() == [SMALL, "new"] and registry.current() is None, "saved is not yet in use"
    for version in (SMALL, "new", "new"):
        registry.promote(version, f"{version} is better")
        assert registry.current() == version == registry.load().version
    assert registry.roll_back("too many complaints") == SMALL == registry.current()
    assert [(line["event"], line["version"], line["reason"]) for line in registry.history()] == [
        ("saved", SMALL, "trained"), ("saved", "new", "more data"), ("promoted", SMALL, f"{SMALL} is better"),
        ("promoted", "new", "new is better"), ("rolled back", SMALL, "too many complaints")]


def test_the_same_model_is_no_new_version_and_another_gets_a_number(folder, save):
    assert [save(), save(), save(other=True), save(other=True), save()] == [
        SMALL, SMALL, f"{SMALL}.2", f"{SMALL}.2", SMALL]
    assert sorted(os.listdir(folder)) == [SMALL, f"{SMALL}.2", "history.jsonl"], "and nothing half made"
    assert registry.load(f"{SMALL}.2").version in (folder / f"{SMALL}.2" / "card.md").read_text()


def test_a_model_that_is_too_large_is_refused_and_leaves_nothing(folder, save, monkeypatch):
    monkeypatch.setattr(registry, "MOST_BYTES", 10_000)
    with pytest.raises(registry.RegistryError, match=r"at most 10,000 bytes; this one has [\d,]+\."):
        save()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["a/b", "a\\b", "../up", "..", ".", ".hidden", "/etc", "a b", "a\n", "ä"])
def test_a_name_that_is_no_plain_folder_is_refused(two, save, name):
    with pytest.raises(registry.RegistryError, match="letters, digits, dots and dashes"):
        save(name)
    with pytest.raises(registry.RegistryError, match="There is no version .+; there are: good, next"):
        registry.promote(name, "a mistake")
    assert registry.versions() == ["good", "next"] and registry.current() == "good"


def test_roll_back_is_refused_where_no_sound_version_was_before(two):
    with pytest.raises(registry.RegistryError, match="no version to go back to"):
        registry.roll_back("panic")
    registry.promote("next", "better")
    change_a_byte(two / "good" / "model.onnx")
    with pytest.raises(registry.RegistryError, match="Version good is damaged"):
        registry.roll_back("panic")
    assert registry.current() == "next"


@pytest.mark.parametrize("damage", [
    lambda place: os.truncate(place / "model.onnx", 1000), lambda place: change_a_byte(place / "model.onnx"),
    lambda place: change_a_byte(place / "card.md"), lambda place: (place / "card.md").unlink(),
    lambda place: change_a_byte(place / "SHA256SUMS"), lambda place: (place / "SHA256SUMS").unlink(),
    lambda place: place.rename(place.with_name("away")),
    lambda place: shutil.copytree(place.with_name("good"), place, dirs_exist_ok=True)])  # holds another one
def test_a_damaged_version_is_refused_by_name_and_the_one_in_use_stays(two, damage):
    damage(two / "next")
    with pytest.raises(registry.RegistryError, match="(ersion '?|folder )next"):
        registry.promote("next", "looks fine")
    assert registry.current() == registry.load().version == "good"
    assert registry.history()[-1]["event"] == "saved", "nothing has happened since"


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_the_sums_are_what_sha256sum_checks(two):
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    told = subprocess.run(check, cwd=two / "good", capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "model.onnx: OK\ncard.md: OK\n")


@pytest.mark.parametrize("step", ["model.onnx", "card.md", "SHA256SUMS"])
def test_a_save_killed_at_any_step_leaves_whole_versions_only(folder, pair, save, step):
    print("forever", folder, file=pair[0].stdin, flush=True)
    child, deadline = int(pair[0].stdout.readline()), time.monotonic() + 30
    while not any(folder.glob(f".*/{step}")) and time.monotonic() < deadline:
        pass
    os.kill(child, signal.SIGKILL)
    assert pair[0].stdout.readline() == "done\n" and time.monotonic() < deadline
    assert all(registry.load(name).version == name for name in registry.versions())
    assert registry.load(save()).version == SMALL, "and the next save works"


def test_half_a_version_and_half_a_line_of_history_that_a_crash_left_are_passed_over(two):
    shutil.copytree(two / "next", two / ".part-1")
    with open(two / "history.jsonl", "ab") as file:
        file.write(records.line(at=records.utc_now(), event="promoted", version="next", reason="cut")[:-20])
    assert registry.versions() == ["good", "next"] and registry.current() == "good"
    registry.promote("next", "again")
    assert registry.current() == "next" and registry.history()[-1]["reason"] == "again"


def test_two_that_save_and_promote_at_once_leave_one_sound_version(tmp_path, pair, monkeypatch):
    for folder in (tmp_path / str(number) for number in range(15)):
        for process in pair:
            print("once", folder, file=process.stdin, flush=True)
        assert [process.stdout.readline() for process in pair] == ["done\n"] * 2
        monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(folder))
        assert registry.versions() == [SMALL] and registry.load().version == SMALL
        events = [line["event"] for line in registry.history()]
        assert len(events) == len((folder / "history.jsonl").read_text().splitlines())
        assert events.count("saved") == 1 <= events.count("promoted") <= 2


def test_three_that_roll_back_at_once_go_back_once(two):
    registry.promote("next", "better")
    registry.roll_back("worse")
    lines = (two / "history.jsonl").read_bytes().splitlines(keepends=True)
    (two / "history.jsonl").write_bytes(b"".join(lines + 2 * lines[-1:]))  # by others, who saw "next" in use
    assert registry.current() == "good"


def test_the_first_use_trains_the_next_takes_what_is_there_and_damage_is_mended(folder):
    said = []
    model = registry.kept_model(said.append)
    assert model.version == "1975-2014" and said.pop() == "Done: model 1975-2014."
    assert said.pop(0).startswith("No sound model is in use here: training one") and not said
    assert registry.kept_model(said.append).card == model.card and len(registry.history()) == 2
    assert said.pop() == "Model 1975-2014, kept earlier." and not said
    change_a_byte(folder / "1975-2014" / "model.onnx")
    assert registry.kept_model(said.append).version == registry.current() == "1975-2014.2"
    assert said[0].startswith("Version 1975-2014 is damaged") and said[-1] == "Done: model 1975-2014.2."


def test_records_are_read_from_several_files_without_the_lines_that_were_cut(tmp_path):
    whole = [records.line(number=number, text="a\nb") for number in range(4)]
    (tmp_path / "1").write_bytes(whole[0] + whole[1] + b'{"number": 9, "te')
    (tmp_path / "2").write_bytes(b'{"numb\n\n' + whole[2] + whole[3])
    read = list(records.read(tmp_path / "1", tmp_path / "2"))
    assert [line["number"] for line in read] == [0, 1, 2, 3] and {line["text"] for line in read} == {"a\nb"}


def test_a_writer_makes_its_folder_at_the_first_write_and_a_file_again_that_was_deleted(tmp_path):
    writer, folder = records.Writer(tmp_path / "new" / "logs", "log"), tmp_path / "new" / "logs"
    assert not any(tmp_path.iterdir())
    for text in ("first", "second"):
        writer.write(records.line(text=text))
        writer.write(records.line(text=text))
        file, = folder.iterdir()
        assert list(records.read(file)) == [{"text": text}] * 2
        file.unlink()


def test_on_a_full_disk_all_lines_of_a_write_are_kept_or_none_and_processes_keep_apart(tmp_path):
    pytest.importorskip("resource", reason="only POSIX limits the size of files")
    command = [sys.executable, "-c", FULL_DISK, tmp_path]
    writers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.communicate()[1].endswith("OSError: only 16 of 42 bytes could be written\n")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [6 * records.line(number=1)] * 2
