"""The figures of a search: how it went on, what was stopped, and what was traded for what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.pages.pictures import GREY, PALETTE, Record, short, svg
from orchestrator.pages.scales import numbers

BEST: dict[str, Any] = {"marker": "o", "color": PALETTE[1], "markerfacecolor": "none", "markersize": 11}
MARKERS: dict[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": PALETTE[0]},
    "stopped": {"marker": "o", "color": PALETTE[0], "markerfacecolor": "none", "alpha": 0.7},
    "running": {"marker": "^", "color": PALETTE[2]},
    "failed": {"marker": "x", "color": GREY},
    "best": BEST,
}
CURVES = {"failed": GREY, "stopped": GREY, "running": PALETTE[2], "finished": PALETTE[0]}  # drawn in this order
CUT_OFF = PALETTE[3]


def marks(axes: Axes, status: str, across: Sequence[float], heights: Sequence[float], **changes: Any) -> None:
    """The points of all trials of one status."""
    if across:
        looks: dict[str, Any] = {"linestyle": "none", "markersize": 5, "label": status} | MARKERS[status]
        axes.plot(across, heights, **(looks | changes))


def legend(figure: Figure) -> None:
    """One entry for each kind of mark in any of the figure's parts."""
    drawn = [handle for axes in figure.axes for handle in axes.get_lines()]
    handles = {handle.get_label(): handle for handle in drawn if not str(handle.get_label()).startswith("_")}
    figure.legend(handles=list(handles.values()), loc="outside upper left", ncols=6)


def history_picture(sweep: Record, trials: Sequence[Record]) -> Markup:
    """The objective in the order of ``trials``, which are numbered from 1, and the best finished one so far."""
    better = max if sweep["objectives"][sweep["objective"]] == "max" else min

    values = [(place, trial["objective"], trial["status"]) for place, trial in enumerate(trials, 1)]
    known = {s: [(p, value) for p, value, status in values if status == s and value is not None] for s in MARKERS}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for status in ("stopped", "finished"):
            marks(axes, status, [place for place, _ in known[status]], [value for _, value in known[status]])
        if finished := known["finished"]:
            so_far = list(itertools.accumulate((value for _, value in finished), better))
            places = [*(place for place, _ in finished), len(trials)]
            looks: dict[str, Any] = {"drawstyle": "steps-post", "color": PALETTE[1], "linewidth": 1.4}
            axes.plot(places, [*so_far, so_far[-1]], label="best finished so far", **looks)
        lost = [place for place, trial in enumerate(trials, 1) if trial["status"] == "failed"]
        # They have no value: at the edge, wherever that lies.
        marks(axes, "failed", lost, [0.02] * len(lost), transform=axes.get_xaxis_transform())
        axes.set(xlabel="trial, in the order in which they were drawn", ylabel=sweep["objective"])
        axes.set_xlim(0.5, len(trials) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        legend(figure)

    return svg("history", f"History: {sweep['objective']} of {len(trials)} trials in order", (7.6, 3.0), draw)


def curves_picture(sweep: Record, trials: Sequence[Record]) -> Markup:
    """A line for each trial over its finished tasks; where one was stopped or failed, it ends in a mark."""
    groups = {status: [trial for trial in trials if trial["status"] == status] for status in CURVES}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for status, members in groups.items():
            looks: dict[str, Any] = {"colors": CURVES[status], "alpha": 0.45, "linewidths": 0.9}
            axes.add_collection(LineCollection([trial["history"] for trial in members], **looks))
            ends = [trial["history"][-1] for trial in members]
            color = {} if status != "stopped" else {"color": GREY}
            marks(axes, status, [end[0] for end in ends], [end[1] for end in ends], markersize=4, **color)
        for trial in trials:
            if trial["id"] == sweep["best"]:
                across, heights = zip(*trial["history"], strict=True)
                axes.plot(across, heights, color=PALETTE[1], linewidth=2, label="best")
        axes.set(xlabel="tasks finished", ylabel="average anytime validation accuracy")
        axes.set_xlim(0.8, sweep["tasks"] + 0.2)
        axes.margins(y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        legend(figure)

    return svg("curves", f"Lines: validation accuracy of {len(trials)} trials over the tasks", (7.6, 3.4), draw)


def rungs_picture(trials: Sequence[Record]) -> Markup:
    """A column for each number of tasks after which a trial was stopped: its value and the cut-off it missed.

    The trials of a column stand in their order, so that a cut-off which moves as trials end can be seen to move.
    """
    rungs = sorted({trial["stopped"]["tasks"] for trial in trials if trial["stopped"]})

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for column, tasks in enumerate(rungs):
            places = np.linspace(column - 0.4, column + 0.4, len(trials) + 2)[1:-1]
            went_on, ended = [], []
            for place, trial in zip(map(float, places), trials, strict=True):
                if trial["stopped"] and trial["stopped"]["tasks"] == tasks:
                    ended.append((place, trial["stopped"]["value"], trial["stopped"]["cut_off"]))
                else:
                    went_on += [(place, value) for seen, value in trial["history"] if seen == tasks]
            marks(axes, "finished", [p for p, _ in went_on], [v for _, v in went_on], label="went on", markersize=4)
            marks(axes, "stopped", [p for p, *_ in ended], [v for _, v, _ in ended], markersize=4)
            if ended:
                axes.vlines(*zip(*ended, strict=True), color=CUT_OFF, linewidth=0.6, alpha=0.7)
                cut_offs = [(place, cut_off) for place, _, cut_off in ended]
                looks: dict[str, Any] = {"marker": "_", "color": CUT_OFF, "markersize": 9, "linestyle": "none"}
                axes.plot(*zip(*cut_offs, strict=True), label="cut-off at that moment", **looks)
        axes.set_xticks(range(len(rungs)), [f"after task {tasks}" for tasks in rungs])
        axes.set_xlim(-0.5, len(rungs) - 0.5)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("average anytime validation accuracy")
        axes.grid(axis="y")
        legend(figure)

    size = max(4.4, min(9.0, 1.6 + 2.0 * len(rungs))), 3.4
    return svg("rungs", f"Decisions: values and cut-offs at {len(rungs)} numbers of tasks", size, draw)


def front_picture(sweep: Record, trials: Sequence[Record]) -> Markup:
    """The first objective against each other one; trials that none beats in everything are marked."""
    first, *others = sweep["objectives"]
    front = [trial for trial in trials if trial["id"] in sweep["front"]]

    def draw(figure: Figure) -> None:
        for place, other in enumerate(others):
            share = figure.axes[0] if place else None
            axes = figure.add_subplot(1, len(others), place + 1, sharey=share)
            scale = numbers([trial["values"][other] for trial in trials])
            for label, members in (("finished", trials), ("best", front)):
                across = [scale.place(trial["values"][other]) for trial in members]
                heights = [trial["values"][first] for trial in members]
                marks(axes, label, across, heights, label="on the front" if label == "best" else label, zorder=3)
            if len(others) == 1:  # of more objectives a front is no line
                line = sorted((scale.place(trial["values"][other]), trial["values"][first]) for trial in front)
                reached = "steps-post" if sweep["objectives"][other] == "min" else "steps-pre"
                looks: dict[str, Any] = {"color": PALETTE[1], "linewidth": 1, "alpha": 0.7, "drawstyle": reached}
                axes.plot(*zip(*line, strict=True), **looks)
            axes.set_xticks(list(scale.ticks), list(scale.ticks.values()))
            axes.set_xlabel(f"{short(other, 30)} ({goal(sweep, other)})")
            axes.set_ylabel("" if place else f"{first} ({goal(sweep, first)})")
            axes.tick_params(labelleft=not place)
            axes.grid()
        legend(figure)

    size = max(5.0, 3.4 * len(others)), 3.4
    return svg("front", f"Trade-off: {first} against {', '.join(others)}", size, draw)


def goal(sweep: Record, objective: str) -> str:
    return "more is better" if sweep["objectives"][objective] == "max" else "less is better"


def importance_picture(found: Mapping[str, Mapping[str, float]]) -> Markup:
    """Bars: each setting's share, for every value that was explained; those of the first value set the order."""
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))
    thick = 0.8 / len(found)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (label, shares) in enumerate(found.items()):
            rows = [names.index(name) + thick * (place - (len(found) - 1) / 2) for name in shares]
            widths = [100 * share for share in shares.values()]
            axes.barh(rows, widths, 0.85 * thick, color=PALETTE[place], label=label)
            for row, width in zip(rows, widths, strict=True):
                axes.text(width + 1, row, f"{width:.0f} %", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), [short(name, 34) for name in names])
        axes.set(xlabel="share of the explained difference, %", xlim=(0, 108), ylim=(len(names) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        if len(found) > 1:
            figure.legend(loc="outside upper left", ncols=1)

    size = 7.0, 0.9 + 0.2 * len(found) + (0.1 + 0.22 * len(found)) * len(names)
    return svg("importance", f"Bars: importance of {len(names)} settings", size, draw)
