"""The HTML page of a sweep: its numbers and decisions, odd searches, its safety and its reproducibility."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from orchestrator.pages import report
from orchestrator.pages.sweep_view import sweep_view, thinned
from tests.orchestrator.test_report import ATTACK, SVG, figure_texts, figures, make_result, table_rows
from tests.support.sweep_pages import confirmation, make_sweep, make_trial, planted_sweep

TOP = make_trial("00003", "finished", 0.7, settings={"method.rank": 4, "lr": 1e-3, "mode": "lcb"})
LOW = make_trial("00000", "finished", 0.61, settings={"method.rank": 8, "lr": 1e-4, "mode": "lcb"})
CUT = make_trial("00002", "stopped", 0.55, settings={"method.rank": 16, "lr": 1e-2, "mode": "random"})
LOST = make_trial("00001", "failed", None, settings={"method.rank": 2, "lr": 1e-3}, attempts=3)
ENDED = [TOP, LOW, CUT, LOST]


def page_of(*trials: dict[str, Any], **changes: Any) -> str:
    return report.sweep_report(make_sweep(list(trials), **changes), None)


@pytest.fixture(scope="module")
def page() -> str:
    return report.sweep_report(make_sweep(ENDED), make_result())


@pytest.fixture(scope="module")
def planted() -> str:
    objectives = {"validation_accuracy": "max", "seconds": "min"}
    return report.sweep_report(planted_sweep(40, objectives=objectives), None)


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def points(html: str, label: str) -> list[tuple[float, float]]:
    """Where the marks of a picture lie, in points from its upper left; those of its legend are left out."""
    (svg,) = [svg for name, svg in figures(html).items() if name.startswith(label)]
    axes = next(group for group in svg.iter(f"{SVG}g") if group.get("id", "").endswith("-axes_1"))
    ticks = {use for group in axes.iter(f"{SVG}g") if "matplotlib.axis" in group.get("id", "") for use in uses(group)}
    return [(float(use.get("x", "")), float(use.get("y", ""))) for use in uses(axes) if use not in ticks]


def uses(group: ElementTree.Element) -> list[ElementTree.Element]:
    return list(group.iter(f"{SVG}use"))


def test_trials_keep_their_order_and_the_best_is_marked(page: str) -> None:
    rows = table_rows(page, "Trials")
    top = "00003 (best)|finished|0.7000|51.2%|3.5 points|42.0|4|0.001|lcb|trials/demo-00003"
    assert "|".join(rows[0]) == top
    assert rows[2][:3] == ["00002", "stopped after task 1", "0.5500"]
    assert "|".join(rows[3]) == "00001|failed|–|–|–|–|2|0.001|–|trials/demo-00001"
    assert page.count('<tr class="best">') == 1


def test_a_sweep_says_its_protocol_its_goal_and_how_far_it_is(page: str) -> None:
    said = words(page)
    goal = "Objective validation_accuracy (more is better), protocol stream:"
    assert f"{goal} chosen on the validation splits of all 4 tasks" in said
    assert "4 trials: 1 failed, 2 finished, 1 stopped." in said and "under way" not in said
    waiting = words(page_of(TOP, make_trial("00004", "running", None), make_trial("00005", "waiting", None)))
    assert "3 trials: 1 finished, 1 running, 1 waiting. The search is under way" in waiting


def test_only_a_confirmed_choice_has_a_result(page: str) -> None:
    html = page_of(*ENDED, confirmed=confirmation())
    assert re.findall(r'<dd class="value">(.*?)</dd>', html) == ["62.3% ± 1.1"]
    assert table_rows(html, "Result") == [["11", "61.2%", "confirm/demo-0"], ["12", "63.4%", "confirm/demo-1"]]
    assert "stream: split_digits in its natural order" in words(html)
    assert "None yet: the choice was not confirmed" in words(page) and "None yet" not in words(html)
    alone = confirmation(seeds=[11], final_average_accuracy=[0.612], mean=0.612, standard_error=None)
    assert '<dd class="value">61.2%</dd>' in page_of(TOP, confirmed=alone)


def test_failures_have_error_node_attempts_and_the_command_to_repeat(page: str) -> None:
    assert table_rows(page, "Failures") == [
        ["00001", "OutOfMemoryError: too large", "node-1", "3", "<code>run.py train name=demo-00001</code>"]
    ]
    assert "Failures" not in page_of(TOP)


def test_history_follows_the_best_finished_trial_in_the_order_of_drawing(page: str) -> None:
    (svg,) = [svg for name, svg in figures(page).items() if name == "History: validation_accuracy"]
    line = next(path for path in svg.iter(f"{SVG}path") if "#d9822b" in path.get("style", ""))
    corners = [tuple(map(float, place)) for place in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.get("d", ""))]
    heights = [y for _, y in corners]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 2, "from 0.61 up to 0.7, once"
    marks = points(page, "History")
    assert len(marks) == 4
    assert {corners[0], corners[-1]} < set(marks), "from the first finished trial to the last, which is drawn last"
    assert {"stopped", "finished", "failed", "best finished so far"} <= set(figure_texts(page, "History"))


def test_less_may_be_better() -> None:
    quick = make_trial("00000", "finished", 3.0, settings={"lr": 1e-4})
    slow = make_trial("00001", "finished", 9.0, settings={"lr": 1e-3})
    html = page_of(quick, slow, objective="validation_accuracy", objectives={"validation_accuracy": "min"})
    (svg,) = [svg for name, svg in figures(html).items() if name == "History: validation_accuracy"]
    line = next(path for path in svg.iter(f"{SVG}path") if "#d9822b" in path.get("style", ""))
    assert len({y for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.get("d", ""))}) == 1, "9 is no progress"
    strokes = [path.get("style", "") for path in figures(html)["Parallel coordinates"].iter(f"{SVG}path")]
    assert [style for style in strokes if "#2f6fc4" in style and "2.8" in style], "the best, the thick one, is blue"


def test_rungs_have_a_column_for_each_decision_and_a_table_of_reasons() -> None:
    late = make_trial("00004", "stopped", 0.6, history=[[1, 0.9], [2, 0.6]])
    late["stopped"] |= {"tasks": 2, "cut_off": 0.65, "text": "stopped after task 2: 0.600 < 0.650"}
    html = page_of(*ENDED, late)
    texts = figure_texts(html, "Decisions")
    assert {"after task 1", "after task 2", "went on", "stopped", "cut-off at that moment"} <= set(texts)
    # After task 1: three went on, one was stopped at its cut-off; after task 2: two went on, one was stopped.
    assert len(points(html, "Decisions")) == (3 + 2) + (2 + 2)
    assert table_rows(html, "Why trials were stopped") == [
        ["00002", "asha", "cut 00002"],
        ["00004", "asha", "stopped after task 2: 0.600 &lt; 0.650"],
    ]


def test_trials_that_no_scheduler_stopped_are_counted() -> None:
    said = words(page_of(TOP, make_trial("00002", "stopped", 0.55, stopped=None)))
    assert "Stopped without a recorded decision of a scheduler: 1." in said


def test_curves_end_where_trials_ended(page: str) -> None:
    ends = points(page, "Lines: validation accuracy")
    across = sorted(x for x, _ in ends)
    assert len(ends) == 3 and across[0] < across[1] == across[2]
    assert {"finished", "stopped", "best"} <= set(figure_texts(page, "Lines: validation accuracy"))


def test_the_objective_is_drawn_against_each_setting_that_differs(page: str) -> None:
    texts = figure_texts(page, "Scatter plots")
    assert {"method.rank", "lr", "mode", "validation_accuracy"} <= set(texts)
    assert {"4", "8", "16", "lcb", "random", "0.0001", "0.01"} <= set(texts)
    assert "2" not in texts, "a failed trial without an objective has no place in the picture"
    assert {"finished", "stopped", "best"} <= set(texts) and "failed" not in texts
    alike = [trial | {"settings": trial["settings"] | {"same": 1}} for trial in ENDED]
    assert "same" not in figure_texts(page_of(*alike), "Scatter plots")
    assert "Equal in all of them: same." in words(page_of(*alike))


def test_parallel_coordinates_show_every_kind_of_setting(planted: str, page: str) -> None:
    texts = figure_texts(planted, "Parallel coordinates")
    assert {"train.learning_rate", "kind", "strength", "betas", "flip", "validation_accuracy"} <= set(texts)
    assert {"0.0001", "l2", "[0.9, 0.99]", "true", "not set"} <= set(texts)
    assert "not set" not in figure_texts(page, "Parallel coordinates")


def test_importance_finds_what_was_planted_and_names_how(planted: str) -> None:
    said = words(planted)
    assert "by mean decrease impurity in a random forest" in said
    stopped = sum(row[1].startswith("stopped") for row in table_rows(planted, "Trials"))
    assert 0 < stopped < 20
    assert f"By validation_accuracy of finished trials: {40 - stopped} trials were used." in said
    assert "By validation accuracy after the first task, stopped trials included: 40 trials were used." in said
    assert "Not judged, because not all of these trials have them: strength." in said
    bars = figure_texts(planted, "Bars")
    assert bars.index("train.learning_rate") < bars.index("kind") < bars.index("method.rank")
    assert "The two that matter most Finished trials by train.learning_rate and kind." in said


def test_the_two_that_matter_most_get_contours_where_both_are_ranges() -> None:
    sweep = planted_sweep(40)
    for trial in sweep["trials"]:
        trial["settings"] = {"lr": trial["settings"]["train.learning_rate"], "far": trial["objective"] ** 2}
    assert "Contours: validation_accuracy by" in report.sweep_report(sweep, None)
    for trial in sweep["trials"]:
        trial["settings"]["far"] = 2 * trial["settings"]["lr"]
    assert "Scatter plot: validation_accuracy by" in report.sweep_report(sweep, None), "on one line there are none"


def test_the_front_is_marked_where_there_are_several_objectives(page: str) -> None:
    objectives = {"validation_accuracy": "max", "seconds": "min", "stored_parameters": "min"}
    values = {"seconds": 5.0, "stored_parameters": 1000}
    trials = [t | {"values": values | t["values"]} for t in (TOP, LOW)]
    html = page_of(*trials, CUT, objectives=objectives, front=["00003"])
    texts = figure_texts(html, "Trade-off")
    assert {"seconds (less is better)", "stored_parameters (less is better)", "on the front"} <= set(texts)
    assert len(points(html, "Trade-off")) == 3, "two finished, one ringed"
    assert "traded" not in page


ODD: dict[str, list[dict[str, Any]]] = {
    "nothing yet": [],
    "one trial": [TOP],
    "failed ones only": [LOST, LOST | {"id": "00002"}],
    "waiting ones only": [make_trial("00000", "waiting", None), make_trial("00001", "waiting", None)],
    "running ones only": [make_trial("00000", "running", None, history=[[1, 0.8]])],
    "stopped ones only": [CUT, make_trial("00005", "stopped", 0.4, settings={"method.rank": 8})],
    "equal values": [TOP, LOW | {"objective": 0.7, "values": {"validation_accuracy": 0.7}}],
    "no number": [TOP, LOW, make_trial("00009", "finished", float("nan"), settings={"lr": float("inf")})],
    "other types in one setting": [
        TOP | {"settings": {"a": None, "b": True}},
        LOW | {"settings": {"a": [1, 2], "b": 1}},
        CUT | {"settings": {"a": "x", "b": 0.5}},
    ],
}


@pytest.mark.parametrize("case", ODD)
def test_odd_searches_have_a_page_without_numbers_that_are_none(case: str) -> None:
    html = page_of(*ODD[case])
    assert not re.search(r"\b(nan|NaN|Infinity)\b", html)
    assert all(not re.search(r"[\s\"](nan|inf)[\s\"]", svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S))
    assert len(table_rows(html, "Trials")) == len(ODD[case])
    figures(html)
    assert ("No two trials with an objective differ in a setting." in words(html)) == (
        case in ("nothing yet", "one trial", "failed ones only", "waiting ones only", "running ones only")
    )


def test_without_a_finished_trial_there_is_no_best_one() -> None:
    html = page_of(LOST)
    assert "There is no result of a best trial to show." in html
    assert not [name for name in figures(html) if not name.startswith("Bars")] and 'class="best"' not in html


def test_a_sweep_of_an_earlier_version_is_still_shown() -> None:
    old = ("id", "status", "settings", "objective", "final_average_accuracy", "forgetting", "seconds", "folder")
    sweep = {key: value for key, value in make_sweep(ENDED).items() if key in ("name", "objective", "protocol", "best")}
    sweep |= {"config": {}, "trials": [{key: trial[key] for key in old} for trial in ENDED]}
    html = report.sweep_report(sweep, None)
    assert [row[2] for row in table_rows(html, "Trials")] == ["0.7000", "0.6100", "0.5500", "–"]
    assert "Scatter plots" in html and "Lines" not in html


def test_a_thousand_trials_stay_a_page_and_what_is_not_drawn_is_said() -> None:
    sweep = planted_sweep(1000)
    html = report.sweep_report(sweep, None)
    sizes = [len(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    assert max(sizes) < 300_000
    assert words(html).count("Drawn are 300 of 1000 trials") == 4
    assert thinned(list(range(1000)), 5) == [0, 250, 500, 749, 999]  # type: ignore[arg-type,comparison-overlap]


def test_user_text_is_escaped() -> None:
    trial = make_trial("00000", "finished", 0.5, settings={f'"{ATTACK}': ATTACK, ATTACK: 1})
    other = make_trial(ATTACK, "failed", 0.4, settings={f'"{ATTACK}': 1}, error=ATTACK, node=ATTACK, repeat=ATTACK)
    cut = make_trial(ATTACK, "stopped", 0.3)
    cut["stopped"] |= {"rule": ATTACK, "text": ATTACK}
    other["values"] = trial["values"] = {ATTACK: 0.5, "b": 1.0}
    names = {"name": ATTACK, "objective": ATTACK, "protocol": ATTACK, "protocol_text": ATTACK}
    names |= {"objectives": {ATTACK: "max", "b": "min"}, "front": [ATTACK]}  # type: ignore[dict-item]
    html = page_of(trial, other, cut, confirmed=confirmation(stream=ATTACK, folders=[ATTACK, ATTACK]), **names)
    assert "<script" not in html and html.count("&lt;script&gt;") > 20
    assert any(name.startswith(f"Scatter plots: {ATTACK}") for name in figures(html))


def test_same_input_gives_same_bytes_and_changes_nothing_global(page: str) -> None:
    # Asking for the backend would choose one, which is the kind of change this test is about.
    names = set(matplotlib.rcParams) - {"backend"}
    before = {name: matplotlib.rcParams[name] for name in names}
    again = report.sweep_report(copy.deepcopy(make_sweep(ENDED)), copy.deepcopy(make_result()))
    assert again == page
    assert {name: matplotlib.rcParams[name] for name in names} == before
    planted = [report.sweep_report(planted_sweep(20), None) for _ in range(2)]
    assert planted[0] == planted[1], "importance too"


def test_the_view_changes_nothing_in_what_it_reads() -> None:
    sweep = planted_sweep(10)
    before = copy.deepcopy(sweep)
    sweep_view(sweep)
    assert sweep == before


def test_page_fetches_nothing(page: str, planted: str) -> None:
    for html in (page, planted):
        targets = re.findall(r'(?:src|href|data|action)\s*=\s*"([^"]*)"', html)
        targets += re.findall(r"url\(([^)]*)\)", html)
        assert targets and all(target.startswith("#") for target in targets)
        assert not re.search(r"@import|<script|<link|<img|<iframe|<image", html)


def test_ids_are_unique_and_references_resolve(page: str, planted: str) -> None:
    for html in (page, planted):
        ids = re.findall(r'\bid="([^"]*)"', html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', html)) <= set(ids)


def test_a_sweep_ends_with_the_run_report_of_the_best_trial(page: str) -> None:
    assert "Best trial 00003" in page
    assert "93.4" in figure_texts(page, "Heat map: test accuracy")


def test_shades_of_equal_values_and_of_trials_in_one_place_are_drawn() -> None:
    """All finished trials are alike in their objective, and only their first tasks tell settings apart."""
    rates = [0.1, 0.2, 0.3, 0.4] * 3
    trials = [
        make_trial(f"{n:05d}", "finished", 0.5, history=[[1, rate]], settings={"lr": rate, "b": n % 3 / 2})
        for n, rate in enumerate(rates)
    ]
    html = page_of(*trials, make_trial("00099", "stopped", 0.2, settings={"lr": 0.1, "b": 0.5}))
    assert "all these trials have the same value" in words(html)
    assert "Contours: validation_accuracy by lr and b" in figures(html)
