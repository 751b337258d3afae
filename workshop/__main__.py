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
import shutil
import subprocess
from pathlib import Path
from workshop import ROOT

VERBS = {"setup": "Make or repair the environment and the course's kernel (every verb does so on first use).",
         "lab": "Open the course in JupyterLab, or print a link to it where a Jupyter runs already.",
         "test": "Run the tests, every notebook included; arguments go to pytest.",
         "run": "Execute notebooks from end to end; write executed copies and a report.",
         "doctor": "Say whether this workspace is ready, with a fix for each thing that is not."}
LOCK, VENV = Path(ROOT, "requirements.txt"), Path(ROOT, ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "workshop-stamp"  # written last: where it is, all the rest is
ASTRAY = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "UV_SYSTEM_PYTHON")
ENV = dict({name: value for name, value in os.environ.items() if name not in ASTRAY}, PIP_USER="0")
IMPORT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from workshop."  # ROOT counts, not where we are


def finished(write=False):
    """Tell whether .venv was made to its end, from today's lock, and its Python is there; or note it."""
    stamp = "%s %s\n" % (hashlib.sha256(LOCK.read_bytes()).hexdigest(), os.path.realpath(str(PYTHON)))
    if write:
        STAMP.write_text(stamp, encoding="utf-8")
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == stamp


def call(command, quiet=False):
    """Tell whether a command could be started and ended well; it inherits the set-up's lock, on purpose."""
    try:
        out = subprocess.DEVNULL if quiet else None
        return subprocess.call(command, env=ENV, close_fds=False, stdout=out, stderr=out) == 0
    except OSError:
        return False


def one_at_a_time():
    """Wait for any other set-up in this folder. The system frees the lock when its last holder has ended."""
    Path(ROOT, ".workshop").mkdir(exist_ok=True)
    handle = Path(ROOT, ".workshop", "setup.lock").open("a")
    if os.name != "nt":  # Windows has no flock: there, nothing keeps two set-ups apart
        import fcntl
        os.set_inheritable(handle.fileno(), True)  # so an installer that outlives us still holds it
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def make():
    """Make .venv from nothing. Raises SystemExit with what to do, or another error with what went wrong."""
    import venv
    uv, with_pip = shutil.which("uv"), importlib.util.find_spec("ensurepip") is not None
    uv = uv and call([uv, "--version"], quiet=True) and uv
    if not (uv or with_pip):
        sys.exit("This Python can't make environments: it has no `ensurepip`. Debian and Ubuntu mend it so:\n"
                 "sudo apt install python%d.%d-venv" % sys.version_info[:2])
    STAMP.exists() and STAMP.unlink()  # first: a clearing that is cut short must not look finished
    venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=with_pip).create(VENV)
    pip = [PYTHON, "-m", "pip", "install", "--no-input", "--require-hashes", "-r"]
    if not uv:
        part, uv = VENV / "uv.txt", PYTHON.parent / "uv"
        part.write_text(re.search(r"(?m)^uv==.*(\n[ \t].*)*\n", LOCK.read_text()).group())
        call(pip + [part, "--only-binary", ":all:"], quiet=True)
    if not call([uv, "pip", "install", "--python", PYTHON, "--require-hashes", "-r", LOCK]):
        print("The fast installer uv does not work here: going on with pip, which is slower.", flush=True)
        if not call(pip + [LOCK]):
            sys.exit("The packages could not be installed, for the reason above. Is there a network? The same"
                     " command tries again, and uses what is already downloaded.")
    finished(write=True)


def hand_over(command, env=None):
    """Become another program; on Windows, which can't, run it and end as it ends."""
    sys.stdout.flush()
    if os.name == "nt":
        sys.exit(subprocess.call(command, env=env))
    os.execve(str(command[0]), command, env or os.environ)


def main(args):
    """Run a verb and return its exit code. Help, a wrong verb and the doctor need no environment."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: python3 -m workshop VERB [options], where VERB (more: VERB --help) is one of:\n"
              + "\n".join("  %-8s%s" % pair for pair in VERBS.items()))
        return 0 if args else 2
    verb = args[0]
    if verb not in VERBS:
        sys.stderr.write("There is no verb %r. The verbs are: %s.\n" % (verb, ", ".join(VERBS)))
        return 2
    from workshop import cli, doctor
    setup, inside = verb == "setup", os.path.realpath(sys.prefix) == os.path.realpath(str(VENV))
    bare = verb == "doctor" or (verb != "test" and set(args) & {"-h", "--help"})
    if bare or (inside and finished() and not setup) or not doctor.lacking(every_file=setup or inside):
        return cli.main(args)
    if setup or not finished():
        print("The course's environment: %s (once: up to a minute, 0.6 GB)" % VENV, flush=True)
        check = IMPORT + "doctor import lacking; sys.exit(', '.join(lacking(every_file=True)) or None)"
        try:
            with one_at_a_time():
                if not finished() or (setup and not call([PYTHON, "-c", check, ROOT])):
                    make()
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            sys.exit("The environment could not be made in %s: %s" % (VENV, error))
    hand_over([PYTHON, "-c", IMPORT + "cli import main; sys.exit(main(sys.argv[1:]))", ROOT] + args, ENV)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(print("\nInterrupted. The same command goes on from here.", file=sys.stderr) or 130)
