"""README and docs/: short enough to be read, with links that lead somewhere and commands that are right."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import run
from orchestrator.settings.compose import load_experiment
from orchestrator.settings.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
LONGEST = 120
PLACES = ("DIR", "FILE.npz")
COMMANDS = {command.name or command.callback.__name__ for command in run.app.registered_commands if command.callback}


def blocks(page: Path) -> Iterator[str]:
    """Lines of the fenced sh blocks, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        yield from (line for line in block.splitlines() if line.strip())


def words_of(line: str, folder: Path) -> list[str]:
    """What a shell would pass on; places are taken for ``folder``."""
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    return [re.sub(rf"=({'|'.join(PLACES)})$", f"={folder}", word) for word in words]


LINES = [(page.name, line) for page in PAGES for line in blocks(page)]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        if file.startswith(("http://", "https://")):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not heading or heading in headings(target), f"{page.name}: {link}"


def headings(page: Path) -> list[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found]


def test_the_readme_shows_commands() -> None:
    shown = [line for name, line in LINES if name == "README.md"]
    assert sum(line.startswith("evergreen train") for line in shown) >= 2
    assert {"make run", "make test"} <= {" ".join(shlex.split(line, comments=True)) for line in shown}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_shown_is_right(page: str, line: str, tmp_path: Path) -> None:
    program, *words = words_of(line, tmp_path)
    if program == "make":
        targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words) <= set(targets)
    elif program == "evergreen":
        check_command(words)
    else:
        assert program in ("pip", "xdg-open"), "a program that this test knows"


def check_command(words: list[str]) -> None:
    """The command exists; the settings of train and sweep compose."""
    command, *rest = words
    assert command in COMMANDS
    if command == "submit":
        check_command(rest[rest.index("--") + 1 :])
    elif command in ("train", "sweep"):
        load_experiment([word for word in rest if not word.startswith("--")], "sweep" if command == "sweep" else "run")


def test_a_wrong_line_is_found() -> None:
    with pytest.raises(UserError, match="no such setting"):
        check_command(["train", "method=lora", "method.rnak=3"])
    with pytest.raises(AssertionError):
        check_command(["trian"])


# --- installed, without a checkout ---


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command line as it lies in site-packages, called from another folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(run, "PROJECT", tmp_path / "site")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_submit_says_that_it_needs_a_checkout(elsewhere: Path) -> None:
    with pytest.raises(UserError, match=r"^submit: .*checkout of the project$"):
        run.submit("http://127.0.0.1:1", ["train"])


def test_compare_writes_its_page_to_the_current_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[Path] = []
    monkeypatch.setattr("orchestrator.compare.run_study", lambda file, study, page, *rest: pages.append(page))
    (elsewhere / "mine.yaml").write_text("title: Mine\nrows: {a: [], b: [seed=1]}\n", encoding="utf-8")
    run.compare("mine.yaml")
    assert pages == [elsewhere / "mine.md"]
    monkeypatch.setattr(run, "PROJECT", PROJECT)
    run.compare("mine.yaml")
    assert pages[1:] == [PROJECT / "docs" / "mine.md"]


def test_every_file_of_configs_is_packaged() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["scripts"] == {"evergreen": "run:main"}
    packaged = settings["tool"]["setuptools"]
    assert packaged["py-modules"] == ["run"]
    assert "configs*" in packaged["packages"]["find"]["include"]
    for package, patterns in packaged["package-data"].items():
        folder = PROJECT / package.replace(".", "/")
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
    names = {file.suffix for file in (PROJECT / "configs").rglob("*") if file.is_file()}
    assert names == {".yaml"}
