"""Checkpoints and JSON files: nothing is lost, nothing is read half, nothing is unpickled."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from methods.base import finished
from orchestrator.run import checkpoint
from orchestrator.run.checkpoint import numbered, read_json, write_json
from orchestrator.settings.errors import UserError

TENSORS = {
    "half": torch.tensor([1 / 3, -0.0, float("inf"), float("nan")], dtype=torch.bfloat16),
    "single": torch.tensor([[1 / 3, 1e-45], [-2.5, float("nan")]]),
    "double": torch.linspace(0, 1, 7, dtype=torch.float64),
    "whole": torch.tensor([2**62 + 1, -3]),
    "small": torch.arange(-3, 3, dtype=torch.int8).view(2, 3),
    "flags": torch.tensor([True, False]),
    "number": torch.tensor(0.1),
    "count": torch.tensor(7),
    "nothing": torch.zeros(0, 4),
    "turned": torch.arange(6.0).view(2, 3).T,
    "learned": torch.nn.Parameter(torch.tensor([1 / 7])),
}
VALUES: dict[str, Any] = {"position": {"task": 1, "loss": None, "test": [[0.1 + 0.2]]}, "note": "ü", "seconds": 1e-17}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    one, other = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (left, right))
    return torch.equal(one, other)


def newest(run: Path) -> Path:
    return run / "checkpoints" / f"{numbered(run / 'checkpoints')[-1]:06d}"


def test_what_is_loaded_is_what_was_saved_bit_by_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, TENSORS, VALUES)
    found = checkpoint.load(tmp_path)
    assert found is not None
    tensors, values = found
    assert values == VALUES
    assert tensors.keys() == TENSORS.keys()
    assert all(same_bits(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_run_without_checkpoint_has_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.load(tmp_path / "absent") is None


def test_a_checkpoint_may_hold_no_tensors(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {}, VALUES)
    assert checkpoint.load(tmp_path) == ({}, VALUES)


def test_the_last_two_are_kept_and_the_last_is_loaded(tmp_path: Path) -> None:
    folders = [checkpoint.save(tmp_path, {"step": torch.tensor(n)}, {"step": n}) for n in range(12)]
    assert [folder.name for folder in folders][-3:] == ["000010", "000011", "000012"]
    assert sorted((tmp_path / "checkpoints").iterdir()) == folders[-2:]
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1] == {"step": 11} and int(found[0]["step"]) == 11


def test_files_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    for _ in range(3):
        checkpoint.save(tmp_path, TENSORS, VALUES)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 6
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    for file in files:
        content = file.read_bytes()
        assert not content.startswith((b"PK", b"\x80")), "neither torch.save's zip nor a pickle"


def test_a_folder_that_was_never_finished_is_ignored(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": torch.ones(1)}, {"step": 1})
    unfinished = tmp_path / "checkpoints" / "new-1"
    unfinished.mkdir()
    (unfinished / "values.json").write_text('{"step": 2')
    assert checkpoint.load(tmp_path) == ({"a": torch.ones(1)}, {"step": 1})
    assert checkpoint.save(tmp_path, {}, {"step": 3}).name == "000002"


def test_a_save_that_is_cut_short_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"a": torch.ones(1)}, {"step": 1})

    def cut_short(tensors: dict[str, torch.Tensor], file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", cut_short)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, {"a": torch.zeros(1)}, {"step": 2})
    assert checkpoint.load(tmp_path) == ({"a": torch.ones(1)}, {"step": 1})
    checkpoint.save(tmp_path, {"a": torch.zeros(1)}, {"step": 2})
    assert checkpoint.load(tmp_path) == ({"a": torch.zeros(1)}, {"step": 2})
    assert [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())] == ["000001", "000002"]


def learned(run: Path, tasks: int) -> None:
    """A checkpoint after so many tasks: what each has left is there once, the rest anew."""
    last = {finished(tasks - 1, "a"): torch.tensor(tasks - 1), "all": torch.arange(tasks)}
    checkpoint.save(run, last, {"finished": tasks})


def test_what_a_finished_task_leaves_is_written_once_and_read_with_every_checkpoint(tmp_path: Path) -> None:
    learned(tmp_path, 1)
    first = tmp_path / "checkpoints" / "finished" / "000000.safetensors"
    written = first.stat()
    for tasks in (2, 3, 4):
        learned(tmp_path, tasks)
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1] == {"finished": 4} and found[0]["all"].tolist() == [0, 1, 2, 3]
    assert [int(found[0][finished(task, "a")]) for task in range(4)] == [0, 1, 2, 3]
    assert first.stat() == written and len(load_file(newest(tmp_path) / checkpoint.TENSORS)) == 1


def test_what_a_dropped_checkpoint_has_left_is_not_read_with_the_one_before(tmp_path: Path) -> None:
    learned(tmp_path, 1)
    learned(tmp_path, 2)
    shutil.rmtree(newest(tmp_path))
    found = checkpoint.load(tmp_path)
    assert found is not None and set(found[0]) == {finished(0, "a"), "all"}
    checkpoint.save(tmp_path, {finished(1, "a"): torch.tensor(7)}, {"finished": 2})
    found = checkpoint.load(tmp_path)
    assert found is not None and int(found[0][finished(1, "a")]) == 7


DAMAGE = ["cut", "other", "flipped", "gone"]


def hurt(file: Path, damage: str) -> None:
    content = file.read_bytes()
    file.unlink()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    changed = {"cut": content[: len(content) // 2], "other": b"\xff" * len(content), "flipped": flipped}
    if damage != "gone":
        file.write_bytes(changed[damage])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_of_a_finished_task_is_named(tmp_path: Path, damage: str) -> None:
    for tasks in (1, 2):
        learned(tmp_path, tasks)
    file = tmp_path / "checkpoints" / "finished" / "000000.safetensors"
    hurt(file, damage)
    with pytest.raises(UserError) as caught:
        checkpoint.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{newest(tmp_path)}: damaged checkpoint (") and str(file) in message
    assert message.endswith("none before it is whole; put a copy back, or begin again with another name=…")


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.VALUES, checkpoint.DIGESTS])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_kept_aside(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, TENSORS, {"step": step})
    hurt(newest(tmp_path) / name, damage)
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1]["step"] == 1 and list(found[1]["damaged"]) == ["000002"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(f"{newest(tmp_path)}: damaged checkpoint (")
    checkpoint.set_aside(tmp_path, found[1]["damaged"])
    assert (tmp_path / "checkpoints" / "damaged-000002").is_dir()
    again = checkpoint.load(tmp_path)
    assert again is not None and again[1] == {"step": 1} and checkpoint.save(tmp_path, {}, {}).name == "000002"


def test_json_comes_back_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "result.json"
    write_json(file, VALUES)
    assert read_json(file) == VALUES
    write_json(file, [0.1 + 0.2])
    assert read_json(file) == [0.1 + 0.2]
    assert list(file.parent.iterdir()) == [file]


def test_json_is_whole_before_it_takes_the_old_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_json(file, "old")
    replace, seen = os.replace, []

    def looking(source: Path, target: Path) -> None:
        seen.append((read_json(target), read_json(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", looking)
    write_json(file, "new")
    assert seen == [("old", "new")]


def test_values_that_are_no_json_leave_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": {1, 2}})
    assert read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_json_that_is_absent_reads_as_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "result.json") is None
    assert read_json(tmp_path / "absent" / "result.json") is None


@pytest.mark.parametrize(("text", "line"), [("", 1), ("{", 1), ('{\n "a": 1,\n "b": oh\n}\n', 3)])
def test_bad_json_names_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(file))}:{line}: not JSON \(.*\); repair or remove the file$"
    ):
        read_json(file)


def test_a_checkpoint_is_written_while_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, save_file = threading.Event(), checkpoint.save_file

    def waiting(tensors: dict[str, torch.Tensor], file: Path) -> None:
        assert go_on.wait(60)
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", waiting)
    writer, weight = checkpoint.Writer(tmp_path), torch.ones(2)
    writer.save({"a": weight}, {"step": 1})
    weight += 1  # the next step
    assert checkpoint.load(tmp_path) is None
    go_on.set()
    writer.wait()
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1] == {"step": 1} and found[0]["a"].tolist() == [1, 1]
    writer.save({"a": weight}, {"step": 2})
    writer.close()
    found = checkpoint.load(tmp_path)
    assert found is not None and found[1] == {"step": 2} and found[0]["a"].tolist() == [2, 2]


def test_what_went_wrong_beside_the_training_is_told_at_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    writer = checkpoint.Writer(tmp_path)
    writer.save({}, {"step": 1})
    with pytest.raises(UserError, match="cannot be written to"):
        writer.save({}, {"step": 2})
    writer.save({}, {"step": 3})
    with pytest.raises(UserError, match="cannot be written to"):
        writer.wait()
    writer.close()
