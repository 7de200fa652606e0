"""Which of its options is likeliest after each prompt, without reading those that cannot win.

No answer is likelier than its first token: once a whole option is likelier than the first token of another, that one
is out, and the rest of its tokens is never read. What is chosen is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.formats import PADDING

Rest = Callable[[Tensor, Tensor], Tensor]  # prompts [m] and answers [m, length] to log-likelihoods [m]


def likeliest(first: Tensor, options: Sequence[Tensor], rest: Rest, most: Callable[[int], int]) -> Tensor:
    """The number [n] of the likeliest of each prompt's ``options`` [options, length], the first of equal ones.

    ``first`` [n, words]: log-likelihoods of an answer's first token; ``rest``: those of all but the first token of
    answers. ``most``: the largest of a number over all workers, which have to call ``rest`` together.
    """
    answers, there = padded(options, most(max(words.shape[1] for words in options)), first.device)
    bounds = first.gather(1, answers[:, :, 0].clamp(min=0)).masked_fill(~there, -torch.inf)
    # The most promising option of every prompt, then the second of every prompt, and so on.
    columns = bounds.argsort(1, descending=True).T.flatten()
    rows = torch.arange(len(first), device=first.device).repeat(there.shape[1])
    waiting = there[rows, columns].nonzero().flatten()
    found, best = torch.full_like(bounds, -torch.inf), bounds.new_full((len(first),), -torch.inf)
    while most(len(waiting)):
        now, waiting = waiting[: len(first)], waiting[len(first) :]
        # A worker that is done joins the others with a pair that it knows already.
        row, column = (places[now if len(now) else torch.zeros_like(rows[:1])] for places in (rows, columns))
        found[row, column] = bounds[row, column] + rest(row, answers[row, column])
        best = best.scatter_reduce(0, row, found[row, column], "amax")
        waiting = waiting[bounds[rows[waiting], columns[waiting]] >= best[rows[waiting]]]
    return found.argmax(1)


def padded(options: Sequence[Tensor], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Options as one tensor [n, most options, length], and which of them are there [n, most options]."""
    alike = [functional.pad(words, (0, length - words.shape[1]), value=PADDING) for words in options]
    there = [torch.ones(len(words), dtype=torch.bool) for words in options]
    answers = pad_sequence(alike, batch_first=True, padding_value=PADDING)
    return answers.to(device), pad_sequence(there, batch_first=True).to(device)
