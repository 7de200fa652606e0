"""The page of a sweep in Markdown: its result, what each setting made of the trials, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.pages.console import result_line
from orchestrator.pages.importance import EVALUATOR, by_chance, importance
from orchestrator.pages.pictures import Record
from orchestrator.pages.scales import scale_of, setting_text
from orchestrator.pages.space_pictures import slices_picture
from orchestrator.pages.study_page import cell
from orchestrator.pages.sweep_view import completed, count_line, varied

BEST = 10  # trials in the table


def write_page(file: Path, read: Record, command: str) -> None:
    """Write ``file`` and its picture beside it, from the content of a sweep.json; ``command`` repeats the sweep."""
    sweep = completed(read)
    finished = [trial for trial in sweep["trials"] if trial["status"] == "finished" and trial["objective"] is not None]
    several = varied(finished)
    parts = [f"# {sweep['name']}: {sweep['config']['method']['name']} on {sweep['config']['benchmark']['name']}"]
    parts += [about(sweep), f"**{sentence(result_line(sweep))}.**"]
    if several:
        picture = file.with_suffix(".svg")
        picture.write_text(str(slices_picture(sweep, finished, several)) + "\n", encoding="utf-8")
        parts += ["## What each setting made of it", settings_table(sweep, finished, several), legend(sweep)]
        parts += [f"![The objective against each setting]({picture.name})"]
    if finished:
        parts += [f"## The best {min(BEST, len(finished))} trials", trials_table(sweep, finished[:BEST])]
    parts.append(f"Repeat with `{command}`.")
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def about(sweep: Record) -> str:
    stopping = "" if sweep["scheduler"] == "none" else f", weak ones stopped by {sweep['scheduler']}"
    return (
        f"{count_line(sweep['trials'])}; settings by searcher {sweep['searcher']}{stopping}. The best is "
        f"{sweep['protocol_text']}, by {words(sweep['objective'])}; test scores had no part in it."
    )


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def words(name: str) -> str:
    return name.replace("_", " ")


def settings_table(sweep: Record, finished: Sequence[Record], names: Sequence[str]) -> str:
    """A row for each setting that differs between trials, those that explain most first."""
    settings, values = [trial["settings"] for trial in finished], [trial["objective"] for trial in finished]
    found = importance(sweep["objective"], settings, values)
    chance = by_chance(settings, values, list(found.shares)) if found.shares else {}
    best: Record = next((trial["settings"] for trial in finished if trial["id"] == sweep["best"]), {})
    lines = [
        "| setting | share | by chance | mean objective by value | best trial |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for name in sorted(names, key=lambda name: -found.shares.get(name, 0.0)):
        share, random = (f"{100 * one[name]:.0f} %" if name in one else "–" for one in (found.shares, chance))
        known = [(trial["settings"][name], trial["objective"]) for trial in finished if name in trial["settings"]]
        chosen = setting_text(best[name], "{:.3g}") if name in best else "–"
        lines.append(f"| `{name}` | {share} | {random} | {cell(effect(known))} | {chosen} |")
    return "\n".join(lines + ([f"\nNo shares: {found.missing}."] if found.missing else []))


def effect(known: Sequence[tuple[Any, float]]) -> str:
    """Mean objective and number of trials at each value, or in each third of the values of a range."""
    scale = scale_of([value for value, _ in known])
    if scale.stepped:
        parts = {label: [one for value, one in known if scale.place(value) == at] for at, label in scale.ticks.items()}
    else:
        ordered = sorted(known)
        thirds = [ordered[len(ordered) * part // 3 : len(ordered) * (part + 1) // 3] for part in range(3)]
        parts = {f"{third[0][0]:.2g} to {third[-1][0]:.2g}": [one for _, one in third] for third in thirds if third}
    return ", ".join(f"{label}: {fmean(found):.4g} ({len(found)})" for label, found in parts.items())


def legend(sweep: Record) -> str:
    return (
        f"*Share*: of the spread of {words(sweep['objective'])} over finished trials, by {EVALUATOR} (Optuna); "
        "settings that not all trials have get none. *By chance*: the share that 19 of 20 shuffles of the values stay "
        "below; a setting whose share is no larger than that cannot be said to matter. *Mean objective*: by value, or "
        "by third of the range, with the number of trials; a searcher that learns tries good settings more often, so "
        "that means of different settings are not independent."
    )


def trials_table(sweep: Record, trials: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    lines = ["| trial | " + " | ".join([words(sweep["objective"]), *(f"`{name}`" for name in names)]) + " |"]
    lines.append("| --- " + "| ---: " * (len(names) + 1) + "|")
    for trial in trials:
        own = [setting_text(trial["settings"][n], "{:.3g}") if n in trial["settings"] else "–" for n in names]
        lines.append("| " + " | ".join([trial["id"], f"{trial['objective']:.4g}", *map(cell, own)]) + " |")
    return "\n".join(lines)
