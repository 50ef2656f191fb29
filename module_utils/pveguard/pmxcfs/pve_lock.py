"""Locks on the cluster file system: taken, broken when their holder is dead, given back also after a loss of quorum.

A lock is a directory below /etc/pve/priv/lock, as Proxmox VE makes them: mkdir succeeds on one member only. It names no
holder; what can be told is the node that made it and its age. The daemon drops no lock by itself. It removes one that is
older than its timeout (120 s) when it is asked to by setting both times of the directory to 0, so that is how one of a
dead holder is broken here; a directory that is not ours is never removed.

A lock cannot be given back while /etc/pve takes no writes, as after a change that costs this node the quorum for a
while. Such a lock is noted below /run/pveguard, with what tells it from a later one of somebody else, and is given back
by :func:`give_back`, by the next one who wants the same lock here, or, if all that fails, by anyone 120 s later.

Every call that could wait for the daemon runs in a process of its own: one that never answers must not hang us too.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..base import node_name
from ..base.atomic import write_atomic
from ..base.errors import PveguardError
from ..base.run import Result, Run
from ..base.run import run as real_run
from . import live_database, members, pmxcfs, pve_file, tree

#: Seconds after which the daemon takes a lock's holder for dead.
STALE_AFTER_S = 120.0
#: Seconds for which it is asked to drop a stale one. It may count its timeout from the first request.
BREAK_WITHIN_S = 150.0
#: Seconds that a holder has who is not known to be dead: until its lock is stale and can be broken, and some more.
WAIT_S = STALE_AFTER_S + 10.0
#: Seconds for which the one who has quorum tries to give a lock back.
GIVE_BACK_S = 20.0
#: Seconds that one call may take. A daemon whose connection to the cluster broke never answers a write.
ANSWER_S = 20.0
POLL_S = 1.0
#: One file for each lock that could not be given back.
NOTES = Path("run/pveguard/kept-locks")

_EXISTS = "File exists"
_NO_QUORUM = ("Permission denied", "Read-only file system", "Operation not permitted")
_PASSING = (*_NO_QUORUM, "Input/output error", "Device or resource busy", "Resource temporarily unavailable")
#: After these it is known what became of a mkdir.
_ANSWERS = (_EXISTS, *_NO_QUORUM)


@dataclass(frozen=True)
class Kept:
    """A lock of this node that could not be given back. ``path`` as the node sees it; ``mtime_ns`` and ``row`` (its number
    in the database, never used twice) tell it from a later one; None where unknown."""

    path: str
    reason: str
    mtime_ns: int | None = None
    row: int | None = None

    def shown(self) -> dict[str, str]:
        """What a module returns of it."""
        return {"path": self.path, "reason": self.reason}

    def warning(self) -> str:
        """What it means, and what frees it."""
        return (
            f"{node_name.own()}: the lock {self.path} could not be given back: {self.reason}. It is given back by the next "
            f"change of corosync.conf on this node, or the next run, once /etc/pve takes writes here ('corosync-quorumtool "
            f"-s'); others can break it {STALE_AFTER_S:g} s after it was made. By hand, with quorum: 'rmdir {self.path}'"
        )


@dataclass(frozen=True)
class GivenBack:
    """``removed``: paths of locks that were given back, ``left``: those that could not be."""

    removed: list[str]
    left: list[Kept]


class Lock:
    """``with Lock(path, deadline_s):`` holds the lock ``path``. ``kept`` says afterwards if it could not be given back.

    A lock that somebody holds is awaited for ``deadline_s`` seconds. Once it is stale the daemon is asked to drop it, for
    :data:`BREAK_WITHIN_S` seconds at least. A lack of quorum is awaited too. Raises PveguardError that says who held it.
    """

    def __init__(
        self,
        path: Path,
        deadline_s: float,
        run: Run = real_run,
        root: Path = Path("/"),
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.deadline_s = path, deadline_s
        self.run, self.root, self.sleep, self.clock = run, root, sleep, clock
        self.kept: Kept | None = None
        self._made: tuple[int | None, int | None] = (None, None)
        self._unanswered: list[tuple[float, float]] = []
        self._left = ""

    def __enter__(self) -> Lock:
        begun = self.clock()
        wait = _Wait(begun, begun + self.deadline_s)
        while True:
            error = self._make()
            try:
                held = _mtime_ns(self.path)
            except PveguardError as unseen:
                held, error = None, error or str(unseen)
            if not error or is_made_here(self.path, self._unanswered, self.root):
                self._made = held, (_row(self.path, self.root) or (None,))[0]
                return self
            if held is not None and self._is_left_by_us(held):
                continue
            now = self.clock()
            wait.see(held, now)
            if held is not None and wait.age_s(now) >= STALE_AFTER_S:
                wait.ask(now, _call(["touch", "-c", "-d", "@0", str(self.path)], self.run))
                if not self.path.exists():
                    continue
            if now >= wait.end:
                raise PveguardError(self._refusal(error, held, wait, now))
            self.sleep(POLL_S)

    def __exit__(self, *_: object) -> None:
        mtime_ns, row = self._made
        kept = Kept(_shown(self.path, self.root), "", mtime_ns, row)
        try:
            held = _mtime_ns(self.path)
            # Else gone, or broken as stale and held by somebody else by now: nothing of ours is left.
            ours = self._made == (None, None) or (held is not None and _is(kept, self.path, held, self.root))
            error = _remove(self.path, self.run) if held is not None and ours else ""
        except PveguardError as failed:
            error = str(failed)
        if error:
            self.kept = _note(_because(kept, error), self.root)

    def _make(self) -> str:
        if not pve_file.is_mounted(self.root):
            # What was made beneath the mount point would keep the daemon from starting.
            return "/etc/pve is not mounted"
        begun = time.time()
        error = _call(["mkdir", str(self.path)], self.run)
        if error and not self.path.parent.is_dir():
            # Proxmox VE makes it with its first lock; a fresh or a restored state may not have it yet.
            error = _call(["mkdir", "-p", str(self.path.parent)], self.run) or _call(
                ["mkdir", str(self.path)], self.run
            )
        if error and error not in _ANSWERS:
            self._unanswered.append((begun, time.time()))
        return error

    def _is_left_by_us(self, held: int) -> bool:
        """Whether it was a lock that this node had to leave, and is gone now."""
        for kept in noted(self.root):
            if kept.path == _shown(self.path, self.root) and _is(kept, self.path, held, self.root):
                self._left = _remove(self.path, self.run)
                if not self._left:
                    _forget(kept, self.root)
                    return True
        return False

    def _refusal(self, error: str, held: int | None, wait: _Wait, now: float) -> str:
        path, waited = _shown(self.path, self.root), now - wait.begun
        if held is None:
            why = (
                "this node has no quorum ('corosync-quorumtool -s'), bring the other members back"
                if error in _NO_QUORUM
                else "see 'journalctl -u pve-cluster' and 'corosync-quorumtool -s'"
            )
            return f"{path} could not be made for {waited:.0f} s: {error}: {why}. Nothing was changed"
        age = wait.age_s(now)
        text = f"{path} is held: it was made {age:.0f} s ago{_by(self.path, self.root)}, and {waited:.0f} s were waited for it. "
        if self._left:
            return text + (
                f"It is this node's own, left by an earlier change, and cannot be given back: {self._left}; bring the quorum "
                "back ('corosync-quorumtool -s')"
            )
        if wait.asked is None:
            return text + (
                "Another change is under way there, or one has died: "
                f"then its lock counts as stale {STALE_AFTER_S:g} s after it was made, and the next run breaks it"
            )
        lost = f" (now: {error})" if error != _EXISTS else ""
        return text + (
            f"Its holder is dead by the rule of the daemon, which was asked for {now - wait.asked:.0f} s to drop it and did not; "
            f"the last error was: {wait.refused or 'none'}{lost}. When no change runs on any node, 'rmdir {path}' on a member "
            "with quorum frees it"
        )


class _Wait:
    """What is known of a lock while it is awaited. Its age goes on by our own clock once it has been seen."""

    def __init__(self, begun: float, end: float) -> None:
        self.begun = begun
        self.patience = end - begun
        self._end = end
        self._held: int | None = None
        self._seen = begun
        self._age_s = 0.0
        self.asked: float | None = None
        self.refused = ""

    @property
    def end(self) -> float:
        return self._end if self.asked is None else max(self._end, self.asked + BREAK_WITHIN_S)

    def see(self, held: int | None, now: float) -> None:
        # 0 is what a request leaves where the daemon only notes it.
        if held is None or held == self._held or (held == 0 and self._held is not None):
            return
        if self.asked is not None:
            # The one that was broken is gone, and somebody was quicker.
            self._end = max(self._end, now + self.patience)
        self._held, self._seen, self.asked, self.refused = held, now, None, ""
        self._age_s = max(0.0, time.time() - held / 1e9)

    def age_s(self, now: float) -> float:
        return self._age_s + now - self._seen

    def ask(self, now: float, error: str) -> None:
        if self.asked is None:
            self.asked = now
        self.refused = error or self.refused


def noted(root: Path = Path("/")) -> list[Kept]:
    """The locks that this node could not give back, as noted. Raises PveguardError when a note cannot be read."""
    found = []
    try:
        paths = sorted((root / NOTES).glob("*.json"))
        for path in paths:
            found.append(Kept(**json.loads(path.read_text())))
    except FileNotFoundError:
        return noted(root)  # given back by another process this moment
    except (OSError, ValueError, TypeError) as error:
        raise PveguardError(
            f"/{NOTES}: the notes of locks that could not be given back cannot be read: {error}; remove what is damaged"
        ) from error
    return found


def give_back(
    deadline_s: float = GIVE_BACK_S,
    run: Run = real_run,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> GivenBack:
    """Remove the locks that this node had to leave, trying for ``deadline_s`` seconds; 0 tries once.

    One that is gone, or is another one by now, is forgotten.
    """
    removed: list[str] = []
    end = clock() + deadline_s
    while True:
        left = []
        for kept in noted(root):
            path = root / kept.path.lstrip("/")
            if not pve_file.is_mounted(root):
                left.append(_because(kept, "/etc/pve is not mounted"))
                continue
            try:
                held = _mtime_ns(path)
                ours = held is not None and _is(kept, path, held, root)
                error = _remove(path, run) if ours else ""
            except PveguardError as failed:
                error = str(failed)
            if error:
                left.append(_because(kept, error))
                continue
            _forget(kept, root)
            if ours:
                removed.append(kept.path)
        if not left or clock() >= end:
            return GivenBack(removed, left)
        sleep(POLL_S)


def _because(kept: Kept, reason: str) -> Kept:
    return Kept(kept.path, reason, kept.mtime_ns, kept.row)


def is_unanswered(done: Result) -> bool:
    """Whether a mkdir failed in a way that does not tell whether the directory was made."""
    return bool(error := _error(done)) and error not in _ANSWERS


def is_passing(done: Result) -> bool:
    """Whether a membership that forms anew explains that a call failed, so that it may succeed in a moment."""
    return done.rc == 124 or _error(done) in _PASSING


def is_made_here(path: Path, unanswered: Sequence[tuple[float, float]], root: Path = Path("/")) -> bool:
    """Whether a directory is there by a mkdir of ours whose answer was an error: made then, and by this node.

    ``unanswered``: when such calls began and ended, in seconds since 1970.
    """
    held = _mtime_ns(path) if unanswered else None
    # The daemon keeps whole seconds.
    if held is None or not any(int(begun) <= held / 1e9 <= ended for begun, ended in unanswered):
        return False
    row, own = _row(path, root), _node_ids(root)[0]
    return row is not None and own is not None and row[1] == own


def _call(argv: list[str], run: Run) -> str:
    """What a call said when it failed, in the words of C's errors; empty when it did not."""
    return _error(run(argv, timeout=ANSWER_S))


def _error(done: Result) -> str:
    if done.ok:
        return ""
    said = " ".join(done.stderr.split())
    return said.rpartition("': ")[2] or said or f"code {done.rc}"


def _remove(path: Path, run: Run) -> str:
    """Remove the directory; what went wrong, empty when it is gone, whatever the answer was."""
    error = _call(["rmdir", str(path)], run)
    return error if error and _mtime_ns(path) is not None else ""


def _mtime_ns(path: Path) -> int | None:
    """When it was made; None when it is not there."""
    try:
        return os.lstat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PveguardError(f"{path}: {error.strerror}: see 'systemctl status pve-cluster'") from error


def _is(kept: Kept, path: Path, held: int, root: Path) -> bool:
    """Whether the directory at ``path`` is the one that was noted."""
    row = _row(path, root) if kept.row is not None else None
    if row is not None:
        return row[0] == kept.row
    # 0 is what a request to drop it leaves where the daemon only notes it.
    return held in (kept.mtime_ns, 0)


def _row(path: Path, root: Path) -> tuple[int, int] | None:
    """(number, node id of the writer) of a path's row in the database; None where that cannot be told."""
    name = str(path.relative_to(root / pmxcfs.MOUNT))
    try:
        return live_database.look(str(root / pmxcfs.DATABASE), lambda connection: tree.row_at(connection, name), 2.0)
    except (live_database.Unreadable, sqlite3.Error):
        return None


def _node_ids(root: Path) -> tuple[int | None, dict[int, str]]:
    """The id of this node, and the names of all, as the daemon tells them."""
    try:
        said = members.read(str(root / pmxcfs.MOUNT), real_run)
    except PveguardError:
        return None, {}
    names = members.names_by_id(said)
    return next((number for number, name in names.items() if name == said.get("nodename")), None), names


def _by(path: Path, root: Path) -> str:
    row = _row(path, root)
    if row is None:
        return " (its node cannot be told)"
    name = _node_ids(root)[1].get(row[1])
    return f" by node id {row[1]}" + (f" ({name})" if name else "")


def _shown(path: Path, root: Path) -> str:
    return f"/{path.relative_to(root)}"


def _file(kept: Kept, root: Path) -> Path:
    return root / NOTES / f"{Path(kept.path).name}.json"


def _note(kept: Kept, root: Path) -> Kept:
    try:
        _file(kept, root).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(_file(kept, root), json.dumps(asdict(kept)).encode())
    except OSError as error:
        return _because(kept, f"{kept.reason} (nor could it be noted in /{NOTES}: {error.strerror})")
    return kept


def _forget(kept: Kept, root: Path) -> None:
    _file(kept, root).unlink(missing_ok=True)


def report(warn: Callable[[str], Any], kept: list[Kept] | None = None) -> list[dict[str, str]]:
    """What a module returns as ``lock_kept`` (None: what is noted), after it has warned of each."""
    try:
        kept = noted() if kept is None else kept
    except PveguardError as error:
        warn(str(error))
        kept = []
    for each in kept:
        warn(each.warning())
    return [each.shown() for each in kept]
