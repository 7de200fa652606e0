"""What the page of a sweep shows, shaped from sweep.json; also of one that is under way, or that nothing came of."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orchestrator.pages import space_pictures, sweep_pictures
from orchestrator.pages.importance import EVALUATOR, Importance, importance
from orchestrator.pages.pictures import Record
from orchestrator.pages.scales import setting_text
from orchestrator.settings.compose import flattened

# Of one picture; more of them make a page slow to open, and could not be told apart.
MOST_TRIALS, MOST_MARKS, MOST_CORNERS = 300, 2000, 8000
# What sweeps of earlier versions do not say.
OLD_TRIAL: dict[str, Any] = {
    "history": [],
    "stored_parameters": None,
    "peak_memory_bytes": None,
    "node": None,
    "attempts": None,
    "started": None,
    "ended": None,
    "stopped": None,
    "error": None,
    "repeat": None,
}


def sweep_view(read: Record) -> dict[str, Any]:
    """What the template shows of the content of a sweep.json."""
    sweep = completed(read)
    trials = sweep["trials"]
    with_objective = [trial for trial in trials if trial["objective"] is not None]
    finished = [trial for trial in with_objective if trial["status"] == "finished"]
    found = importances(sweep, trials)
    return {
        "sweep": sweep,
        "counts": count_line(trials),
        "under_way": sum(trial["status"] in ("running", "waiting") for trial in trials),
        "swept": swept(trials),
        "settings": flattened(sweep["config"]),
        "evaluator": EVALUATOR,
        "importances": found,
        "importance": importance_bars(found),
        "stopped": [trial for trial in trials if trial["stopped"]],
        "unexplained": sum(trial["status"] == "stopped" and not trial["stopped"] for trial in trials),
        "failed": [trial for trial in trials if trial["status"] == "failed"],
        **search_pictures(sweep, with_objective),
        **space_views(sweep, with_objective, finished),
        "pair": pair_view(sweep, finished, found),
    }


def completed(read: Record) -> dict[str, Any]:
    """The same with everything that an earlier version left out, and without numbers that are none."""
    objective = read["objective"]
    old = {"objectives": {objective: "max"}, "protocol_text": read["protocol"], "confirmed": None}
    old |= {"front": [read["best"]] if read["best"] else []}
    sweep = old | dict(read)
    sweep["trials"] = [completed_trial(trial, objective) for trial in read["trials"]]
    longest = max((len(trial["history"]) for trial in sweep["trials"]), default=0)
    return {"tasks": max(longest, 1)} | sweep


def completed_trial(read: Record, objective: str) -> dict[str, Any]:
    trial = OLD_TRIAL | dict(read)
    values = {objective: trial["objective"], **trial.get("values", {})}
    trial["values"] = {name: value for name, value in values.items() if known(value)}
    trial["history"] = [(tasks, value) for tasks, value in trial["history"] if known(value)]
    return trial | {"objective": trial["values"].get(objective)}


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def count_line(trials: Sequence[Record]) -> str:
    """As in "12 trials: 9 finished, 3 stopped"."""
    counts = Counter(trial["status"] for trial in trials)
    states = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}" + (f": {states}" if states else "")


def swept(trials: Sequence[Record]) -> list[str]:
    """All settings that any trial was given, in the order of their first."""
    return list(dict.fromkeys(key for trial in trials for key in trial["settings"]))


def varied(trials: Sequence[Record]) -> list[str]:
    """Those that tell trials apart: of several values, or not set in all."""
    values = {key: [t["settings"].get(key, known) for t in trials] for key in swept(trials)}
    texts = {key: {"" if v is known else f"={setting_text(v)}" for v in found} for key, found in values.items()}
    return [key for key, found in texts.items() if len(found) > 1]


def search_pictures(sweep: Record, with_objective: Sequence[Record]) -> dict[str, Any]:
    """History, curves, rungs and front, each None where there is nothing to draw."""
    trials = sorted(sweep["trials"], key=lambda trial: trial["id"])
    learned = [trial for trial in sweep["trials"] if trial["history"]]
    whole = [trial for trial in sweep["trials"] if trial["status"] == "finished"]
    traded = [trial for trial in whole if trial["values"].keys() >= sweep["objectives"].keys()]
    drawn = thinned(learned, MOST_CORNERS // sweep["tasks"])
    judged = thinned([trial for trial in trials if trial["history"]], MOST_TRIALS)
    rungs = sweep_pictures.rungs_picture(judged) if any(trial["stopped"] for trial in judged) else None
    return {
        "history": sweep_pictures.history_picture(sweep, trials) if with_objective else None,
        "curves": sweep_pictures.curves_picture(sweep, drawn) if drawn else None,
        "curves_shown": shown(drawn, learned),
        "rungs": rungs,
        "rungs_shown": shown(judged, learned),
        "front": sweep_pictures.front_picture(sweep, traded) if len(sweep["objectives"]) > 1 and traded else None,
    }


def space_views(sweep: Record, with_objective: Sequence[Record], finished: Sequence[Record]) -> dict[str, Any]:
    """Parallel coordinates of what differs between trials, and a slice for each of these settings."""
    drawn, several = thinned(with_objective, MOST_TRIALS), varied(with_objective)
    parallel = space_pictures.parallel_picture(sweep, drawn, several) if several and finished else None
    points = thinned(with_objective, MOST_MARKS // max(len(several), 1))
    return {
        "parallel": parallel,
        "parallel_shown": shown(drawn, with_objective),
        "constant": [key for key in swept(with_objective) if key not in several],
        "slices": space_pictures.slices_picture(sweep, points, several) if several else None,
        "slices_shown": shown(points, with_objective),
    }


def thinned(trials: Sequence[Record], most: int) -> list[Record]:
    """At most ``most`` and ``MOST_TRIALS`` of them: the first, the last, and evenly between."""
    most = max(2, min(most, MOST_TRIALS))
    if len(trials) <= most:
        return list(trials)
    return [trials[round(place * (len(trials) - 1) / (most - 1))] for place in range(most)]


def shown(drawn: Sequence[Record], trials: Sequence[Record]) -> str:
    """What is said where a picture does not have all trials; "" where it has."""
    if len(drawn) == len(trials):
        return ""
    return f"Drawn are {len(drawn)} of {len(trials)} trials: the first, the last, and evenly between them."


def importances(sweep: Record, trials: Sequence[Record]) -> list[Importance]:
    """Of the finished trials' objective; where some were stopped, also of the value that all have: the first."""
    objective = sweep["objective"]
    done = [trial for trial in trials if trial["status"] == "finished" and trial["objective"] is not None]
    of_objective = [trial["objective"] for trial in done]
    found = [importance(f"{objective} of finished trials", [trial["settings"] for trial in done], of_objective)]
    if any(trial["status"] == "stopped" for trial in trials):
        begun = [trial for trial in trials if trial["history"] and trial["history"][0][0] == 1]
        first = [trial["history"][0][1] for trial in begun]
        value = "validation accuracy after the first task, stopped trials included"
        found.append(importance(value, [trial["settings"] for trial in begun], first))
    return found


def importance_bars(found: Sequence[Importance]) -> Markup | None:
    bars = {f"{one.value} ({one.trials})": one.shares for one in found if one.shares}
    return sweep_pictures.importance_picture(bars) if bars else None


def pair_view(sweep: Record, finished: Sequence[Record], found: Sequence[Importance]) -> Mapping[str, Any] | None:
    """The picture of the two settings that matter most to finished trials, or else to all after the first task."""
    shares = next((one.shares for one in found if one.shares), {})
    if len(shares) < 2:
        return None
    one, other = itertools.islice(shares, 2)
    having = [trial for trial in finished if {one, other} <= trial["settings"].keys()]
    # Settings that matter after the first task may be those that no finished trial differs in.
    if any(len({setting_text(trial["settings"][key]) for trial in having}) < 2 for key in (one, other)):
        return None
    return {"names": (one, other), "picture": space_pictures.pair_picture(sweep, having, (one, other))}
