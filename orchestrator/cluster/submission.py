"""What a job gets: its command with a storage that outlives it, harmless variables, and the files that git tracks."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.settings.errors import UserError

COMMANDS = ("train", "sweep", "compare")
# The inner quotes are for the grammar of settings, in which a bare ~ is an error.
DEFAULT_STORAGE = "storage='~/evergreen/runs'"
# Also set by orchestrator, but a cluster's worker processes import Ray before they import this project.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def job_command(command: list[str]) -> list[str]:
    """The command with a storage that outlives the job; a study's page goes there too."""
    if not command or command[0] not in COMMANDS:
        given = command[0] if command else "nothing"
        raise UserError(f"{given}: only {', '.join(COMMANDS)} can be submitted as a job")
    if has_credentials(setting(command, "tracking.uri") or ""):
        raise UserError(
            "tracking.uri: a job's command is shown to all users of the cluster; "
            "leave the credentials out and set MLFLOW_TRACKING_URI on the cluster"
        )
    if any(word.partition("=")[0] == "--output" for word in command):
        raise UserError("--output: a job's page lies in its storage, under the name of the study; leave it out")
    storage = setting(command, "storage")
    if storage is None:
        return [*command, DEFAULT_STORAGE]
    if not storage.startswith(("/", "~")):
        raise UserError(
            f"storage={storage}: a job's own folder is removed after it; "
            "give an absolute path that all nodes of the cluster share"
        )
    return list(command)


def setting(command: list[str], key: str) -> str | None:
    """The value that ``key=value`` gives in the command, where the last one counts."""
    values = [item.partition("=")[2] for item in command[1:] if item.startswith(f"{key}=")]
    return values[-1].strip("'\"") if values else None


def with_study(command: list[str], file: Path, project: Path) -> list[str]:
    """The command of a study's job: its ``file`` as ``staged`` has it there, and its page in the storage."""
    words = job_command(command)
    if file.exists():
        words[1] = str(place_in_job(file, project.resolve()))
    return [*words, "--output", f"{setting(words, 'storage')}/{file.stem}.md"]


def place_in_job(file: Path, root: Path) -> Path:
    """Where in a job's folder a study's file lies: where it is in the project, and one from elsewhere at the top."""
    found = file.resolve()
    return found.relative_to(root) if found.is_relative_to(root) else Path(file.name)


def submission_id(command: list[str]) -> str:
    """A new id that starts with the run's name, in letters that are safe in a URL and a shell."""
    # A random end, since Ray refuses an id that any earlier job had, and a run is resumed by submitting it again.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", setting(command, "name") or "").lstrip(".-")
    return f"{name[:100] or command[0]}-{secrets.token_hex(4)}"


def job_environment() -> dict[str, str]:
    """The few variables that a job gets from here; none of them is a secret."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return dict(ENVIRONMENT)
    if has_credentials(uri):
        raise UserError(
            "MLFLOW_TRACKING_URI: a job's environment is shown to all users of the cluster; "
            "leave the credentials out, or unset it here and set it on the cluster"
        )
    return {**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri}


def has_credentials(uri: str) -> bool:
    """Whether an address may hold a user, password or key; rather too careful than not enough."""
    secret = r"@|%40|[?&;][^=&]*(user|pass|pwd|token|secret|key|credential)[^=&]*="
    return re.search(secret, uri, re.IGNORECASE) is not None


@contextmanager
def staged(project: Path, study: Path | None = None) -> Iterator[Path]:
    """A temporary folder with the tracked files of the project and a study's, as they are on disk now."""
    root = project.resolve()
    tracked = {root / name for name in tracked_names(root)}
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        for source in tracked:
            # Ray would drop tracked files that match .gitignore. Links to elsewhere, submodules
            # and deleted files have no tracked content to send.
            if source.name == ".gitignore" or source.resolve() not in tracked:
                continue
            if source.is_file():
                copy(source, Path(folder) / source.relative_to(root))
        if study is not None:
            copy(study, Path(folder) / place_in_job(study, root))
        yield Path(folder)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def tracked_names(root: Path) -> list[str]:
    """What ``git ls-files`` names below ``root``; run.py has to be among it."""
    try:
        git = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True)
    except FileNotFoundError:
        raise UserError("git: not found; a job gets the files that git tracks") from None
    if git.returncode:
        reason = os.fsdecode(git.stderr).strip().partition("\n")[0]
        raise UserError(f"{root}: no git checkout, and a job gets only tracked files ({reason})")
    names = [name for name in os.fsdecode(git.stdout).split("\0") if name]
    if "run.py" not in names:
        raise UserError(f"{root}: git tracks no run.py here; submit from the project's own folder")
    return names
