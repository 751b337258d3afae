"""A real browser goes through the course, as a learner does, on this machine's own network only.

The name of a test in CI's quick sample says "browser", and no other name here does: see .ci/run.
"""
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import nbformat
import psutil
import pytest
import requests
import websocket

from conftest import tried
from test_api import Browser, gone
from test_cli import JUPYTER_AROUND_US, answers, copy_checkout
from test_server import eventually

from workshop import ROOT, registry
from workshop.forecaster import Storm, forecast

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(
    not shutil.which("chromium") and not os.environ.get("CI"), reason="needs the browser chromium")]

NOTEBOOKS = [path.stem for path in sorted(Path(ROOT, "notebooks").glob("[0-9][0-9]_*.ipynb"))]
QUICK = {name: f"{name} in a browser" for name in ("00_start_here", "04_serve_api")}
AROUND_US = (*JUPYTER_AROUND_US, "VSCODE_PROXY_URI", "CODESPACE_NAME")
PATIENCE = 300  # seconds for a notebook: a laptop is busy with other things, too
HERE = ".jp-NotebookPanel:not(.lm-mod-hidden)"  # the notebook that is seen, not one in a tab behind it
counted = Counter()  # notebooks begun and ended, requests, and those of them to elsewhere

# Helpers in the page. What lies behind a text may be several layers, each letting through what is below.
HELPERS = """
function frame(number) {
  return document.querySelectorAll("%s .jp-OutputArea iframe")[number]?.contentDocument
}
function paint(colour) {
  const brush = document.createElement("canvas").getContext("2d")
  brush.fillStyle = colour
  brush.fillRect(0, 0, 1, 1)
  return [...brush.getImageData(0, 0, 1, 1).data]
}
function background(element) {
  const layers = []
  for (let at = element, frame; at; at = at.parentElement ?? frame) {
    layers.push(paint(getComputedStyle(at).backgroundColor))
    frame = at.ownerDocument.defaultView.frameElement
    if (!at.parentElement && frame && getComputedStyle(frame).colorScheme != getComputedStyle(at).colorScheme)
      layers.push([255, 255, 255, 255])  // a light page in a dark one is put on white
  }
  return layers.reverse().reduce((under, over) =>
    under.map((value, i) => value + (over[i] - value) * over[3] / 255), [255, 255, 255])
}
function light(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}
function contrast(element) {
  const [a, b] = [paint(getComputedStyle(element).color), background(element)].map(light)
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
}
function texts(root) {  // what carries words of its own, and is seen
  return [root, ...root.querySelectorAll("*")].filter(element => element.checkVisibility() &&
    !["SCRIPT", "STYLE"].includes(element.tagName) &&
    [...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim()))
}
function middle(selector, text = "") {  // where to click on it, once it is seen; a notebook scrolls to it
  const found = [...document.querySelectorAll(selector)].find(element =>
    element.textContent.includes(text) && element.checkVisibility())
  const notebook = document.querySelector("%s .jp-WindowedPanel-outer")
  if (!found && notebook?.scrollBy(0, 300)) return
  found?.scrollIntoView({block: "center"})
  const box = found?.getBoundingClientRect(), at = box && [box.x + box.width / 2, box.y + box.height / 2]
  return at && found.contains(document.elementFromPoint(...at)) && at
}
""" % (HERE, HERE)


class Window(Browser):
    """A window, what a learner does in JupyterLab, and the requests of all in it: pages, frames, workers."""

    WATCH = {"Network.enable": {}, "Target.setAutoAttach": {
        "autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}}

    def __init__(self, folder):
        super().__init__(folder)
        self.tab.settimeout(120)  # the page may be busy for long
        self.number = 0
        for method, parameters in self.WATCH.items():
            self.call(method, **parameters)
        self.call("Page.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1,
                  mobile=False)

    def send(self, method, session=None, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.tab.send(json.dumps(message | ({"sessionId": session} if session else {})))
        return self.number

    def call(self, method, **parameters):
        number = self.send(method, **parameters)
        while (message := json.loads(self.tab.recv())).get("id") != number:
            self.note(message.get("method"), message.get("params", {}))
        assert "result" in message, message
        return message["result"]

    def note(self, event, told):
        if event == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.requested.append(told["url"])
        elif event == "Target.attachedToTarget":  # a worker, or a frame in another process: it waits for us
            for method, parameters in self.WATCH.items():
                self.send(method, told["sessionId"], **parameters)
            self.send("Runtime.runIfWaitingForDebugger", told["sessionId"])
        elif event == "Page.javascriptDialogOpening":  # "leave this page?"
            self.send("Page.handleJavaScriptDialog", accept=True)

    def ask(self, expression):
        done = self.call("Runtime.evaluate", returnByValue=True, expression=(
            f"(() => {{ {HELPERS} const value = {expression}; return value?.nodeType ? true : value }})()"))
        assert "exceptionDetails" not in done, done["exceptionDetails"]["exception"]["description"]
        return done["result"].get("value")

    def wait(self, expression, seconds=60):
        """Poll until the expression is true, and give its value; else say what is to be seen."""
        found = []
        try:
            eventually(lambda: found.append(self.ask(expression)) or found[-1], seconds)
        except AssertionError as late:
            seen = self.ask("[document, frame(0), frame(1), frame(2)].map(page => page?.body?.innerText)")
            told = [f"{expression}: {late}, but:", *(str(text)[-1500:] for text in seen)]
            raise AssertionError("\n".join(told)) from None
        return found[-1]

    def click(self, selector, text=""):
        find, before = f"middle({json.dumps(selector)}, {json.dumps(text)})", None
        while (place := self.wait(find)) != before:  # the page still moves
            before = place
        x, y = place
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=1,
                      button="none" if kind == "mouseMoved" else "left")

    def menu(self, name, entry):
        self.click(".lm-MenuBar-itemLabel", name)
        self.click(".lm-Menu-itemLabel", entry)
        self.wait("!document.querySelector('.lm-Menu')")

    def open(self, address):
        """Open a notebook at its own address, and wait until its kernel is there."""
        self.call("Page.navigate", url=address)
        name = Path(urlsplit(address).path).name
        self.wait(f"document.querySelector('.lm-DockPanel-tabBar .lm-mod-current')?.textContent == '{name}'")
        self.wait(f"!document.querySelector('#jupyterlab-splash') && {IDLE}")

    def run_all(self, path, times=1):
        """Run All Cells, again and again; then all have run, in their order, and none has complained."""
        for time in range(times):
            counted["begun"] += 1
            self.menu("Run", "Run All Cells")
            eventually(lambda: self.has_run(path, time), PATIENCE)
            counted["ended"] += 1

    def has_run(self, path, before):
        """Whether it has run once more. It is saved and read from disk: the page does not hold all cells."""
        if not self.ask(IDLE):
            return False
        self.menu("File", "Save Notebook")
        with suppress(nbformat.reader.NotJSONError):  # it is just being written
            cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
            bad = [output for cell in cells for output in cell.outputs
                   if output.output_type == "error" or output.get("name") == "stderr"]
            assert not bad, json.dumps(bad, indent=1)[:3000]
            first = before * len(cells) + 1
            return [cell.execution_count for cell in cells] == list(range(first, first + len(cells)))

    def run_up_to(self, text):
        """Run the cell with this text, and before it all that stand above."""
        chosen = f"{CHOSEN}?.textContent.includes({json.dumps(text)})"
        eventually(lambda: self.ask(chosen) or self.click(f"{HERE} .jp-CodeCell .cm-line", text), 60)
        self.menu("Run", "Run All Above Selected Cell")
        assert self.ask(chosen)
        self.menu("Run", "Run Selected Cell and Do not Advance")
        self.wait(f"/\\d/.test({CHOSEN}.querySelector('.jp-InputPrompt').textContent) && {IDLE}", PATIENCE)

    def readable(self, what, least=4.5):
        """That all words in an element stand out from what is behind them, as WCAG 2 (AA) measures it."""
        seen = self.ask(f"texts({what}).map(each => [each.textContent.trim().slice(0, 40), contrast(each)])")
        assert seen and [(text, value) for text, value in seen if value < least] == []


CHOSEN = f"document.querySelector('{HERE} .jp-Cell.jp-mod-active')"
IDLE = f"document.querySelector('{HERE} .jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'"


class Place:
    """A Jupyter with the course in it: the address that the learner opens first, and the files."""

    def __init__(self, start, token, course):
        self.start, self.token, self.course = start, token, course
        self.url = start.split("lab/tree/")[0]

    def page(self, name):
        """The address of a notebook, alone in the window."""
        return f"{self.start.replace('00_start_here', name)}?reset&token={self.token}"

    def work(self, name):
        return self.course / "my_work" / f"{name}.ipynb"

    def api(self, method, path, **body):
        answer = requests.request(method, f"{self.url}{path}", json=body or None, timeout=60,
                                  headers={"Authorization": f"token {self.token}"})
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def sessions(self, name):
        return [one for one in self.api("GET", "api/sessions") if Path(one["path"]).stem == name]

    def opened(self, page, name, address=None):
        """Open a notebook in a kernel of its own, the course's: its cells count from 1."""
        for session in self.sessions(name):
            self.api("DELETE", f"api/sessions/{session['id']}")
        page.open(address or self.page(name))
        eventually(lambda: [one["kernel"]["name"] for one in self.sessions(name)] == ["production-ml"], 60)
        page.wait(IDLE)

    def runs(self, page, name, times=1, address=None):
        self.opened(page, name, address)
        page.run_all(self.work(name), times)


def settings(folder):
    """Environment variables without a Jupyter around us; what Jupyter and IPython keep is in the folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(AROUND_US)}
    return clean | {"JUPYTER_DATA_DIR": str(folder / "data"), "IPYTHONDIR": str(folder / "ipython")}


@contextmanager
def running(command, told, **options):
    """A Jupyter, as process and as the address that it tells; it ends, and leaves no process behind."""
    with open(told, "w") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, **options)
    try:
        eventually(lambda: process.poll() is not None or "token=" in told.read_text(), 120)
        assert process.poll() is None, told.read_text()
        address = re.search(r"http://localhost:\S+token=\w+", told.read_text())[0]
        assert answers(address)  # it tells its address before it listens there
        yield process, address
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        eventually(lambda: gone(family), 60)
    finally:
        if process.is_running():
            process.kill()
            process.wait()


@contextmanager
def lab(folder):
    """`python3 -m workshop lab` in a copy of the checkout."""
    course = copy_checkout(folder / "a course's folder")
    command = [sys.executable, "-m", "workshop", "lab", "--no-browser"]
    with running(command, folder / "told", cwd=course, env=settings(folder)) as (_, address):
        yield Place(*address.split("?token="), course)


@pytest.fixture(scope="module")
def at_the_root(tmp_path_factory):
    with lab(tmp_path_factory.mktemp("root")) as place:
        yield place


@contextmanager
def hub(home, **more):
    """A Jupyter as a hub starts it, with its base address and variables, and the link that `lab` prints there."""
    env = settings(home) | {"JUPYTERHUB_SERVICE_PREFIX": "/user/learner/", "SHELL": "/bin/sh"}
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.base_url=/user/learner/", "--no-browser",
               "--allow-root", "--ServerApp.port=0", f"--ServerApp.root_dir={home}"]
    env |= {"JUPYTER_CONFIG_DIR": str(home / "config")} | more
    with running(command, home / "told", cwd=home, env=env) as (process, address):
        url, token = address.split("lab?token=")
        place = Place(url + "lab/tree/", token, copy_checkout(home / "a course's folder"))
        before = process.children(recursive=True)
        folder, python = shlex.quote(str(place.course)), shlex.quote(sys.executable)
        printed = in_a_terminal(place, f"cd {folder}; {python} -m workshop lab; echo ended $?")
        assert "ended 0" in printed and "put after your workspace's host" in printed, printed
        assert "choose: Production ML workshop" in printed
        place.start = urljoin(place.url, re.search(r"^ +(/user/learner/\S+)", printed, re.M)[1])
        started = {one for one in process.children(recursive=True)} - {*before}
        assert not [one.cmdline() for one in started if "jupyterlab" in " ".join(one.cmdline())]
        yield place


@pytest.fixture(scope="module")
def behind_a_hub(tmp_path_factory):
    with hub(tmp_path_factory.mktemp("home")) as place:
        yield place


@pytest.fixture(scope="module")
def without_proxy(tmp_path_factory):
    """A hub whose Jupyter others have installed, without jupyter-server-proxy."""
    home = tmp_path_factory.mktemp("bare")
    off = {"ServerApp": {"jpserver_extensions": {"jupyter_server_proxy": False}}}
    (home / "jupyter_server_config.json").write_text(json.dumps(off))
    with hub(home, JUPYTER_CONFIG_PATH=str(home)) as place:
        yield place


def in_a_terminal(place, line):
    """Type a line in a terminal of this Jupyter; what is printed until it says "ended" and a number."""
    name = place.api("POST", "api/terminals")["name"]
    address = f"{place.url}terminals/websocket/{name}?token={place.token}".replace("http", "ws", 1)
    link, printed = websocket.create_connection(address, timeout=120), ""
    link.send(json.dumps(["set_size", 50, 500, 50, 500]))
    link.send(json.dumps(["stdin", f"{line}\r"]))
    while not re.search(r"ended \d", printed):
        kind, *said = json.loads(link.recv())
        printed += said[0] if kind == "stdout" else ""
    link.close()
    return printed.replace("\r", "")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    opened = Window(tmp_path_factory.mktemp("window"))
    family = [opened.process, *opened.process.children(recursive=True)]
    yield opened
    opened.call("Browser.close")
    opened.process.wait(20)
    eventually(lambda: gone(family))
    if counted["begun"] < 2 * len(NOTEBOOKS):
        return  # only some of the tests were chosen: what all of them tried stays noted
    tried("notebooks run from top to bottom in a browser", counted["begun"], counted["begun"] - counted["ended"])
    tried("requests of a browser's pages; lost: to elsewhere", counted["requests"], counted["elsewhere"])


@pytest.fixture
def page(window):
    """The window; whatever happens in it in a test, no page asks anybody but the Jupyter it came from."""
    window.requested.clear()
    yield window
    window.call("Page.navigate", url="about:blank")  # so that this page asks nothing more
    window.wait("location.href == 'about:blank' && document.readyState == 'complete'")
    places = [urlsplit(address) for address in window.requested if not address.startswith(("data:", "blob:"))]
    elsewhere = [place.geturl() for place in places if place.netloc != places[0].netloc]
    counted["requests"] += len(places)
    counted["elsewhere"] += len(elsewhere)
    assert places[0].hostname == "localhost" and elsewhere == []
    assert any(place.scheme == "ws" for place in places), "the record misses a kernel's link"


@pytest.mark.parametrize("name", NOTEBOOKS, ids=lambda name: QUICK.get(name, name))
def test_run_all_runs_every_cell_and_none_complains(name, at_the_root, page):
    printed = f"{at_the_root.start}?token={at_the_root.token}" if name == NOTEBOOKS[0] else None
    at_the_root.runs(page, name, times=2 if name == "04_serve_api" else 1, address=printed)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_runs_every_cell_behind_a_hub(name, behind_a_hub, page):
    behind_a_hub.runs(page, name, times=2 if name == "04_serve_api" else 1)


@pytest.mark.parametrize("where", [pytest.param("at_the_root", id="in a browser"), "behind_a_hub"])
def test_try_it_out_in_the_frame_of_notebook_04_asks_the_learners_model(where, request, page, monkeypatch):
    place = request.getfixturevalue(where)
    place.opened(page, "04_serve_api")
    page.run_up_to("server.docs()")
    post = "frame(0)?.querySelector('.opblock-post')"
    page.wait(f"{post}?.querySelector('[data-path=\"/forecast\"]')")
    for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
        page.wait(f"{post}.querySelector('{button}')")
        page.ask(f"{post}.querySelector('{button}').click()")
    answer = f"{post}.querySelector('.live-responses-table .response')"
    assert page.wait(f"{answer}?.querySelector('.response-col_status').textContent").startswith("200")
    storm, said = (json.loads(page.ask(f"{post}.querySelector('{what}').textContent"))
                   for what in ("textarea", ".live-responses-table .response .highlight-code code"))
    asked = page.ask(f"{post}.querySelector('.request-url pre').textContent")
    assert re.fullmatch(rf"{place.url}proxy/\d+/forecast", asked.strip()) and asked.strip() in page.requested
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(place.course / "models"))
    assert said == forecast(Storm(**storm), registry.load()).model_dump(mode="json")


@pytest.mark.parametrize("where", ["at_the_root", "behind_a_hub"])
def test_the_page_in_the_frame_of_notebook_05_forecasts(where, request, page):
    place = request.getfixturevalue(where)
    place.opened(page, "05_share_three_ways")
    page.run_up_to('service.docs(path="/"')
    page.wait("frame(0)?.querySelector('#details')?.textContent.match(/\\d+ kt, 80 %: \\d+ to \\d+ kt/)")
    assert [url for url in page.requested if re.fullmatch(rf"{place.url}proxy/\d+/forecast", url)]


# --- where the frame can't show the server ---

def write_frames(place, name, *cells):
    """A notebook with the app of notebook 04, and cells that show frames."""
    app = [cell.source for cell in nbformat.read(place.work("04_serve_api"), 4).cells
           if cell.cell_type == "code"][:2]
    kernel = nbformat.read(place.work("04_serve_api"), 4).metadata.kernelspec
    cells = [nbformat.v4.new_code_cell(source) for source in (*app, *cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), place.work(name))
    return name


LAUNCH = "from workshop.server import launch_service; service = launch_service()"
LIST, PAGE = "service.docs()", 'service.docs(path="/")'
STOPPED = LAUNCH.replace("()", '(name="stopped")').replace("service =", "late ="), (
    'own, page = late.docs(), late.docs(path="/"); late.stop(); own'), "page"


def test_without_jupyter_server_proxy_a_browser_shows_what_the_api_takes_and_the_page(without_proxy, page):
    without_proxy.runs(page, write_frames(without_proxy, "frames", "launch(app).docs()", LAUNCH, LIST, PAGE))
    for number in range(3):
        page.wait(f"frame({number})?.body.innerText.includes('lacks jupyter-server-proxy')")
    for number in (0, 1):
        is_listed(page, number)
    page.wait("frame(2).querySelector('iframe').contentDocument.querySelector('h1')")
    assert page.ask("frame(2).querySelector('iframe').contentDocument.querySelector('h1').innerText"
                    ) == "How strong will this storm be in 24 hours?"


def is_listed(page, number):
    """That a frame lists the API: what POST /forecast takes, with its ranges, and what it answers."""
    what = (f"[...frame({number}).querySelectorAll('details')]"
            ".find(each => each.innerText.startsWith('POST /forecast:'))")
    page.ask(f"{what}.open = true")
    said = page.ask(f"{what}.innerText")
    for words in ("wind_kt", "10 to 200", "850 to 1050", "maximum sustained wind", "wind_kt_low", "422"):
        assert words in said, said


def test_a_server_that_was_stopped_is_said_to_be(at_the_root, page):
    at_the_root.runs(page, write_frames(at_the_root, "stopped", *STOPPED))
    for number in range(2):
        page.wait(f"frame({number})?.body.innerText.includes('Nobody answers')")
    is_listed(page, 0)
    page.wait("frame(1).querySelector('iframe').contentDocument.querySelector('h1')")


# --- what leads elsewhere, and what it looks like ---

def test_a_word_leads_to_its_entry_in_the_glossary(at_the_root, page):
    at_the_root.opened(page, "04_serve_api")
    page.click(f"{HERE} a[href*='glossary.md']", "REST")
    entry = ("[...document.querySelectorAll('.jp-MarkdownViewer h3')]"
             ".find(each => each.innerText.startsWith('REST'))")
    page.wait(f"{entry}?.checkVisibility() && {entry}.getBoundingClientRect().top < 300")


def test_on_a_dark_theme_checks_and_frames_can_be_read(at_the_root, page):
    at_the_root.api("PUT", "lab/api/settings/@jupyterlab/apputils-extension:themes",
                    raw=json.dumps({"theme": "JupyterLab Dark"}))
    answers = [f'check("00.A", "{letter}")' for letter in ("", "a", "b")]
    at_the_root.runs(page, write_frames(at_the_root, "dark", "from workshop.lesson import check", *answers,
                                        LAUNCH, PAGE, LIST, *STOPPED))
    assert page.ask("document.body.dataset.jpThemeLight") == "false"
    page.wait("frame(0)?.querySelector('#details')?.innerText && frame(1)?.querySelector('.opblock-post')")
    page.wait("[2, 3].every(number => frame(number)?.body.innerText.includes('Nobody answers'))")
    page.ask("frame(2).querySelectorAll('details').forEach(each => { each.open = true })")
    for number in range(3):
        page.readable(f"document.querySelectorAll('.alert')[{number}]")
    for number in (0, 2, 3):
        page.readable(f"frame({number}).body")
    for part in (".info .description", ".opblock-summary-path"):  # not Swagger's own buttons, which are pale
        page.readable(f"frame(1).querySelector('{part}')")
