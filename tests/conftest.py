"""What several test files share."""
import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import pytest

from workshop import ROOT

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals, files or limits")


def course_files():
    """The project's files, as a clone or an unpacked archive would have them, new ones included."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = listed.stdout.split("\0")
    else:  # unpacked, without git: all but what the course makes while it runs
        made = {line.strip("/") for line in Path(ROOT, ".gitignore").read_text().splitlines()}
        files = (path.relative_to(ROOT) for path in Path(ROOT).rglob("*"))
        names = [str(path) for path in files if not made & set(path.parts)]
    return [name for name in names if name and Path(ROOT, name).is_file()]


CAMPAIGN = Path(__file__).with_name("CAMPAIGN.md")


def pytest_configure(config):
    tried.noted = config.option.markexpr == "campaign"


def tried(what, times, lost=None):
    """Note in CAMPAIGN.md what a long run has tried, how often, and how many were lost, if that can be counted."""
    if not tried.noted:  # a sample of it, among the ordinary tests
        return
    head, line, rows = CAMPAIGN.read_text("utf-8").partition("| --- | ---: | ---: | --- |\n")
    known = {row.split(" | ")[0]: row for row in rows.splitlines()}
    when = f"{date.today():%d %B %Y}, Python {platform.python_version()}, {platform.system()}"
    known[f"| {what}"] = f"| {what} | {times:,} | {'' if lost is None else f'{lost:,}'} | {when} |"
    CAMPAIGN.write_text(head + line + "".join(f"{known[key]}\n" for key in sorted(known)), "utf-8")
