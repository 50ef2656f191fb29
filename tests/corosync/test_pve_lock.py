# SPDX-License-Identifier: Apache-2.0
"""Locks on /etc/pve with a made-up daemon and a made-up clock: awaited, broken, left for want of quorum, given back."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.pmxcfs import pve_file, pve_lock

from tests.loading import load_module

from .fakes import make_database, snapshot

RunModule = Callable[..., dict[str, Any]]
PATH = "/etc/pve/priv/lock/file-corosync_conf"


class Daemon:
    """What mkdir, rmdir and touch do on /etc/pve: nothing without quorum; times set to 0 remove a lock that is older than
    its timeout. Whether that counts from the mkdir or from the first request is a choice (``from_request``)."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / PATH.lstrip("/")
        self.path.parent.mkdir(parents=True)
        self.now = 0.0
        self.begun = time.time()
        self.quorate, self.from_request, self.utime_error = True, False, ""
        self.since: float | None = None
        self.calls: list[tuple[float, str]] = []
        self.later: list[tuple[float, Callable[[], object]]] = []
        self.answers: dict[str, list[Result]] = {}  # what a call says after it was done all the same

    def run(self, argv: Sequence[str], **_: Any) -> Result:
        program, path = argv[0], argv[-1]
        self.calls.append((self.now, program))
        result = self._do(program, list(argv), Path(path))
        scripted = self.answers.get(program)
        return scripted.pop(0) if scripted else result

    def _do(self, program: str, argv: list[str], path: Path) -> Result:
        def failed(text: str) -> Result:
            return Result(1, "", f"{program}: cannot do '{path}': {text}\n")

        if program == "touch":
            assert argv[1:-1] == ["-c", "-d", "@0"], "both times of the directory, and never a new file"
            if self.utime_error:
                return failed(self.utime_error)
            if self.from_request and self.since is None:
                self.since = self.now
            begun = (
                self.since
                if self.from_request and self.since is not None
                else path.stat().st_mtime - self.begun
            )
            if self.now - begun >= 120:
                path.rmdir()
            return Result(0, "", "")
        if not self.quorate:
            return failed("Permission denied")
        try:
            if program == "mkdir":
                path.mkdir(parents="-p" in argv)
                os.utime(path, (self.begun + self.now,) * 2)
            else:
                path.rmdir()
        except FileExistsError:
            return failed("File exists")
        except FileNotFoundError:
            return failed("No such file or directory")
        return Result(0, "", "")

    def held(self, age_s: float, by: int | None = None) -> None:
        """Somebody's lock of that age, by the node with that id."""
        self.path.mkdir()
        os.utime(self.path, (self.begun + self.now - age_s,) * 2)
        if by is not None:
            self.row(by, 7)

    def row(self, writer: int, inode: int) -> None:
        """The lock's row in the database, as while the daemon runs, and who the members are."""
        database = self.root / "var/lib/pve-cluster/config.db"
        database.unlink(missing_ok=True)
        make_database(database, {PATH.removeprefix("/etc/pve/"): ""})
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(
                "UPDATE tree SET writer = ?, inode = ? WHERE name = ?", (writer, inode, self.path.name)
            )
        nodes = {f"pve{number}": {"id": number, "online": 1} for number in (1, 2, 3)}
        members = {"nodename": "pve1", "version": 3, "cluster": {"quorate": 1}, "nodelist": nodes}
        (self.root / "etc/pve/.members").write_text(json.dumps(members))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for at, event in self.later if at <= self.now]
        self.later = [(at, event) for at, event in self.later if at > self.now]
        for event in due:
            event()

    def lock(self, deadline_s: float = 30) -> pve_lock.Lock:
        return pve_lock.Lock(self.path, deadline_s, self.run, self.root, self.sleep, lambda: self.now)

    def give_back(self, deadline_s: float = 0) -> pve_lock.GivenBack:
        return pve_lock.give_back(deadline_s, self.run, self.root, self.sleep, lambda: self.now)

    def asked(self) -> list[float]:
        return [at for at, program in self.calls if program == "touch"]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: True)
    made = Daemon(tmp_path)
    # The time of day, too: a busy machine takes a second from here to the first call.
    monkeypatch.setattr(pve_lock, "time", SimpleNamespace(**{**vars(time), "time": lambda: made.begun + made.now}))
    return made


def refused(daemon: Daemon, deadline_s: float = 30) -> str:
    with pytest.raises(PveguardError) as caught, daemon.lock(deadline_s):
        raise AssertionError("the lock was taken")
    return str(caught.value)


def left(daemon: Daemon) -> pve_lock.Kept:
    """A lock whose change cost the quorum."""
    with daemon.lock() as lock:
        daemon.quorate = False
    assert lock.kept is not None and daemon.path.is_dir()
    return lock.kept


def test_it_is_taken_and_given_back(daemon: Daemon) -> None:
    daemon.path.parent.rmdir()  # a state that has seen no lock yet
    with daemon.lock() as lock:
        assert daemon.path.is_dir()
    assert not daemon.path.exists() and lock.kept is None and pve_lock.noted(daemon.root) == []
    with pytest.raises(ValueError, match="the work failed"), daemon.lock():
        raise ValueError("the work failed")
    assert not daemon.path.exists()


# Held by somebody


def test_a_fresh_one_is_awaited_and_named_with_its_age_and_writer(daemon: Daemon) -> None:
    daemon.held(20, by=2)
    said = refused(daemon, deadline_s=30)
    for part in (
        f"{PATH} is held",
        "made 50 s ago by node id 2 (pve2)",
        "30 s were waited",
        "stale 120 s after it was made",
    ):
        assert part in said, said
    assert daemon.now == 30 and daemon.asked() == [] and daemon.path.is_dir()
    # Where the database does not tell.
    (daemon.root / "var/lib/pve-cluster/config.db").unlink()
    assert "its node cannot be told" in refused(daemon, deadline_s=1)


def test_one_that_is_given_back_in_time(daemon: Daemon) -> None:
    daemon.held(1)
    daemon.later.append((12, daemon.path.rmdir))
    with daemon.lock():
        assert daemon.now == 12
    assert not daemon.path.exists()


def test_a_stale_one_is_broken_the_daemons_way(daemon: Daemon) -> None:
    daemon.held(400)
    with daemon.lock(deadline_s=5):
        assert daemon.now == 0 and daemon.asked() == [0]
    assert not daemon.path.exists()


def test_a_dead_holders_lock_becomes_stale_while_it_is_awaited(daemon: Daemon) -> None:
    daemon.held(100)
    with daemon.lock(deadline_s=30):
        assert daemon.now == daemon.asked()[0] == 20


def test_a_daemon_that_counts_from_the_first_request(daemon: Daemon) -> None:
    daemon.held(400)
    daemon.from_request = True
    with daemon.lock(deadline_s=5):
        assert daemon.now == 120 and daemon.asked() == [float(second) for second in range(121)]
    assert not daemon.path.exists()


def test_one_that_cannot_be_broken_is_told_with_the_last_error_and_stays(daemon: Daemon) -> None:
    daemon.held(400, by=3)
    daemon.utime_error = "Device or resource busy"
    said = refused(daemon, deadline_s=5)
    for part in (
        "made 550 s ago by node id 3",
        "asked for 150 s",
        "last error was: Device or resource busy",
        f"'rmdir {PATH}'",
    ):
        assert part in said, said
    assert daemon.path.is_dir() and ("rmdir" not in {program for _, program in daemon.calls})


def test_who_is_quicker_after_a_stale_one_is_awaited_anew(daemon: Daemon) -> None:
    daemon.held(100)

    def quicker() -> None:
        daemon.path.rmdir()
        daemon.held(0)
        daemon.later.append((daemon.now + 15, daemon.path.rmdir))

    daemon.utime_error = "Permission denied"
    daemon.later.append((35.0, quicker))
    with daemon.lock(deadline_s=25):
        assert daemon.now == 50.0


# Quorum


def test_quorum_that_comes_back_is_awaited(daemon: Daemon) -> None:
    daemon.quorate = False
    daemon.later.append((7, lambda: setattr(daemon, "quorate", True)))
    with daemon.lock():
        assert daemon.now == 7


def test_a_lack_of_quorum_is_told_at_the_deadline(daemon: Daemon) -> None:
    daemon.quorate = False
    said = refused(daemon, deadline_s=30)
    assert (
        f"{PATH} could not be made for 30 s: Permission denied: this node has no quorum" in said
        and daemon.now == 30
    )


def test_a_daemon_that_never_answers_is_told(daemon: Daemon) -> None:
    daemon.quorate = False
    daemon.answers["mkdir"] = [Result(124, "", "mkdir: no answer within 20 s")] * 100
    assert "no answer within 20 s: see 'journalctl -u pve-cluster'" in refused(daemon, deadline_s=3)


def test_nothing_is_made_beneath_the_mount_point(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: False)
    before = snapshot(daemon.root)
    assert "/etc/pve is not mounted" in refused(daemon, deadline_s=2)
    assert snapshot(daemon.root) == before and daemon.calls == []


def test_a_mkdir_whose_answer_was_lost_is_ours(daemon: Daemon) -> None:
    lost = Result(1, "", f"mkdir: cannot create directory '{daemon.path}': Input/output error")
    daemon.answers["mkdir"] = [lost]
    daemon.row(1, 7)
    with daemon.lock(deadline_s=5):
        assert daemon.now == 0
    assert not daemon.path.exists()
    # Of another node it is not.
    daemon.answers["mkdir"] = [lost]
    daemon.row(2, 8)
    assert "by node id 2" in refused(daemon, deadline_s=5)


# Left, and given back


def test_what_cannot_be_given_back_is_noted_and_told(daemon: Daemon) -> None:
    kept = left(daemon)
    assert kept.shown() == {"path": PATH, "reason": "Permission denied"}
    assert [each.path for each in pve_lock.noted(daemon.root)] == [PATH]
    warning = kept.warning()
    assert (
        os.uname().nodename.split(".")[0] in warning
        and "corosync-quorumtool -s" in warning
        and f"'rmdir {PATH}'" in warning
    )
    assert daemon.give_back().left == [kept] and daemon.now == 0, "0 tries once"


def test_it_is_given_back_when_quorum_is_back(daemon: Daemon) -> None:
    left(daemon)
    daemon.later.append((9, lambda: setattr(daemon, "quorate", True)))
    assert daemon.give_back(60) == pve_lock.GivenBack([PATH], [])
    assert daemon.now == 9 and not daemon.path.exists() and pve_lock.noted(daemon.root) == []
    assert daemon.give_back(60) == pve_lock.GivenBack([], []) and daemon.now == 9


def test_quorum_that_does_not_come_back_is_told_and_the_note_stays(daemon: Daemon) -> None:
    left(daemon)
    (kept,) = daemon.give_back(10).left
    assert kept.reason == "Permission denied" and daemon.now == 10 and len(pve_lock.noted(daemon.root)) == 1


def test_the_next_one_who_wants_it_here_takes_it_back_first(daemon: Daemon) -> None:
    left(daemon)
    daemon.quorate = True
    with daemon.lock(deadline_s=5):
        assert daemon.now == 0 and daemon.asked() == []
    assert not daemon.path.exists() and pve_lock.noted(daemon.root) == []


@pytest.mark.parametrize("rows", [False, True])
def test_a_later_lock_of_somebody_else_is_never_removed(daemon: Daemon, rows: bool) -> None:
    if rows:
        daemon.row(1, 7)
    kept = left(daemon)
    assert kept.row == (7 if rows else None)
    daemon.quorate = True
    daemon.path.rmdir()
    daemon.held(0 if rows else -5, by=2 if rows else None)
    if rows:
        daemon.row(2, 12)
        os.utime(daemon.path, ns=(kept.mtime_ns or 0,) * 2)  # in the same second
    assert daemon.give_back(30) == pve_lock.GivenBack([], []) and daemon.now == 0
    assert daemon.path.is_dir() and pve_lock.noted(daemon.root) == []


def test_what_was_broken_while_it_was_held_is_not_removed(daemon: Daemon) -> None:
    with daemon.lock() as lock:
        daemon.path.rmdir()
        daemon.held(-5)
    assert daemon.path.is_dir() and lock.kept is None and pve_lock.noted(daemon.root) == []


def test_an_error_although_it_was_removed_is_none(daemon: Daemon) -> None:
    daemon.answers["rmdir"] = [Result(1, "", f"rmdir: failed to remove '{daemon.path}': Input/output error")]
    with daemon.lock() as lock:
        pass
    assert lock.kept is None and not daemon.path.exists() and pve_lock.noted(daemon.root) == []


def test_without_the_file_system_the_note_stays(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    left(daemon)
    monkeypatch.setattr(pve_file, "is_mounted", lambda _root: False)
    (kept,) = daemon.give_back(2).left
    assert kept.reason == "/etc/pve is not mounted" and len(pve_lock.noted(daemon.root)) == 1


def test_a_note_that_cannot_be_read_or_written_is_told(daemon: Daemon) -> None:
    left(daemon)
    note = daemon.root / pve_lock.NOTES / "file-corosync_conf.json"
    note.write_text("no JSON")
    with pytest.raises(PveguardError, match="kept-locks: the notes .* remove what is damaged"):
        daemon.give_back()
    warnings: list[str] = []
    assert pve_lock.report(warnings.append, [pve_lock.Kept(PATH, "Permission denied")]) == [
        {"path": PATH, "reason": "Permission denied"}
    ]
    assert len(warnings) == 1
    note.unlink()
    note.parent.rmdir()
    note.parent.write_text("a file")
    daemon.quorate = True
    daemon.path.rmdir()
    with daemon.lock() as lock:
        daemon.quorate = False
    assert lock.kept is not None and "nor could it be noted in /run/pveguard/kept-locks" in lock.kept.reason


def test_a_file_system_that_does_not_answer_a_look_is_awaited(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the daemon is restarted by an upgrade."""
    left(daemon)
    real = os.lstat

    def lstat(path: Any, **more: Any) -> os.stat_result:
        if daemon.now < 6 and Path(path) == daemon.path:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return real(path, **more)

    monkeypatch.setattr(os, "lstat", lstat)
    (kept,) = daemon.give_back().left
    assert "Transport endpoint is not connected" in kept.reason
    daemon.later.append((6, lambda: setattr(daemon, "quorate", True)))
    with daemon.lock(deadline_s=30):
        assert daemon.now >= 6
    assert not daemon.path.exists()


# The module


def test_the_module(daemon: Daemon, run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module("pve_lock")
    real, noted = pve_lock.give_back, pve_lock.noted
    monkeypatch.setattr(
        pve_lock,
        "give_back",
        lambda deadline_s: real(deadline_s, daemon.run, daemon.root, daemon.sleep, lambda: daemon.now),
    )
    monkeypatch.setattr(pve_lock, "noted", lambda root=daemon.root: noted(root))
    left(daemon)
    before = snapshot(daemon.root)
    result = run_module(module, _ansible_check_mode=True)
    assert (result["changed"], result["given_back"]) == (False, []) and result["lock_kept"][0]["path"] == PATH
    assert snapshot(daemon.root) == before
    result = run_module(module, deadline_seconds=3)
    assert result["failed"] and result["lock_kept"] == [{"path": PATH, "reason": "Permission denied"}]
    assert (
        PATH in result["msg"]
        and os.uname().nodename.split(".")[0] in result["msg"]
        and "By hand, with quorum" in result["msg"]
    )
    daemon.quorate = True
    result = run_module(module)
    assert (result["changed"], result["given_back"], result["lock_kept"]) == (False, [PATH], [])
    result = run_module(module)
    assert (result["given_back"], result["lock_kept"]) == ([], [])
