"""The figures of the space that a sweep searched: each setting alone, two together, and all at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from orchestrator.pages.pictures import GREY, INK, Matrix, Record, short, svg
from orchestrator.pages.scales import Scale, numbers, scale_of
from orchestrator.pages.sweep_pictures import MARKERS, legend, marks

# Both ends stand out on a light and on a dark page. In so few steps matplotlib draws its bar of colours as shapes; as
# an image, which it makes of more, the page would not show it.
SHADES = colors.LinearSegmentedColormap.from_list("shades", ["#d9822b", "#b05a86", "#2f6fc4"], N=32)
NOT_SET = -0.12  # where lines pass an axis of parallel coordinates whose setting the trial has not
ENOUGH = 10  # trials for a contour


def slices_picture(sweep: Record, trials: Sequence[Record], settings: Sequence[str]) -> Markup:
    """The objective against each setting, in rows of three."""
    columns = min(3, len(settings))
    rows = math.ceil(len(settings) / columns)

    def draw(figure: Figure) -> None:
        for place, key in enumerate(settings):
            share = figure.axes[0] if place else None
            axes = figure.add_subplot(rows, columns, place + 1, sharey=share)
            slice_of(axes, key, [trial for trial in trials if key in trial["settings"]], sweep["best"])
            axes.set_ylabel("" if place % columns else sweep["objective"])
            axes.tick_params(labelleft=place % columns == 0)
        legend(figure)

    size = max(4.2, 2.9 * columns), 0.5 + 2.3 * rows
    label = f"Scatter plots: {sweep['objective']} against {', '.join(settings)}"
    return svg("objective", label, size, draw)


def slice_of(axes: Axes, key: str, trials: Sequence[Record], best: str | None) -> None:
    scale = scale_of([trial["settings"][key] for trial in trials])
    for status in MARKERS:
        found = [t for t in trials if (t["id"] == best if status == "best" else t["status"] == status)]
        places = [scale.place(trial["settings"][key]) for trial in found]
        marks(axes, status, places, [trial["objective"] for trial in found])
    axes.set_xticks(list(scale.ticks), [short(label, 12) for label in scale.ticks.values()])
    if scale.stepped:
        axes.set_xlim(scale.low, scale.high)
    axes.set_xlabel(short(key, 34))
    axes.grid(alpha=0.12)


def shading(sweep: Record, values: Sequence[float]) -> ScalarMappable:
    """Colours of the objective, the better the bluer; a few far away do not take the colours from all others."""
    low, high = np.quantile(values, (0.25, 0.75))
    reach = 1.5 * (high - low) or max(values) - min(values)
    bounds = max(min(values), low - reach), min(max(values), high + reach)
    if bounds[0] == bounds[1]:
        bounds = bounds[0] - 0.5, bounds[1] + 0.5
    better_is_more = sweep["objectives"][sweep["objective"]] == "max"
    return ScalarMappable(colors.Normalize(*bounds), SHADES if better_is_more else SHADES.reversed())


def color_bar(figure: Figure, shades: ScalarMappable, sweep: Record) -> None:
    bar = figure.colorbar(shades, ax=figure.axes, fraction=0.04, pad=0.03)
    bar.set_label(sweep["objective"])
    bar.outline.set_visible(False)


def parallel_picture(sweep: Record, trials: Sequence[Record], settings: Sequence[str]) -> Markup:
    """All settings as upright axes and a line through them for each trial; the last axis is the objective.

    A trial that has not finished ends before it: its value is not one over the whole stream.
    """
    scales = {key: scale_of([t["settings"][key] for t in trials if key in t["settings"]]) for key in settings}
    finished = [trial["objective"] for trial in trials if trial["status"] == "finished"]
    result = numbers(finished)
    shades = shading(sweep, finished)
    lines, looks = [], []
    for trial in reversed(trials):  # the best last, on top
        line = [(place, height(scale, key, trial)) for place, (key, scale) in enumerate(scales.items())]
        ended, best = trial["status"] == "finished", trial["id"] == sweep["best"]
        lines.append([*line, (len(scales), result.share(trial["objective"]))] if ended else line)
        color = shades.to_rgba(trial["objective"]) if ended else colors.to_rgba(GREY)
        looks.append(((*color[:3], 1.0 if best else 0.65 if ended else 0.3), 2.8 if best else 0.9))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        tints, widths = zip(*looks, strict=True)
        axes.add_collection(LineCollection(lines, colors=tints, linewidths=widths))
        absent = any(key not in trial["settings"] for key in settings for trial in trials)
        for place, scale in enumerate([*scales.values(), result]):
            upright(axes, place, scale)
        if absent:
            axes.axhline(NOT_SET, color=INK, linewidth=0.6, linestyle=":", alpha=0.5)
            axes.text(-0.06, NOT_SET, "not set", ha="right", va="center", fontsize=8)
        axes.set_xticks(range(len(scales) + 1), [short(key, 26) for key in (*settings, sweep["objective"])])
        axes.tick_params(axis="x", length=0, labelrotation=20)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set(xlim=(-0.5, len(scales) + 0.3), ylim=(NOT_SET - 0.06 if absent else -0.04, 1.04))

    size = max(5.0, 2.0 + 0.95 * len(scales)), 4.0
    return svg("parallel", f"Parallel coordinates of {len(trials)} trials", size, draw)


def height(scale: Scale, key: str, trial: Record) -> float:
    return scale.share(trial["settings"][key]) if key in trial["settings"] else NOT_SET


def upright(axes: Axes, place: int, scale: Scale) -> None:
    """One axis of parallel coordinates with its ticks."""
    axes.plot([place, place], [0, 1], color=INK, linewidth=0.8, zorder=3)
    for tick, label in scale.ticks.items():
        y = scale.shared(tick)
        axes.plot([place - 0.03, place], [y, y], color=INK, linewidth=0.8, zorder=3)
        axes.text(place - 0.06, y, short(label, 12), ha="right", va="center", fontsize=8, zorder=4)


def pair_picture(sweep: Record, trials: Sequence[Record], pair: tuple[str, str]) -> Markup:
    """Two settings together, coloured by the objective; with enough trials of two ranges, contours between them."""
    scales = [scale_of([trial["settings"][key] for trial in trials]) for key in pair]
    values = [trial["objective"] for trial in trials]
    # As shares of the axes: triangles between the points would depend on the units of the settings.
    places = np.array([[s.share(t["settings"][key]) for s, key in zip(scales, pair, strict=True)] for t in trials])
    shades, shaded = shading(sweep, values), has_contour(scales, places)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if shaded:
            looks: dict[str, Any] = {"cmap": shades.cmap, "norm": shades.norm, "extend": "both", "alpha": 0.35}
            axes.tricontourf(places[:, 0], places[:, 1], values, levels=np.linspace(*shades.get_clim(), 9), **looks)
        x, y = spread(places, scales[0]).T
        axes.scatter(x, y, 26, shades.to_rgba(np.array(values)), edgecolors=INK, linewidths=0.4, zorder=3)
        best = [place for place, trial in enumerate(trials) if trial["id"] == sweep["best"]]
        marks(axes, "best", list(x[best]), list(y[best]), zorder=4)
        for key, scale, axis in zip(pair, scales, (axes.xaxis, axes.yaxis), strict=True):
            labels = [short(label, 12) for label in scale.ticks.values()]
            axis.set_ticks([scale.shared(tick) for tick in scale.ticks], labels=labels)
            axis.set_label_text(short(key, 34))
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axes.grid()
        color_bar(figure, shades, sweep)
        legend(figure)

    label = f"{'Contours' if shaded else 'Scatter plot'}: {sweep['objective']} by {pair[0]} and {pair[1]}"
    return svg("pair", label, (6.4, 4.2), draw)


def has_contour(scales: Sequence[Scale], places: Matrix) -> bool:
    """Whether both settings are ranges and their points do not lie on one line."""
    ranges = not any(scale.stepped for scale in scales)
    return ranges and len(places) >= ENOUGH and bool(np.linalg.matrix_rank(places - places.mean(0)) == 2)


def spread(places: Matrix, across: Scale) -> Matrix:
    """The points, with those of one place side by side."""
    keys = [tuple(place) for place in places.tolist()]
    number, seen = Counter(keys), Counter[tuple[float, ...]]()
    room, moved = 0.8 / len(across.ticks) if across.stepped else 0.1, places.copy()
    for row, key in enumerate(keys):
        moved[row, 0] += min(0.03, room / number[key]) * (seen[key] - (number[key] - 1) / 2)
        seen[key] += 1
    return moved
