"""The figures of a report as inline SVG with the font and text colour of the page; equal input gives equal bytes."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import colors, style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK = "#010203"  # stands for the page's text colour, which only the browser knows (light or dark)
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
GREY = "#8a939c"
PALETTE = ("#3b82c4", "#d9822b", "#3f9e5a", "#c94f6d", "#8b6fc9", "#9a7b4f", "#2ba3a8", "#b39a2e", "#d46fb3", "#7a8490")
DASHES = ("-", "--", ":", "-.")
HEAT = colors.LinearSegmentedColormap.from_list("heat", ["#edf3f7", "#7fb0cf", "#1d4e7a"])
STYLE: dict[str, Any] = dict.fromkeys(INKED, INK) | {
    "svg.fonttype": "none",  # letters stay text, in the page's own font
    "svg.hashsalt": "evergreen",  # ids are random without it, and pages of equal input would differ
    "text.parse_math": False,  # a dollar sign in a task's name is no formula
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.15,
    "legend.frameon": False,
}
COORDINATES = re.compile(r' (?:d|x|y)="[^"]*"')
FINE = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is finer than any screen; the rest is half of a page

Matrix = NDArray[np.float64]
Record = Mapping[str, Any]


def accuracy_picture(names: Sequence[str], accuracy: Matrix) -> Markup:
    """Heat map of R[i][j] in per cent, tasks that lie ahead in grey."""
    label = f"Heat map: test accuracy on each of {len(names)} tasks after learning each task"
    future = np.triu(np.ones_like(accuracy, dtype=bool), k=1)
    return heat_map("accuracy", label, names, 100 * accuracy, future, "{:.1f}", 100, "task", "after learning")


def pulls_picture(names: Sequence[str], pulls: Matrix) -> Markup:
    """Heat map of how often each earlier task was pulled."""
    label = "Heat map: how often the search pulled each earlier task while learning each task"
    future = np.triu(np.ones_like(pulls, dtype=bool))
    values = np.where(future, np.nan, pulls)
    return heat_map("pulls", label, names, values, future, "{:,.0f}", pulls.max(), "leaf", "while learning")


def distances_picture(names: Sequence[str], distances: Matrix) -> Markup:
    """Heat map of the distance between any two leaves of the tree; a leaf has none to itself."""
    label = f"Heat map: distances between the {len(names)} leaves of the tree"
    itself = np.eye(len(names), dtype=bool)
    values, top = np.where(itself, np.nan, distances), float(distances.max()) or 1.0
    return heat_map("distances", label, names, values, itself, "{:.2f}", top, "leaf", "leaf")


def progress_picture(names: Sequence[str], accuracy: Matrix) -> Markup:
    """One line for each task, from where it was learned."""
    count = len(names)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for task, name in enumerate(names):
            dashes = DASHES[task // len(PALETTE) % len(DASHES)]
            looks: dict[str, Any] = {"color": PALETTE[task % len(PALETTE)], "marker": "o", "markersize": 3.5}
            learned = task + np.flatnonzero(~np.isnan(accuracy[task:, task]))
            axes.plot(1 + learned, 100 * accuracy[learned, task], dashes, label=short(name), **looks)
        axes.set(xlabel="tasks learned", ylabel="test accuracy, %", xlim=(0.5, count + 0.5), ylim=(-3, 103))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y")
        figure.legend(loc="outside right upper", ncols=math.ceil(count / 24))

    size = 8 + 1.6 * (count // 24), max(3.2, 0.6 + 0.19 * min(count, 24))
    return svg("progress", "Lines: test accuracy of each task over the stream", size, draw)


def tree_picture(
    nodes: Sequence[Record], leaves: dict[int, str], down: dict[int, float], across: dict[int, float], by: str
) -> Markup:
    """Root at the left and the named ``leaves`` at the right; ``by`` says what ``across`` measures."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for node in nodes:
            x, y, parent = across[node["id"]], down[node["id"]], node["parent"]
            if parent is not None:
                elbow = [across[parent], across[parent], x], [down[parent], y, y]
                axes.plot(*elbow, color=GREY, linewidth=1.4, zorder=1)
            axes.plot(x, y, "o", color=PALETTE[0] if node["id"] in leaves else GREY, markersize=5)
        axes.yaxis.tick_right()
        axes.set_yticks([down[leaf] for leaf in leaves], [short(name, 40) for name in leaves.values()])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlabel=by, ylim=(len(leaves) - 0.4, -0.6))
        if by == "diameter":
            axes.invert_xaxis()
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return svg("tree", f"Tree of {len(leaves)} leaves", (7.6, 0.9 + 0.3 * len(leaves)), draw)


def svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Draw one picture; its ids begin with ``name`` to be unique within the page, its ink is the page's."""
    buffer = io.StringIO()
    # The date, above all: with it equal input would not give equal bytes.
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with style.context(["default", STYLE]), warnings.catch_warnings():
        # The browser sets the text, so glyphs that matplotlib's own font lacks are no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)

    def adapt(tag: re.Match[str]) -> str:
        own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag.group()).replace(INK, "currentColor")
        return COORDINATES.sub(lambda found: FINE.sub(r"\1", found.group()), own)

    # Only inside tags: the same letters may stand in a task's name. Several pictures share a page and its ids.
    text = buffer.getvalue()
    text = re.sub("<[^>]+>", adapt, text[text.index("<svg") :])
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def heat_map(
    name: str,
    label: str,
    names: Sequence[str],
    values: Matrix,
    future: NDArray[np.bool_],
    form: str,
    top: float,
    across: str,
    down: str,
) -> Markup:
    """Cells with their numbers, shaded from zero to ``top``; those of the future are greyed."""
    labels = [short(name) for name in names]
    widest = max(map(len, labels))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        shades = HEAT.with_extremes(bad=(*colors.to_rgb(GREY), 0.15))
        axes.pcolormesh(np.where(future, np.nan, values), cmap=shades, vmin=0, vmax=top)
        for (row, column), value in np.ndenumerate(values):
            missing = np.isnan(value)
            if missing and future[row, column]:
                continue
            pale = missing or future[row, column]
            color = INK if pale else "#ffffff" if value > 0.72 * top else "#1f2429"
            shown = "–" if missing else form.format(value)
            text = axes.text(column + 0.5, row + 0.5, shown, color=color, fontsize=8)
            text.set(ha="center", va="center", in_layout=False, alpha=0.6 if pale else 1)
        axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
        axes.set_xticks(np.arange(len(labels)) + 0.5, labels)
        if widest > 6:
            axes.tick_params(axis="x", labelrotation=40)
            for tick in axes.get_xticklabels():
                tick.set(horizontalalignment="right", rotation_mode="anchor")
        axes.set(xlabel=across, ylabel=down)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    margin = 0.8 + 0.08 * widest
    size = max(3.6, margin + 0.54 * len(names)), max(1.8, margin + 0.36 * len(names))
    return svg(name, label, size, draw)


def short(text: str, length: int = 18) -> str:
    """At most ``length`` characters: the start and the end, for names often differ in the end."""
    line, half = " ".join(text.split()), length // 2
    return line if len(line) <= length else f"{line[: length - half - 1]}…{line[-half:]}"
