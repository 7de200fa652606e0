"""Models whose frozen weights are read last: built without memory for them, adapted, spread over workers, then filled.

So no worker ever holds more of them than its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.dataset import BenchmarkError
from benchmarks.models.tensor_files import StoredTensor

Values = Callable[[Tensor, StoredTensor], Tensor]  # of a parameter, and where it is stored
Built = TypeVar("Built", bound=nn.Module)
SOURCE = "source"  # the attribute of a parameter without memory: where its values are stored


def without_weights(make: Callable[[], Built]) -> Built:
    """What ``make`` makes, its parameters without memory; with it where the model derives other tensors from them."""
    with registered_without_memory():
        model = make()
    derived = [*model.buffers(), *(value for module in model.modules() for value in vars(module).values())]
    lost = any(isinstance(value, Tensor) and value.is_meta for value in derived)
    return make() if lost else model


@contextmanager
def registered_without_memory() -> Iterator[None]:
    """Parameters that modules get meanwhile have a shape and no memory; buffers are as ever."""
    register = nn.Module.register_parameter

    def register_without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # One that has none already is tied to another module's, and stays the same object.
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_without  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def defer(model: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Note at each parameter of ``model`` without memory where its values are; read all else at once.

    Names are the model's own. BenchmarkError where a weight is stored as integers: quantised ones mean something else
    than the numbers that they are.
    """
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
            if name in stored and tensor.is_floating_point() and not stored[name].dtype.is_floating_point:
                place, kind = stored[name].file, str(stored[name].dtype).removeprefix("torch.")
                raise BenchmarkError(f"{place}: {name} is stored as {kind}; give weights that are not quantised")
            if name in stored and tensor.is_meta:
                setattr(tensor, SOURCE, stored[name])
            elif name in stored:
                tensor.copy_(stored[name].rows())


def sources(model: nn.Module) -> dict[str, StoredTensor]:
    """Where the values of parameters without memory are, by the names that they have now."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: getattr(parameter, SOURCE) for name, parameter in parameters if parameter.is_meta}


def fill(model: nn.Module, stored: Mapping[str, StoredTensor], values: Values) -> None:
    """Put ``values`` in the place of each parameter without memory, one by one.

    Tied parameters stay tied.
    """
    filled: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.is_meta:
                continue
            if id(parameter) not in filled:
                made = values(parameter.detach(), stored[name])
                filled[id(parameter)] = nn.Parameter(made, requires_grad=parameter.requires_grad)
            module.register_parameter(name.rpartition(".")[2], filled[id(parameter)])


def filled(model: Built) -> Built:
    """``model`` with all of its weights, in this process."""
    fill(model, sources(model), lambda parameter, stored: stored.rows(dtype=parameter.dtype))
    return model
