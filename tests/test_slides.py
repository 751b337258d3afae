"""The slides: made from the notebooks by a job, all of the original talk among them, and they fit."""
import contextlib
import html
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest

from workshop import ROOT

JOB = Path(ROOT, "notebooks", "jobs", "slides.ipynb")
NOTEBOOKS = sorted(Path(ROOT, "notebooks").glob("[0-9][0-9]_*.ipynb"))
PAGES = [*(path.stem for path in NOTEBOOKS), "deck"]

# The slides of the original talk, and what must stand together on one slide of the deck that covers it.
ORIGINAL = {
    "Introduction to Production Machine Learning": ["Introduction to Production Machine Learning"],
    "Session Overview": ["Session overview", "AI, ML, oh my", "Models",
                         "What is production machine learning?", "MLOps"],
    "Let’s Play!: a notebook": ["Let's play!", "This workspace is ready."],
    "Let’s Play!: a workspace": ["Create Workspace", "esds-<name>-large-workspace", "50 GB",
                                 "4 vCPU, 16 GB of memory", "us-east-1", "http://esds.ncics.org"],
    "AI, ML, Oh My": ["AI, ML, oh my", "Artificial intelligence", "Machine learning"],
    "Data Driven Science": ["Data-driven science", "letting the data propose how the world works"],
    "Models": ["Models", "encapsulated, compressed view of how the world works",
               "function, with inputs and outputs"],
    "Models: George Box": ["All models are wrong, some are useful.", "George Box"],
    "Sharing Models": ["Sharing models", "the model to other people", "its results to other people",
                       "the predictive ability"],
    "Sharing Models: trade offs": ["complexity", "ownership", "accessibility", "must send a request"],
    "Production Machine Learning": ["Production machine learning",
                                    "the rapidly evolving science of delivering data-driven insights"],
    "ML Ops": ["MLOps", "the operations involved in delivering data-driven insights",
               "building cloud platforms", "scaling", "monitoring", "course-correcting"],
    "Production ML: today, we are going to": ["Today", "we are going to", "build an ML model",
                                              "functionalize that model", "share that model using an API"],
    "APIs": ["application programming interface", "a standardized way to communicate with a computer program",
             "user interface, just not a graphical one"],
    "REST API": ["Today we build a REST API", "representational state transfer"],
    "REST API: a request and its answer": ["POST /forecast", "200 OK"],
    "REST API: verbs and status codes": ["GET", "POST", "PUT", "DELETE", "404", "422"],
    "Building REST APIs in Python: FastAPI": ["FastAPI turns functions into an API",
                                              "from fastapi import FastAPI", "@app.post"],
    "Production ML: today, we": ["What we built today", "We built a model", "We functionalized it",
                                 "We shared it by an API"],
    "What are some tradeoffs of our approach?": ["What are the trade-offs of our approach?", "ownership"],
    "How can this scale?": ["How can this scale?", "a million people"],
}


class Reader(HTMLParser):
    """What a page says: its slides with their words, and every address and picture in it."""

    def __init__(self, text):
        super().__init__()
        self.slides, self.images, self.addresses, self.links, self.within = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "section":
            self.slides.append(SimpleNamespace(**attributes, words=[], notes=[], headings=[],
                                               goes_on=False, label=attributes["aria-label"]))
        if tag == "h2" and attributes.get("class") == "again":
            self.slides[-1].goes_on = True
        if tag == "img":
            self.images.append(attributes)
        if tag == "a":
            self.links.append(attributes["href"])
        self.addresses += [value for name, value in attributes.items()
                           if name in ("src", "srcset", "data", "poster") or name == "href" and tag != "a"]
        if tag not in ("img", "br", "meta", "link", "hr"):  # they have no end
            self.within.append((tag, attributes.get("class")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        while self.within and self.within.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not any(tag == "section" for tag, _ in self.within):
            return
        here = self.slides[-1]
        noted = ("aside", "notes") in self.within
        (here.notes if noted else here.words).append(data)
        if any(re.fullmatch("h[1-6]", tag) for tag, _ in self.within):
            here.headings.append(data)


def said(slide):
    return " ".join("".join(slide.words).split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The pages as a command makes them: by papermill, from the course's folder."""
    folder = tmp_path_factory.mktemp("slides")
    papermill.execute_notebook(JOB, None, {"output_folder": str(folder)}, cwd=ROOT, progress_bar=False)
    return folder


@pytest.fixture(scope="module")
def pages(built):
    return {path.stem: Reader(path.read_text("utf-8")) for path in built.glob("*.html")}


def run_here(output_folder):
    """The job's cells one after the other in the working directory, as a reader of it would run them."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in nbformat.read(JOB, 4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names["output_folder"] = output_folder


@pytest.fixture
def small_course(tmp_path, monkeypatch):
    """A course with one notebook; what is returned writes another notebook in its place."""
    for name in ("workshop/storms.py", "notebooks/jobs/slides.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(ROOT, name), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return lambda notebook: nbformat.write(notebook, tmp_path / "notebooks" / NOTEBOOKS[0].name)


# --- the pages ---

def test_there_is_a_page_for_each_notebook_and_one_for_the_talk_and_nothing_else(built, pages):
    assert sorted(path.name for path in built.iterdir()) == sorted(f"{name}.html" for name in PAGES)
    for name, page in pages.items():
        assert all(len(slide.words) for slide in page.slides) and len(page.slides) > 10, name
        ids = [slide.id for slide in page.slides]
        assert len(set(ids)) == len(ids)
    talk = [said(slide) for name in PAGES[:5] for slide in pages[name].slides]
    assert [said(slide) for slide in pages["deck"].slides] == talk


@pytest.mark.parametrize("slide", ORIGINAL)
def test_each_slide_of_the_original_talk_is_in_the_deck(slide, pages):
    expected = ORIGINAL[slide]
    fits = [here.id for here in pages["deck"].slides if all(text in said(here) for text in expected)]
    assert fits, f"no slide of the deck says all of {expected}"


@pytest.mark.parametrize("name", PAGES)
def test_each_slide_has_a_heading_its_place_and_the_minutes(name, pages):
    for slide in pages[name].slides:
        number, count, heading = re.fullmatch(r"\d\d, slide (\d+) of (\d+): (.+)", slide.label).groups()
        assert slide.headings and heading in "".join(slide.headings)
        assert re.search(rf"{slide.id[:2]} · .+ \d+ minutes {number} / {count}$", said(slide))
        assert slide.tabindex == "-1", "a screen reader's focus goes with the slide"


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_in_the_page_and_has_an_alternative_text(name, pages):
    for image in pages[name].images:
        assert image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 40


def test_the_figures_of_the_notebooks_are_all_on_slides(pages):
    for path in NOTEBOOKS:
        figures = sum("image/png" in output.get("data", {}) for cell in nbformat.read(path, 4).cells
                      for output in cell.get("outputs", []))
        assert len(pages[path.stem].images) == figures, path.stem


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_nothing_outside_of_itself(name, built, pages):
    assert all(address.startswith("data:") for address in pages[name].addresses)
    text = (built / f"{name}.html").read_text("utf-8")
    assert "@import" not in text and "url(" not in text and "<iframe" not in text
    assert ROOT not in text, "a page tells where it was made"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_slides_that_are_there(name, pages):
    ids = {slide.id for slide in pages[name].slides}
    for link in pages[name].links:
        if not link.startswith("http"):
            assert link[1:] in ids if link.startswith("#") else link.removesuffix(".html") in pages, link


def test_a_frame_with_a_live_page_is_a_line_of_text(pages):
    assert any("(Here the notebook shows a live page.)" in said(slide)
               for slide in pages["04_serve_api"].slides)


def test_the_same_notebooks_give_the_same_bytes(built, tmp_path, monkeypatch):
    monkeypatch.chdir(JOB.parent)
    run_here(str(tmp_path))
    for name in PAGES:
        assert (tmp_path / f"{name}.html").read_bytes() == (built / f"{name}.html").read_bytes(), name


# --- the marks ---

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestMarks:
    def test_every_cell_is_marked_and_what_would_not_help_is_on_no_slide(self, path, pages):
        cells = nbformat.read(path, 4).cells
        assert all(cell.metadata.get("slideshow", {}).get("slide_type") for cell in cells)
        hidden = [cell for cell in cells if {"solution", "check", "quiz"} & set(cell.metadata.get("tags", []))
                  or cell.metadata.get("jupyter", {}).get("source_hidden")]
        assert all(cell.metadata.slideshow.slide_type == "skip" for cell in hidden)
        assert not any("open me when" in said(slide) or "then open me" in said(slide)
                       for slide in pages[path.stem].slides), "a slide gives an answer away"

    def test_an_exercise_and_its_starter_are_on_one_slide(self, path, pages):
        cells = nbformat.read(path, 4).cells
        for prompt, starter in zip(cells, cells[1:]):
            if "exercise" in starter.metadata.get("tags", []) and prompt.source.startswith("### "):
                title = prompt.source.splitlines()[0].removeprefix("### ").replace("`", "")
                first = " ".join(starter.source.splitlines()[0].split())
                [slide] = [slide for slide in pages[path.stem].slides if title in slide.headings]
                assert first in said(slide)

    def test_the_speaker_has_notes_and_they_are_in_the_page_as_text(self, path, pages):
        notes = []
        for cell in nbformat.read(path, 4).cells:
            notes.append(cell.metadata.get("notes"))
            notes += cell.metadata.get("slideshow", {}).get("breaks", {}).values()
        notes = [note for note in notes if note]
        assert len(notes) >= 6 and len(set(notes)) == len(notes)
        assert ["".join(slide.notes).strip() for slide in pages[path.stem].slides if slide.notes] == notes


def first_notebook():
    return nbformat.read(NOTEBOOKS[0], 4)


def test_notes_and_headings_are_escaped(small_course, tmp_path):
    notebook, hostile = first_notebook(), "<script>alert(1)</script> & \"quotes\""
    notebook.cells[0].metadata["notes"] = hostile
    notebook.cells[1].source = notebook.cells[1].source.replace("Session overview", "Cheap & cheerful")
    small_course(notebook)
    run_here("out")
    text = (tmp_path / "out" / f"{NOTEBOOKS[0].stem}.html").read_text("utf-8")
    assert html.escape(hostile) in text and "<script>alert" not in text
    assert "Cheap &amp; cheerful" in text and "Cheap & cheerful" not in text


@pytest.mark.parametrize("fault, told", [
    ("no marks", "00_start_here has no marks for slides"),
    ("typing error", r"00_start_here, cell 01-.*: slide_type 'slid' is no mark for slides"),
    ("text has changed", r"Cell 01-.*: 0 lines begin with 'Once there was', of `breaks`; it must be one")])
def test_what_is_wrong_with_the_marks_is_said_before_anything_is_written(fault, told, small_course, tmp_path):
    notebook = first_notebook()
    marks = notebook.cells[0].metadata["slideshow"]
    if fault == "no marks":
        for cell in notebook.cells:
            del cell.metadata["slideshow"]
    elif fault == "typing error":
        marks["slide_type"] = "slid"
    else:
        marks["breaks"] = {"Once there was": ""}
    small_course(notebook)
    with pytest.raises(ValueError, match=told):
        run_here("out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_cell_without_a_mark_goes_on_with_the_slide_before(small_course, tmp_path):
    notebook = first_notebook()
    notebook.cells[1:1] = [nbformat.v4.new_markdown_cell("A thought that came later.")]
    small_course(notebook)
    run_here("out")
    first = Reader((tmp_path / "out" / f"{NOTEBOOKS[0].stem}.html").read_text("utf-8")).slides[0]
    assert "A thought that came later." in said(first)


def test_the_notebook_has_parameters_short_cells_after_words_and_its_outputs():
    cells = nbformat.read(JOB, 4).cells
    assert "codecode" not in "".join(cell.cell_type for cell in cells)
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    lines = [cell.source.splitlines() for cell in code]
    assert max(map(len, lines)) <= 20 and max(len(line) for cell in lines for line in cell) <= 110
    assert all(cell.execution_count for cell in code) and "written: deck.html" in str(code[-1].outputs)
    template = Path(JOB.parent, "slides.html").read_text("utf-8")
    assert max(map(len, template.splitlines())) <= 110
    assert ROOT not in JOB.read_text("utf-8"), "an output tells where it was made"


# --- in a browser, at the size of a projector ---

# Goes through all slides as a reader does, by their addresses, and tells what does not fit or can't be read.
SURVEY = """(async () => {
  const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return rgb(colour)[3] === 0 ? behind(element.parentElement) : rgb(colour);
  };
  const wrong = [], shown = [];
  for (const slide of document.querySelectorAll("main > section")) {
    location.hash = "#" + slide.id;
    for (let turn = 0; turn < 500 && !slide.classList.contains("now"); turn++)
      await new Promise(done => setTimeout(done));
    const box = slide.querySelector(".slide"), body = slide.querySelector(".body");
    const place = box.getBoundingClientRect();
    shown.push(slide.id);
    if (!slide.classList.contains("now") || document.querySelectorAll(".now").length != 1)
      wrong.push([slide.id, "is not shown alone"]);
    if ([place.left, place.top, place.width, place.height].join() != "0,0,1280,720")
      wrong.push([slide.id, "does not fill the window"]);
    for (const part of [box, body])
      if (part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight)
        wrong.push([slide.id, part.className, part.scrollWidth, part.scrollHeight, "overflows"]);
    const foot = slide.querySelector(".foot").getBoundingClientRect();
    const words = document.createTreeWalker(slide, NodeFilter.SHOW_TEXT);
    while (words.nextNode()) {
      const element = words.currentNode.parentElement, range = document.createRange();
      if (!words.currentNode.data.trim() || element.closest(".notes")) continue;
      const style = getComputedStyle(element), least = element.closest("pre, code") ? 16 : 20;
      if (parseFloat(style.fontSize) < least) wrong.push([slide.id, style.fontSize, words.currentNode.data]);
      range.selectNodeContents(words.currentNode);
      const at = range.getBoundingClientRect();
      const floor = element.closest(".foot") ? 720 : foot.top;
      if (at.right > 1280 || at.left < 0 || at.bottom > floor)
        wrong.push([slide.id, "lies outside", words.currentNode.data]);
      const [one, two] = [light(rgb(style.color)), light(behind(element))].sort((a, b) => b - a);
      if ((one + 0.05) / (two + 0.05) < 4.5) wrong.push([slide.id, style.color, words.currentNode.data]);
    }
    for (const image of slide.querySelectorAll("img"))
      if (!image.naturalWidth || image.getBoundingClientRect().height < 200)
        wrong.push([slide.id, "a figure is missing or small"]);
  }
  return [wrong, shown];
})()"""


@pytest.fixture
def browser(tmp_path):
    from test_api import Browser
    opened = Browser(tmp_path)
    opened.call("Network.enable")
    opened.call("Emulation.setDeviceMetricsOverride", width=1280, height=720, deviceScaleFactor=1,
                mobile=False)
    yield opened
    opened.call("Browser.close")
    opened.process.wait(20)


def ask(browser, script):
    told = browser.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in told, told
    return told["result"].get("value")


def open_page(browser, address):
    from test_api import eventually
    browser.call("Page.navigate", url=address)
    eventually(lambda: ask(browser, "document.readyState") == "complete"
               and ask(browser, "Boolean(document.querySelector('section.now'))"))


def press(browser, key):
    code = {"ArrowRight": 39, "ArrowLeft": 37, "PageDown": 34, "PageUp": 33, " ": 32, "Home": 36, "End": 35,
            "Escape": 27}.get(key, ord(key[0].upper()))
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)


needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")


@pytest.mark.campaign
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser_every_slide_fits_and_can_be_read_from_the_back_row(name, scheme, built, pages, browser):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page = (built / f"{name}.html").as_uri()
    open_page(browser, page)
    wrong, shown = ask(browser, SURVEY)
    assert wrong == [] and shown == [slide.id for slide in pages[name].slides]
    assert all(url.startswith((page, "data:")) for url in browser.requested) and browser.requested


@pytest.mark.campaign
@needs_browser
def test_in_a_browser_keys_and_edges_lead_through_the_slides(built, pages, browser):
    from test_api import eventually
    page = (built / "deck.html").as_uri()
    open_page(browser, page)

    def at(slide):
        eventually(lambda: ask(browser, "location.hash") == f"#{slide}")
        assert ask(browser, "document.querySelector('section.now').id") == slide
        assert ask(browser, "document.activeElement.id") == slide

    at("00-1")
    for key, slide in [("ArrowRight", "00-2"), (" ", "00-3"), ("PageDown", "00-4"), ("PageUp", "00-3"),
                       ("ArrowLeft", "00-2"), ("End", pages["deck"].slides[-1].id), ("Home", "00-1")]:
        press(browser, key)
        at(slide)
    for x, slide in [(1270, "00-2"), (640, "00-2"), (10, "00-1")]:
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=400, button="left", clickCount=1)
        at(slide)
    noted = next(slide for slide in pages["deck"].slides if slide.notes and slide.id.startswith("04"))
    open_page(browser, f"{page}#{noted.id}")
    height = "document.querySelector('section.now .notes').offsetHeight"
    assert ask(browser, height) == 0
    press(browser, "n")
    assert ask(browser, height) > 0
    bottom = ask(browser, "document.querySelector('section.now .slide').getBoundingClientRect().bottom")
    top = ask(browser, "document.querySelector('section.now .notes').getBoundingClientRect().top")
    assert bottom <= top, "the notes lie over the slide"
    press(browser, "n")
    assert ask(browser, height) == 0


@pytest.mark.campaign
@needs_browser
def test_in_a_browser_the_contents_lead_to_each_heading(built, pages, browser):
    from test_api import eventually
    open_page(browser, (built / "deck.html").as_uri())
    press(browser, "o")
    assert ask(browser, "document.getElementById('contents').open")
    links = ask(browser, "[...document.querySelectorAll('dialog a')].map(a => [a.textContent, a.hash])")
    begins = [slide for slide in pages["deck"].slides if not slide.goes_on]
    assert links == [[slide.label.split(": ", 1)[1], f"#{slide.id}"] for slide in begins]
    wanted = next(address for text, address in links if text == "5. Sharing models")
    ask(browser, f"document.querySelector('dialog a[href=\"{wanted}\"]').click()")
    eventually(lambda: "#" + ask(browser, "document.querySelector('section.now').id") == wanted)
    assert not ask(browser, "document.getElementById('contents').open")


@pytest.mark.campaign
@needs_browser
def test_in_a_browser_an_answer_to_guess_waits_for_a_key(built, browser):
    open_page(browser, (built / "03_wrap_in_function.html").as_uri())
    before = ask(browser, "slides.findIndex(slide => slide.querySelector('.fragment'))") - 1
    ask(browser, f"show({before})")
    press(browser, "ArrowRight")
    seen = ("(() => { const now = document.querySelector('section.now');"
            " return [slides.indexOf(now), getComputedStyle(now.querySelector('.fragment')).visibility] })()")
    assert ask(browser, seen) == [before + 1, "hidden"]
    press(browser, "ArrowRight")
    assert ask(browser, seen) == [before + 1, "visible"]
    press(browser, "ArrowRight")
    assert ask(browser, "at") == before + 2


@pytest.mark.campaign
@needs_browser
def test_in_a_browser_it_prints_one_slide_a_page(built, pages, browser):
    from base64 import b64decode
    open_page(browser, (built / "04_serve_api.html").as_uri())
    pdf = b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])
    assert len(re.findall(rb"/Type */Page\b(?!s)", pdf)) == len(pages["04_serve_api"].slides)
