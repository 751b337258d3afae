"""What several test files share."""
import subprocess
from pathlib import Path

from workshop import ROOT


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
