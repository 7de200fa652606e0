"""SD-LoRA goes on from its state, in the middle of a task and between tasks, and refuses a state that does not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from tests.support.sdlora_model import KINDS, TASKS, Run


@pytest.mark.parametrize("cut", [(0, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_a_restored_run_goes_on_to_the_bit(settings: dict[str, Any], cut: tuple[int, int]) -> None:
    """The optimiser is plain descent, which remembers nothing."""
    (task, step), whole = cut, Run(**settings).learn(range(cut[0]))
    if step:
        whole.begin(task)
        whole.steps(stop=step)
    restored = Run(**settings)
    torch.manual_seed(7)  # no later draw depends on the state of the generator
    restored.restore(whole.saved())
    for run in (whole, restored):
        run.optimiser = torch.optim.SGD([p for p in run.model.parameters() if p.requires_grad], lr=0.1)
        run.task = task
        if not step:
            run.begin(task)
        run.steps(start=step)
        run.method.end_task()
        run.learn(range(task + 1, TASKS))
    assert whole.saved() == restored.saved()
    assert whole.method.report() == restored.method.report()
    assert torch.equal(whole.logits(), restored.logits())


def test_a_state_of_other_sizes_is_refused() -> None:
    state = load(Run().learn(range(2)).saved()["method"])
    right, left = "finished.0.blocks.0.qkv.stored_A", "finished.1.blocks.1.qkv.stored_B"
    for name, value, told in (
        ("ranks", torch.tensor([4]), "1 directions of 4 projections"),
        ("ranks", torch.tensor([4, 3]), r"directions of ranks \[4, 3\], but layers hold \[8\]"),
        ("norms", state["norms"][:, :1], "2 directions of 4 projections"),
        ("gram", state["gram"][:3], "2 directions of"),
        (right, state[right][:, 1:], r"blocks\.0\.qkv: directions A"),
        (left, state[left][..., 1:], r"blocks\.1\.qkv: directions A"),
        (left, state[left] * math.nan, r"blocks\.1\.qkv: .* not finite"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            Run().method.load_state_dict(state | {name: value})
        assert "\n" not in str(caught.value)


def test_directions_that_are_not_finite_are_refused() -> None:
    run = Run()
    run.begin(0)
    nn.init.constant_(run.model.get_parameter("blocks.1.qkv.lora_B"), math.inf)
    with pytest.raises(ValueError, match=r"^directions A and B are not finite: training diverged"):
        run.method.end_task()
