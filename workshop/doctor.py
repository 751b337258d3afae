"""Is this workspace ready for the course? Standard library only: it has to answer before a set-up."""
import os
import shutil
import sys
from importlib import metadata, util
from pathlib import Path
from workshop import ROOT

SETUP = "Run: python3 -m workshop setup"
APT = "On Debian or Ubuntu: sudo apt install python%d.%d-venv" % sys.version_info[:2]


def lacking():
    """List what the running Python lacks of the lock, as text."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging is missing"]
    problems = []
    for line in Path(ROOT, "requirements.txt").read_text(encoding="utf-8").splitlines():
        need = Requirement(line.rstrip(" \\")) if line[:1].isalnum() else None
        if need and (not need.marker or need.marker.evaluate()):
            found = next(iter(metadata.distributions(name=need.name)), None)
            if not found or found.version not in need.specifier:
                problems.append(f"{need.name}{need.specifier} is {found.version if found else 'missing'}")
    return problems


def limits(groups=Path("/sys/fs/cgroup"), own=Path("/proc/self/cgroup")):
    """CPUs, and GB of memory (inf: unknown), that this process may use: its container's, not its host's."""
    def read(path):  # "max" stands for: no limit
        return [int(word) for word in path.read_text().split() if word.isdigit()] if path.is_file() else []
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = [float("inf")] if os.name == "nt" else [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = groups / own.read_text().rpartition("::")[2].strip("/\n") if own.exists() else groups
    for folder in (group, *group.parents):  # a limit further up holds as well
        memory += read(folder / "memory.max")
        quota = read(folder / "cpu.max")
        cpus = min(cpus, quota[0] / quota[1]) if len(quota) == 2 else cpus
    return cpus, min(memory) / 2**30


def checks():
    """List (name, "ok", "warn" or "bad", what was found, how to mend it) for all that the course needs."""
    from workshop.__main__ import VENV, finished
    rows = []

    def add(name, fine, found, fix, otherwise="warn"):
        rows.append((name, "ok" if fine else otherwise, found, "" if fine else fix))

    add("Python", (3, 11) <= sys.version_info[:2] <= (3, 13), f"{sys.version.split()[0]}, {sys.executable}",
        "The course is tested with Python 3.11 to 3.13: start it with one of these.")
    made = finished() or not lacking()
    found = str(VENV if finished() else sys.prefix) if made else "not complete yet; the first use makes it so"
    add("Environment", made, found, *((SETUP, "warn") if util.find_spec("ensurepip") else (APT, "bad")))
    cpus, memory = limits()
    add("Processors", cpus >= 2, f"{cpus:g} (the course's workspace has 4)", "It works, but takes longer.")
    add("Memory", memory >= 3.5, f"{memory:.1f} GB (the course's workspace has 16)",
        "4 GB are needed: stop kernels and programs that you don't use, or ask for a larger workspace.")
    free, need = shutil.disk_usage(ROOT).free / 2**30, 0.5 if made else 2
    add("Free disk", free >= need, f"{free:.1f} GB", f"It takes {need} GB: delete what you can spare.", "bad")
    add("Folder", os.access(ROOT, os.W_OK), ROOT, "You can't write here: copy it to a place of yours.", "bad")
    place = os.environ.get("JUPYTERHUB_SERVICE_PREFIX") or os.environ.get("JUPYTER_SERVER_URL")
    running = "JPY_PARENT_PID" in os.environ  # a kernel's parent is a Jupyter
    found = f"runs at {place}" if place else "runs this notebook" if running else "the verb lab starts it"
    add("Jupyter", not place or util.find_spec("jupyter_server_proxy"), found,
        "No jupyter_server_proxy here: links to a server of yours may not open in the browser (notebook 04).")
    return rows


class report:  # in lower case, because a notebook's cell says: doctor.report()
    """What `checks` found, as text. `bad` names what has to be mended before the workspace can be used."""
    def __init__(self):
        self.rows = checks()
        self.bad = [name for name, level, *_ in self.rows if level == "bad"]

    def __repr__(self):
        lines = [f"{level:5} {name:12} {found}" + f"\n{'':19}{fix}" * bool(fix)
                 for name, level, found, fix in self.rows]
        verdict = f"Things to mend here: {', '.join(self.bad)}." if self.bad else "This workspace is ready."
        return "\n".join([*lines, verdict])
