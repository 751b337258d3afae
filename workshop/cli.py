"""The verbs of `python3 -m workshop`. Only the standard library up here: `--help` needs no environment."""
import argparse
import html
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote, urljoin
from workshop import ROOT, doctor
from workshop.__main__ import VERBS, hand_over

KERNEL, TITLE = "production-ml", "Production ML workshop"
NOTEBOOKS, START = Path(ROOT, "notebooks"), Path(ROOT, "my_work", "00_start_here.ipynb")
EXAMPLES = {verb: verb for verb in VERBS} | {
    "lab": "lab --no-browser", "test": "test -x -k storms", "run": "run 02 04 --output runs/today"}
OVERRIDES = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
CONTENTS_OPEN = {"metadata": {"id": "default"}, "data": {"layout-restorer:data": {
    "left": {"collapsed": False, "current": "@jupyterlab/toc:plugin"}}}}


def put_kernel(folder, title):
    """Make sure that `folder` describes this interpreter to Jupyter, as a kernel that is quiet on TCP."""
    spec = folder / "kernel.json"
    if not (spec.is_file() and json.dumps(sys.executable) in spec.read_text(encoding="utf-8")):
        from ipykernel.kernelspec import write_kernel_spec
        draft = write_kernel_spec(overrides={"display_name": title}, extra_arguments=["--log-level=40"])
        shutil.copytree(draft, folder, dirs_exist_ok=True)  # does no harm where two of us do it at once
        shutil.rmtree(Path(draft).parent)


def learners_copy():
    """Copy the notebooks, without their outputs, to my_work/; whatever is there already stays as it is."""
    for source in (path for kind in ("ipynb", "png", "svg") for path in NOTEBOOKS.rglob("*." + kind)):
        target = START.parent / source.relative_to(NOTEBOOKS)
        if os.path.lexists(target) or ".ipynb_checkpoints" in target.parts:
            continue
        content = source.read_bytes()
        if source.suffix == ".ipynb":
            notebook = json.loads(content)
            notebook["metadata"]["kernelspec"] = {"name": KERNEL, "display_name": TITLE, "language": "python"}
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    cell.update(outputs=[], execution_count=None)
            content = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        part.write_bytes(content)
        part.replace(target)  # in one step: a copy that is cut short would stay for ever
    print(f"Your copy of the course is in {START.parent}. What is there already is never overwritten.")


def running_jupyter():
    """Address (a hub's: often without its host) and root of the Jupyter we are called in; None if in none."""
    env, hub = os.environ, os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    public = env.get("JUPYTERHUB_PUBLIC_URL") or env.get("JUPYTERHUB_HOST") or ""  # few hubs tell it
    base = urljoin(public, hub) if hub else env.get("JUPYTER_SERVER_URL")  # the latter: in Lab's terminals
    return base and (base, env.get("JUPYTER_SERVER_ROOT") or "~")


def show_link(base, root):
    """Print the link to the learner's copy in the Jupyter that runs here; returns 1 if that can't show it."""
    root, start = Path(root).expanduser().resolve(), Path(ROOT).resolve() / START.relative_to(ROOT)
    if not start.is_relative_to(root):
        print(f"Jupyter runs here already, but shows only {root}. Move {ROOT} into it; then run this there.")
        return 1
    inside = start.relative_to(root).as_posix()
    link = urljoin(base, "lab/tree/" + quote(inside))
    how = "put after your workspace's host" if link.startswith("/") else "open"
    print(f"Jupyter runs here already, so nothing was started. In your browser, {how}\n\n    {link}\n\n"
          f"or, in the file browser, {inside}. If you are asked for a kernel, choose: {TITLE}.")
    return 0


def lab(port, browser):
    """Open the learner's copy in JupyterLab, as this process; in a Jupyter that runs already, by a link."""
    learners_copy()
    if running := running_jupyter():
        return show_link(*running)
    settings, workspaces = Path(ROOT, ".workshop/jupyter"), Path(ROOT, ".workshop/jupyter/lab/workspaces")
    os.environ["JUPYTER_CONFIG_DIR"] = str(settings)  # before the imports; the user's own stay as they are
    from jupyterlab.labapp import LabApp
    from jupyterlab_server.workspaces_handler import WorkspacesManager
    (settings / "labconfig").mkdir(parents=True, exist_ok=True)
    (settings / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(OVERRIDES))
    if not workspaces.exists():  # later, Lab opens as the learner left it
        WorkspacesManager(str(workspaces)).save("default", json.dumps(CONTENTS_OPEN))
    options = {"ServerApp.ip": "localhost", "ServerApp.root_dir": ROOT, "ServerApp.open_browser": browser,
               "IdentityProvider.token": os.environ.get("JUPYTER_TOKEN") or os.urandom(16).hex(),
               "LabApp.default_url": "/lab/tree/my_work/" + START.name, "ServerApp.answer_yes": True,
               "ServerApp.allow_root": True, "Application.log_level": 30, "ServerApp.port": port}
    server = LabApp.initialize_server([f"--{name}={value}" for name, value in options.items()])
    address = urljoin(server.connection_url, server.default_url) + "?token=" + server.identity_provider.token
    text = f"The course is at this address, until you press Ctrl-C here:\n\n    {address}\n"
    server.io_loop.add_callback(print, text, flush=True)  # not before its turn comes: the port is bound first
    return server.start()


def watch_memory(peak, over):
    """Until `over` is set, keep in `peak[0]` the most memory, in MB, that a child of ours (a kernel) used."""
    import psutil
    while not over.wait(0.1):
        for child in psutil.Process().children():
            try:
                status = Path(f"/proc/{child.pid}/status")  # Linux notes the peak itself, so we can't miss it
                high = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
                peak[0] = max(peak[0], int(high[1]) / 1024 if high else child.memory_info().rss / 2**20)
            except (psutil.Error, OSError):
                pass  # it ended while we looked


def execute(path, output):
    """Run a notebook and write the executed copy; returns what the report says of it, the result last."""
    import papermill
    begin, result, copy = time.perf_counter(), "ok", output / path.name
    peak, over = [0], threading.Event()
    threading.Thread(target=watch_memory, args=(peak, over), daemon=True).start()
    copy.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(str(path), str(copy), cwd=str(path.parent), kernel_name="python3",
                                   progress_bar={"desc": path.stem})
    except papermill.PapermillExecutionError as fault:
        last = f"{fault.ename}: {fault.evalue}".strip().splitlines()[-1]
        result = f"FAILED in cell {fault.cell_index + 1}: {last}"
    except Exception as fault:  # a dead kernel, a damaged file: the other notebooks still get their turn
        result = f"FAILED: {type(fault).__name__}: " + " ".join(str(fault).split())
    over.set()
    cells = json.loads(copy.read_bytes())["cells"] if copy.exists() else []
    notes = [cell["metadata"].get("papermill", {}) for cell in cells]
    spent = [note["duration"] or 0 for note in notes if "status" in note] or [0]  # papermill's own have none
    slowest = f"cell {spent.index(max(spent)) + 1}: {max(spent):.1f} s"
    return path.stem, f"{time.perf_counter() - begin:.1f}", slowest, f"{peak[0]:.0f}", result


def run(names, output):
    """Execute notebooks, each in its own kernel; returns 1 if one failed, 2 if there is no such notebook."""
    there = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    names = {Path(name).stem.zfill(2) for name in names}
    wrong = names - set(there) - {stem[:2] for stem in there}
    if wrong or not there:
        print(f"No such notebook: {', '.join(wrong)}. There are: {', '.join(there)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the kernel is shut down
    data = Path(ROOT, ".workshop", "run")  # where "python3" is this interpreter, whatever it is elsewhere
    put_kernel(data / "kernels" / "python3", "Python 3")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(data), os.environ.get("JUPYTER_PATH"))))
    output.mkdir(parents=True, exist_ok=True)
    rows = [("notebook", "seconds", "slowest cell", "peak MB", "result")]
    rows += [execute(path, output) for stem, path in there.items() if not names or {stem, stem[:2]} & names]
    lines = ["<tr><td>" + "<td>".join(html.escape(text) for text in row) for row in rows]
    head = "<!doctype html><meta charset=utf-8><title>Notebooks</title><table cellpadding=6>"
    (output / "report.html").write_text("\n".join([head, *lines]), encoding="utf-8")
    print("\n".join("{:24} {:>8}  {:18} {:>8}  {}".format(*row) for row in rows), f"\n\nMore in {output}")
    return int({row[-1] for row in rows[1:]} != {"ok"})


def main(argv):
    """Run one verb with its arguments; returns the exit code."""
    top = argparse.ArgumentParser(prog="python3 -m workshop")
    verbs = top.add_subparsers(dest="verb", required=True)
    part = {name: verbs.add_parser(name, description=text, epilog=f"Example: {top.prog} {EXAMPLES[name]}")
            for name, text in VERBS.items()}
    part["lab"].add_argument("--port", type=int, default=8888, help="the first to try; 8888 if not given")
    part["lab"].add_argument("--no-browser", action="store_true", help="only print the address")
    part["run"].add_argument("notebooks", nargs="*", metavar="NN", help="02, or 02_train_model; else all")
    part["run"].add_argument("--output", metavar="DIR", type=Path, default=Path(ROOT, "runs"))
    if argv[0] == "test" and {"-h", "--help"} & set(argv):
        print(part["test"].format_help() + "\nThe rest is pytest's:\n", flush=True)
    args = top.parse_args(argv[:1] if argv[0] == "test" else argv)  # pytest reads its own
    try:
        if args.verb == "doctor":
            return doctor.main()
        from jupyter_core.paths import jupyter_data_dir
        put_kernel(kernel := Path(jupyter_data_dir(), "kernels", KERNEL), TITLE)
        if args.verb == "run":
            return run(args.notebooks, args.output.absolute())
        os.chdir(ROOT)
        if args.verb == "test":
            hand_over([sys.executable, "-m", "pytest", "-m", "not campaign", *argv[1:]])  # the last -m counts
        if args.verb == "lab":
            return lab(args.port, not args.no_browser)
        print("\n".join(lacking := doctor.lacking()) or f"Ready: environment {sys.prefix}, kernel {kernel}.")
        return int(bool(lacking))
    except (KeyboardInterrupt, OSError) as error:
        print(f"\n`{args.verb}` was stopped: {str(error) or 'interrupted'}.", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
