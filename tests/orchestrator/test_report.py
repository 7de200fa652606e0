"""The HTML page of a run: its numbers and its safety."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.pages import pictures, report

ATTACK = "<script>x()</script>"
SVG = "{http://www.w3.org/2000/svg}"


def make_result(**changes: Any) -> dict[str, Any]:
    """A run of three tasks whose numbers all differ."""
    matrix = [[0.91, 0.111, None], [0.72, 0.934, 0.125], [0.643, None, 1.0]]
    nodes = [
        {"id": 0, "parent": None, "tasks": None, "diameter": 0.8},
        {"id": 1, "parent": 0, "tasks": [1], "diameter": 0.0},
        {"id": 2, "parent": 0, "tasks": None, "diameter": 0.3},
        {"id": 3, "parent": 2, "tasks": [0], "diameter": 0.0},
        {"id": 4, "parent": 2, "tasks": [2], "diameter": 0.0},
    ]
    searched = [
        {"tasks": [0], "pulls": 3, "mean": 0.4567, "bound": 0.3211},
        {"tasks": [1], "pulls": 2000, "mean": None, "bound": None},
    ]
    result = {
        "name": "demo",
        "method": "treelora",
        "benchmark": "split_digits",
        "seed": 1,
        "order_seed": None,
        "config": {"method": {"rank": 4, "search": {"confidence": 0.83}}, "note": None},
        "overview": {
            "stream": "demo",
            "tasks": 3,
            "classes": 3,
            "rows": {"train": 50, "validation": 5, "test": 9},
            "rows_per_class": {"least": 11, "median": 17, "most": 22},
            "left_out": 2,
            "notes": [{"what": "images <of 16 bits> scaled to 8", "count": 7, "first": "cats/1.png"}],
        },
        "task_names": ["cats", "dogs", "owls"],
        "accuracy_matrix": matrix,
        "validation_matrix": matrix,
        "initial_accuracy": [0.101, 0.102, 0.103],
        "final_average_accuracy": 0.6127,
        "final_pooled_accuracy": 0.6231,
        "average_anytime_accuracy": 0.7345,
        "backward_transfer": -0.0833,
        "forgetting": 0.0945,
        "forward_transfer": 0.0121,
        "seconds": {"train": 1200.5, "evaluate": 20.1, "method": 3.4, "total": 1224.0},
        "trainable_parameters": 1234567,
        "versions": {"torch": "2.14.1"},
        "method_report": {
            "tree": {"nodes": nodes},
            "entries": [[0], [1], [2]],
            "distances": [[0.0, 0.71, 0.32], [0.71, 0.0, 0.83], [0.32, 0.83, 0.0]],
            "search": {"task": 2, "nodes": [], "entries": searched},
            "pulls": [[0, 0, 0], [12, 0, 0], [3, 2000, 0]],
            "chosen": [[], [0, 0], [1, 0, 1]],
        },
    }
    return result | changes


def make_one_task_result() -> dict[str, Any]:
    node = {"id": 0, "parent": None, "tasks": [0], "diameter": 0.0}
    details = {"tree": {"nodes": [node]}, "entries": [[0]], "distances": [[0.0]], "search": None}
    return make_result(
        task_names=["cats"],
        accuracy_matrix=[[0.875]],
        validation_matrix=[[None]],
        initial_accuracy=[None],
        backward_transfer=None,
        forgetting=None,
        forward_transfer=None,
        method_report=details | {"pulls": [[0]], "chosen": [[]]},
    )


def figures(html: str) -> dict[str, ElementTree.Element]:
    """The page's pictures by the first words of their labels; parsing fails if one is not XML."""
    parsed = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    assert all(svg.get("role") == "img" for svg in parsed)
    return {str(svg.get("aria-label")).split(" of ")[0].split(" against ")[0]: svg for svg in parsed}


def figure_texts(html: str, label: str) -> list[str]:
    (svg,) = [svg for name, svg in figures(html).items() if name.startswith(label)]
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def table_rows(html: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, as text."""
    body = html.split(f">{heading}<", 1)[1].split("<tbody>", 1)[1].split("</tbody>", 1)[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


@pytest.fixture(scope="module")
def page() -> str:
    return report.run_report(make_result())


def test_headlines_show_each_number_in_its_unit(page: str) -> None:
    shown = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd>', page)
    assert dict(shown) == {
        "Final average accuracy": "61.3%",
        "Final pooled accuracy": "62.3%",
        "Average anytime accuracy": "73.5%",
        "Backward transfer": "-8.3 points",
        "Forgetting": "9.4 points",
        "Forward transfer": "+1.2 points",
        "Trainable parameters": "1,234,567",
        "Total time": "1,224.0 s",
    }


def test_accuracy_cells_hold_the_matrix_row_by_row(page: str) -> None:
    texts = figure_texts(page, "Heat map: test accuracy")
    cells = [text for text in texts if re.fullmatch(r"[\d.]+|–", text)]
    assert cells == ["91.0", "11.1", "72.0", "93.4", "12.5", "64.3", "–", "100.0"]


def test_only_future_and_missing_cells_are_pale(page: str) -> None:
    svg = figures(page)["Heat map: test accuracy on each"]
    pale = [text.text for text in svg.iter(f"{SVG}text") if "opacity" in text.get("style", "")]
    assert pale == ["11.1", "12.5", "–"]


def test_task_table_follows_each_task_from_start_to_end(page: str) -> None:
    assert table_rows(page, "Accuracy of each task over time") == [
        ["cats", "10.1%", "91.0%", "64.3%"],
        ["dogs", "10.2%", "93.4%", "–"],
        ["owls", "10.3%", "100.0%", "100.0%"],
    ]


def test_pulls_are_shown_for_leaves_that_existed(page: str) -> None:
    texts = figure_texts(page, "Heat map: how often")
    assert [text for text in texts if text[0].isdigit()] == ["12", "3", "2,000"]
    assert table_rows(page, "Search in the tree") == [
        ["dogs", "cats", "2", "2"],
        ["owls", "dogs", "2", "3"],
    ]


def test_tree_is_drawn_by_diameter_where_parents_are_widest(page: str) -> None:
    texts = figure_texts(page, "Tree")
    assert {"cats", "dogs", "owls", "diameter"} <= set(texts)


def test_the_last_search_is_told_leaf_by_leaf(page: str) -> None:
    assert table_rows(page, "Last search") == [["cats", "3", "0.457", "0.321"], ["dogs", "2,000", "–", "–"]]
    assert "when owls was learned" in page


def test_leaf_distances_are_a_heat_map_without_a_diagonal(page: str) -> None:
    texts = figure_texts(page, "Heat map: distances between the 3 leaves")
    assert [text for text in texts if text[0] in "0–"] == ["0.71", "0.32", "0.71", "0.83", "0.32", "0.83"]


def test_a_leaf_of_several_tasks_names_them_all() -> None:
    result = make_result()
    nodes = [
        {"id": 0, "parent": None, "tasks": None, "diameter": 0.8},
        {"id": 1, "parent": 0, "tasks": [0, 2], "diameter": 0.1},
        {"id": 2, "parent": 0, "tasks": [1], "diameter": 0.0},
    ]
    merged = {"entries": [[0, 2], [1]], "distances": [[0.0, 0.8], [0.8, 0.0]], "tree": {"nodes": nodes}}
    html = report.run_report(make_result(method_report=result["method_report"] | merged))
    assert {"cats + owls", "dogs"} <= set(figure_texts(html, "Tree"))
    assert {"cats + owls", "0.80"} <= set(figure_texts(html, "Heat map: distances"))


def test_a_result_of_an_earlier_version_is_still_shown() -> None:
    nodes = [{"id": 0, "parent": None, "task": None, "diameter": 0.8}]
    nodes += [{"id": 1 + task, "parent": 0, "task": task, "diameter": 0.0} for task in range(3)]
    html = report.run_report(make_result(method_report={"tree": {"nodes": nodes}, "pulls": [], "chosen": []}))
    assert {"cats", "dogs", "owls"} <= set(figure_texts(html, "Tree"))
    assert "Heat map: distances" not in html and "Last search" not in html


@pytest.mark.parametrize("diameter", [None, 0.9])
def test_tree_falls_back_to_depth(diameter: float | None) -> None:
    result = make_result()
    result["method_report"]["tree"]["nodes"][2]["diameter"] = diameter
    texts = figure_texts(report.run_report(result), "Tree")
    assert "depth" in texts and "diameter" not in texts


def test_tree_rows_keep_siblings_together() -> None:
    rows = report.node_rows(make_result()["method_report"]["tree"]["nodes"])
    assert rows == {1: 0, 3: 1, 4: 2, 2: 1.5, 0: 0.75}


@pytest.mark.parametrize("method_report", [None, {"tree": {"nodes": []}, "pulls": [], "chosen": []}])
def test_run_without_a_tree_has_no_tree_sections(method_report: dict[str, Any] | None) -> None:
    html = report.run_report(make_result(method_report=method_report))
    assert "Task tree" not in html and "Search in the tree" not in html
    assert len(figures(html)) == 2


def test_one_task_run_shows_nulls_as_not_measured() -> None:
    html = report.run_report(make_one_task_result())
    assert re.findall(r'<dd class="value">(.*?)</dd>', html)[3:6] == ["–"] * 3
    assert table_rows(html, "Accuracy of each task over time") == [["cats", "–", "87.5%", "87.5%"]]
    assert "87.5" in figure_texts(html, "Heat map: test accuracy")
    assert "cats" in figure_texts(html, "Tree")
    assert "Search in the tree" not in html


def test_settings_are_flattened_and_exact(page: str) -> None:
    expected = [["method.rank", "4"], ["method.search.confidence", "0.83"], ["note", "null"]]
    assert table_rows(page, "Settings") == expected
    assert table_rows(page, "Time")[0] == ["train", "1,200.5"]
    assert table_rows(page, "Versions") == [["torch", "2.14.1"]]


def test_user_text_is_escaped_on_run_pages() -> None:
    tasks = [ATTACK, f"{ATTACK}{ATTACK}", '"><b>']
    config = {ATTACK: {"key": ATTACK, "list": [ATTACK]}}
    names = {"name": ATTACK, "method": ATTACK, "benchmark": ATTACK}
    html = report.run_report(make_result(task_names=tasks, config=config, **names))
    assert "<script" not in html and "<b>" not in html
    assert "<h1>Run &lt;script&gt;x()&lt;/script&gt;</h1>" in html
    assert figures(html)


def test_task_names_are_not_read_as_formulas() -> None:
    html = report.run_report(make_result(task_names=["$x$", "$5 & $6", "日本"]))
    assert {"$x$", "$5 & $6", "日本"} <= set(figure_texts(html, "Heat map: test accuracy"))


def test_long_task_names_keep_start_and_end_in_figures() -> None:
    names = ["superclass of many things 1", "superclass of many things 2", "owls"]
    html = report.run_report(make_result(task_names=names))
    assert "supercla…_things 2".replace("_", " ") in figure_texts(html, "Heat map: test accuracy")
    assert "superclass of many things 2" in html


def test_pictures_take_their_ink_from_the_page(page: str) -> None:
    assert pictures.INK not in page and "fill: currentColor" in page


def test_write_replaces_the_page_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    report.write(file, "new ü")
    assert file.read_text(encoding="utf-8") == "new ü"
    assert list(tmp_path.iterdir()) == [file]


def test_what_became_of_the_data_stands_on_the_page_and_old_results_do_without() -> None:
    page = report.run_report(make_result())
    assert (
        "data of demo: 3 classes in 3 tasks; rows: 50 train, 5 validation, 9 test; 11 to 22 (median 17) train rows"
        in page
    )
    assert "data of demo: 7 images &lt;of 16 bits&gt; scaled to 8 (first: cats/1.png)" in page
    old = make_result()
    del old["overview"]
    assert "<h2>Data</h2>" not in report.run_report(old)
