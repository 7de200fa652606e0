"""Every registered method is a good citizen: it learns, resumes and explains itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from methods import base, method_class, method_names
from orchestrator.launch import train
from orchestrator.settings import compose
from orchestrator.settings.config import Experiment

Make = Callable[..., Experiment]
README = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_a_config_file_and_a_space_of_known_settings(small: Make, name: str) -> None:
    assert name in compose.option_names("method")
    space = method_class(name).search_space()
    assert space
    assert set(space) <= set(compose.setting_names())


@pytest.mark.parametrize("name", method_names())
def test_every_method_remembers_more_than_nothing(small: Make, name: str) -> None:
    result = train(small(f"method={name}", f"name={name}", "benchmark.scenario=task", "train.epochs=3"))
    assert result["final_average_accuracy"] > 0.55
    assert result["final_average_accuracy"] > sum(result["initial_accuracy"]) / 3 + 0.15


@pytest.fixture
def readme_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The method that the README shows, registered as it says."""
    source = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert source
    exec(source.group(1), {"__name__": "readme"})
    configs = tmp_path / "configs"
    for file in compose.CONFIGS.rglob("*.yaml"):
        copy = configs / file.relative_to(compose.CONFIGS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (configs / "method" / "top.yaml").write_text("# from the README\nname: top\n")
    monkeypatch.setattr(compose, "CONFIGS", configs)
    yield
    del base.REGISTRY["top"]


@pytest.mark.usefixtures("readme_method")
def test_the_method_in_the_readme_works(small: Make) -> None:
    """With no block fixed it is sequential LoRA to the bit; with all of them only the head learns."""
    plain = train(small("name=plain", "method=lora"))
    same = train(small("name=same", "method=top", "method.fixed=0"))
    head_only = train(small("name=head", "method=top", "method.fixed=6"))
    assert same["accuracy_matrix"] == plain["accuracy_matrix"]
    assert head_only["accuracy_matrix"] != plain["accuracy_matrix"]
