"""Turns the result of a run, or of a sweep, into one self-contained HTML page.

The page needs no network and no JavaScript: its pictures are inline SVG, and whatever a user may
have typed (names, settings) is escaped. Equal input gives equal bytes, so pages can be compared.
Words and tables live in `report.html.j2`; this file shapes the data and draws.
"""

import io
import itertools
import json
import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import colors, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

INK = "#010203"  # stands for the page's text colour, which only the browser knows (light or dark)
GREY = "#8a939c"
PALETTE = "#3b82c4 #d9822b #3f9e5a #c94f6d #8b6fc9 #9a7b4f #2ba3a8 #b39a2e #d46fb3 #7a8490".split()
DASHES = ("-", "--", ":", "-.")
HEAT = colors.LinearSegmentedColormap.from_list("heat", ["#edf3f7", "#7fb0cf", "#1d4e7a"])
MARKERS = {
    "finished": {"marker": "o", "color": PALETTE[0]},
    "stopped": {"marker": "o", "color": PALETTE[0], "markerfacecolor": "none"},
    "failed": {"marker": "x", "color": GREY},
    "best": {"marker": "o", "color": PALETTE[1], "markerfacecolor": "none", "markersize": 11},
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evergreen",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}

Matrix = NDArray[np.float64]
Record = Mapping[str, Any]


def run_report(result: dict[str, Any]) -> str:
    """The page of one run."""
    return _page(run=_run_view(result), sweep=None)


def sweep_report(sweep: dict[str, Any], best: dict[str, Any] | None) -> str:
    """The page of a sweep: its trials, then the run report of the best one where there is one."""
    return _page(run=_run_view(best) if best else None, sweep=_sweep_view(sweep))


def write(file: Path, html: str) -> None:
    """Write the page beside its place and rename it, so that no reader sees half a page."""
    unfinished = file.with_name(file.name + ".part")
    unfinished.write_text(html, encoding="utf-8")
    os.replace(unfinished, file)


# --- what the template shows ---


def _page(run: Record | None, sweep: Record | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=_show, setting=_setting)
    html = environment.get_template("report.html.j2").render(run=run, sweep=sweep)
    return html.strip() + "\n"


def _run_view(result: Record) -> dict[str, Any]:
    report = result["method_report"] or {}
    names, accuracy = result["task_names"], _matrix(result["accuracy_matrix"])
    nodes = (report.get("tree") or {}).get("nodes", [])
    has_leaves = any(node["task"] is not None for node in nodes)
    pulls = _matrix(report.get("pulls", []))
    return {
        "result": result,
        "settings": _flatten(result["config"]),
        "accuracy": _accuracy_picture(names, accuracy),
        "progress": _progress_picture(names, accuracy),
        "tree": _tree_picture(names, nodes) if has_leaves else None,
        "pulls": _pulls_picture(names, pulls) if pulls.any() else None,
        "favourites": _favourites(names, report.get("chosen", [])),
    }


def _sweep_view(sweep: Record) -> dict[str, Any]:
    measured = [trial for trial in sweep["trials"] if _measured(trial["objective"])]
    unmeasured = [trial for trial in sweep["trials"] if not _measured(trial["objective"])]
    return {
        "sweep": sweep,
        "trials": sorted(measured, key=lambda trial: -trial["objective"]) + unmeasured,
        "swept": _swept(sweep["trials"]),
        "picture": _objective_picture(sweep, measured) if _swept(measured) else None,
        "settings": _flatten(sweep["config"]),
    }


def _swept(trials: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(key for trial in trials for key in trial["settings"]))


def _favourites(
    names: Sequence[str], chosen: Sequence[Sequence[int]]
) -> list[tuple[str, str, int, int]]:
    """Per task with searches: its name, the leaf chosen most often, how often, of how many."""
    counted = [(name, Counter(leaves)) for name, leaves in zip(names, chosen, strict=False)]
    tops = [(name, *counts.most_common(1)[0], counts.total()) for name, counts in counted if counts]
    return [(name, names[leaf], times, total) for name, leaf, times, total in tops]


def _flatten(config: Record, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys, in the order given."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _measured(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _show(value: float | None, form: str, scale: float = 1) -> str:
    return form.format(value * scale) if value is not None and _measured(value) else "–"


def _setting(value: Any, form: str = "{!r}") -> str:
    if isinstance(value, float):
        return form.format(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _matrix(rows: Sequence[Sequence[float | None]]) -> Matrix:
    return np.array(rows, dtype=np.float64)  # null becomes nan


# --- pictures ---


def _svg(
    name: str, label: str, size: tuple[float, float], draw: Callable[[Figure], None]
) -> Markup:
    """Draw one picture and return it as inline SVG that takes its ink from the page."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style.context(["default", STYLE]), warnings.catch_warnings():
        # The browser sets the text, so glyphs that matplotlib's own font lacks are no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub("<[^>]+>", lambda tag: _adapt(tag.group(), name), svg[svg.index("<svg") :])
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def _adapt(tag: str, name: str) -> str:
    """Make ids unique within the page, and ink the colour of the text around the picture."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    return tag.replace(INK, "currentColor")


def _short(text: str, length: int = 18) -> str:
    """At most `length` characters: the start and the end, for names often differ in the end."""
    line, half = " ".join(text.split()), length // 2
    return line if len(line) <= length else f"{line[: length - half - 1]}…{line[-half:]}"


def _accuracy_picture(names: Sequence[str], accuracy: Matrix) -> Markup:
    label = f"Heat map: test accuracy on each of {len(names)} tasks after learning each task"

    def draw(figure: Figure) -> None:
        future = np.triu(np.ones_like(accuracy, dtype=bool), k=1)
        axes = _heat_map(figure, 100 * accuracy, future, "{:.1f}", top=100)
        _task_ticks(axes, names, "task", "after learning")

    return _svg("accuracy", label, _heat_size(names), draw)


def _pulls_picture(names: Sequence[str], pulls: Matrix) -> Markup:
    label = "Heat map: how often the search pulled each earlier task while learning each task"

    def draw(figure: Figure) -> None:
        future = np.triu(np.ones_like(pulls, dtype=bool))
        values = np.where(future, np.nan, pulls)
        axes = _heat_map(figure, values, future, "{:,.0f}", top=pulls.max())
        _task_ticks(axes, names, "leaf", "while learning")

    return _svg("pulls", label, _heat_size(names), draw)


def _heat_size(names: Sequence[str]) -> tuple[float, float]:
    margin = 0.8 + 0.08 * max(len(_short(name)) for name in names)
    return max(3.6, margin + 0.54 * len(names)), max(1.8, margin + 0.36 * len(names))


def _heat_map(
    figure: Figure, values: Matrix, future: NDArray[np.bool_], form: str, top: float
) -> Axes:
    """Cells with their numbers, shaded from zero to `top`; those of the future are greyed."""
    axes = figure.add_subplot()
    shades = HEAT.with_extremes(bad=(*colors.to_rgb(GREY), 0.15))
    axes.pcolormesh(np.where(future, np.nan, values), cmap=shades, vmin=0, vmax=top)
    for (row, column), value in np.ndenumerate(values):
        pale = future[row, column] or np.isnan(value)
        if future[row, column] and np.isnan(value):
            continue
        color = INK if pale else "#ffffff" if value > 0.72 * top else "#1f2429"
        text = axes.text(column + 0.5, row + 0.5, _show(value, form), color=color, fontsize=8)
        text.set(ha="center", va="center", in_layout=False, alpha=0.6 if pale else 1)
    return axes


def _task_ticks(axes: Axes, names: Sequence[str], across: str, down: str) -> None:
    labels, places = [_short(name) for name in names], np.arange(len(names)) + 0.5
    axes.set_yticks(places, labels)
    axes.set_xticks(places, labels)
    if max(map(len, labels)) > 6:
        axes.tick_params(axis="x", labelrotation=40)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set(xlabel=across, ylabel=down)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _progress_picture(names: Sequence[str], accuracy: Matrix) -> Markup:
    count = len(names)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for task, name in enumerate(names):
            dashes = DASHES[task // len(PALETTE) % len(DASHES)]
            looks = {"color": PALETTE[task % len(PALETTE)], "marker": "o", "markersize": 3.5}
            learned = np.arange(task + 1, count + 1)
            axes.plot(learned, 100 * accuracy[task:, task], dashes, label=_short(name), **looks)
        axes.set(xlabel="tasks learned", ylabel="test accuracy, %", ylim=(-3, 103))
        axes.set_xlim(0.5, count + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        figure.legend(loc="outside right upper", ncols=math.ceil(count / 24))

    size = 8 + 1.6 * (count // 24), max(3.2, 0.6 + 0.19 * min(count, 24))
    return _svg("progress", "Lines: test accuracy of each task over the stream", size, draw)


def _tree_picture(names: Sequence[str], nodes: Sequence[Record]) -> Markup:
    """Root at the left and leaves at the right, placed by diameter, or else by depth."""
    leaves = [node for node in nodes if node["task"] is not None]
    down, across = _node_rows(nodes), _node_diameters(nodes)
    by_diameter = across is not None
    across = across or _node_depths(nodes)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for node in nodes:
            x, y, parent = across[node["id"]], down[node["id"]], node["parent"]
            if parent is not None:
                elbow = [across[parent], across[parent], x], [down[parent], y, y]
                axes.plot(*elbow, color=GREY, linewidth=1.4, zorder=1)
            axes.plot(x, y, "o", color=GREY if node["task"] is None else PALETTE[0], markersize=5)
        labels = [_short(names[int(leaf["task"])], 40) for leaf in leaves]
        axes.yaxis.tick_right()
        axes.set_yticks([down[leaf["id"]] for leaf in leaves], labels)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlabel="diameter" if by_diameter else "depth", ylim=(len(leaves) - 0.4, -0.6))
        if by_diameter:
            axes.invert_xaxis()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return _svg("tree", f"Tree of {len(leaves)} tasks", (7.6, 0.9 + 0.3 * len(leaves)), draw)


def _node_rows(nodes: Sequence[Record]) -> dict[int, float]:
    """Leaves on successive rows, each inner node midway between its children."""
    children: dict[int | None, list[int]] = defaultdict(list)
    for node in nodes:
        children[node["parent"]].append(node["id"])
    rows: dict[int, float] = {}
    free = itertools.count()

    def place(node: int) -> float:
        below = [place(child) for child in children.get(node, [])]
        rows[node] = fmean(below) if below else next(free)
        return rows[node]

    for root in children[None]:
        place(root)
    return rows


def _node_diameters(nodes: Sequence[Record]) -> dict[int, float] | None:
    """The nodes' diameters, or None where they would not show a parent left of its children."""
    found = {node["id"]: node["diameter"] for node in nodes if _measured(node["diameter"])}
    if len(found) < len(nodes) or not any(found.values()):
        return None
    inner = [node for node in nodes if node["parent"] is not None]
    return found if all(found[node["parent"]] >= found[node["id"]] for node in inner) else None


def _node_depths(nodes: Sequence[Record]) -> dict[int, float]:
    parents = {node["id"]: node["parent"] for node in nodes}

    def depth(node: int) -> int:
        return 0 if parents[node] is None else 1 + depth(parents[node])

    return {node: depth(node) for node in parents}


def _objective_picture(sweep: Record, trials: Sequence[Record]) -> Markup:
    swept = _swept(trials)
    columns = min(3, len(swept))
    rows = math.ceil(len(swept) / columns)

    def draw(figure: Figure) -> None:
        for place, key in enumerate(swept):
            share = figure.axes[0] if place else None
            axes = figure.add_subplot(rows, columns, place + 1, sharey=share)
            _scatter(axes, key, [t for t in trials if key in t["settings"]], sweep["best"])
            axes.set_ylabel("" if place % columns else sweep["objective"])
            axes.tick_params(labelleft=place % columns == 0)
        handles = {h.get_label(): h for axes in figure.axes for h in axes.get_lines()}
        figure.legend(handles=list(handles.values()), loc="outside upper left", ncols=4)

    size = max(4.2, 2.9 * columns), 0.5 + 2.3 * rows
    label = f"Scatter plots: {sweep['objective']} against {', '.join(swept)}"
    return _svg("objective", label, size, draw)


def _scatter(axes: Axes, key: str, trials: Sequence[Record], best: str | None) -> None:
    places = _scale(axes, [trial["settings"][key] for trial in trials])
    points = list(zip(trials, places, strict=True))
    groups = {status: [p for p in points if p[0]["status"] == status] for status in MARKERS}
    groups["best"] = [point for point in points if point[0]["id"] == best]
    for status, members in groups.items():
        if members:
            heights = [trial["objective"] for trial, _ in members]
            looks = {"linestyle": "none", "markersize": 5, "label": status} | MARKERS[status]
            axes.plot([place for _, place in members], heights, **looks)
    axes.set_xlabel(_short(key, 34))
    axes.grid(alpha=0.12)


def _scale(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Set the axis up for one setting and return where each of its values lies."""
    numeric = all(isinstance(value, int | float) and type(value) is not bool for value in values)
    if numeric and (len(set(values)) > 6 or any(isinstance(value, float) for value in values)):
        if min(values) > 0 and max(values) / min(values) >= 30:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        return list(values)
    ordered = sorted(values) if numeric else sorted(values, key=_setting)
    labels = list(dict.fromkeys(_setting(value) for value in ordered))
    axes.set_xticks(range(len(labels)), [_short(label, 12) for label in labels])
    axes.set_xlim(-0.5, len(labels) - 0.5)
    return [labels.index(_setting(value)) for value in values]
