"""Run a FastAPI app from a notebook cell, or the production API, as a process of its own; tell its addresses.

The other process sees no variable of the notebook: it gets the text of the app's cell and runs that. So it
answers while the notebook computes, is spared by the interrupt button, and ends when the kernel is gone.
"""
import functools
import html
import inspect
import json
import linecache
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from workshop import ROOT

PATIENCE = 30  # seconds that an app may take until it answers
ALONE = "The server is another process: it sees only the text of this cell, so"
_running = {}  # the server launched last under each name; it ends with us (see _watch)


class ServerError(RuntimeError):
    """An app could not be launched; the message says why, with the app's own last lines."""
    def _render_traceback_(self):  # what IPython shows: our own frames would not help a learner
        return [f"ServerError: {self}"]


def launch(app, name="app", access_log=True):
    """Run `app` in another process, wait until it answers, show its addresses and return its `Server`.

    The server launched before under this `name` is stopped and its port used again; the first takes port
    8000; where that is taken, any free port. With `access_log`, each request is a line in its log. The app
    must stand as a whole in one cell or module file: ServerError if not, or if it is not ready in 30 seconds.
    """
    if getattr(sys.modules["__main__"], "__file__", None) == __file__:  # or children would launch children
        raise ServerError("launch() belongs in another cell than the app: the server runs that cell.")
    if not hasattr(app, "openapi_url"):
        raise ServerError(f"launch() takes a FastAPI app, as in launch(app), not {app!r:.80}.")
    routes = [route for top in app.routes  # FastAPI keeps the routes of an included router one level down
              for route in getattr(getattr(top, "original_router", None), "routes", [top])]
    own = [(inspect.unwrap(route.endpoint), route.path) for route in routes if hasattr(route, "endpoint")
           and not route.endpoint.__module__.startswith(("fastapi.", "starlette."))]
    files = {function.__code__.co_filename: path for function, path in own}  # or IPython's names of cells
    if len(files) > 1:
        first, second, *_ = files.values()
        raise ServerError(f"{first} and {second} are in two cells. {ALONE} one cell must hold the whole app.")
    if not files:
        raise ServerError("The app has no endpoint: write one in the cell that makes the app.")
    names = [name for name, value in own[0][0].__globals__.items() if value is app]
    return Server(name, app.docs_url or "", *files, names, access_log=access_log)


def launch_service(workers=1, name="service"):
    """Run the production API, as `python3 -m workshop serve` does, in `workers` processes; see `launch`."""
    return Server(name, "/docs", workers=workers)


class Server:
    """A launched app: `url` for programs on this machine, `public_url` for your browser, `port`, `pid`."""
    url = property(lambda self: f"http://127.0.0.1:{self.port}")
    public_url = property(lambda self: public_address(self.port))
    running = property(lambda self: self._process.poll() is None)
    pid = property(lambda self: self._process.pid)

    def __init__(self, name, docs, file="", names=(), workers=1, access_log=False):
        if old := _running.get(name):
            old.stop()
        self.name, self._docs, self._text = name, docs, ""
        self._folder, self._file = Path(tempfile.mkdtemp()), file
        if file and not os.path.exists(file):  # a cell: IPython keeps its text where tracebacks look it up
            self._file = str(self._folder / "the app's cell")
            Path(self._file).write_text("".join(linecache.getlines(file)), encoding="utf-8")
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
        plain = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PYTHON_COLORS": "0"}
        task = json.dumps([str(self._folder), os.getpid(), old.port if old else 8000, self._file, names,
                           workers, access_log])
        with open(self._folder / "log", "wb") as log:  # not a pipe: it would fill up and block the server
            self._process = subprocess.Popen(  # out of reach of the interrupt button: a session of its own
                [sys.executable, "-m", "workshop.server", task], env=os.environ | plain, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.PIPE, start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))  # the same on Windows
        try:
            self.port = self._ready(workers, time.monotonic() + PATIENCE)
        except BaseException:  # the interrupt button too
            self.stop()
            raise
        _running[name] = self
        from IPython.display import display
        display(self)

    def _ready(self, workers, deadline):
        """Wait until all its workers say that they answer, and return their port."""
        while len(told := list(self._folder.glob("port-*"))) < workers:
            if not self.running or time.monotonic() > deadline:
                what = f"was not ready after {PATIENCE} seconds" if self.running else "did not start"
                last = self.log(60).rpartition("Traceback (most recent call last):\n")[2] + "\n"
                own = re.sub(r'(?m)^(  File ".*\n(    .*\n)*|[A-Z]+: {4}.*\n)', "", last)  # our frames out
                if "NameError: " in own:
                    own += f"{ALONE} import and define there all it needs."
                raise ServerError(f"The app {what}. Its last lines:\n{own}".rstrip())
            time.sleep(0.02)
        return int(told[0].name.split("-")[1])

    def stop(self):
        """End the process (kill it if that takes 5 seconds), which frees its port; twice does no harm."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()  # which does nothing if it has ended
        self._process.wait()
        self.log()  # keeps the text
        shutil.rmtree(self._folder, ignore_errors=True)

    def log(self, last=20):
        """Return the last lines of what the server printed, as text; with access_log, each request is one."""
        if self._folder.exists():
            text = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
            self._text = text.replace(f'File "{self._file}", line', f"{Path(self._file).name}, line")
        return "\n".join(self._text.splitlines()[-last:])

    def docs(self, height=500, path=None):
        """Return the app's interactive documentation, or another page of it, to show under the cell."""
        from IPython.display import HTML  # not IFrame, whose text form holds a memory address
        address, shown = self.public_url + (path or self._docs), ""
        with suppress(OSError):  # what is to be seen where the browser can't reach the server: see wait.html
            shown = urlopen(self.url + (path or "/openapi.json"), timeout=5).read().decode()
        # The frame opens the page when the server has answered twice: in Run All it may soon be replaced.
        page = (Path(__file__).parent / "wait.html").read_text(encoding="utf-8").rstrip("\n")
        page = page.replace("DATA", json.dumps([address, shown]).replace("<", "\\u003c"), 1)
        return HTML(f'<div><iframe srcdoc="{html.escape(page)}" width="100%" height="{height}" '
                    f'title="A page of the API" style="border: thin solid"></iframe></div>')

    def __repr__(self):
        docs = f"Its docs, for your browser: {self.public_url}{self._docs}"
        runs = f"{self.name} runs. For programs on this machine: {self.url}\n{docs}"
        return runs if self.running else f"{self.name} is stopped."

    def _repr_html_(self):
        return re.sub(r"\n(.*: )(.*)", r'<br>\1<a href="\2" target="_blank">\2</a>', html.escape(repr(self)))


def public_address(port):
    """Return the address of this machine's `port` in the participant's browser, without a last slash."""
    from jupyter_core.paths import jupyter_runtime_dir
    # A Jupyter server keeps a file of this name, and tells its kernels its pid (not so on Windows).
    jupyter = Path(jupyter_runtime_dir(), f"jpserver-{os.environ.get('JPY_PARENT_PID')}.json")
    base = json.loads(jupyter.read_text())["base_url"] if jupyter.exists() else None
    if base := base or os.environ.get("JUPYTERHUB_SERVICE_PREFIX"):
        return f"{base.rstrip('/')}/proxy/{port}"  # made by jupyter-server-proxy
    elsewhere = os.environ.get("VSCODE_PROXY_URI") or "http://127.0.0.1:{{port}}"  # such as code-server
    return elsewhere.replace("{{port}}", str(port)).rstrip("/")


def listen(port, host="127.0.0.1"):
    """Return a socket that listens on the port; raises OSError where it is taken."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # Only where the socket says TCP does asyncio set TCP_NODELAY; without it an answer waits for 40 ms.
    return socket.socket(listener.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())


def serve(listener, workers=1, ready=None):
    """Serve the production API in `workers` processes; each awaits `ready()` once it answers."""
    import uvicorn
    from workshop import registry

    config = uvicorn.Config("workshop.api:create_app", factory=True, workers=workers, log_level="warning",
                            http="workshop.api:Heads", access_log=False, server_header=False,
                            date_header=False, proxy_headers=False, callback_notify=ready,
                            timeout_graceful_shutdown=5)
    registry.kept_model(lambda text: print(text, file=sys.stderr))  # before workers all look for it
    if workers == 1:
        return uvicorn.Server(config).run([listener])
    with tempfile.TemporaryDirectory() as counts:  # where they add up what they count
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
        uvicorn.supervisors.Multiprocess(config, [listener]).run()


def _main(folder, parent, port, file, names, workers, access_log):
    """The child: take a port, serve the app of a file, or the production API; end when the parent is gone."""
    threading.Thread(target=_watch, args=(folder, parent), daemon=True).start()
    tempfile.tempdir = folder  # what is put there goes with it
    try:
        listener = listen(port)
    except OSError:  # it is taken
        listener = listen(0)
    ready = functools.partial(_tell, folder, listener.getsockname()[1])
    if not file:
        return serve(listener, workers, ready)
    import uvicorn
    from workshop.web import for_browsers
    module = sys.modules["app_cell"] = types.ModuleType("app_cell")
    module.__file__ = file
    exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    apps = [value for name, value in vars(module).items() if name in names and hasattr(value, "openapi_url")]
    if not apps:
        sys.exit("There is no FastAPI app where its first endpoint stands: keep them together.")
    uvicorn.Server(uvicorn.Config(for_browsers(apps[0]), use_colors=False, access_log=access_log,
                                  callback_notify=ready, timeout_graceful_shutdown=2)).run([listener])


async def _tell(folder, port):
    Path(folder, f"port-{port}-{os.getpid()}").touch()  # each worker a file of its own


def _watch(folder, parent):
    """End with the parent. On Windows the end of stdin tells; elsewhere a fork could hold that open."""
    while (os.getppid() == parent) if os.name == "posix" else os.read(0, 1):
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
