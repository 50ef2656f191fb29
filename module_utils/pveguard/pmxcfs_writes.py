"""What the cluster file system writes, from its own database: transactions exactly, files as lower bounds.

Every transaction of the daemon raises the version of the row ``__version__`` by one, so two readings give
their exact number. Which file was written is seen by sampling the rows: a file that changed twice between two
samples counts once, so the figures per file are lower bounds. Nothing is written and the node is not changed.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import block_writes
from .errors import PveguardError
from .run import CommandMissing, Run
from .run import run as real_run

#: An LRM renews its status as create, write and rename of a temporary file: three transactions.
LRM_STATUS_TRANSACTIONS = 3
_LRM_STATUS = re.compile(r"nodes/([^/]+)/lrm_status\Z")
_TEMPORARY = re.compile(r"\.tmp\.[0-9]+\Z")

_DIRECTORY = 4


class Sampler:
    """Changes of the tree between readings of one database, each of which opens it for milliseconds only."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.first: int | None = None
        self.last: int | None = None
        self.went_back = False
        self.changes: dict[tuple[str, int], int] = {}
        self._directories: dict[int, tuple[int, str]] = {}
        self._being_replaced: set[int] = set()

    def sample(self) -> None:
        """Read once. Raises PveguardError when the database cannot be read without writing beside it."""
        version, rows = self._read()
        if self.first is None or self.last is None:
            self.first = self.last = version
            return
        if version < self.last:
            # Another database, or a resync from a leader behind this node: versions cannot be compared across
            # it.
            self.went_back = True
        for inode, parent, writer, name in rows:
            path = self._path(parent, _TEMPORARY.sub("", name))
            if inode > self.last:
                # A new inode is numbered by the version that made it. One that is still called .tmp is
                # counted now and not again when it gets its name.
                if _TEMPORARY.search(name):
                    self._being_replaced.add(inode)
            elif inode in self._being_replaced:
                self._being_replaced.discard(inode)
                continue
            self.changes[(path, writer)] = self.changes.get((path, writer), 0) + 1
        self.last = version

    @property
    def transactions(self) -> int | None:
        """Exact number of transactions between the first and the last reading."""
        if self.first is None or self.last is None or self.went_back:
            return None
        return self.last - self.first

    def files(self) -> list[dict[str, Any]]:
        """``{path, writer, changes, transactions_at_least}``, most transactions first."""
        found = [
            {
                "path": path,
                "writer": writer,
                "changes": count,
                "transactions_at_least": count * (LRM_STATUS_TRANSACTIONS if _LRM_STATUS.match(path) else 1),
            }
            for (path, writer), count in self.changes.items()
        ]
        return sorted(found, key=lambda f: (-int(str(f["transactions_at_least"])), str(f["path"])))

    def _read(self) -> tuple[int, list[tuple[int, int, int, str]]]:
        connection = _connect(self.database)
        try:
            root = connection.execute("SELECT version FROM tree WHERE inode = 0").fetchone()
            if root is None:
                raise PveguardError(f"{self.database} has no row __version__")
            version = int(root[0])
            if self.last is None or version == self.last:
                return version, []
            rows = connection.execute(
                "SELECT inode, parent, writer, name FROM tree WHERE version > ? AND inode != 0", (self.last,)
            ).fetchall()
            if any(row[1] not in self._directories for row in rows):
                found = connection.execute(
                    "SELECT inode, parent, name FROM tree WHERE type = ? AND inode != 0", (_DIRECTORY,)
                )
                self._directories.update({inode: (parent, name) for inode, parent, name in found})
            return version, rows
        except sqlite3.Error as error:
            raise PveguardError(f"{self.database} cannot be read: {error}") from error
        finally:
            connection.close()

    def _path(self, parent: int, name: str) -> str:
        parts = [name]
        for _ in range(64):
            if parent not in self._directories:
                break
            parent, above = self._directories[parent]
            parts.append(above)
        return "/".join(reversed(parts))


def measure(
    *,
    window_seconds: float = 0,
    window_on: str = "any",
    known_machine: str = "",
    previous: Mapping[str, Any] | None = None,
    store: str = block_writes.STORE,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    sample_seconds: float = 1.0,
    run: Run = real_run,
) -> dict[str, Any]:
    """Counters now, what was written since ``previous`` counters, and a window where one is wanted.

    A window is observed only when ``window_seconds`` is above 0, there is a database, it is where
    ``window_on`` says (``disk``, ``memory`` or ``any``), and the machine is another one than
    ``known_machine`` (empty: none is known). Returns ``{counters, window, since}``; the last two are None
    where there is none.
    """
    here = block_writes.counters(store, database, pid_file)
    place = "memory" if here["database"]["in_memory"] else "disk"
    known = bool(known_machine) and known_machine == here["machine"]
    there = here["database"]["inode"] is not None
    wait = window_seconds > 0 and there and window_on in ("any", place) and not known
    window: dict[str, Any] | None = None
    if wait:
        now, window = observe(
            window_seconds,
            store=store,
            database=database,
            pid_file=pid_file,
            sample_seconds=sample_seconds,
            run=run,
        )
    else:
        now = {**here, "root_version": root_version(database)}
    return {"counters": now, "window": window, "since": since(previous, now) if previous else None}


def root_version(database: str = block_writes.DATABASE) -> int | None:
    """The version of the row ``__version__`` now, None when the database cannot be read."""
    sampler = Sampler(database)
    try:
        sampler.sample()
    except PveguardError:
        return None
    return sampler.first


def observe(
    window_seconds: float,
    *,
    store: str = block_writes.STORE,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    sample_seconds: float = 1.0,
    run: Run = real_run,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Watch for ``window_seconds``; returns ``(counters at the end, writes)``.

    The file system of the store is written back (``sync -f``) before and after, so that what the window
    caused is what is counted and nothing else. ``writes`` has the keys of :func:`since` and ``files`` (see
    :meth:`Sampler.files`), ``unattributed_transactions``, ``lrm_status_transactions_per_minute`` and
    ``lrm_status_nodes`` (the same per node; estimated from the changes that were seen).
    """
    sampler = Sampler(database)
    problem: str | None = None
    device = block_writes.device_behind(store)
    _write_back(device["measured_path"], run)
    before = block_writes.counters(store, database, pid_file)
    began = clock()
    try:
        sampler.sample()
        ticks = 1
        while (left := began + window_seconds - clock()) > 0:
            sleep(min(left, max(0.05, began + ticks * sample_seconds - clock())))
            sampler.sample()
            ticks += 1
    except PveguardError as error:
        problem = str(error)
        sleep(max(0.0, began + window_seconds - clock()))
    seconds = round(clock() - began, 3)
    _write_back(device["measured_path"], run)
    after = {**block_writes.counters(store, database, pid_file), "root_version": sampler.last}

    written = block_writes.difference(before, after)
    notes = list(written["notes"])
    if problem:
        notes.append(problem)
    elif sampler.went_back:
        notes.append("the version of the database went back: it was replaced while it was observed")
    transactions = None if problem else sampler.transactions
    nodes: dict[str, float] = {}
    for file in sampler.files():
        if match := _LRM_STATUS.match(file["path"]):
            node = match.group(1)
            rate = block_writes.per_minute(file["transactions_at_least"], seconds) or 0.0
            nodes[node] = round(nodes.get(node, 0.0) + rate, 2)
    files = sampler.files()
    attributed = sum(int(file["transactions_at_least"]) for file in files)
    writes = {
        "method": "window",
        "from": before["time"],
        "to": after["time"],
        "seconds": seconds,
        "transactions": transactions,
        "transactions_per_minute": block_writes.per_minute(transactions, seconds),
        "device_bytes": written["device_bytes"],
        "device_bytes_per_minute": block_writes.per_minute(written["device_bytes"], seconds),
        "pmxcfs_write_bytes": written["pmxcfs_write_bytes"],
        "pmxcfs_write_bytes_per_minute": block_writes.per_minute(written["pmxcfs_write_bytes"], seconds),
        "database_in_memory": after["database"]["in_memory"],
        "files": files,
        "unattributed_transactions": None if transactions is None else max(0, transactions - attributed),
        "lrm_status_transactions_per_minute": None if problem else round(sum(nodes.values()), 2),
        "lrm_status_nodes": nodes,
        "notes": notes,
    }
    return after, writes


def since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was written between two readings of :func:`measure`'s ``counters``, without having waited.

    Keys: ``method`` (``since``), ``from``, ``to``, ``seconds``, ``transactions``,
    ``transactions_per_minute``, ``device_bytes``, ``device_bytes_per_minute``, ``pmxcfs_write_bytes``,
    ``pmxcfs_write_bytes_per_minute``, ``database_in_memory``, ``notes``. A figure that the readings cannot
    give is None and ``notes`` says why.
    """
    written = block_writes.difference(before, after)
    transactions: int | None = None
    # A daemon that was restarted may have been given another database, by a join for instance.
    if block_writes.same_daemon(before, after):
        old, new = before.get("root_version"), after.get("root_version")
        if old is None or new is None or new < old:
            written["notes"].append("the version of the database went back or is not known")
        else:
            transactions = new - old
    return {
        "method": "since",
        "from": before.get("time"),
        "to": after.get("time"),
        "seconds": written["seconds"],
        "transactions": transactions,
        "transactions_per_minute": block_writes.per_minute(transactions, written["seconds"]),
        **{key: value for key, value in written.items() if key not in ("seconds", "notes")},
        "database_in_memory": after["database"]["in_memory"],
        "notes": written["notes"],
    }


def _connect(database: str) -> sqlite3.Connection:
    if not os.path.exists(database):
        raise PveguardError(
            f"{database} does not exist: the cluster file system is not installed or never ran"
        )
    # Opening a WAL database that nobody has open would create its shared-memory file, even read-only.
    if not os.path.exists(f"{database}-shm"):
        raise PveguardError(f"{database} is not in use: the daemon of the cluster file system does not run")
    try:
        return sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    except sqlite3.Error as error:
        raise PveguardError(f"{database} cannot be opened: {error}") from error


def _write_back(path: str, run: Run) -> None:
    try:
        run(["sync", "-f", path], timeout=60)
    except CommandMissing:
        pass
