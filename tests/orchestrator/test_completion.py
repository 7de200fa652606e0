"""What a shell offers: the groups' files, the settings' names and their values; in bash as a user would see it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.settings import completion, compose
from orchestrator.settings.completion import SECTIONS, bash_key, offers, values
from orchestrator.settings.config import Experiment

PROJECT = Path(__file__).resolve().parents[2]


def bash(*words: str) -> dict[str, str]:
    """What bash tells of a line whose last word is being typed."""
    return {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}


def test_names_without_a_dot_are_those_of_the_experiment() -> None:
    inner = {name for name, field in Experiment.model_fields.items() if compose.model_in(field.annotation)}
    assert {section.rstrip(".") for section in SECTIONS} == inner
    assert set(completion.PLAIN) == set(Experiment.model_fields) - inner
    for name, known in completion.PLAIN.items():
        field = Experiment.model_fields[name]
        assert known == ([] if field.is_required() else ["null" if field.default is None else str(field.default)])


@pytest.mark.parametrize("group", compose.GROUPS)
def test_a_group_offers_its_files(group: str) -> None:
    options = compose.option_names(group)
    assert offers(f"{group}=", {}) == [f"{group}={option}" for option in options]
    assert offers("", bash("evergreen", "train", group, "=")) == options


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("met", ["method=", "method."]),
        ("method=treelora_", ["method=treelora_paper", "method=treelora_released"]),
        ("sc", ["scale=", "scale."]),
        ("scale=t", ["scale=two_shards"]),
        ("sto", ["storage=", "storage=runs"]),
        ("na", ["name="]),
        ("train.opt", ["train.optimizer=adam", "train.optimizer=adamw", "train.optimizer=sgd"]),
        ("tracking.en", ["tracking.enabled=true", "tracking.enabled=false"]),
        ("tracking.enabled=f", ["tracking.enabled=false"]),
        ("train.first", ["train.first_learning_rate=", "train.first_learning_rate=null"]),
        ("checkpoint.ev", ["checkpoint.every=", "checkpoint.every=50"]),
        ("sweep.space.train.opt", ["sweep.space.train.optimizer="]),
        ("train.epochs=", []),
        ("nothing", []),
        ("no.such=", []),
        ("storage.no=", []),
    ],
)
def test_offers(incomplete: str, expected: list[str]) -> None:
    assert offers(incomplete, {}) == expected


def test_every_setting_is_offered() -> None:
    names = set(compose.setting_names()) - set(compose.GROUPS)
    found = {offer for section in SECTIONS for offer in completion.names(section)}
    found |= set(completion.names(""))
    assert {f"{name}=" for name in names} <= found


def test_offered_values_are_right_ones() -> None:
    """Any value of a setting that belongs to every method and benchmark composes."""
    for section in ("train.", "scale.", "checkpoint.", "tracking.", "sweep."):
        for name in completion.names(section):
            for value in values(name.rstrip("=")):
                partner = ['sweep.transfer=["benchmark=omniglot"]'] if value == "transfer" else []
                compose.load_experiment([f"{name}{value}", *partner])


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["evergreen", "train", "method"], None),
        (["evergreen", "train", "method", "="], "method"),
        (["evergreen", "train", "method", "=", "tr"], "method"),
        (["evergreen", "train", "method", "=", "lora", "head"], None),
        (["="], None),
    ],
)
def test_bash_takes_a_setting_apart(words: list[str], key: str | None) -> None:
    assert bash_key(bash(*words)) == key
    behind = {"COMP_WORDS": "\n".join([*words, "seed", "=", "1"]), "COMP_CWORD": str(len(words) - 1)}
    assert bash_key(behind) == key, "words behind the cursor do not count"
    assert bash_key({}) is None


# --- in bash ---


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script ``evergreen``, as pip would write it."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not here; the functions behind the completion are tested above")
    file = tmp_path_factory.mktemp("bin") / "evergreen"
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); sys.argv[0] = 'evergreen'; import run; run.main()"
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    file.chmod(0o755)
    return file


def completed(command: Path, *words: str) -> list[str]:
    """What bash puts into COMPREPLY when TAB is pressed behind these words."""
    line = " ".join(shlex.quote(word) for word in ("evergreen", *words))
    script = f"""
        source <(_EVERGREEN_COMPLETE=source_bash evergreen)
        complete -p evergreen >&2
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        _evergreen_completion evergreen
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "-F _evergreen_completion evergreen" in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train", "tree"]),
        (["train", "--js"], ["--json"]),
        (["train", "method", "=", "treelora_"], ["treelora_paper", "treelora_released"]),
        (["sweep", "seed", "=", "1", "head", "=", "co"], ["cosine"]),
        (["train", "backb"], ["backbone=", "backbone."]),
        (["train", "train.optimizer", "=", "adam"], ["adam", "adamw"]),
    ],
)
def test_bash_completes_commands_and_settings(command: Path, words: list[str], expected: list[str]) -> None:
    assert completed(command, *words) == expected


def test_names_of_groups_and_their_files_need_no_torch() -> None:
    code = "import sys; from orchestrator.settings.completion import offers; "
    code += "assert offers('method=tr', {}) and offers('', {}) and offers('sto', {}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
