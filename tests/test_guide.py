"""The instructor guide: its minutes and headings are those of the notebooks, and nothing is left out."""
import re
from pathlib import Path

import nbformat
import pytest

from workshop import ROOT, lesson

GUIDE = Path(ROOT, "notebooks", "instructor_guide.md")
NOTEBOOKS = {path.stem[:2]: path for path in sorted(Path(ROOT, "notebooks").glob("[0-9][0-9]_*.ipynb"))}
each_notebook = pytest.mark.parametrize("number", NOTEBOOKS)
# The slides of the deck that the course grew from; what follows a colon tells those of one title apart.
SLIDES = [
    "Introduction to Production Machine Learning", "Session Overview", "Let's Play!", "AI, ML, Oh My",
    "Data Driven Science", "Models", "Sharing Models", "Production Machine Learning", "ML Ops",
    "Production ML: three ways to share", "Production ML: today, we are going to", "APIs",
    "REST API: what it is", "REST API: a request and its response", "REST API: verbs and statuses",
    "Building REST APIs in Python", "FastAPI", "Production ML: today, we; trade-offs and scale"]


def text():
    return GUIDE.read_text("utf-8")


def parts(of, level):
    """The text under each heading of a level, by heading, down to the next one of that level or above."""
    pieces = re.split(rf"^(#{{1,{level}}}) (.+)\n", of, flags=re.M)[1:]
    return {title: body for mark, title, body in zip(*[iter(pieces)] * 3) if len(mark) == level}


def tables(of):
    """Every table as a list of rows; a row is a dict from column to cell, numbers as int, empty cells 0."""
    for block in re.findall(r"(?:^\|.*\|\n)+", of + "\n", re.M):
        lines = [line[1:-1].split("|") for line in block.splitlines()]
        head, dashes, *rows = [[cell.strip() for cell in line] for line in lines]
        assert set("".join(dashes)) <= set("-:"), f"No table: its second line is not dashes:\n{block}"
        assert all(len(row) == len(head) for row in rows), f"A row has too many or too few cells:\n{block}"
        yield [dict(zip(head, [value(cell, name) for name, cell in zip(head, row)])) for row in rows]


def value(cell, column):
    plain = cell.replace(",", "")
    return cell if column == "notebook" else int(plain) if plain.isdigit() else cell or 0


def notebook_part(number):
    """The guide's part on a notebook: the minutes of its heading, and its text."""
    for title, body in parts(parts(text(), 2)["Notebook by notebook"], 3).items():
        if title.startswith(f"{headings(number, 1)[0]} ("):
            return int(re.fullmatch(r".+ \((\d+) minutes\)", title)[1]), body
    raise AssertionError(f"{GUIDE.name}: no heading '### {headings(number, 1)[0]} (… minutes)'")


def sections(number):
    """The rows of the guide's table for a notebook, by section, without the sum."""
    return {row["section"]: row for row in next(tables(notebook_part(number)[1])) if row["section"] != "sum"}


def markdown(number):
    return "\n\n".join(cell.source for cell in nbformat.read(NOTEBOOKS[number], 4).cells
                       if cell.cell_type == "markdown")


def headings(number, levels="1,4"):
    return re.findall(rf"^#{{{levels}}} (.+)$", markdown(number), re.M)


def minutes(number):
    return int(re.search(r"\*\*(\d+) minutes\.\*\*", markdown(number))[1])


def outputs(number):
    """What the notebook shows when it has run, as one text."""
    said = [output.get("text") or output.get("data", {}).get("text/plain", "")
            for cell in nbformat.read(NOTEBOOKS[number], 4).cells if cell.cell_type == "code"
            for output in cell.outputs]
    return "\n".join(said)


def test_every_sum_and_every_total_is_right():
    for table in tables(text()):
        for row in table:
            minutes_of_work = row.get("teaching", 0) + row.get("exercises", 0)
            if minutes_of_work and "sum" not in row.values():  # a sum's total holds the breaks as well
                assert minutes_of_work == row["total"], f"The total of this row is wrong: {row}"
        *rows, last = table
        if "sum" in last.values():
            for column in [name for name, cell in last.items() if type(cell) is int and name != "left out"]:
                right = sum(row[column] for row in rows)
                assert last[column] == right, f"The sum of '{column}' should be {right}: {last}"


def test_every_table_with_minutes_or_megabytes_has_a_sum():
    for table in tables(text()):
        if {"total", "JupyterLab"} & ({*table[0]} | {*table[0].values()}):
            assert "sum" in table[-1].values(), f"The table that ends with {table[-1]} has no row 'sum'"


@each_notebook
class TestOfANotebook:
    def test_its_minutes_are_those_that_the_notebook_says(self, number):
        in_heading, body = notebook_part(number)
        table = sum(row["total"] for row in sections(number).values())
        assert (in_heading, table) == (minutes(number),) * 2, (
            f"{number}: the notebook says {minutes(number)} minutes; the guide's heading or table does not")

    def test_its_table_has_the_notebooks_sections_in_their_order(self, number):
        assert list(sections(number)) == [name for name in headings(number, "2") if name != "Recap"], (
            f"{number}: the guide's table should have the notebook's level-2 headings, all but Recap")

    def test_its_text_names_no_section_that_the_notebook_lacks(self, number):
        named = re.findall(r"(?<!\*)\*(\d+\. [^*]+)\*", notebook_part(number)[1])
        assert named, f"{number}: name the key cell's section, in italics and with its number"
        unknown = set(named) - set(headings(number))
        assert not unknown, f"{number}: the notebook has no heading {unknown}"

    def test_every_exercise_and_question_has_its_wrong_answers(self, number):
        line = re.search(r"^- \*\*Wrong answers\*?\*?.+$", notebook_part(number)[1], re.M)[0]
        known = {exercise for exercise in lesson.EXERCISES if exercise.startswith(number)}
        missing = known - set(re.findall(r"\d\d\.\w", line))
        assert known and not missing, f"{number}: the line 'Wrong answers' says nothing of {sorted(missing)}"
        unknown = set(re.findall(r"\b\d\d\.[1-9A-Z]\b", line)) - known
        assert not unknown, f"{number}: the notebook has no {sorted(unknown)}"

    def test_what_to_leave_out_in_a_hurry_saves_what_is_said(self, number):
        line = re.search(r"^- \*\*(?:Ten minutes behind|In a hurry):\*\* leave out (.+?) \((\d+) minutes\)",
                         notebook_part(number)[1], re.M)
        left_out = re.findall(r"\*([^*]+)\*", line[1])
        saved = sum(sections(number)[name]["total"] for name in left_out)
        assert saved == int(line[2]), f"{number}: leaving out {left_out} saves {saved} minutes"
        assert saved >= 8 or minutes(number) == 15, f"{number}: ten minutes behind needs more than {saved}"

    def test_what_one_sees_is_in_the_notebooks_outputs(self, number):
        line = re.search(r"^- \*\*You see\*\* (.+?) \*\*It runs\*\*", notebook_part(number)[1], re.M)[1]
        shown = re.findall(r"`([^`]+)`", line)
        assert shown, f"{number}: 'You see' quotes nothing: put what the notebook prints between backticks"
        for words in shown:
            assert words in outputs(number), f"{number}: the notebook's outputs do not hold '{words}'"


def routes():
    return parts(parts(text(), 2)["Routes"], 3)


def test_there_are_four_routes():
    assert [re.search(r"(\d+) minutes", title)[1] for title in routes()] == ["90", "120", "210", "360"]


@pytest.mark.parametrize("planned", [90, 120, 210, 360])
class TestOfARoute:
    def body(self, planned):
        return next(body for title, body in routes().items() if f"{planned} minutes" in title)

    def table(self, planned):
        return list(tables(self.body(planned)))[-1]

    def test_its_rows_sum_to_what_its_heading_says(self, planned):
        *rows, last = self.table(planned)
        apart = abs(last["total"] - planned)
        assert apart <= (5 if planned > 120 else 0), f"The route of {planned} minutes sums to {last['total']}"
        assert sum(row["total"] for row in rows) == last["total"]

    def test_at_least_two_fifths_of_its_working_minutes_are_exercises(self, planned):
        last = self.table(planned)[-1]
        share = last["exercises"] / (last["teaching"] + last["exercises"])
        assert share >= 0.4, f"The route of {planned} minutes has {share:.0%} exercises"
        assert f" {100 * share:.0f} % exercises." in self.body(planned), f"{planned} minutes: say {share:.0%}"

    def test_its_minutes_are_those_of_the_notebooks_parts_less_what_is_left_out(self, planned):
        *cuts, table = tables(self.body(planned))
        cuts = [row for row in cuts[0] if row["notebook"] != "sum"] if cuts else []
        for row in cuts:
            section = sections(row["notebook"]).get(row["left out"].strip("*"))
            assert section, f"{row}: the guide's part on this notebook has no such section"
            for column in ("teaching", "exercises", "total"):
                assert row[column] == section[column], f"{row}: the part on this notebook says {section}"
        for row in table:
            if number := re.fullmatch(r"\d\d", row["notebook"]):
                for column in ("teaching", "exercises"):
                    whole = sum(part[column] for part in sections(number[0]).values())
                    saved = sum(cut[column] for cut in cuts if cut["notebook"] == number[0])
                    right = whole - saved
                    assert row[column] == right, f"{planned} minutes: {number[0]} has {right} of {column}"


def test_the_full_day_has_every_notebook_and_two_hours_the_first_five():
    def numbers(planned):
        return [row["notebook"] for row in TestOfARoute().table(planned) if row["notebook"] in NOTEBOOKS]
    assert numbers(360) == list(NOTEBOOKS)
    assert numbers(120) == numbers(90) == list(NOTEBOOKS)[:5]


def test_every_slide_of_the_deck_has_a_home():
    table = list(tables(parts(text(), 2)["The deck"]))[0]
    titles = [re.sub(r" \(twice.*\)$", "", row["slide"]) for row in table]
    assert titles == SLIDES, "The deck's table lacks a slide, or has one more"
    for row in table:
        number = row["notebook"][1:3]
        assert number <= "04", f"{row['slide']}: whoever stops after notebook 04 has to have met it"
        there = row["heading"] in headings(number)
        assert there, f"{row['slide']}: notebook {number} has no heading '{row['heading']}'"


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", text())
    assert links
    for link in links:
        assert (GUIDE.parent / link).exists(), f"{GUIDE.name} links to {link}, which is not there"


def test_every_command_in_it_is_one_of_the_courses():
    from workshop.cli import VERBS
    for verb in re.findall(r"python3 -m workshop (\w+)", text()):
        assert verb in VERBS, f"There is no verb {verb}"


def test_it_can_be_read_in_one_evening():
    assert len(text().splitlines()) <= 350
