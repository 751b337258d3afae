"""Versions of the model on disk, in plain folders: which there are, which one is in use, and why.

    models/1975-2014/model.onnx     the file (see `workshop.handover`)
                     card.md        the same facts, for people
                     SHA256SUMS     what the two should be; `sha256sum -c SHA256SUMS` checks it as well
    models/history.jsonl            one line for each event; read from the first, they say what is in use
"""
import hashlib
import itertools
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from workshop import ROOT, records
from workshop.forecaster import Card, ModelFile

FILES, MOST_BYTES = ("model.onnx", "card.md", "SHA256SUMS"), 2_000_000


class RegistryError(ValueError):
    """A version that is not there, is damaged, or can't be used; the message says which, and what to do."""


def folder() -> Path:
    """Return where the versions lie: $WORKSHOP_MODEL_DIR, or models/ in the checkout."""
    return Path(os.environ.get("WORKSHOP_MODEL_DIR") or Path(ROOT, "models"))


def versions() -> list[str]:
    """Return the names of the versions there are."""
    return sorted(path.parent.name for path in folder().glob("[!.]*/SHA256SUMS"))


def history() -> list[dict]:
    """Return what happened, oldest first: at, event ("saved", "promoted", "rolled back"), version, reason."""
    return list(records.read(*folder().glob("history.jsonl")))


def _in_use() -> list[str]:
    """Return the versions that came into use, without those rolled back; the last one is in use."""
    stack = []
    for line in history():
        event, version = line.get("event"), line.get("version")
        if event == "promoted" and isinstance(version, str) and version not in stack[-1:]:
            stack.append(version)
        while event == "rolled back" and version in stack and stack[-1] != version:
            stack.pop()
    return stack


def current() -> str | None:
    """Return the version in use, None if there is none yet."""
    return next(reversed(_in_use()), None)


def save(model, examples, version=None, reason="trained") -> str:
    """Write a version of a `workshop.model.IntervalModel`; return its name: its seasons, or `version`.

    `examples`, as storms.build_examples returns them, are what its card's scores come from. The same model
    again is no new version; another one under a name that is taken gets a number, as in 1975-2014.2.
    """
    from workshop import handover  # only here: what just reads models does without scikit-learn
    base = version or "{}-{}".format(*model.seasons)
    if not re.fullmatch(r"\w[\w.-]*", base, re.ASCII) or base.endswith(".jsonl"):
        raise RegistryError(f"A version is called by letters, digits, dots and dashes, not {base!r}.")
    card, part = handover.facts(model, examples, base), folder() / f".part-{os.getpid()}"
    for name in (f"{base}.{number}" if number > 1 else base for number in itertools.count(1)):
        card["version"] = name
        files = {"model.onnx": handover.to_onnx(model, card), "card.md": handover.text(card).encode()}
        files["SHA256SUMS"] = _sums(files)
        if (size := len(files["model.onnx"])) > MOST_BYTES:
            raise RegistryError(f"A version's file has at most {MOST_BYTES:,} bytes; this one has {size:,}.")
        try:
            part.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                (part / file).write_bytes(content)
            part.rename(folder() / name)  # in one step: nobody sees half a version
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not (folder() / name).exists():
                raise
        else:
            records.note(folder() / "history.jsonl", event="saved", version=name, reason=reason)
        if _intact(name) == files:
            return name


def _sums(files):
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in FILES[:2]).encode()


def _intact(version):
    """Return a version's files, their contents by name; None if they are not what was saved."""
    with suppress(OSError, KeyError):
        files = {path.name: path.read_bytes() for path in (folder() / version).iterdir() if path.name in FILES
                 and path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_BYTES}
        return files if files["SHA256SUMS"] == _sums(files) else None


def load(version=None) -> ModelFile:
    """Return a version, the one in use if none is named. Raises RegistryError if it is missing or damaged."""
    if (version := version or current()) not in versions():
        what = f"There is no version {version!r}" if version else "No version is in use"
        raise RegistryError(f"{what} in {folder()}; there are: {', '.join(versions()) or 'none'}.")
    if not (files := _intact(version)):
        raise RegistryError(f"Version {version} is damaged: a file in {folder() / version} is not what was "
                            "saved (see SHA256SUMS there). Take it from a copy, or train and save it again.")
    try:
        model = ModelFile(files["model.onnx"])
        Card.model_validate(model.card)
    except ValueError as error:
        raise RegistryError(f"Version {version} can't be used: {error}.") from None
    if model.version != version:
        raise RegistryError(f"The folder {version} holds version {model.version}: name it so.")
    return model


def promote(version, reason) -> None:
    """Put a version into use. Raises RegistryError if it can't be loaded; then the old one stays in use."""
    load(version)
    if version != current():
        records.note(folder() / "history.jsonl", event="promoted", version=version, reason=reason)


def roll_back(reason) -> str:
    """Put back into use the version before the last promotion, and return its name; RegistryError if none."""
    if not (before := _in_use()[:-1]):
        raise RegistryError("There is no version to go back to.")
    load(before[-1])
    records.note(folder() / "history.jsonl", event="rolled back", version=before[-1], reason=reason)
    return before[-1]


def kept_model(say=print) -> ModelFile:
    """Return the version in use; where there is none that is sound, train one, use it, and say so."""
    try:
        if current():
            model = load()
            say(f"Model {model.version}, kept earlier.")
            return model
    except ValueError as error:
        say(f"{error}")
    say("No sound model is in use here: training one as in notebook 02, some seconds ...")
    from workshop import model as models, storms
    examples = storms.build_examples(storms.load_storms())
    version = save(models.train(examples), examples, reason="there was none")
    promote(version, "there was none")
    say(f"Done: model {version}.")
    return load(version)
