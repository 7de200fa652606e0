"""The words that repeat an experiment compose to that experiment again."""

from __future__ import annotations

import pytest

from orchestrator.settings.compose import load_experiment, with_settings
from orchestrator.settings.words import sweep_words_of, words_of

GIVEN = {
    "nothing": ([], {}),
    "another method": (["method=gorp", "method.rank=3", "train.learning_rate=1e-5"], {}),
    "lists and null": (["train.epochs=[1,2]", "train.first_learning_rate=null", "order_seed=7"], {}),
    "a paper": (["paper=sdlora_imagenet_r_5"], {}),
    "numbers as text": (["benchmark=image_folder"], {"benchmark.path": "2026"}),
    "spaces and signs": (["benchmark=image_folder"], {"benchmark.path": "/data/my images, new=ü?/100%"}),
    "quotes": (["benchmark=image_folder"], {"benchmark.path": '/data/Ann\'s "best" {ones} [1]'}),
    "backslashes": (["benchmark=image_folder"], {"benchmark.path": '/data/a\\b\\"c\\'}),
    "references": (["benchmark=image_folder"], {"benchmark.path": "/data/${HOME}/$x"}),
    "a word with a meaning": (["benchmark=image_folder"], {"benchmark.path": "null"}),
}


@pytest.mark.parametrize("case", GIVEN)
def test_words_give_the_same_experiment_again(case: str) -> None:
    typed, changed = GIVEN[case]
    experiment = with_settings(load_experiment(typed), changed)
    words = words_of(experiment)
    assert load_experiment(words).identity() == experiment.identity(), words


SWEPT = {
    "nothing": ([], "sweep=default"),
    "an option": (["sweep=treelora_search"], "sweep=treelora_search"),
    "an option changed": (["sweep=rank_sparsity", "sweep.space.method.rank=[2]"], "sweep=rank_sparsity"),
    "a space of its own": (
        ["sweep.space.train.epochs=[1,2]", "sweep.trials=4", "sweep.budget.seconds=9"],
        "sweep=default",
    ),
    "text": (["sweep.space.method.regulariser.kind={choice: [cos, none]}"], "sweep=default"),
}


@pytest.mark.parametrize("case", SWEPT)
def test_words_give_the_same_sweep_again(case: str) -> None:
    typed, option = SWEPT[case]
    experiment = load_experiment(typed, "sweep")
    words = sweep_words_of(experiment)
    assert load_experiment(words, "sweep").sweep == experiment.sweep, words
    assert words[0] == option
