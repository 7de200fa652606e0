"""GORP as an optimiser: gradients compressed to a few directions and kept out of what earlier tasks need.

Gradient Low-Rank Projection (arXiv 2507.02503). Compression is GaLore's (arXiv 2403.03507); the protected space grows
by the energy rule in ``methods.gorp.space``. Apart from the rows of split matrices, this module needs torch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from methods.gorp.compression import Compression, rotate
from methods.gorp.options import check_options
from methods.gorp.rows import Rows, wide
from methods.gorp.rules import adam, momentum
from methods.gorp.space import check, extend

COUNTERS = ("step", "skipped")


class GORP(torch.optim.Optimizer):
    """Adam or SGD with compressed gradients, whose steps leave the directions of earlier tasks alone.

    Every option is a default that a parameter group may replace. A group with ``projected=False`` takes plain Adam or
    SGD steps, for parameters of any shape; ``names`` in a group, one a parameter, serve messages.

    For a matrix W [m, n] with gradient G:

    * ``rank``: G' = G V [m, rank] where m >= n, else G' = U^T G [rank, n], the basis being found anew every ``every``
      steps (``refresh``: "randomised", or "svd" of the whole matrix). None or min(m, n): G' = G.
    * ``moments`` at a refresh: "rotate" into the new basis, or "keep" their numbers as the released code does.
    * P = G' less its part in the protected space S: in R^m where m >= n, else in R^n; ``side="rows"`` takes R^m for
      uncompressed matrices with m < n too, the released code's treatment of LoRA's A.
    * ``rule``: "adam" moments of P with bias correction, or "sgd" with momentum betas[0]; they give u.
    * ``protect``: "update" takes u's part in S away too, so that S^T dW = 0; "gradient" does not, as in the paper:
      Adam's division by elements then turns the step into S. "none" protects nothing.
    * W -= lr x u in W's coordinates, times ``scale`` where G is compressed.
    * ``end_task`` extends S until it explains the share ``energy`` of the ``summary`` of the task: the "mean" of G', or
      the "first" moment as it stands. ``selection="below"`` counts one vector fewer, as the released code does. S takes
      at most ``cap`` of its dimensions.

    ``spaces`` continues with spaces [m or n, k] of an earlier run. A gradient that is not finite leaves its parameter
    and its state alone, and ``skipped`` counts it. Half-precision gradients are computed with in float32. Parameters
    that FSDP2 split by rows stay split; a step exchanges much less than the matrix, and ``end_task`` gathers a summary
    [m, rank], which is [m, n] for an uncompressed matrix.

    >>> import torch
    >>> from methods.gorp.optimizer import GORP
    >>> generator = torch.Generator().manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))
    >>> matrices = [p for p in model.parameters() if p.dim() == 2]
    >>> others = [p for p in model.parameters() if p.dim() != 2]
    >>> optimizer = GORP([{"params": matrices, "rank": 4}, {"params": others, "projected": False}], lr=1e-2)
    >>> for task in range(2):
    ...     inputs, wanted = torch.randn(64, 16, generator=generator), torch.randn(64, 8, generator=generator)
    ...     for step in range(20):
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.mse_loss(model(inputs), wanted).backward()
    ...         optimizer.step()
    ...     optimizer.end_task()
    >>> [tuple(space.shape)[0] for space in optimizer.spaces.values()]
    [32, 32]
    >>> all(0 < space.shape[1] <= 8 for space in optimizer.spaces.values())
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rule: Literal["adam", "sgd"] = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rank: int | None = 8,
        every: int = 10,
        scale: float = 1.0,
        refresh: Literal["randomised", "svd"] = "randomised",
        moments: Literal["rotate", "keep"] = "rotate",
        protect: Literal["update", "gradient", "none"] = "update",
        summary: Literal["mean", "first"] = "mean",
        selection: Literal["reach", "below"] = "reach",
        energy: float = 0.9,
        cap: float = 0.5,
        side: Literal["free", "rows"] = "free",
        spaces: Mapping[nn.Parameter, Tensor] | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "rule": rule,
            "refresh": refresh,
            "moments": moments,
            "protect": protect,
            "summary": summary,
        }
        options |= {"selection": selection, "side": side, "rank": rank, "every": every, "scale": scale, "lr": lr}
        options |= {"betas": betas, "eps": eps, "energy": energy, "cap": cap, "projected": True}
        self.layouts: dict[Tensor, Compression] = {}  # first, as torch's constructor calls add_param_group
        super().__init__(params, options)
        for parameter, space in (spaces or {}).items():
            self.set_space(parameter, space)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; ValueError where an option is out of range or does not suit a parameter's shape."""
        check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self.lay_out()
        except ValueError:
            # A caller that catches the error is left with an optimiser that still works.
            self.param_groups.pop()
            raise
        group = self.param_groups[-1]
        names = ["first"] + ["second"] * (group["rule"] == "adam")
        names += ["mean"] * (group["projected"] and group["summary"] == "mean")
        for parameter in group["params"]:
            zeros = self.layouts[parameter].fresh(parameter, names)
            self.state[parameter] = {"step": 0, "skipped": 0, **zeros}

    def lay_out(self) -> None:
        """How each parameter is split, compressed and protected; it follows from the groups and is not saved."""
        everything = [(group, p) for group in self.param_groups for p in group["params"]]
        self.layouts = {p: Compression.of(group, p, n, self.label(p)) for n, (group, p) in enumerate(everything)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's copies and pickles hold defaults, groups and state alone.
        super().__setstate__(state)
        self.lay_out()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, except that state keeps its precision: torch would store it in that of half-precision weights."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, self.layouts, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)

    # --- steps ---

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter with a gradient; all ranks that share a matrix take it together."""
        with torch.enable_grad():
            loss = closure() if closure else None
        work = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen = [self.seen(group, parameter) for group, parameter in work]
        for (group, parameter), values, usable in zip(work, seen, self.usable(seen), strict=True):
            if usable:
                self.update(group, parameter, values)
            else:
                self.state[parameter]["skipped"] += 1
        return loss

    def seen(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """What the step begins with, and what shows a gradient that is not finite.

        That is the compressed gradient, its sketch where a refresh is due, or the gradient itself without compression.
        """
        own, state = self.layouts[parameter], self.state[parameter]
        gradient = self.gradient(parameter)
        if own.rank is None:
            return gradient
        if state["step"] % group["every"]:
            return own.compress(gradient.to(state["basis"].dtype), state["basis"])
        if group["refresh"] == "svd":
            return gradient
        refreshes = state["step"] // group["every"]
        return own.sketch(gradient.to(state["basis"].dtype), state["basis"], refreshes)

    def gradient(self, parameter: Tensor) -> Tensor:
        """This rank's rows of the gradient; ValueError if it is sparse."""
        assert parameter.grad is not None
        if parameter.grad.layout != torch.strided:
            raise ValueError(f"the gradient of {self.label(parameter)} is sparse; give its embedding sparse=False")
        return Rows.local(parameter.grad)

    def usable(self, seen: list[Tensor]) -> list[bool]:
        """Which tensors are finite on every rank, at the cost of one exchange and one wait for the device."""
        if not seen:
            return []
        # In float64 a sum over float32 overflows only if an element did; NaN and infinity survive every sum.
        sums = torch.stack([values.sum(dtype=torch.float64) for values in seen])
        for process_group in dict.fromkeys(own.rows.group for own in self.layouts.values()):
            if process_group is not None:
                dist.all_reduce(sums, group=process_group)
        return list(map(math.isfinite, sums.tolist()))

    def update(self, group: dict[str, Any], parameter: Tensor, seen: Tensor) -> None:
        """One parameter's step, after ``seen`` has been found finite."""
        own, state = self.layouts[parameter], self.state[parameter]
        due = own.rank is not None and state["step"] % group["every"] == 0
        values = self.refresh(group, parameter, seen) if due else seen.to(state["first"].dtype)
        state["step"] += 1
        if "mean" in state:
            state["mean"].lerp_(values, 1 / state["step"])
        space = state["space"][:, :0] if group["protect"] == "none" else state["space"]
        rule = adam if group["rule"] == "adam" else momentum
        update, factor = rule(state, own.protected(values, space), group)
        if group["protect"] == "update":
            update = own.protected(update, space)
        factor *= group["lr"] * (1.0 if own.rank is None else group["scale"])
        own.add(Rows.local(parameter.data), update, state.get("basis"), -factor)

    def refresh(self, group: dict[str, Any], parameter: Tensor, sketch: Tensor) -> Tensor:
        """Find the basis anew; returns the gradient's values in it."""
        own, state = self.layouts[parameter], self.state[parameter]
        assert own.rank is not None
        gradient = self.gradient(parameter).to(state["basis"].dtype)
        if group["refresh"] == "svd":
            basis, values = own.decomposed(gradient, own.rank)
        else:
            basis, values = own.refreshed(gradient, sketch, own.rank)
        if group["moments"] == "rotate" and state["step"]:
            rotate(state, own.overlap(state["basis"], basis))
        state["basis"] = basis
        return values

    # --- tasks ---

    @torch.no_grad()
    def end_task(self) -> None:
        """Extend every protected space by the task's summary, then forget moments, bases and counters.

        ValueError, with nothing changed, if a projected parameter has had no usable gradient.
        """
        projected = [(group, p) for group in self.param_groups if group["projected"] for p in group["params"]]
        # All checks come before the first change.
        for _, parameter in projected:
            if not self.state[parameter]["step"]:
                raise ValueError(
                    f"{self.label(parameter)} has had no finite gradient in this task; "
                    "leave it out or put it into a group with projected=False"
                )
        for group, parameter in projected:
            state = self.state[parameter]
            carriers = self.layouts[parameter].carriers(state["mean" if group["summary"] == "mean" else "first"])
            options = {name: group[name] for name in ("energy", "cap", "selection")}
            options["label"] = f"the space of {self.label(parameter)}"
            self.set_space(parameter, extend(self.whole(parameter, "space"), carriers, **options))
        for state in self.state.values():
            state["step"] = 0
            for name in state.keys() - {"space", *COUNTERS}:
                state[name].zero_()

    @property
    def skipped(self) -> int:
        """Steps of single parameters left out because a gradient was not finite."""
        return sum(state["skipped"] for state in self.state.values())

    @property
    def spaces(self) -> dict[nn.Parameter, Tensor]:
        """A copy of the whole protected space [m or n, k] of every projected parameter, on every rank."""
        projected = [p for group in self.param_groups if group["projected"] for p in group["params"]]
        return {parameter: self.whole(parameter, "space").clone() for parameter in projected}

    def set_space(self, parameter: Tensor, space: Tensor) -> None:
        """Protect the whole ``space`` [m or n, k]; ValueError unless its columns are orthonormal and it fits."""
        if parameter not in self.layouts or not self.layouts[parameter].free:
            raise ValueError(f"a space for a {list(parameter.shape)} tensor that no projected group has; leave it out")
        own = self.layouts[parameter]
        check(space, own.size, self.label(parameter))
        space = space.detach().to(parameter.device, wide(parameter.dtype), copy=True)
        self.state[parameter]["space"] = own.rows.own(space) if own.is_split("space") else space

    # --- whole state ---

    def whole(self, parameter: Tensor, name: str) -> Tensor:
        own, value = self.layouts[parameter], self.state[parameter][name]
        return own.rows.whole(value) if own.is_split(name) else value

    @torch.no_grad()
    def whole_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Copies of all that one parameter's next steps depend on, whole and the same on every rank.

        Counters are int64 tensors without dimensions.
        """
        state = self.state[parameter]
        found = {name: torch.tensor(state[name]) for name in COUNTERS}
        return found | {name: self.whole(parameter, name).clone() for name in sorted(state.keys() - set(COUNTERS))}

    @torch.no_grad()
    def load_whole_state(self, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``whole_state``, at any number of ranks; ValueError where names or shapes disagree."""
        own, label = self.layouts[parameter], self.label(parameter)
        if state.keys() != self.state[parameter].keys():
            raise ValueError(f"the state of {label} has {sorted(state)}, expected {sorted(self.state[parameter])}")
        for name in state.keys() - {"space", *COUNTERS}:
            rows = own.rows.shape[:1] if own.is_split(name) else self.state[parameter][name].shape[:1]
            expected = [*rows, *self.state[parameter][name].shape[1:]]
            if list(state[name].shape) != expected:
                raise ValueError(f"{name} of {label} is {list(state[name].shape)}, expected {expected}")
        if own.free:
            self.set_space(parameter, state["space"])
        for name in state.keys() - {"space", *COUNTERS}:
            value = state[name].to(self.state[parameter][name], copy=True)
            self.state[parameter][name] = own.rows.own(value) if own.is_split(name) else value
        self.state[parameter] |= {name: int(state[name]) for name in COUNTERS}

    def label(self, parameter: Tensor) -> str:
        """A parameter in messages: its place, its name if it has one, and its shape."""
        for number, group in enumerate(self.param_groups):
            for place, other in enumerate(group["params"]):
                if other is parameter:
                    names = group.get("names") or group.get("param_names")
                    name = f" {names[place]!r}" if names else ""
                    return f"parameter {place}{name} of group {number}, {list(parameter.shape)},"
        return f"a {list(parameter.shape)} tensor"
