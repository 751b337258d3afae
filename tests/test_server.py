"""A server launched from a notebook cell: real kernels, real processes, only this machine's own network."""
import html
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urljoin

import nbclient
import nbformat
import psutil
import pytest
import requests
from jupyter_client import BlockingKernelClient, KernelManager

from workshop import ROOT, server

APP = """\
from fastapi import FastAPI
app = FastAPI(title="Doubles")
@app.post("/double")
def double(x: int) -> dict:
    return {"answer": FACTOR * x}
"""
APP, TRIPLE = APP.replace("FACTOR", "2"), APP.replace("FACTOR", "3")
LAUNCH = "from workshop.server import launch\nserver = launch(app)"
WHERE = "print(server.pid, server.port, server._folder)"


def eventually(condition, seconds=20):
    """Poll until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def gone(pid, port, folder):
    """True if the server has left neither a process nor a taken port nor its files."""
    def ours(listener):  # another test's server may have taken the port meanwhile
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return str(folder) in " ".join(psutil.Process(listener).cmdline())

    try:
        ended = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # not collected by a container's init
    except psutil.NoSuchProcess:
        ended = True
    listeners = {one.pid for one in psutil.net_connections("tcp") if one.status == "LISTEN"
                 and one.laddr.port == port}
    return ended and not any(map(ours, listeners)) and not Path(folder).exists()


def run(client, *cells):
    """Run cells in a kernel; return what the last one printed and showed, or its error."""
    for cell in cells:
        shown = []

        def hook(message):
            content = message["content"]
            shown.append(content.get("text") or "\n".join(content.get("traceback", []))
                         or content.get("data", {}).get("text/plain", ""))
        client.execute_interactive(cell, output_hook=hook, timeout=60)
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(filter(None, shown)))


def where(client):
    """Process, port and private folder of the kernel's server."""
    pid, port, folder = run(client, WHERE).split()
    return int(pid), int(port), folder


@pytest.fixture(scope="module")
def new_kernel(tmp_path_factory):
    """Start a kernel: its manager, a client, and the folder it runs in."""
    managers = []

    def start():
        manager, folder = KernelManager(kernel_name="python3"), tmp_path_factory.mktemp("kernel")
        manager.start_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": ROOT})
        client = manager.blocking_client()
        client.start_channels()
        managers.append((manager, client))
        client.wait_for_ready(timeout=60)
        return manager, client, folder
    yield start
    for manager, client in managers:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def started_kernel(new_kernel):
    return new_kernel()


@pytest.fixture
def kernel(started_kernel):
    """A client of a kernel that the tests share: what one has launched, the next replaces."""
    return started_kernel[1]


@pytest.fixture
def launched(tmp_path):
    """Launch an app that stands in a module file, as often as wanted; all is stopped at the end."""
    def start(text=APP, **options):
        path = tmp_path / "my_app.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("my_app", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return server.launch(module.app, **options)
    yield start
    for started in server._running.values():
        started.stop()
    server._running.clear()


# --- where a proxy leads to the web ---

NOBODY = "http://127.0.0.1:9"  # a proxy that does not answer


@pytest.mark.parametrize("room", [{"http_proxy": NOBODY}, {"HTTP_PROXY": NOBODY, "NO_PROXY": "files.test"},
                                  {"ALL_PROXY": "socks5://127.0.0.1:9", "no_proxy": "files.test"},
                                  {"http_proxy": NOBODY, "no_proxy": "*"}], ids=str)
def test_a_server_on_this_machine_is_asked_directly(room, launched):
    ask = """import os, requests, sys, urllib.request, workshop
print(requests.post(sys.argv[1]).json(), urllib.request.urlopen(sys.argv[1], b"").status)
past = [requests.utils.should_bypass_proxies(f"http://{name}.test", None) for name in ("files", "web")]
if os.environ["no_proxy"] != "*":
    print("others as before:", past == ["files.test" in os.environ["no_proxy"], False])
    os.execl(sys.executable, sys.executable, "-c", "import os, workshop; print(os.environ['no_proxy'])")"""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    told = subprocess.check_output([sys.executable, "-c", ask, launched().url + "/double?x=4"], cwd=ROOT,
                                   env=clean | room | {"PYTHONUNBUFFERED": "1"}, text=True)
    assert told.startswith("{'answer': 8} 200\n")
    if "*" not in room.values():
        others = room.get("no_proxy", room.get("NO_PROXY", ""))
        assert told.endswith(f"others as before: True\n127.0.0.1,localhost,{others}\n"), "once, in children too"


# --- from a cell ---

def test_an_app_in_a_cell_answers_and_running_the_cells_again_replaces_it(kernel):
    shown = run(kernel, APP, LAUNCH)
    first, port, folder = where(kernel)
    url = f"http://127.0.0.1:{port}"
    assert shown == (f"app runs. For programs on this machine: {url}\n"
                     f"Its docs, for your browser: {url}/docs")
    assert requests.post(f"{url}/double", params={"x": 4}).json() == {"answer": 8}

    run(kernel, TRIPLE + "other = FastAPI()", LAUNCH)  # served is the one that is launched, by its name
    second, same_port, _ = where(kernel)
    assert same_port == port and second != first
    assert requests.post(f"{url}/double", params={"x": 4}).json() == {"answer": 12}
    assert not psutil.pid_exists(first) and not Path(folder).exists()

    assert "POST /double?x=4" in run(kernel, "print(server.log(last=1))")
    assert run(kernel, "server.stop()\nserver.stop()\nprint(server)").strip() == "app is stopped."
    assert gone(second, port, folder)


def test_two_kernels_on_one_machine_get_a_port_each(kernel, new_kernel):
    _, other, _ = new_kernel()
    run(kernel, APP, LAUNCH)
    run(other, TRIPLE, LAUNCH)
    answers = [requests.post(f"http://127.0.0.1:{where(client)[1]}/double", params={"x": 4}).json()["answer"]
               for client in (kernel, other)]
    assert answers == [8, 12]


START_UP_ERRORS = {
    "an import is missing":
        (["from fastapi import FastAPI"], APP.replace("from fastapi import FastAPI", ""),
         "  the app's cell, line 1, in <module>\n", "NameError: name 'FastAPI' is not defined",
         "sees only the text of this cell"),
    "it uses what another cell defines":
        (["factor = 2"], APP.replace("app =", "twice = factor\napp ="), "  the app's cell, line 2, in <module>\n",
         "NameError: name 'factor' is not defined", "sees only the text of this cell"),
    "it fails in its lifespan":
        ([], "from contextlib import asynccontextmanager\n@asynccontextmanager\nasync def life(app):\n"
         "    1 / 0\n    yield\n" + APP.replace("title=", "lifespan=life, title="),
         "  the app's cell, line 4, in life\n    1 / 0", "ZeroDivisionError: division by zero"),
    "a library raises":
        ([], APP + "import sys\n'ipykernel' in sys.modules or __import__('json').loads('{')\n",
         "the app's cell, line 7, in <module>", "JSONDecodeError: Expecting property name"),
    "it ends without a traceback":
        ([], APP + "import sys\n'ipykernel' in sys.modules or sys.exit('no data file')\n", "no data file"),
    "it launches itself":
        ([], APP + "import sys\nif 'ipykernel' not in sys.modules:\n    from workshop.server import launch\n"
         "    launch(app)\n", "launch() belongs in another cell than the app"),
}


def test_a_start_up_error_shows_the_apps_own_last_lines_and_nothing_of_ours(kernel):
    run(kernel, APP, LAUNCH)
    before = where(kernel)
    for what, (earlier, app, *expected) in START_UP_ERRORS.items():
        shown = run(kernel, *earlier, app, LAUNCH)
        assert shown.startswith("ServerError: The app did not start."), what
        assert [line for line in expected if line not in shown] == [], what
        assert not re.search(r"uvicorn|runpy|importlib|json/|server\.py|/tmp|File|INFO|ERROR", shown), what
    assert gone(*before)  # no old app goes on answering in place of the new
    run(kernel, APP, LAUNCH)
    assert where(kernel)[1] == before[1]  # mended, it is back at its port


def test_a_route_in_another_cell_gets_a_clear_error(kernel):
    route = "@app.get('/more')\ndef more() -> int:\n    return 1"
    shown = run(kernel, APP, route, LAUNCH)
    assert shown == (
        "ServerError: /double and /more are in two cells. The server is another process: it sees only the "
        "text of this cell, so one cell must hold the whole app.")
    run(kernel, APP + route, LAUNCH)
    assert requests.get(f"http://127.0.0.1:{where(kernel)[1]}/more").json() == 1
    router = ("from fastapi import APIRouter, FastAPI\nrouter = APIRouter()\n"
              "@router.get('/r')\ndef r() -> int: return 5\n")
    run(kernel, router + "app = FastAPI()\napp.include_router(router)", LAUNCH)
    assert requests.get(f"http://127.0.0.1:{where(kernel)[1]}/r").json() == 5
    assert "no FastAPI app where its first endpoint stands" in run(
        kernel, "def f() -> int: return 1", "app = FastAPI()\napp.get('/')(f)", LAUNCH)
    assert "has no endpoint" in run(kernel, "app = FastAPI()", LAUNCH)
    assert "takes a FastAPI app, as in launch(app), not 'app'" in run(kernel, "launch('app')")


# --- the interrupt button and the end of the kernel ---

def interrupt(manager, client, cell, wait):
    """Start a cell, and interrupt the kernel as the button does once `wait()` is true."""
    client.execute(cell)
    eventually(wait)
    manager.interrupt_kernel()
    return run(client, "print('idle')")


def test_the_interrupt_button_leaves_a_server_up_and_stops_a_launch(started_kernel):
    manager, client, folder = started_kernel
    run(client, APP, LAUNCH)
    busy = "open('busy', 'w'); import time; time.sleep(600)"
    interrupt(manager, client, busy, (folder / "busy").exists)
    url = f"http://127.0.0.1:{where(client)[1]}"
    assert requests.post(f"{url}/double", params={"x": 1}).json() == {"answer": 2}

    slow = f"import sys\nif 'ipykernel' not in sys.modules:\n    {busy.replace('busy', 'loading')}\n"
    run(client, slow + APP)
    interrupt(manager, client, LAUNCH, (folder / "loading").exists)
    assert psutil.Process(manager.provisioner.pid).children() == []  # no old server, no half one


def test_nothing_is_left_when_the_kernel_restarts_or_is_killed(new_kernel):
    manager, client, _ = new_kernel()
    kill = getattr(signal, "SIGKILL", signal.SIGTERM)
    for end in (manager.restart_kernel, lambda: os.kill(manager.provisioner.pid, kill)):
        run(client, APP, LAUNCH)
        left = where(client)
        end()
        eventually(lambda: gone(*left))
        if manager.is_alive():
            client.wait_for_ready(timeout=60)


def test_nothing_is_left_when_a_headless_run_has_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    cells = [nbformat.v4.new_code_cell(cell) for cell in (APP, LAUNCH, WHERE)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "http://127.0.0.1:" in notebook.cells[1].outputs[0].data["text/html"]
    pid, port, folder = notebook.cells[2].outputs[0].text.split()
    eventually(lambda: gone(int(pid), int(port), folder))


UNSPEAKABLE = ['{"x": NaN}', '{"x": Infinity}', '{"x": 1e400}', '{"x": "\\ud800"}', '{"\\ud800": 1}', "[" * 500, "",
               "null", "[]", '"text"', "x=1", '{"x": ' + "9" * 5000 + "}", '{"x": "' + "a" * 100_000 + '"}']


@pytest.mark.parametrize("body", UNSPEAKABLE, ids=range(len(UNSPEAKABLE)))
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_whatever_is_sent_is_refused_in_words_and_is_never_the_servers_fault(strict, body, kind):
    answer = requests.post(f"{strict.url}/square", data=body, headers={"Content-Type": kind}, timeout=10)
    assert len(answer.content) < 2000
    if "99999" in body and answer.status_code == 400:
        return  # more digits than Python reads as a number: FastAPI says that the body can't be parsed
    assert answer.status_code == 422
    assert all(problem["msg"] and problem["loc"] for problem in answer.json()["detail"])
    if kind == "text/plain" and body:
        assert "Content-Type: application/json" in answer.text


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """An app whose body is a class with one strict number."""
    path = tmp_path_factory.mktemp("strict") / "strict_app.py"
    path.write_text("from fastapi import FastAPI\nfrom pydantic import BaseModel, Field\napp = FastAPI()\n"
                    "class Number(BaseModel, extra='forbid'):\n    x: float = Field(strict=True, le=100)\n"
                    "@app.post('/square')\ndef square(number: Number) -> float:\n    return number.x ** 2\n")
    spec = importlib.util.spec_from_file_location("strict_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    started = server.launch(module.app, name="strict")
    yield started
    started.stop()


DECORATED = APP.replace("@app.post", """from contextlib import ContextDecorator
class timed(ContextDecorator):
    def __enter__(self): pass
    def __exit__(self, *error): pass
@app.post""").replace("\ndef double", "\n@timed()\ndef double")


def test_an_endpoint_with_a_decorator_of_its_own_is_launched(launched):
    assert requests.post(f"{launched(DECORATED).url}/double", params={"x": 4}).json() == {"answer": 8}


# --- ports, files, time ---

def test_an_app_in_a_module_file_is_read_again_at_every_launch(launched, tmp_path):
    assert requests.post(f"{launched().url}/double", params={"x": 4}).json() == {"answer": 8}
    assert requests.post(f"{launched(TRIPLE).url}/double", params={"x": 4}).json() == {"answer": 12}
    with pytest.raises(server.ServerError, match=r"my_app.py, line 7, in <module>\n(.*\n)*ZeroDivisionError"):
        launched(APP + "import sys\n'pytest' in sys.modules or 1 / 0\n")


def test_a_port_that_was_taken_meanwhile_is_replaced(launched):
    first = launched()
    first.stop()
    with socket.create_server(("127.0.0.1", first.port)):
        second = launched()
        assert second.port != first.port and requests.get(f"{second.url}/docs").ok
    assert launched(name="other").port != second.port  # two apps side by side
    assert second.running


def test_an_app_that_takes_too_long_is_stopped(launched, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 5)
    before = psutil.Process().children()
    with pytest.raises(server.ServerError, match="not ready after 5 seconds(.*\n)*still reading") as caught:
        launched("import sys, time\nif 'pytest' not in sys.modules:\n    print('still reading')\n"
                 "    time.sleep(600)\n" + APP)
    assert caught.value._render_traceback_() == [f"ServerError: {caught.value}"]
    assert psutil.Process().children() == before


def test_three_thousand_requests_with_the_access_log_on(launched):
    started = launched(APP + "import gc, socket\n@app.get('/delays')\nasync def delays() -> list:\n"
                       "    links = [o.transport for o in gc.get_objects()"
                       " if type(o).__name__ in ('HttpToolsProtocol', 'H11Protocol')]\n"
                       "    socks = [link.get_extra_info('socket') for link in links]\n"
                       "    return [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in socks]\n")
    connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=30)
    for number in range(3000):
        connection.request("POST", f"/double?x={number}")
        assert json.load(connection.getresponse())["answer"] == 2 * number
    assert started.log(10_000).count("POST /double") == 3000
    connection.request("GET", "/delays")
    delays = json.load(connection.getresponse())
    assert delays and all(delays)  # every connection sends at once: no 40 ms for an answer
    started.stop()
    assert "POST /double?x=2999" in started.log()  # the log can still be read


def test_each_request_is_a_line_of_the_log_unless_the_access_log_is_off(launched):
    logs = []
    for options in ({}, {"access_log": False}):
        started = launched(**options)
        assert requests.post(f"{started.url}/double", params={"x": 1}).ok
        started.stop()  # after that, nothing more can be written
        logs.append(started.log())
    assert "POST /double?x=1" in logs[0] and "/double" not in logs[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has loaded")
def test_a_service_is_launched_when_all_its_workers_have_loaded_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("WORKSHOP_LOG_DIR", str(tmp_path / "logs"))
    started = server.launch_service(workers=2)
    try:
        loaded = [child for child in psutil.Process(started.pid).children()
                  if any("onnxruntime" in part.path for part in child.memory_maps())]
        assert len(loaded) == 2
    finally:
        server._running.pop("service").stop()


def test_importing_the_helper_is_cheap():
    code = "import sys, workshop.server; sys.exit(bool({'uvicorn', 'fastapi', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- addresses and documentation ---

@pytest.mark.parametrize("environment, address", [
    ({}, "http://127.0.0.1:8123"),
    ({"JPY_PARENT_PID": "4711"}, "/user/learner/proxy/8123"),
    ({"JPY_PARENT_PID": "4711", "JUPYTERHUB_SERVICE_PREFIX": "/else/"}, "/user/learner/proxy/8123"),
    ({"JPY_PARENT_PID": "1"}, "http://127.0.0.1:8123"),
    ({"JUPYTERHUB_SERVICE_PREFIX": "/user/jo%40x.org/"}, "/user/jo%40x.org/proxy/8123"),
    ({"VSCODE_PROXY_URI": "https://code.example.org/proxy/{{port}}/"}, "https://code.example.org/proxy/8123"),
])
def test_the_address_for_the_participants_browser(environment, address, tmp_path, monkeypatch):
    for name in ("JPY_PARENT_PID", "JUPYTERHUB_SERVICE_PREFIX", "VSCODE_PROXY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "jpserver-4711.json").write_text('{"base_url": "/user/learner/"}')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert server.public_address(8123) == address


def check_docs(page_url, **options):
    """Fetch /docs with all it needs, as a browser would: no address leaves the place the page came from."""
    page = requests.get(page_url, **options)
    assert page.status_code == 200 and "http" not in re.sub(r"<!--.*?-->", "", page.text)
    links = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", page.text)
    found = [requests.get(urljoin(page_url, a or b), **options) for a, b in links]
    assert [answer.status_code for answer in found] == [200] * 4
    assert sorted(answer.headers["content-type"].split(";")[0] for answer in found) == [
        "application/json", "image/png", "text/css", "text/javascript"]
    return next(answer.json() for answer in found if "json" in answer.headers["content-type"])


@pytest.mark.parametrize("docs_url", ["/docs", "/api/v1/docs"])
def test_the_docs_need_no_network_and_know_their_prefix(launched, docs_url):
    anything = "@app.get('/{anything:path}')\ndef anything(anything: str) -> str:\n    return anything\n"
    started = launched(APP.replace("title=", f"docs_url={docs_url!r}, title=") + anything)
    frame = html.unescape(started.docs(300).data)
    assert f'const [address, inlined] = ["{started.public_url}{docs_url}", ' in frame
    assert 'title="A page of the API"' in frame
    assert f'<a href="{started.public_url}{docs_url}" target="_blank">' in started._repr_html_()
    assert "servers" not in check_docs(started.url + docs_url)
    assert requests.get(f"{started.url}/redoc").json() == "redoc"  # free: ReDoc needs a network
    prefix = "/user/jo%40x.org/proxy/8000"
    schema = check_docs(started.url + docs_url, headers={"X-Forwarded-Prefix": prefix})
    assert schema["servers"] == [{"url": prefix}]
    for forged in ("//evil.example", "https://evil.example", "/'};alert(1)//"):
        assert "servers" not in check_docs(started.url + docs_url, headers={"X-Forwarded-Prefix": forged})


@pytest.fixture
def jupyter(tmp_path):
    """A Jupyter server with a base address like a hub's, and a client of a kernel that it has started."""
    runtime, printed = tmp_path / "runtime", tmp_path / "jupyter.log"
    settings = {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(tmp_path), "PYTHONPATH": ROOT}
    command = [sys.executable, "-m", "jupyter_server", "--ServerApp.base_url=/user/learner/", "--port=0",
               "--no-browser", "--IdentityProvider.token=secret", "--allow-root"]
    with open(printed, "w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log,
                                   cwd=tmp_path)
    try:
        eventually(lambda: "is running at" in printed.read_text())
        address = json.loads(next(runtime.glob("jpserver-*.json")).read_text())["url"]
        kernels = []

        def start():  # Jupyter says its address a little before it answers there
            with suppress(requests.ConnectionError):
                kernels.append(requests.post(f"{address}api/kernels?token=secret").json()["id"])
            return kernels
        eventually(start)
        client = BlockingKernelClient(connection_file=str(runtime / f"kernel-{kernels[0]}.json"))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield process, address, client
        client.stop_channels()
    finally:
        process.kill()
        process.wait()


def test_behind_a_hubs_jupyter_the_shown_address_works_and_a_killed_jupyter_leaves_nothing(jupyter):
    process, address, client = jupyter
    shown = run(client, APP, LAUNCH)
    left = where(client)
    assert shown.endswith(f"Its docs, for your browser: /user/learner/proxy/{left[1]}/docs")
    public = urljoin(address, run(client, "print(server.public_url)").strip())
    token = {"Authorization": "token secret"}
    schema = check_docs(f"{public}/docs", headers=token)
    assert schema["servers"] == [{"url": f"/user/learner/proxy/{left[1]}"}]
    assert requests.post(f"{public}/double", params={"x": 4}, headers=token).json() == {"answer": 8}
    process.kill()
    eventually(lambda: gone(*left))


@pytest.mark.campaign
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
def test_a_browser_without_network_shows_the_docs_behind_a_hubs_jupyter(jupyter, tmp_path):
    _, address, client = jupyter
    run(client, APP, LAUNCH)
    page = urljoin(address, run(client, "print(server.public_url)").strip()) + "/docs?token=secret"
    page = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost", "--virtual-time-budget=20000", page],
        capture_output=True, text=True, timeout=120).stdout
    assert 'data-path="/double"' in page and "Doubles" in page and "Failed to load" not in page
