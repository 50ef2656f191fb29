"""The debug log of the cluster file system: switched on for a while, read from the journal, counted per file.

With ``1`` in ``/etc/pve/.debug`` the daemon logs every row it writes. The switch belongs to the operator, so its
former state comes back whatever happens. Before anything is switched, a transient systemd unit is armed that waits
for a lock which this process holds until it has restored the switch; the kernel drops the lock of a process that
dies, however it dies, and the unit then restores the switch itself.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import node_name, supervised
from ..base.atomic import write_atomic
from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..pmxcfs import pve_file
from . import write_classes

PVE = pve_file.MOUNT
RUN_DIR = "/run/pveguard"
#: The guard restores this long after the window at the latest, in seconds, should the process hang.
GRACE_SECONDS = 60
#: How long it is tried here before that is left to the guard, in seconds.
RESTORE_SECONDS = 5.0

_STATES = (b"0\n", b"1\n")
_LOCK = "pmxcfs-debug.lock"
_SCRIPT = "pmxcfs-debug-restore"
_STATE = "pmxcfs-debug.{}.before"

# conv=nocreat: when the file system goes away in between, nothing is left beneath its mount point, where it would
# stop the daemon's next start. The switch is memory of the daemon, so without it there is nothing to restore.
_RESTORE = """\
#!/bin/sh
# Written by pveguard: restore STATE SWITCH puts the debug switch of the cluster file system back, once.
state=$1
switch=$2
tries=0
while [ -e "$state" ]; do
    if [ ! -e "$switch" ] ||
        dd if="$state" of="$switch" bs=2 count=1 conv=nocreat,notrunc status=none; then
        rm -f "$state"
        exit 0
    fi
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || exit 1
    sleep 1
done
"""


class Unavailable(PveguardError):
    """The debug log cannot be used here; nothing was switched."""


class _Stopped(SystemExit):
    """A signal asked this process to end while the debug log was on, and that was restored: the exit code says so."""


@contextmanager
def switched_on(
    seconds: float, *, pve: str = PVE, run_dir: str = RUN_DIR, run: Run = real_run
) -> Iterator[bool]:
    """The debug log is on inside; yields whether it was on before, which it is again afterwards.

    ``seconds`` is how long it is meant to be on. Raises :class:`Unavailable`, with nothing switched, when ``pve`` is
    not the mounted file system, another measurement runs, or the guard cannot be armed.
    """
    switch = Path(pve) / ".debug"
    folder = Path(run_dir)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(
                "another measurement has the debug log of the cluster file system on"
            ) from error
        if not pve_file.is_mounted_at(Path(pve)):
            raise Unavailable(
                f"{pve} is not the mounted cluster file system: see 'systemctl status pve-cluster'"
            )
        before = _operators_state(folder, switch)
        state = folder / _STATE.format(os.getpid())
        # Armed before the note is written: whenever there is a note, somebody waits to act on it.
        unit = _arm(folder, state, switch, seconds + GRACE_SECONDS, run)
        try:
            with supervised.endings() as signals:
                try:
                    _note_and_switch_on(state, switch, before)
                    yield before == b"1\n"
                finally:
                    with signals.held():
                        _restore(state, switch, before)
        except supervised.Interrupted as interrupted:
            raise _Stopped(128 + interrupted.number) from None
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        # With a note still there its end is the guard's turn, which tries for a minute.
        run(["systemctl", "stop", unit], timeout=90 if state.exists() else 30)
        if state.exists():
            raise Unavailable(
                f"the debug log of {node_name.own()} could not be switched back: {switch} takes no writes (see "
                f"'journalctl -u pve-cluster'). When it does: 'cat {state} > {switch} && rm {state}'"
            )
    finally:
        os.close(lock)


def is_on(pve: str = PVE) -> bool | None:
    """Whether the debug log is on now, None when that cannot be read."""
    try:
        return {b"0\n": False, b"1\n": True}.get((Path(pve) / ".debug").read_bytes())
    except OSError:
        return None


def _operators_state(folder: Path, switch: Path) -> bytes:
    """What the switch is when nobody measures: a killed earlier run may have left it on, and its note says so."""
    leftovers = sorted(folder.glob(_STATE.format("*")), key=lambda path: path.stat().st_mtime_ns)
    try:
        for leftover in leftovers[:1]:
            noted = leftover.read_bytes()
            if noted in _STATES:
                _write(switch, noted)
        # Whoever held the lock is dead, so their notes are done with.
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        found = switch.read_bytes()
    except OSError as error:
        raise Unavailable(f"{switch} cannot be read or restored: {error.strerror or error}") from error
    if found not in _STATES:
        raise Unavailable(f"{switch} holds {found!r}, expected 0 or 1 and a newline")
    return found


def _note_and_switch_on(state: Path, switch: Path, before: bytes) -> None:
    write_atomic(state, before, 0o600)
    try:
        _write(switch, b"1\n")
    except OSError as error:
        raise Unavailable(f"{switch} cannot be written: {error.strerror or error}") from error


def _restore(state: Path, switch: Path, before: bytes) -> None:
    """Where that fails the note stays: the guard tries for a minute, and then it is said."""
    end = time.monotonic() + RESTORE_SECONDS
    while True:
        try:
            _write(switch, before)
            break
        except OSError:
            if not switch.exists() or time.monotonic() >= end:
                return
        time.sleep(0.2)
    state.unlink(missing_ok=True)


def _arm(folder: Path, state: Path, switch: Path, seconds: float, run: Run) -> str:
    script = folder / _SCRIPT
    # By a rename: the guard of a killed run may be about to read it.
    write_atomic(script, _RESTORE.encode(), 0o755)
    unit = f"pveguard-pmxcfs-debug-{os.getpid()}.service"
    argv = [
        "systemd-run",
        f"--unit={unit}",
        "--quiet",
        "--collect",
        "--property=Type=exec",
        # Runs however the unit ends: the lock was dropped, the time is over, somebody stopped it.
        f"--property=ExecStopPost=/bin/sh {script} {state} {switch}",
        "--",
        "/usr/bin/flock",
        "--exclusive",
        f"--wait={int(seconds) + 1}",
        str(folder / _LOCK),
        "/bin/true",
    ]
    try:
        armed = run(argv, timeout=30)
    except CommandMissing as error:
        raise Unavailable(f"no unit can be armed that would restore {switch}: {error}") from error
    if not armed.ok:
        raise Unavailable(f"no unit could be armed that would restore {switch}: {armed.stderr.strip()}")
    return unit


def _write(switch: Path, state: bytes) -> None:
    # Without O_CREAT: beneath an unmounted /etc/pve a file would stop the daemon's next start.
    descriptor = os.open(switch, os.O_WRONLY)
    try:
        if os.write(descriptor, state) != len(state):
            raise OSError(errno.EIO, "short write")
    finally:
        os.close(descriptor)


# The journal ------------------------------------------------------------------------------------------------------

#: What the daemon logs before it writes or deletes a row: domain and level, text, place in the source, which other releases
#: may leave out. From its beginning: paths and names in other lines may hold any text.
_ENTER = r"\A(?:\[[^\]]*\] )?(?:[a-z]+: )?enter \w*backend_"
_ROW = re.compile(_ENTER + r"write_inode ([0-9A-Fa-f]{1,16}) '(.*)'(?:, size [0-9]+)?(?: \([^()]*\))?\Z", re.DOTALL)
_BEGUN = re.compile(_ENTER + r"write_inode [0-9A-Fa-f]{1,16} '")
_DELETE = re.compile(_ENTER + r"delete_inode\b")
_ABOUT_ROWS = re.compile(r"backend_\w*_inode")
#: A name of 300 characters may be as many lines.
_LINES_OF_A_NAME = 301
_SUPPRESSED = re.compile(r"\bSuppressed ([0-9]+) messages from (\S+)")
#: systemd-journald names the control group or the unit of the service whose lines it dropped.
_UNIT = "pve-cluster.service"
_ROOT_INODE = 0


@dataclass(frozen=True)
class Line:
    """A line of the journal: its writer (syslog identifier), CLOCK_MONOTONIC in microseconds, and text."""

    identifier: str
    monotonic_us: int
    message: str


@dataclass
class Transaction:
    """Rows written, as (inode, name), and the number of rows deleted in one transaction."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    deletes: int = 0


def read(
    since_monotonic_us: int,
    seconds: float,
    run: Run = real_run,
    identifiers: Sequence[str] = ("pmxcfs", "systemd-journald"),
) -> list[Line]:
    """What the daemon and journald (or other ``identifiers``) logged in this boot from ``since_monotonic_us`` on.

    ``seconds`` is how long ago that is at most; it only bounds the search. Raises Unavailable when the journal cannot
    be read.
    """
    try:
        # Lines are queued: without this the last of them would be missing.
        run(["journalctl", "--sync"], timeout=60)
        found = run(
            [
                "journalctl",
                "--boot",
                *(f"--identifier={each}" for each in identifiers),
                f"--since=-{int(seconds) + 60}s",
                "--output=json",
                "--output-fields=MESSAGE,SYSLOG_IDENTIFIER",
                "--no-pager",
            ],
            timeout=120,
        )
    except CommandMissing as error:
        raise Unavailable(str(error)) from error
    if not found.ok:
        raise Unavailable(f"the journal cannot be read: {found.stderr.strip() or f'exit code {found.rc}'}")
    return [line for line in _lines(found.stdout) if line.monotonic_us >= since_monotonic_us]


def _lines(text: str) -> Iterator[Line]:
    for raw in text.splitlines():
        try:
            entry = json.loads(raw)
            message = entry["MESSAGE"]
            # journalctl gives what is not UTF-8 as a list of bytes.
            if isinstance(message, list):
                message = bytes(message).decode(errors="replace")
            yield Line(
                str(entry.get("SYSLOG_IDENTIFIER", "")), int(entry["__MONOTONIC_TIMESTAMP"]), str(message)
            )
        except (ValueError, KeyError, TypeError):
            continue


@dataclass
class Parsed:
    """Transactions that debug lines tell of, and how many lines are about rows and were not understood."""

    transactions: list[Transaction] = field(default_factory=list)
    strange: int = 0


def transactions(messages: Iterable[str]) -> list[Transaction]:
    """The transactions that debug lines tell of; each ends with the row ``__version__``. Other lines are ignored."""
    return parse(messages).transactions


def parse(messages: Iterable[str]) -> Parsed:
    """As :func:`transactions`. A name may hold a newline: where that became lines of their own they belong to the one in
    which the name began, whatever they look like.
    """
    found = Parsed()
    current = Transaction()
    begun: list[str] = []
    for message in messages:
        if begun:
            whole = _ROW.match("\n".join([*begun, message]))
            if whole is None and len(begun) < _LINES_OF_A_NAME and not _BEGUN.match(message):
                begun.append(message)
                continue
            row = whole or _ROW.match(message)
            found.strange += whole is None
            begun = []
        else:
            row = _ROW.match(message)
        if row:
            inode, name = int(row.group(1), 16), row.group(2)
            if inode != _ROOT_INODE:
                current.rows.append((inode, name))
            elif name == "__version__":
                found.transactions.append(current)
                current = Transaction()
            else:
                found.strange += 1
        elif _BEGUN.match(message):
            begun = [message]
        elif _DELETE.match(message):
            current.deletes += 1
        else:
            found.strange += bool(_ABOUT_ROWS.search(message))
    found.strange += bool(begun)
    return found


def suppressed(lines: Iterable[Line]) -> int:
    """How many lines of the daemon journald says it dropped (RateLimitBurst in journald.conf)."""
    return sum(
        int(match.group(1))
        for line in lines
        if line.identifier == "systemd-journald"
        and (match := _SUPPRESSED.search(line.message))
        and match.group(2).endswith(_UNIT)
    )


@dataclass(frozen=True)
class Row:
    """Metadata of a row: where the file is, the version of its last change and who made it."""

    parent: int
    name: str
    version: int
    writer: int


Rows = Mapping[int, Row]


def first_version(found: Sequence[Transaction], before: Rows) -> int | None:
    """The version that the first of ``found`` gave the database, as far as they tell; None where they do not.

    Each transaction raises the version by one, and a new inode is numbered by the version that made it: so every
    creation tells it, and they agree unless lines between them were dropped. Not every inode that is met for the first
    time was made here: one may have been made between the reading ``before`` and the first line.
    """
    known, met = set(before), []
    for index, transaction in enumerate(found):
        made = {inode for inode, _ in transaction.rows} - known
        if len(transaction.rows) == 1 and made:
            met.append((made.pop(), index))
        known.update(inode for inode, _ in transaction.rows)
    if not met:
        return None
    version = met[-1][0] - met[-1][1]
    agree = all(inode - index == version for inode, index in met if inode >= version)
    return version if agree else None


def attribute(
    found: Sequence[Transaction],
    before: Rows,
    seen: Iterable[tuple[int, Row]],
    after: Rows,
    window: range | None = None,
) -> dict[tuple[str, int | None], int]:
    """Transactions per (path, writer), from the rows ``before`` and ``after`` and those ``seen`` in between.

    ``window``: the indexes of those of ``found`` that are counted (all); the others only help to tell them.

    A line that deletes names no file. But an inode is never used twice, so the inodes that were there and are gone
    are those that were deleted: one for each such line. The writer is that of the row and None when no reading met
    it, as with a lock that was made and released between two readings; a delete has no row and so no writer.
    A transaction of several rows (a synchronisation) and a delete that cannot be told are left out.
    """
    tree = _Tree(before, seen, after)
    for transaction in found:
        for inode, name in transaction.rows:
            tree.names[inode] = name
    gone = {inode for inode in (*before, *tree.names) if inode not in after}
    counts: dict[tuple[str, int | None], int] = {}
    counted = range(len(found)) if window is None else window

    def count(index: int, path: str, writer: int | None) -> None:
        if index in counted:
            counts[(path, writer)] = counts.get((path, writer), 0) + 1

    by_name: dict[str, list[int]] = {}
    for inode in sorted(gone):
        by_name.setdefault(tree.last_name(inode), []).append(inode)
    bare_deletes: list[int] = []
    for index, transaction in enumerate(found):
        if len(transaction.rows) == 1:
            inode, name = transaction.rows[0]
            count(index, tree.path(inode, name), tree.writer(inode))
            if transaction.deletes:
                # A rename over another file: the victim had the same name, in the same directory where that is known.
                victims = [other for other in by_name.get(name, ()) if other != inode]
                near = [other for other in victims if tree.parent(other, name) == tree.parent(inode, name)]
                for victim in (near or victims)[: transaction.deletes]:
                    by_name[name].remove(victim)
                    gone.discard(victim)
        elif not transaction.rows and transaction.deletes == 1:
            bare_deletes.append(index)
    if len(gone) == len(bare_deletes):
        # Which of them deleted which is not told, but for the order: what was made last goes first, as locks do.
        made = {inode: at for at, transaction in reversed([*enumerate(found)]) for inode, _ in transaction.rows}
        left = sorted(gone, key=lambda inode: (made.get(inode, -1), inode))
        for index in bare_deletes:
            inode = next((one for one in reversed(left) if made.get(one, -1) < index), left[0])
            left.remove(inode)
            count(index, tree.path(inode, tree.last_name(inode)), None)
    return counts


class _Tree:
    """Where inodes are or were."""

    def __init__(self, before: Rows, seen: Iterable[tuple[int, Row]], after: Rows) -> None:
        self.names: dict[int, str] = {}
        self._at: dict[tuple[int, str], int] = {}
        self._rows: dict[int, Row] = {}
        self._writers: dict[int, set[int]] = {}
        for inode, row in (*before.items(), *seen, *after.items()):
            self._rows[inode] = row
            self._at[(inode, write_classes.final_path(row.name))] = row.parent
            known = before.get(inode)
            if known is None or row.version != known.version:
                self._writers.setdefault(inode, set()).add(row.writer)

    def last_name(self, inode: int) -> str:
        return self.names.get(inode) or self._rows[inode].name

    def parent(self, inode: int, name: str) -> int | None:
        name = write_classes.final_path(name)
        if (inode, name) in self._at:
            return self._at[(inode, name)]
        return self._rows[inode].parent if inode in self._rows else None

    def writer(self, inode: int) -> int | None:
        writers = self._writers.get(inode, set())
        return next(iter(writers)) if len(writers) == 1 else None

    def path(self, inode: int, name: str) -> str:
        """The path of the final file; ``?/NAME`` when no reading met the inode and so its directory."""
        name = write_classes.final_path(name)
        parent = self.parent(inode, name)
        if parent is None:
            return f"priv/lock/{name}" if write_classes.LOCK_NAME.fullmatch(name) else f"?/{name}"
        parts = [name]
        # Bounded, because a damaged database may hold a circle.
        for _ in range(64):
            if parent == _ROOT_INODE:
                break
            row = self._rows.get(parent)
            if row is None:
                parts.append("?")
                break
            parts.append(row.name)
            parent = row.parent
        return "/".join(reversed(parts))


def monotonic_us() -> int:
    """Now, on the clock by which journald dates what it receives."""
    return time.monotonic_ns() // 1000


def cost(lines: Iterable[Line]) -> dict[str, Any]:
    """``{lines, bytes}`` of the daemon in the journal: their text; what journald adds to each is not counted."""
    texts = [line.message for line in lines if line.identifier == "pmxcfs"]
    return {"lines": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
