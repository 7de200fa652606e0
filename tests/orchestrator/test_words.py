"""The words that repeat an experiment compose to that experiment again."""

from __future__ import annotations

import pytest

from orchestrator.settings.compose import load_experiment, with_settings
from orchestrator.settings.words import words_of

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
