"""TreeLoRA goes on from its state: in the middle of a task, between tasks, under every preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.blocks import PRESETS, Blocks, config_of, learned, same

POINTS = {"every": 2, "rounds": 4, "staleness": 0}
STATES: dict[str, tuple[str, dict[str, Any]]] = {
    **{preset: (preset, {}) for preset in PRESETS},
    **{f"{preset}, budget": (preset, {"tree": {"budget": 2}}) for preset in PRESETS},
    "from nearest": ("treelora", {"adapter": "per_task_from_nearest", "search": POINTS}),
    "means over the tree": ("treelora", {"inference": "tree", "tree": {"budget": 2}, "adapter": "per_task_fresh"}),
    "epochs, levels": ("treelora", {"search": {"statistics": "epoch", "granularity": "per_layer", "every": 2}}),
    "equation 3": ("treelora_paper", {"regulariser": {"kind": "l1_hvp"}, "search": {"staleness": 1}}),
}


CUTS = [(0, 5), (2, 1), (3, 0), (3, 3), (3, 7), (4, 11)]
# The default under all cuts; the others before a task, and within one before and behind a search point.
CASES = [(name, cut) for name in STATES for cut in (CUTS if name == "treelora" else CUTS[2:5])]


@pytest.mark.parametrize(("name", "cut"), CASES, ids=str)
def test_a_restored_method_goes_on_to_the_bit(name: str, cut: tuple[int, int]) -> None:
    (preset, changes), (task, step) = STATES[name], cut
    whole = learned(Blocks(config_of(preset, **changes)), task)
    whole.learn(task, stop=step)
    restored = Blocks(config_of(preset, **changes))
    restored.restore(whole.saved())
    if step == 0:
        restored.method.begin_task(task, 12, 2)
    whole.edited.clear()
    for blocks in (whole, restored):
        for number in range(step, 12):
            blocks.step(task, number)
            blocks.descend()
        blocks.method.end_task()
        if task < 4:
            blocks.learn(task + 1)
    assert same(whole.edited, restored.edited)
    assert whole.saved() == restored.saved()
    assert whole.service.report() == restored.service.report()
    assert torch.equal(whole.tree.inference_adapter(), restored.tree.inference_adapter())
