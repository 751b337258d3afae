"""Records that outlive a crash: files of JSON Lines that are only ever added to, and their reader."""
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from workshop import ROOT


def log_folder() -> Path:
    """Return where forecast logs lie: $WORKSHOP_LOG_DIR, or logs/ in the checkout."""
    return Path(os.environ.get("WORKSHOP_LOG_DIR") or Path(ROOT, "logs"))


def utc_now() -> str:
    """Return the time as text: ISO 8601, UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(**record) -> bytes:
    """Return a record as one line of JSON."""
    return json.dumps(record).encode() + b"\n"


def note(path: Path, **facts):
    """Add a record, on a line of its own also where a crash has left the last one unfinished."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with open(path, "ab") as file:
        file.write(b"\n" * torn + line(at=utc_now(), **facts))


def read(*paths, check=dict.items) -> Iterator[dict]:  # which fails for what is no dict
    """Yield the records of the files, in order, without lines cut short, garbled, or refused by `check`."""
    for text in (each for path in paths for each in Path(path).read_bytes().splitlines()):
        with suppress(ValueError, TypeError, RecursionError):
            check(record := json.loads(text))
            yield record


class Writer:
    """Adds lines to a file of its own, made at the first write."""
    # What was written is with the operating system, so it outlives this process, however that ends. No two
    # writers share a file: so a line that one of them left unfinished can't run into another's.
    def __init__(self, folder: Path, name: str):
        self._folder, self._name, self._file = folder, name, None

    def write(self, lines: bytes):
        """Add the lines, all or none. Raises OSError where that fails: disk full, folder not writable."""
        if self._file is None or os.fstat(self._file.fileno()).st_nlink == 0:  # somebody has deleted it
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{self._name}-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}.jsonl"
            self._file = open(self._folder / name, "xb", buffering=0)  # which closes a deleted one
        written = self._file.write(lines)
        if written < len(lines):
            self._file.seek(-written, os.SEEK_CUR)
            self._file.truncate()
            raise OSError(f"only {written} of {len(lines)} bytes could be written")
