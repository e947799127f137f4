"""Tables of docs/*.md are written, never edited: they must say what the registry of nets and the result files say."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.pages.aims import at_least, flat
from benchmarks.pages.page import PageError, fill
from benchmarks.pages.results import Results, origin, table
from benchmarks.pages.tables import PAGES
from benchmarks.record import RESULTS

PAGE = "Before.\n\n<!-- table: speeds -->\n\n{inside}\n\n<!-- end: speeds -->\n\nAfter.\n"


def speeds(results: Results) -> str:
    rows = results("speed")["rows"]
    return table(("net", "rows/s"), [(row["model"], f"{row['rows_per_second']:,}") for row in rows])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "speed.json").write_text(json.dumps({"rows": [{"model": "fm", "rows_per_second": 1500}]}))
    return Results(folder)


def page(folder: Path, text: str) -> Path:
    path = folder / "speed.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_what_the_results_say(path: Path) -> None:
    assert path.read_text() == fill(path, PAGES[path], Results()), "write it again: python -m benchmarks.pages"


def test_every_result_file_is_on_a_page() -> None:
    results = Results()
    for path, tables in PAGES.items():
        fill(path, tables, results)
    assert {path.stem for path in RESULTS.glob("*.json")} == set(results.read)


def test_a_new_result_changes_the_page(tmp_path: Path) -> None:
    """Were it not so, an old page would pass."""
    folder = Path(shutil.copytree(RESULTS, tmp_path / "results"))
    path = next(path for path in PAGES if path.name == "models.md")
    found = json.loads((folder / "frappe_speed.json").read_text())
    found["rows"][0]["rows_per_second"] += 1
    (folder / "frappe_speed.json").write_text(json.dumps(found))
    assert fill(path, PAGES[path], Results(folder)) != path.read_text()


def test_what_stands_between_markers_is_replaced_and_the_rest_kept(tmp_path: Path, results: Results) -> None:
    path = page(tmp_path, PAGE.format(inside="| fm | 1,600 |"))
    assert fill(path, {"speeds": speeds}, results) == PAGE.format(inside="| net | rows/s |\n|---|---|\n| fm | 1,500 |")
    assert results.read == ["speed"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<!-- table: speeds -->\n", "speed.md: the marker <!-- table: speeds --> has no partner <!-- end: speeds -->"),
        ("<!-- end: speeds -->\n", "speed.md: the marker <!-- end: speeds --> has no partner <!-- table: ... -->"),
        ("<!-- table: a -->\n<!-- end: b -->\n", "speed.md: the marker <!-- table: a --> has no partner <!-- end: a -->"),
        ("<!-- table: sizes -->\n<!-- end: sizes -->\n", "speed.md: the marker <!-- table: sizes --> names no table of this page"),
        ("No marker.\n", "speed.md: no marker for: speeds"),
    ],
)
def test_a_wrong_marker_is_named(tmp_path: Path, results: Results, text: str, problem: str) -> None:
    with pytest.raises(PageError) as caught:
        fill(page(tmp_path, text), {"speeds": speeds}, results)
    assert str(caught.value).startswith(problem)


def test_a_result_without_what_a_table_shows_is_named(tmp_path: Path, results: Results) -> None:
    (results.folder / "speed.json").write_text(json.dumps({"rows": [{"model": "fm"}]}))
    with pytest.raises(PageError, match=r"^speed\.md: table speeds, from results/speed\.json: KeyError: 'rows_per_second'$"):
        fill(page(tmp_path, PAGE), {"speeds": speeds}, results)


def test_a_missing_result_is_named(tmp_path: Path, results: Results) -> None:
    (results.folder / "speed.json").unlink()
    with pytest.raises(PageError, match=r"^speed\.md: table speeds, from results/speed\.json: is missing$"):
        fill(page(tmp_path, PAGE), {"speeds": speeds}, results)


def test_an_aim_is_reached_by_the_median_of_the_rounds() -> None:
    assert at_least("speed", [1.0, 2.0, 3.0], 2, "it/s").verdict == "reached (2 of 3 rounds)"
    assert at_least("speed", [1.0, 1.9, 3.0], 2, "it/s").verdict == "**missed** (1 of 3 rounds)"
    assert [flat("memory", 100, many).verdict for many in (110, 111, 89)] == ["reached", "**missed**", "**missed**"]


def test_where_numbers_come_from_is_said_once_for_each_command() -> None:
    head = {"machine": {"cores": 2, "cpu": "AMD EPYC", "memory_gib": 23.5}, "versions": {"torch": "2.13.0"}, "commit": "abc"}
    rows = [{**head, "command": "a", "date": f"2026-11-22 15:0{minute} UTC"} for minute in (2, 3)]
    rows.append({**head, "command": "b", "date": "2026-11-22 16:00 UTC"})
    assert origin("speed", rows) == (
        "`benchmarks/results/speed.json`: 2 cores of AMD EPYC, 23.5 GiB; torch 2.13.0.\n\n"
        "- 2026-11-22 15:02 to 15:03 UTC, commit abc: `a`\n"
        "- 2026-11-22 16:00 UTC, commit abc: `b`"
    )
