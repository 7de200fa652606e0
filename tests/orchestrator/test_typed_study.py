"""Studies that are typed: their rows, groups, seeds and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.settings.errors import UserError
from orchestrator.study import experiments
from orchestrator.typed_study import find_study, study_of


def test_every_combination_is_a_row_in_a_group_for_each_benchmark() -> None:
    file, study = study_of(
        ["methods=[lora,gorp]", "heads=[gaussian,linear]", "benchmarks=[split_digits]", "seeds=[3,5]"]
    )
    assert list(study.rows) == ["lora, gaussian", "lora, linear", "gorp, gaussian", "gorp, linear"]
    runs = experiments(file, study, [])["split_digits"]
    assert [(run.method.name, run.head.kind, run.seed) for run in runs["gorp, linear"]] == [
        ("gorp", "linear", 3),
        ("gorp", "linear", 5),
    ]
    assert file == Path("compare-lora-gaussian-lora-linear-gorp-gaussian-gorp-linear.yaml")


def test_settings_are_all_rows_and_a_single_value_needs_no_brackets() -> None:
    place = "storage=elsewhere"
    file, study, further = find_study("methods=lora", [place, "benchmark=split_digits", "method.rank=3"])
    assert (str(file), further) == ("compare-lora-split_digits.yaml", [place]), "it may be moved, and is the same study"
    assert study.settings == ["benchmark=split_digits", "method.rank=3"]
    run = experiments(file, study, further)[""]["lora"][0]
    assert (run.method.rank, run.benchmark.name, run.seed) == (3, "split_digits", 0)


def test_a_file_is_read_and_what_stands_behind_it_is_given_on(tmp_path: Path) -> None:
    file = tmp_path / "two=ranks.yaml"
    file.write_text("title: Two\nrows: {a: [method.rank=2]}\n")
    found, study, further = find_study(str(file), ["seed=1"])
    assert (found, study.title, further) == (file, "Two", ["seed=1"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["benchmark=split_digits"], "name a study's file, or what is compared"),
        (["methods=[]"], "rows"),
        (["methods=[lora]", "seeds=[1,1]"], "seeds"),
        (["methods=[lora]", "seeds=[one]"], "seeds"),
    ],
)
def test_what_is_no_study_is_refused(words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match="compare: ") as caught:
        study_of(words)
    assert expected in str(caught.value)
