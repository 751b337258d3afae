"""`python3 -m workshop VERB`: find or make the environment that the course needs; go on in cli.py."""
# Only the standard library, in words that old Pythons can read, so that they get as far as the next lines.
from __future__ import print_function
import sys
if sys.version_info < (3, 11):
    sys.exit("The course needs Python 3.11, 3.12 or 3.13; this is %d.%d.%d (%s). Start it with a newer"
             " one, for example: python3.12 -m workshop lab" % (sys.version_info[:3] + (sys.executable,)))
import hashlib
import importlib.util
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from workshop import ROOT, doctor

LOCK, VENV = Path(ROOT, "requirements.txt"), Path(ROOT, ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "workshop-stamp"  # written last: where it is, all the rest is
ASTRAY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "UV_SYSTEM_PYTHON")
ENV = dict({key: os.environ[key] for key in set(os.environ) - set(ASTRAY)}, PIP_USER="0", PYTHONUTF8="1")
IMPORT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from workshop."  # ROOT counts, not where we are


def finished(write=False):
    """Tell whether .venv was made to its end, from today's lock, and its Python is there; or note it."""
    stamp = "%s %s\n" % (hashlib.sha256(LOCK.read_bytes()).hexdigest(), os.path.realpath(str(PYTHON)))
    if write:
        STAMP.write_text(stamp, encoding="utf-8")
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == stamp


def call(arguments):  # run the environment's Python; tells whether it ended well
    return subprocess.call([PYTHON] + arguments, env=ENV) == 0


def make():
    """Make .venv from nothing. Raises SystemExit with what to do, or another error with what went wrong."""
    import venv
    if not importlib.util.find_spec("ensurepip"):
        sys.exit("This Python can't make environments: it has no `ensurepip`. " + doctor.APT)
    STAMP.unlink(missing_ok=True)  # first: a clearing that is cut short must not look finished
    venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=True).create(VENV)
    install = ["install", "--require-hashes", "-r"]
    fast = VENV / "uv.txt"  # uv, as the lock has it: it installs the rest in a sixth of pip's time
    fast.write_text(re.search(r"(?m)^uv==.*(\n[ \t].*)*\n", LOCK.read_text(encoding="utf-8")).group())
    if not (call(["-m", "pip"] + install + [fast, "--no-input", "--quiet", "--only-binary", ":all:"])
            and call(["-m", "uv", "pip"] + install + [LOCK, "--python", PYTHON])):
        print("The fast installer uv does not work here: going on with pip, which is slower.", flush=True)
        if not call(["-m", "pip"] + install + [LOCK, "--no-input"]):
            sys.exit("The packages could not be installed, for the reason above. Is there a network? The same"
                     " command tries again, and uses what is already downloaded.")
    finished(write=True)


def main(args):
    """Run a verb and return its exit code. Help, a wrong verb and the doctor need no environment."""
    from workshop import cli
    setup, inside = args[:1] == ["setup"], os.path.realpath(sys.prefix) == os.path.realpath(str(VENV))
    bare = not set("setup lab test run slides serve".split()) & set(args[:1]) or {"-h", "--help"} & set(args)
    if bare or (inside and finished() and not setup) or not doctor.lacking():
        return cli.main(args)
    if setup or not finished():
        print("The course's environment: %s (once: up to a minute, 0.9 GB)" % VENV, flush=True)
        check = IMPORT + "doctor import lacking; sys.exit(', '.join(lacking()) or None)"
        try:
            with LOCK.open("a") as queue:  # nothing is written: a second set-up waits here for the first
                if os.name != "nt":  # Windows has no flock: there, nothing keeps two set-ups apart
                    import fcntl
                    with suppress(OSError):  # nor on a network's disk that has no locks
                        fcntl.flock(queue, fcntl.LOCK_EX)
                if not finished() or (setup and not call(["-c", check, ROOT])):
                    make()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            sys.exit("The environment could not be made in %s: %s" % (VENV, error))
    cli.hand_over([PYTHON, "-c", IMPORT + "cli import main; sys.exit(main(sys.argv[1:]))", ROOT] + args, ENV)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(print("\nInterrupted. The same command goes on from here.", file=sys.stderr) or 130)
