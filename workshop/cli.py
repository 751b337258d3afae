"""The verbs of `python3 -m workshop`. Only the standard library up here: `--help` needs no environment."""
import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from urllib.parse import quote, urljoin
from workshop import ROOT, doctor

VERBS = tomllib.loads(Path(__file__).with_name("verbs.toml").read_text(encoding="utf-8"))
KERNEL, TITLE = "production-ml", "Production ML workshop"
NOTEBOOKS, START = Path(ROOT, "notebooks"), Path(ROOT, "my_work", "00_start_here.ipynb")
# What the course's kernel runs first: so a cell that is run too early says what to run before it.
HINT = ("get_ipython().set_custom_exc((NameError,), lambda shell, kind, it, tb, tb_offset=None: it.add_note("
        "'Made by a cell above? Run > Run All Above Selected Cell.') or shell.showtraceback((kind, it, tb)))")


def hand_over(command, env=None):
    """Become another program; on Windows, which can't, run it and end as it ends."""
    sys.stdout.flush()
    if os.name == "nt":
        sys.exit(subprocess.call(command, env=env))
    os.execve(str(command[0]), command, env or os.environ)


def put_kernel():
    """Describe this interpreter as the course's kernel, quiet, its history in memory; return where."""
    from ipykernel.kernelspec import write_kernel_spec
    from jupyter_core.paths import jupyter_data_dir
    folder = Path(jupyter_data_dir(), "kernels", KERNEL)
    draft = write_kernel_spec(overrides={"display_name": TITLE}, extra_arguments=[
        "--log-level=40", "--HistoryManager.hist_file=:memory:", f"--IPKernelApp.exec_lines={HINT}"])
    shutil.copytree(draft, folder, dirs_exist_ok=True)  # does no harm where two of us do it at once
    shutil.rmtree(Path(draft).parent)
    return folder


def learners_copy(newer):
    """Copy notebooks/ to my_work/, without outputs. What is there stays; `newer` versions go beside it."""
    others, files = [], (path for path in NOTEBOOKS.rglob("*") if ".ipynb_checkpoints" not in path.parts)
    for source in filter(Path.is_file, files):
        target, content = START.parent / source.relative_to(NOTEBOOKS), source.read_bytes()
        if source.suffix == ".ipynb":
            notebook = json.loads(content)
            notebook["metadata"]["kernelspec"] = {"name": KERNEL, "display_name": TITLE, "language": "python"}
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell.update(outputs=[], execution_count=None)
            version = hashlib.sha256(json.dumps(notebook).encode()).hexdigest()[:8]
            notebook["metadata"]["copy_of"] = version  # it stays there when the learner saves
            content = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
            if target.is_file() and version.encode() not in target.read_bytes():
                target = target.with_suffix(f".{version}.ipynb")
                others += [] if target.exists() else [target.name]
        if os.path.lexists(target) or target.name in others and not newer:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_bytes(content)
        part.replace(target)  # in one step: a copy that is cut short would stay for ever
    print(f"Your copy of the course is in {START.parent}. What is there already is never overwritten.")
    if others:
        print("Beside yours now:" if newer else "Newer versions, which `lab --newer` puts beside yours:",
              *sorted(others))


def lab(port, browser, newer):
    """Become JupyterLab, open at the learner's copy; in a Jupyter, print a link, or return 1 if it can't."""
    learners_copy(newer)
    env = os.environ  # few hubs tell their public address; the last one is told in JupyterLab's terminals
    hub = env.get("JUPYTERHUB_PUBLIC_URL") or env.get("JUPYTERHUB_SERVICE_PREFIX")
    if base := hub or env.get("JUPYTER_SERVER_URL"):
        root, start = Path(env.get("JUPYTER_SERVER_ROOT", "~")).expanduser().resolve(), START.resolve()
        if not start.is_relative_to(root):
            print(f"Jupyter runs here already, but shows only {root}. Move {ROOT} into it; run this there.")
            return 1
        inside = start.relative_to(root).as_posix()
        link = urljoin(base, "lab/tree/" + quote(inside))
        how = "put after your workspace's host" if link.startswith("/") else "open"
        print(f"Jupyter runs here already, so nothing was started. In your browser, {how}\n\n    {link}\n\n"
              f"or, in the file browser, {inside}. If you are asked for a kernel, choose: {TITLE}.")
        return 0
    settings = Path(ROOT, ".workshop", "jupyter")  # the user's own stay as they are
    if not (settings / "lab").exists():  # it asks for no news, and opens with the contents; later, as left
        shutil.copytree(Path(__file__).with_name("jupyter"), settings, dirs_exist_ok=True)
    options = {"ServerApp.ip": "localhost", "ServerApp.port": port, "ServerApp.open_browser": browser,
               "ServerApp.root_dir": ROOT, "LabApp.default_url": "/lab/tree/my_work/" + START.name,
               "ServerApp.answer_yes": True, "ServerApp.allow_root": True, "Application.log_level": 30}
    print("JupyterLab starts, and prints its address; it runs until you press Ctrl-C here.")
    hand_over([sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())],
              env | {"JUPYTER_CONFIG_DIR": str(settings)})


def run(names, output, job=None):
    """Execute notebooks, or a job, each in its own kernel; returns 1 if one failed, 2 if there is no such."""
    import pandas as pd
    import papermill
    there = {path.stem: path for path in sorted(NOTEBOOKS.glob(job or "[0-9][0-9]_*.ipynb"))}
    names = {Path(name).stem.zfill(2) for name in names}
    if wrong := names - set(there) - {stem[:2] for stem in there}:
        print(f"No such notebook: {', '.join(wrong)}. There are: {', '.join(there)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel is shut down
    output.mkdir(parents=True, exist_ok=True)
    rows, chosen = [], {stem: path for stem, path in there.items() if not names or {stem, stem[:2]} & names}
    for stem, path in chosen.items():
        begin, result = time.perf_counter(), "ok"
        try:
            papermill.execute_notebook(path, output / path.name, job and {"output_folder": str(output)},
                                       cwd=path.parent, kernel_name=KERNEL, progress_bar={"desc": stem})
        except papermill.PapermillExecutionError as fault:
            last = f"{fault.ename}: {fault.evalue}".strip().splitlines()[-1]
            result = f"FAILED in cell {fault.cell_index + 1}: {last}"
        except Exception as fault:  # a dead kernel, a damaged file: the other notebooks still get their turn
            result = f"FAILED: {type(fault).__name__}: " + " ".join(str(fault).split())
        rows.append((stem, round(time.perf_counter() - begin, 1), result))
    print(*(f"{stem:22}{seconds:6} s  {result}" for stem, seconds, result in rows), sep="\n")
    print(f"\nMore in {output}", flush=True)
    report = pd.DataFrame(rows, columns=["notebook", "seconds", "result"])
    report.to_html(output / "report.html", index=False, encoding="utf-8")
    return int((report.result != "ok").any())


def serve(host, port, workers):
    """Serve the production API until Ctrl-C; returns 1 where the port can't be had."""
    from workshop import server
    try:
        listener = server.listen(port, host)
    except (OSError, OverflowError) as error:
        print(f"Port {port} of {host} can't be had ({error}): try another --port.", file=sys.stderr)
        return 1
    port = listener.getsockname()[1]  # another one where 0 was asked for: any that is free
    if host not in ("127.0.0.1", "localhost", "::1") and not os.environ.get("WORKSHOP_API_KEY"):
        print("WARNING: others can reach it, and it asks for no key: set WORKSHOP_API_KEY.", file=sys.stderr)
    print(f"The API is at {server.public_address(port)}/ until you press Ctrl-C.", file=sys.stderr)
    server.serve(listener, workers)
    return 0


def main(argv):
    """Run one verb with its arguments; returns the exit code."""
    top = argparse.ArgumentParser(prog="python3 -m workshop")
    verbs = top.add_subparsers(dest="verb", required=True)
    values = {"int": int, "1 to 64": range(1, 65)}  # what a text in verbs.toml stands for
    for name, verb in VERBS.items():
        part = verbs.add_parser(name, help=verb["does"], description=verb["does"],
                                epilog=f"Example: {top.prog} {verb.get('example', name)}")
        for argument, how in verb.get("arguments", {}).items():
            part.add_argument(argument, **{key: values.get(value, value) for key, value in how.items()})
    args, rest = top.parse_known_args(argv)
    if rest and args.verb != "test":
        verbs.choices[args.verb].error(f"unknown: {' '.join(rest)}")
    try:
        if args.verb == "doctor":
            print(doctor.report(rows := doctor.checks()))
            return int(any(level == "bad" for _, level, *_ in rows))
        if args.verb == "serve":
            return serve(args.host, args.port, args.workers)
        kernel = put_kernel()  # for the verb setup that is all: __main__ has made the environment
        if args.verb == "run":
            return run(args.notebooks, Path(args.output or Path(ROOT, "runs")).absolute())
        if args.verb == "slides":
            return run([], Path(args.output or Path(ROOT, "results/slides")).absolute(), "jobs/slides.ipynb")
        os.chdir(ROOT)
        if args.verb == "test":
            hand_over([sys.executable, "-m", "pytest", *(rest or ["-n2"])])  # all of them: on two cores
        if args.verb == "lab":
            return lab(args.port, not args.no_browser, args.newer)
        print("\n".join(lacking := doctor.lacking()) or f"Ready: environment {sys.prefix}, kernel {kernel}.")
        return int(bool(lacking))
    except (KeyboardInterrupt, OSError) as error:
        why = f"{error}. What to do may be said by: {top.prog} doctor" if str(error) else "interrupted."
        print(f"\n`{args.verb}` was stopped: {why}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
