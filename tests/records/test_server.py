"""A real MLflow server that is stopped, hangs, or is gone for good in the middle of a run: nothing waits for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.records import tracking
from orchestrator.records.sync import sync_record
from orchestrator.records.tracking import Tracker
from orchestrator.run.checkpoint import write_json
from orchestrator.settings.config import Experiment
from orchestrator.settings.errors import UserError
from tests.records.test_record import RESULT, begun, learn
from tests.support.record import Server, artifacts, records, steps

pytestmark = pytest.mark.slow
Small = Callable[..., Experiment]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "server")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def recorded(small: Small, server: Server, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.5)
    return small("name=r", "method=lora", "tracking.enabled=true", f"tracking.uri={server.uri}")


def trouble(tracker: Tracker, folder: Path) -> str:
    """What keeping up says, once it has noticed; each look returns at once."""
    while True:
        started = time.monotonic()
        said = tracker.keep_up(folder)
        assert time.monotonic() - started < 1.0, "a look at a run waits for no server"
        if said:
            return said
        time.sleep(0.05)


def test_a_server_that_comes_back_gets_all(recorded: Experiment, server: Server) -> None:
    tracker = begun(recorded)
    server.stop()
    learn(recorded.folder, 2)
    assert trouble(tracker, recorded.folder) == "the server does not answer"
    server.start()
    learn(recorded.folder, 3)
    write_json(recorded.folder / "result.json", RESULT)
    tracker.end(recorded.folder)
    (run,) = records(server.uri)
    assert (run.info.status, steps(server.uri, run, "loss")) == ("FINISHED", [1, 2, 3])
    assert {"result.json", "accuracy_matrix.json"} <= artifacts(server.uri, run)


def test_a_run_ends_without_its_server_and_sync_makes_up_for_it(
    recorded: Experiment, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = begun(recorded)
    server.stop()
    learn(recorded.folder, 3)
    write_json(recorded.folder / "result.json", RESULT)
    tracker.end(recorded.folder)
    assert capsys.readouterr().err == "record: the server does not answer; run.py sync r sends what is missing\n"
    storage = f"storage={recorded.storage}"
    with pytest.raises(UserError, match="the server does not answer"):
        sync_record("r", [storage, f"tracking.uri={server.uri}"])
    server.start()
    other = Server(tmp_path / "other")
    other.start()
    try:
        for address in (server.uri, other.uri):
            sync_record("r", [storage, f"tracking.uri={address}"])
            (run,) = records(address)
            assert (run.info.status, steps(address, run, "loss")) == ("FINISHED", [1, 2, 3])
            assert "result.json" in artifacts(address, run)
    finally:
        other.stop()


def test_a_server_that_hangs_holds_nothing_up_for_minutes(
    recorded: Experiment, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    tracker = begun(recorded)
    server.signal(signal.SIGSTOP)
    try:
        learn(recorded.folder, 2)
        assert trouble(tracker, recorded.folder) == "the server does not answer"
        started = time.monotonic()
        tracker.end(recorded.folder)
        assert time.monotonic() - started < tracking.END_SECONDS + 5
    finally:
        server.signal(signal.SIGCONT)
    sync_record("r", [f"storage={recorded.storage}", f"tracking.uri={server.uri}"])
    (run,) = records(server.uri)
    assert steps(server.uri, run, "loss") == [1, 2]


def test_the_start_is_refused_in_seconds_while_no_server_answers(small: Small) -> None:
    experiment = small("name=r", "tracking.enabled=true", "tracking.uri=http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"tracking\.uri=http://127\.0\.0\.1:9: the server does not answer; "):
        Tracker(experiment)
    assert time.monotonic() - started < 10
