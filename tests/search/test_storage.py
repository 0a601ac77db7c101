"""Storage: what a killed writer leaves, and a real PostgreSQL server where one can be started."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.search.storage import is_locked, open_storage, trial_lock, without_password

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def test_a_torn_last_line_is_dropped_by_the_next_writer(stub: ModuleType, tmp_path: Path) -> None:
    trials = stub.build(tmp_path / "s", "qmc", 3)
    trials.run(stub.evaluate, lambda text: None)
    journal = tmp_path / "s" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker')
    again = stub.build(tmp_path / "s", "qmc", 5)
    again.run(stub.evaluate, lambda text: None)
    assert journal.read_bytes().startswith(whole + b"{")
    assert [t.number for t in stub.build(tmp_path / "s", "qmc", 5).finished()] == list(range(5))


def test_a_lock_is_seen_by_others_and_free_after_its_owner(tmp_path: Path) -> None:
    assert not is_locked(tmp_path, "a-0")
    with trial_lock(tmp_path, "a-0") as first:
        assert first and is_locked(tmp_path, "a-0")
        with trial_lock(tmp_path, "a-0") as second:
            assert not second
    assert not is_locked(tmp_path, "a-0")


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://h/d", "nonsense"])
def test_other_storages_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="expected postgresql://"):
        open_storage(tmp_path, url)


def test_an_unreachable_server_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    with pytest.raises(EnvironmentProblem, match="cannot be used") as caught:
        open_storage(tmp_path, "postgresql://ada:secret@127.0.0.1:1/studies")
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.exit_code == 5


def test_passwords_are_never_printed() -> None:
    assert without_password("postgresql://ada:secret@h:1/d") == "postgresql://ada:***@h:1/d"
    assert without_password("postgresql://ada@h/d") == "postgresql://ada@h/d"


def test_a_missing_journal_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no journal"):
        open_storage(tmp_path / "none", None, create=False)
    assert not (tmp_path / "none").exists()


# -- a real server ----------------------------------------------------------------------------


def as_owner(command: list[str], owner: str | None) -> list[str]:
    """PostgreSQL refuses to run as root: its own account takes over."""
    return ["runuser", "-u", owner, "--", *command] if owner else command


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a PostgreSQL server on a free port; skip, with the reason, where that fails."""
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    if not BINARIES:
        pytest.skip("no PostgreSQL server is installed (Debian's package 'postgresql')")
    owner = "postgres" if os.geteuid() == 0 else None
    if owner and not shutil.which("runuser"):
        pytest.skip("PostgreSQL refuses to run as root and there is no runuser")
    user = owner or getpass.getuser()
    folder = tmp_path_factory.mktemp("postgres")
    data, binaries = folder / "data", BINARIES[-1]
    data.mkdir()
    for path in (folder, *folder.parents):
        if owner and path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    if owner:
        shutil.chown(folder, owner)
        shutil.chown(data, owner)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    init = [str(binaries / "initdb"), "-D", str(data), "-A", "trust", "--no-sync"]
    done = subprocess.run(as_owner(init, owner), capture_output=True, text=True, cwd="/")
    if done.returncode:
        pytest.skip(f"initdb failed: {done.stderr.strip().splitlines()[-1:]}")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w"]
    begun = subprocess.run(
        as_owner([*control, "-o", options, "start"], owner), cwd="/", stdout=subprocess.DEVNULL
    )
    if begun.returncode:
        pytest.skip("pg_ctl could not start a server")
    yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    subprocess.run(
        as_owner([*control, "-m", "immediate", "stop"], owner), cwd="/", stdout=subprocess.DEVNULL
    )


def test_two_processes_share_a_study_on_a_server(
    stub: ModuleType, stub_command: Any, server: str, tmp_path: Path
) -> None:
    """They do not even share a folder: trial numbers are given out by the server."""
    command, environment = stub_command
    processes = [
        subprocess.Popen(
            [*command, str(tmp_path / name / "s"), "qmc", "12", "0.1", "--storage", server],
            env=environment,
        )
        for name in ("a", "b")
        if (tmp_path / name).mkdir() is None
    ]
    assert [process.wait() for process in processes] == [0, 0]
    texts = [(tmp_path / name / "evaluated.txt") for name in ("a", "b")]
    lines = [line for path in texts if path.is_file() for line in path.read_text().splitlines()]
    points = [line.partition(" ")[2] for line in lines]
    assert len(points) == 12 == len(set(points))
    here = stub.build(tmp_path / "a" / "s", "qmc", 12, storage=server)
    alone = stub.build(tmp_path / "c" / "s", "qmc", 12)
    alone.run(stub.evaluate, lambda text: None)
    both = [[(t.number, t.params, t.value) for t in one.finished()] for one in (here, alone)]
    assert both[0] == both[1]
