"""Pages of studies from results made by hand: their means, errors, legends, groups and escapes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orchestrator.pages.study_html import html_page
from orchestrator.pages.study_page import equality, matrix, page, percent, table
from tests.support.study_pages import FROZEN, LORA, TREE, cells, html_cells, made, markdown_cells


def test_means_errors_and_times_of_known_results() -> None:
    """LoRA's final averages 50 and 60 have mean 55 and standard error 5; its times 3 and 5 s have mean 4."""
    rows = [cells(line) for line in table({"frozen": FROZEN, "LoRA": LORA, "tree": TREE}).splitlines()[2:]]
    assert rows[1][1:7] == ["55.0 ± 5.0", "50.0 ± 10.0", "72.5 ± 2.5", "85.0 ± 0.0", "60.0 ± 10.0", "-60.0 ± 10.0"]
    assert [row[2] for row in rows] == ["40.0 ± 0.0", "50.0 ± 10.0", "70.0 ± 0.0"]
    assert [row[-1] for row in rows] == ["0.25x", "1.00x", "1.75x"], "relative to sequential LoRA, not to the first row"


def test_stored_numbers_are_thousands_and_older_results_have_none() -> None:
    counted = [run | {"stored_parameters": count} for run, count in zip(TREE, (12_000, 13_600), strict=True)]
    rows = {"tree": counted, "older": TREE, "one is older": [counted[1], TREE[0]]}
    assert [cells(line)[9] for line in table(rows).splitlines()[2:]] == ["13 k", "–", "14 k"]


def test_the_legend_says_what_times_are_relative_to() -> None:
    def told(rows: dict[str, Any]) -> str:
        written = page("t", "", "c", {"": rows}, False)
        return written.split("*Training time* is relative to ")[1].split("\n")[0]

    assert told({"frozen": FROZEN, "plain | LoRA": LORA}) == "sequential LoRA (row “plain | LoRA”)."
    assert told({"frozen": FROZEN, "tree": TREE}) == "the first row (row “frozen”)."


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"train": {"clip_norm": 2}}, "All rows have the same tasks, order, head, epochs and batch size."),
        ({"head": {"kind": "gaussian"}, "train": {"epochs": 2}}, "Rows differ in head.kind, train.epochs."),
        ({"head": {"start": "random"}, "order_seed": 3}, "Rows differ in head.start, order_seed."),
        ({"benchmark": {"tasks": 1}, "train": {"batch_size": 9}}, "Rows differ in benchmark.tasks, train.batch_size."),
    ],
)
def test_rows_that_were_not_run_alike_are_told(config: dict[str, Any], said: str) -> None:
    other = made("treelora", 0.9, 0, 0.6, 0.8, 0.6, 0.8, seconds=2, **config)
    rows = {"LoRA": LORA, "middle": LORA, "tree": [other]}
    assert equality(rows) == said
    assert f"\n\n{said}\n\n|" in page("t", "", "c", {"": rows}, False)


def test_one_row_is_compared_with_nothing() -> None:
    assert equality({"LoRA": LORA}) == ""


def test_every_group_has_a_table_of_its_own() -> None:
    groups = {"few": {"LoRA": LORA, "tree": TREE}, "many | all": {"frozen": FROZEN, "tree": TREE}}
    written = page("t", "About.", "c", groups, True)
    few, many = written.split("## few\n\n")[1].split("## many | all\n\n")
    assert table(groups["few"]) in few and table(groups["many | all"]) in many
    assert re.findall("^#+ .*", written, re.M) == [
        *("# t", "## few", "## many | all"),
        *("## few, LoRA", "## few, tree", "## many | all, frozen", "## many | all, tree"),
    ]
    assert "relative to sequential LoRA (row “LoRA”); in “many | all” to the first row (row “frozen”)." in written
    assert html_cells(html_page("t", written)) == markdown_cells(written)


def test_the_html_page_escapes_and_runs_nothing() -> None:
    attack = "<script>x()</script>"
    results = {"": {f"{attack} | *b*": LORA}}
    html = html_page(attack, page(attack, f"{attack} [go](javascript:x)\n\n<b>", "run.py 'a' `b`", results, True))
    assert "<script" not in html and "<b>" not in html and 'href="javascript' not in html
    assert "<title>&lt;script&gt;x()&lt;/script&gt;</title>" in html


def test_percentages_have_an_error_only_over_several_values() -> None:
    assert percent([0.5]) == "50.0" and percent([None]) == "–"
    assert percent([0.1, 0.2, 0.6]) == "30.0 ± 15.3"  # deviation sqrt(0.07) = 0.26458, over sqrt(3)


def test_a_bar_in_a_name_does_not_end_a_cell_and_known_tasks_show_the_other_reading() -> None:
    run = {"task_names": ["a | b"], "scores": ["accuracy"], "accuracy_matrix": [[0.5]], "unmasked_matrix": [[0.25]]}
    lines = matrix("one | two", run).splitlines()
    assert r"| after | a \| b |" in lines and r"| a \| b | 50.0 |" in lines
    assert lines[-1] == "With all seen classes competing, after the last task: 25.0."


def test_one_task_has_no_forgetting() -> None:
    run: dict[str, Any] = {"final_average_accuracy": 0.5, "average_anytime_accuracy": 0.5, "forgetting": None}
    run |= {"backward_transfer": None, "accuracy_matrix": [[0.5]], "validation_matrix": [[None]], "method": "lora"}
    run |= {"seconds": {"train": 0.0, "method": 0.0, "total": 90.0}, "benchmark": "digits", "peak_memory_bytes": 2**20}
    row = cells(table({"joint": [run]}).splitlines()[2])
    assert row == ["joint", "50.0", "–", "50.0", "50.0", "–", "–", "1.5", "1 MiB", "–", "0.0 %", "0.00x"]
    head, _, *rows = table({"joint": [run], "other": [run | {"benchmark": "texts"}]}).splitlines()
    assert "training time" not in head, "times on two benchmarks cannot be compared"
    assert [len(cells(row)) for row in rows] == [len(cells(head))] * 2
