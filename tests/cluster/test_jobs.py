"""Jobs: what is sent to a cluster, what is refused, and a real cluster of two nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from orchestrator.cluster import jobs, submission
from orchestrator.settings.errors import UserError
from tests.support.two_nodes import RAY, Cluster, as_user, free_ports

PROJECT = Path(__file__).resolve().parents[2]
RUN = """
import sys, time
print("arguments", sys.argv[1:], flush=True)
time.sleep(300 if "train.epochs=300" in sys.argv else 0)
sys.exit(3 if "seed=3" in sys.argv else 0)
"""


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout with tracked, ignored and untracked files."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "configs").mkdir()
    (folder / "run.py").write_text(RUN)
    (folder / "configs" / "kept.yaml").write_text("kept: true")
    (folder / ".gitignore").write_text("*.yaml\n.env\n")
    (folder / ".env").write_text("KEY=secret")
    (folder / "untracked.txt").write_text("draft")
    (folder / "link.txt").symlink_to(folder / "untracked.txt")
    git(folder, "init", "--quiet")
    git(folder, "add", "--force", "run.py", "configs/kept.yaml", ".gitignore", "link.txt")
    return folder


def whole_log(address: str, job: str, tail: bool) -> str:
    return "".join(jobs.follow(address, job, tail=tail))


def test_only_tracked_files_are_sent(project: Path) -> None:
    with submission.staged(project) as folder:
        files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert files == {"run.py", "configs/kept.yaml"}
        assert (folder / "run.py").read_text() == RUN
    assert not folder.exists()


def test_changes_on_disk_are_sent_and_deleted_files_are_not(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", project, copy], check=True)
    (copy / "run.py").write_text("changed")
    (copy / "configs" / "kept.yaml").unlink()
    with submission.staged(copy) as folder:
        assert [file.name for file in folder.iterdir()] == ["run.py"]
        assert (folder / "run.py").read_text() == "changed"


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    with pytest.raises(UserError, match="no git checkout"), submission.staged(tmp_path):
        pass
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UserError, match=r"tracks no run\.py"), submission.staged(tmp_path):
        pass


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (["train"], "train-"),
        (["sweep", "method=treelora"], "sweep-"),
        (["train", "name=first_try.2"], "first_try.2-"),
        (["train", "name='../ä b/c'"], "b-c-"),
        (["train", "name=--"], "train-"),
    ],
)
def test_submission_ids_are_safe_and_new(command: list[str], start: str) -> None:
    made = {submission.submission_id(command) for _ in range(20)}
    assert len(made) == 20
    for job in made:
        assert job.startswith(start)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{8}", job)


def test_storage_outlives_the_job() -> None:
    command = ["train", "method=treelora"]
    assert submission.job_command(command) == [*command, "storage='~/evergreen/runs'"]
    assert command == ["train", "method=treelora"]
    for storage in ("storage=/data/runs", "storage='~/runs'"):
        assert submission.job_command(["sweep", storage]) == ["sweep", storage]


def test_a_study_goes_with_its_job_and_its_page_to_the_storage(project: Path, tmp_path: Path) -> None:
    (project / "studies").mkdir()
    for file in (project / "studies" / "mine.yaml", tmp_path / "other.yaml"):
        file.write_text("title: x")
    for file, there in (
        (project / "studies" / "mine.yaml", "studies/mine.yaml"),
        (tmp_path / "other.yaml", "other.yaml"),
    ):
        command = submission.with_study(["compare", str(file), "seed=1"], file, project)
        page = f"~/evergreen/runs/{file.stem}.md"
        assert command == ["compare", there, "seed=1", "storage='~/evergreen/runs'", "--output", page]
        with submission.staged(project, file) as folder:
            assert (folder / there).read_text() == "title: x"


def test_rows_of_the_command_line_need_no_file(project: Path) -> None:
    words = ["compare", "methods=[lora,gorp]", "storage=/data/runs"]
    command = submission.with_study(words, Path("compare-lora-gorp.yaml"), project)
    assert command == [*words, "--output", "/data/runs/compare-lora-gorp.md"]
    with pytest.raises(UserError, match="--output: a job's page lies in its storage"):
        submission.with_study([*words, "--output=x.md"], Path("a.yaml"), project)


@pytest.mark.parametrize("storage", ["runs", "./runs", "'../runs'", ""])
def test_storage_in_the_folder_of_the_job_is_refused(storage: str) -> None:
    with pytest.raises(UserError, match="absolute path that all nodes"):
        submission.job_command(["train", f"storage={storage}"])


@pytest.mark.parametrize("command", [[], ["report"], ["jobs", "stop"], ["name=train"]])
def test_no_other_command_is_submitted(command: list[str]) -> None:
    with pytest.raises(UserError, match="only train, sweep, compare"):
        submission.job_command(command)


@pytest.mark.parametrize(
    "uri",
    [
        "https://ann:hunter2@mlflow.example",
        "https://ann:hunt#er2@mlflow.example",
        "postgresql+psycopg2://ann:hunter2@db/mlflow",
        "postgresql://db/mlflow?sslmode=require&password=hunter2",
        "https://mlflow.example/?api_key=hunter2",
    ],
)
def test_credentials_are_refused_unseen(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="set it on the cluster") as refusal:
        submission.job_environment()
    assert "hunt" not in str(refusal.value)
    with pytest.raises(UserError, match=r"tracking\.uri") as refusal:
        submission.job_command(["train", f"tracking.uri={uri}"])
    assert "hunt" not in str(refusal.value)


def test_no_other_variable_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    harmless = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    assert submission.job_environment() == harmless
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert submission.job_environment() == {
        **harmless,
        "MLFLOW_TRACKING_URI": "http://mlflow.example:5000",
    }


@pytest.mark.parametrize(
    "address",
    ["", "auto", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://ann:hunter2@host"],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(UserError, match="http://HOST:8265") as refusal:
        jobs.listing(address)
    assert "hunter2" not in str(refusal.value)


def test_an_address_where_nothing_answers_is_one_clear_line(project: Path) -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    began = time.monotonic()
    with as_user({"RAY_AUTH_TOKEN": "hunter2hunter2"}) as user:
        refusal = user.submit(jobs.submit, address, ["train"], project=project).exception()
        assert isinstance(refusal, UserError)
        assert address in str(refusal)
        assert "no answer" in str(refusal)
        assert "Traceback" not in str(refusal)
        assert "\n" not in str(refusal)
    assert time.monotonic() - began < 20


@pytest.mark.ray
def test_jobs_on_two_nodes(cluster: Cluster, project: Path) -> None:
    address = cluster.dashboard
    # A client's own cluster must not win over the address that it names.
    client = {
        "RAY_ADDRESS": "http://127.0.0.1:1",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1",
        "RAY_AUTH_TOKEN_PATH": cluster.environment["RAY_AUTH_TOKEN_PATH"],
    }
    with as_user(client) as user:
        user.submit(exec, "import ray").result()  # earlier than the mode is set
        begun = user.submit(jobs.submit, address, ["sweep", "train.epochs=300"], project=project)
        sleeper = begun.result()
        good = check_success(user, address, project)
        broken = check_failure(user, address, project)
        check_unknown(user, address)
        assert shown_by(cluster, "run.py", "stop", sleeper, "--address", address) == f"{sleeper}: STOPPED\n"
        assert user.submit(jobs.stop, address, sleeper).result() == "STOPPED", "it stays so"
        listed = user.submit(jobs.listing, address).result()
    expected = [(sleeper, "STOPPED"), (good, "SUCCEEDED"), (broken, "FAILED")]
    assert [(job.id, job.status) for job in listed if job.id in (sleeper, good, broken)] == expected
    assert all(job.started and "\n" not in job.message for job in listed)
    shown = shown_by(cluster, RAY, "job", "list", "--address", address)
    assert "SUCCEEDED" in shown
    assert sleeper in shown


@pytest.mark.ray
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"RAY_AUTH_TOKEN": "hunter2hunter2"}, "no valid token"),
        ({"RAY_AUTH_TOKEN": "hunter2\nhunter2"}, "InvalidHeader"),
        ({"HOME": "/nonexistent"}, "no valid token"),
        ({"RAY_AUTH_MODE": "disabled"}, "no valid token"),
    ],
)
def test_a_bad_token_is_refused(cluster: Cluster, given: dict[str, str], reason: str) -> None:
    with as_user(given) as user:
        refusal = user.submit(jobs.listing, cluster.dashboard).exception()
    assert isinstance(refusal, UserError)
    assert cluster.dashboard in str(refusal)
    assert reason in str(refusal)
    assert "hunter2" not in str(refusal)
    assert "\n" not in str(refusal)


def check_success(user: ProcessPoolExecutor, address: str, project: Path) -> str:
    command = ["train", "name=good", "method=treelora"]
    job: str = user.submit(jobs.submit, address, command, project=project).result()
    user.submit(jobs.wait, address, job).result()
    expected = str([*command, submission.DEFAULT_STORAGE])
    for tail in (False, True):
        assert f"arguments {expected}" in user.submit(whole_log, address, job, tail).result()
    assert job.startswith("good-")
    return job


def check_failure(user: ProcessPoolExecutor, address: str, project: Path) -> str:
    command = ["train", "seed=3"]
    broken: str = user.submit(jobs.submit, address, command, project=project).result()
    failed = user.submit(jobs.wait, address, broken).exception()
    assert isinstance(failed, UserError)
    assert "FAILED" in str(failed)
    return broken


def check_unknown(user: ProcessPoolExecutor, address: str) -> None:
    for job in ("nobody-00000000", "..", ""):
        for call in (
            user.submit(jobs.stop, address, job),
            user.submit(whole_log, address, job, True),
        ):
            refusal = call.exception()
            assert isinstance(refusal, UserError)
            assert "no such job" in str(refusal)


def shown_by(cluster: Cluster, *command: str | Path) -> str:
    """What a command line of Python prints for a user of the cluster."""
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **cluster.environment},
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
