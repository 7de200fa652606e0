"""Recomputing activations changes nothing but memory, and bf16 computes what float32 does, nearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.dataset import Batch, BenchmarkError
from benchmarks.models.classifier import Classifier
from benchmarks.models.config import BackboneConfig
from benchmarks.models.model import Model
from benchmarks.models.writer import AnswerWriter
from orchestrator.launch import train
from orchestrator.run.learner import Learner
from orchestrator.run.session import read_stream
from orchestrator.run.sharding import Place
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.support.interruption import assert_ends_alike
from tests.support.models import adapted, built, free_task, labelled_task, one_task, option_likelihoods
from tests.support.tiny import END, VOCABULARY, named

KINDS = ("micro_vit", "vit_tiny_patch16_224", "bert", "llama", "gpt2", "t5", "bart")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_model(tiny_models: dict[str, Path], kind: str) -> Model:
    torch.manual_seed(0)
    if kind in tiny_models:
        return adapted(built(named(tiny_models[kind])))
    size = None if kind == "micro_vit" else 32
    return adapted(built(BackboneConfig(name=kind, pretrained=False, image_size=size)))


def batch_for(model: Model, kind: str) -> Batch:
    """Four rows: images, or texts of different lengths that end as the tokenizers' do."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    if "vit" in kind:
        return Batch(torch.randint(256, (4, 3, 32, 32), generator=generator).byte(), labels)
    answers = torch.randint(4, VOCABULARY, (4, 5), generator=generator).int()
    answers[:, 4] = END
    inputs = torch.randint(4, VOCABULARY, (4, 7), generator=generator).int()
    inputs[0, 3:] = inputs[1, 1:] = answers[2, 2:] = -1
    return Batch(inputs, labels, answers if isinstance(model, AnswerWriter) else None)


def learned(model: Model, batch: Batch, half: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss and the gradients of all adapters, with the same dropout each time."""
    torch.manual_seed(1)
    model.train()
    spread = Place().spread(model, half)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = spread(batch, free_task() if isinstance(model, AnswerWriter) else one_task(3)).mean()
    loss.backward()
    gradients = {name: p.grad for name, p in model.adapters() if p.grad is not None}
    assert len(gradients) == len(model.adapters())
    return loss.detach(), gradients


def calls_of_adapters(model: Model) -> dict[str, int]:
    """Counts from now on how often each adapter is called."""
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> None:
        def called(*_: object) -> None:
            counts[name] = counts.get(name, 0) + 1

        module.register_forward_hook(called)

    for name, module in model.named_modules():
        if name.endswith("lora_A"):
            count(name, module)
    return counts


@every_kind
def test_recomputed_activations_give_the_same_gradients(tiny_models: dict[str, Path], kind: str) -> None:
    found = {}
    for recomputed in (False, True):
        model = make_model(tiny_models, kind)
        if recomputed:
            model.save_memory()
        counts = calls_of_adapters(model)
        found[recomputed] = learned(model, batch_for(model, kind))
        assert len(counts) == len(model.adapters()) / 2
        assert set(counts.values()) == {1 + recomputed}, "each block is computed once more in the backward pass"
    (loss, expected), (again, gradients) = found[False], found[True]
    torch.testing.assert_close(again, loss)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        assert torch.allclose(gradients[name], gradient, rtol=1e-6, atol=1e-6), name


def test_a_backbone_that_cannot_recompute_is_told(tiny_models: dict[str, Path]) -> None:
    model = make_model(tiny_models, "micro_vit")
    model.backbone = nn.Identity()
    line = r"^train.gradient_checkpointing=true: Identity cannot recompute its activations; say false$"
    with pytest.raises(BenchmarkError, match=line):
        model.save_memory()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["micro_vit", "bert", "llama", "t5"])
def test_compiled_blocks_compute_what_they_did(tiny_models: dict[str, Path], kind: str) -> None:
    model, other = make_model(tiny_models, kind), make_model(tiny_models, kind)
    loss, expected = learned(model, batch_for(model, kind))
    other.compile_blocks()
    with torch._inductor.config.patch(fallback_random=True):  # else dropout draws other numbers than uncompiled
        again, gradients = learned(other, batch_for(model, kind))
    torch.testing.assert_close(again, loss, rtol=1e-4, atol=1e-5)
    assert all((gradients[n] - g).norm() <= 1e-3 * g.norm() + 1e-6 for n, g in expected.items())


def test_compiling_without_a_compiler_is_told(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    line = r"^train.compile=true: there is no C\+\+ compiler 'no-such-compiler' here; install it or say false$"
    with pytest.raises(BenchmarkError, match=line):
        make_model(tiny_models, "micro_vit").compile_blocks()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
@torch.no_grad()
def test_nothing_is_recomputed_where_answers_are_written(tiny_models: dict[str, Path], kind: str) -> None:
    model = make_model(tiny_models, kind).eval()
    assert isinstance(model, AnswerWriter)
    prompts = batch_for(model, kind).inputs.long()
    expected, options = model.written(prompts), torch.tensor([[5, 6, END], [7, END, -1]])
    likely = option_likelihoods(model, prompts, options)
    model.save_memory()
    assert model.written(prompts) == expected
    assert torch.equal(option_likelihoods(model, prompts, options), likely)


@every_kind
def test_bf16_is_near_and_keeps_parameters_and_gradients_in_full_precision(
    tiny_models: dict[str, Path], kind: str
) -> None:
    model, other = make_model(tiny_models, kind), make_model(tiny_models, kind)
    loss, expected = learned(model, batch_for(model, kind))
    near, gradients = learned(other, batch_for(model, kind), half=True)
    assert not torch.equal(near, loss)
    assert abs(near - loss) <= 2e-2 * loss
    assert {p.dtype for p in other.parameters()} == {g.dtype for g in gradients.values()} == {torch.float32}
    similar = nn.functional.cosine_similarity(flat(gradients), flat(expected), dim=0)
    assert 0.95 < similar < 1 - 1e-6


@every_kind
def test_frozen_matrices_in_bf16_give_nearly_the_same(tiny_models: dict[str, Path], kind: str) -> None:
    model, other = make_model(tiny_models, kind), make_model(tiny_models, kind)
    loss, expected = learned(model, batch_for(model, kind), half=True)
    other.store_frozen(torch.bfloat16)
    near, gradients = learned(other, batch_for(other, kind), half=True)
    assert abs(near - loss) <= 2e-2 * loss
    assert nn.functional.cosine_similarity(flat(gradients), flat(expected), dim=0) > 0.9
    for name, parameter in other.named_parameters():
        matrix = not parameter.requires_grad and parameter.dim() > 1
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name
    task = labelled_task("yes", "no", "red")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert other.eval().scores(batch_for(other, kind), task, [range(3)]).shape == (4, 1)


@pytest.mark.parametrize("method", ["sdlora", "gorp", "treelora"])
def test_a_run_with_a_backbone_in_bf16_goes_on_where_it_stopped_and_is_told_from_one_in_float32(
    small: Callable[..., Experiment], method: str
) -> None:
    few = [f"method={method}", "benchmark.tasks=2", "benchmark.classes=4", "checkpoint.every=2"]
    whole, stopped = (small(*few, "backbone.dtype=bf16", f"name={name}") for name in ("whole", "stopped"))
    result = train(whole)
    assert_ends_alike(stopped, 1, 5, whole, result)
    other = train(small(*few, "name=float32"))
    assert abs(other["final_average_accuracy"] - result["final_average_accuracy"]) < 0.15
    with pytest.raises(UserError, match=r"backbone\.dtype"):
        train(small(*few, "name=whole"))


def test_updates_are_not_folded_into_weights_that_would_round_them_away(small: Callable[..., Experiment]) -> None:
    experiment = small("method=sdlora", "benchmark.tasks=2", "benchmark.classes=4", "backbone.dtype=bf16", "name=a")
    learner = Learner(experiment, read_stream(experiment), Place(), None)
    learner.begin_task(learner.stream.tasks[0], 2)
    learner.step(torch.arange(8), 0)
    images = learner.stream.tasks[0].test.batch().inputs
    assert isinstance(learner.model, Classifier)
    with torch.no_grad(), learner.autocast():
        expected = learner.model.eval().features(images)
        with learner.method.inference():
            assert torch.equal(learner.model.features(images), expected)


def test_bf16_weights_with_float32_arithmetic_are_refused(small: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=r"backbone.dtype=bf16 computes in bf16; leave out train.precision=fp32"):
        small("backbone.dtype=bf16", "train.precision=fp32")


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])
