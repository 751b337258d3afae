"""Is this workspace ready for the course? Standard library only: it has to answer before a set-up."""
import os
import shutil
import socket
import sys
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path
from workshop import ROOT

APT = "On Debian or Ubuntu: sudo apt install python%d.%d-venv" % sys.version_info[:2]


def lacking():
    """List what the running Python lacks of the lock, as text."""
    if not util.find_spec("packaging"):
        return ["packaging is missing"]
    from packaging.requirements import Requirement
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


def serves(port):
    """Tell whether a server on this port of 127.0.0.1 (0: on any) could be had, and reached."""
    with suppress(OSError), socket.create_server(("127.0.0.1", port)) as server:
        return not socket.create_connection(server.getsockname(), 1).close()


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
    mend = ("Run: python3 -m workshop setup", "warn") if util.find_spec("ensurepip") else (APT, "bad")
    add("Environment", made, found, *mend)
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
    add("Ports", serves(0), "8000 is free" if serves(8000) else "8000 is taken: a server uses another one",
        "Programs can't reach each other on 127.0.0.1 here: ask who looks after the machine.", "bad")
    proxy = any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY"))
    with socket.socket(type=socket.SOCK_DGRAM) as probe:  # sends nothing; no machine has this address
        way = "by a proxy" if proxy else "none" if probe.connect_ex(("192.0.2.1", 9)) else "there is one"
    add("Network", made or way != "none", f"{way} (only the set-up needs it)", "Connect, for the set-up.")
    return rows


def report(rows):
    """Return what `checks` found as text; its last line names what has to be mended before all else."""
    lines = [f"{level:5} {name:12} {found}" + f"\n{'':19}{fix}" * bool(fix)
             for name, level, found, fix in rows]
    bad = ", ".join(name for name, level, *_ in rows if level == "bad")
    return "\n".join([*lines, f"Things to mend here: {bad}." if bad else "This workspace is ready."])
