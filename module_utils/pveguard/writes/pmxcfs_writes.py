"""What the cluster file system writes: transactions exactly, and which file and which node caused them.

Every transaction of the daemon raises the version of the row ``__version__`` by one, so two readings give
their exact number. Who caused them is had in one of two ways. ``database``: the rows are sampled; the version of
a row is the number of the transaction that wrote it last, so each sampled change explains one transaction (two
for a new file), and those that no row explains remain unattributed. The node is not changed. ``journal``: the
daemon's debug log is on for the window (see pmxcfs_journal), and every write is counted.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run
from ..disk import block_writes
from ..formats import corosync_conf
from ..pmxcfs import live_database, members, tree
from . import pmxcfs_journal, write_classes, writers

Value = TypeVar("Value")

_LRM_STATUS = re.compile(r"nodes/([^/]+)/lrm_status\Z")


#: Nanoseconds within which a second write may have the time stamp of the first: a time stamp is as fine as the kernel's
#: tick, which is 10 ms at most.
_TICK_NS = 50_000_000


class Sampler:
    """Changes of the tree between readings of one database, each of which opens it for milliseconds only."""

    def __init__(self, database: str, keep_rows: bool = False) -> None:
        """``keep_rows``: remember the rows as they were sampled, see :attr:`seen`."""
        self.database = database
        self.first: int | None = None
        self.last: int | None = None
        self.went_back = False
        self.changes: dict[tuple[str, int], int] = {}
        self.seen: list[tuple[int, pmxcfs_journal.Row]] = []
        self._keep_rows = keep_rows
        self._directories: dict[int, tuple[int, str]] = {}
        self._being_replaced: set[int] = set()
        self._read_at: tuple[int, ...] | None = None
        #: Transactions that are explained, by their version; and how many of them for each file.
        self._explained: set[int] = set()
        self._transactions: dict[tuple[str, int], int] = {}
        self._heartbeats: set[int] = set()

    def sample(self) -> None:
        """Read once. Raises PveguardError when the database cannot be read without writing beside it.

        Nothing is opened while the log is as it was: as root, SQLite sets the owner of the log and of its index
        whenever it opens them, and a file system writes that down.
        """
        log = self._log()
        if log is not None and log == self._read_at:
            return
        version, rows = self._read()
        self._read_at = log
        if self.first is None or self.last is None:
            self.first = self.last = version
            return
        if version < self.last:
            # Another database, or a resync from a leader behind this node: versions cannot be compared across
            # it.
            self.went_back = True
        finished: list[tuple[int, int, tuple[str, int]]] = []
        for inode, parent, row_version, writer, name in rows:
            path = self._path(parent, write_classes.final_path(name))
            key = (path, writer)
            if self._keep_rows:
                self.seen.append((inode, pmxcfs_journal.Row(parent, name, row_version, writer)))
            # A new inode is numbered by the version that made it.
            made = inode > self.last
            for number in {row_version, inode} if made else {row_version}:
                if self.last < number <= version:
                    self._explain(number, key)
            temporary = write_classes.is_temporary(name)
            if _LRM_STATUS.match(path) and not temporary and inode > self.first:
                finished.append((inode, row_version, key))
            if made and temporary:
                # Counted as a change now and not again when it gets its name.
                self._being_replaced.add(inode)
            elif not made and inode in self._being_replaced:
                self._being_replaced.discard(inode)
                continue
            self.changes[key] = self.changes.get(key, 0) + 1
        for inode, row_version, key in finished:
            self._explain_write_of_heartbeat(inode, row_version, key)
        self.last = version

    def _log(self) -> tuple[int, ...] | None:
        """What changes with every transaction, None where that cannot be told by the files."""
        try:
            log, database = os.stat(f"{self.database}-wal"), os.stat(self.database)
        except OSError:
            return None
        if time.time_ns() - log.st_mtime_ns < _TICK_NS:
            return None
        return log.st_ino, log.st_size, log.st_mtime_ns, database.st_ino, database.st_mtime_ns

    def _explain(self, number: int, key: tuple[str, int]) -> None:
        if number not in self._explained:
            self._explained.add(number)
            self._transactions[key] = self._transactions.get(key, 0) + 1

    def _explain_write_of_heartbeat(self, inode: int, row_version: int, key: tuple[str, int]) -> None:
        """An LRM renews its status as create, write and rename: between the first and the last, one is the write."""
        if inode in self._heartbeats:
            return
        self._heartbeats.add(inode)
        unexplained = (n for n in range(inode + 1, row_version) if n not in self._explained)
        if (number := next(unexplained, None)) is not None:
            self._explain(number, key)

    @property
    def transactions(self) -> int | None:
        """Exact number of transactions between the first and the last reading."""
        if self.first is None or self.last is None or self.went_back:
            return None
        return self.last - self.first

    @property
    def exact(self) -> bool:
        """True when every transaction is explained: then no file was written more often than was seen."""
        return self.transactions is not None and self.transactions == len(self._explained)

    def files(self) -> list[dict[str, Any]]:
        """``{path, writer, changes, transactions_at_least}``, most transactions first."""
        found = [
            {
                "path": path,
                "writer": writer,
                "changes": count,
                "transactions_at_least": self._transactions.get((path, writer), 0),
            }
            for (path, writer), count in self.changes.items()
        ]
        return sorted(found, key=lambda f: (-int(str(f["transactions_at_least"])), str(f["path"])))

    def _read(self) -> tuple[int, list[tuple[int, int, int, int, str]]]:
        """Version and changed rows of one consistent state."""

        def read(connection: sqlite3.Connection) -> tuple[int, list[tuple[int, int, int, int, str]]]:
            version = _version(connection)
            if self.last is None or version == self.last:
                return version, []
            rows = connection.execute(
                "SELECT inode, parent, version, writer, CAST(name AS BLOB) FROM tree"
                " WHERE version > ? AND version <= ? AND inode != 0 ORDER BY version",
                (self.last, version),
            ).fetchall()
            if any(row[1] not in self._directories for row in rows):
                found = connection.execute(
                    "SELECT inode, parent, CAST(name AS BLOB) FROM tree WHERE type = ? AND inode != 0", (tree.DIRECTORY,)
                )
                self._directories.update({inode: (parent, _text(name)) for inode, parent, name in found})
            return version, [(*row[:4], _text(row[4])) for row in rows]

        return _looked_at(self.database, read)

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
    method: str = "database",
    check_mode: bool = False,
    known_machine: str = "",
    previous: Mapping[str, Any] | None = None,
    until: Mapping[str, Any] | None = None,
    store: str = block_writes.STORE,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    sample_seconds: float = 1.0,
    run: Run = real_run,
) -> dict[str, Any]:
    """Counters now, what was written between ``previous`` counters and ``until``, and a window where one is wanted.

    ``until``: counters of before whatever the caller did itself, which is not what the node writes; without them it is
    until now.

    A window is observed only when ``window_seconds`` is above 0, there is a database, it is where
    ``window_on`` says (``disk``, ``memory`` or ``any``), and the machine is another one than
    ``known_machine`` (empty: none is known); :func:`window_length` says how long. ``method`` is how the window attributes
    what it sees, see
    :func:`observe`; in ``check_mode`` it is ``database``, because ``journal`` switches something. Returns
    ``{counters, window, since}``; the last two are None where there is none.
    """
    here = writers.counters(store, database, pid_file, run=run)
    place = "memory" if here["database"]["in_memory"] else "disk"
    known = bool(known_machine) and known_machine == here["machine"]
    there = here["database"]["inode"] is not None
    wait = window_seconds > 0 and there and window_on in ("any", place) and not known
    window: dict[str, Any] | None = None
    if wait:
        now, window = observe(
            window_length(window_seconds),
            method=method,
            check_mode=check_mode,
            store=store,
            database=database,
            pid_file=pid_file,
            sample_seconds=sample_seconds,
            run=run,
        )
    else:
        now = {**here, "root_version": root_version(database)}
    return {"counters": now, "window": window, "since": since(previous, until or now) if previous else None}


def window_length(wanted: float) -> float:
    """How long a window is, in seconds: as wanted, but from a minute on whole minutes, since what comes once a minute would
    otherwise be seen as often as chance has it.
    """
    return wanted if wanted < block_writes.MINUTE else math.ceil(wanted / block_writes.MINUTE) * block_writes.MINUTE


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
    method: str = "database",
    check_mode: bool = False,
    store: str = block_writes.STORE,
    database: str = block_writes.DATABASE,
    pid_file: str = block_writes.PID_FILE,
    pve: str = pmxcfs_journal.PVE,
    run_dir: str = pmxcfs_journal.RUN_DIR,
    sample_seconds: float = 1.0,
    run: Run = real_run,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Watch for ``window_seconds``; returns ``(counters at the end, writes)``.

    The file system of the store is written back (``sync -f``) before and after, so that what the window
    caused is what is counted and nothing else. ``method`` ``journal`` switches the daemon's debug log on for the
    window and restores it; where that cannot be done, and in ``check_mode``, ``database`` is used and a note says
    why. ``writes`` has the keys of :func:`since`, ``attribution`` (the method that was used), ``journal`` (None or
    ``{lines, bytes, debug_before, debug_after}``), ``files`` (see :meth:`Sampler.files`, with ``node``, ``class``,
    ``label`` and ``exact``), ``classes`` and ``writers`` (see write_classes), ``unattributed_transactions``,
    ``lrm_status_transactions_per_minute`` and ``lrm_status_nodes`` (the same per node).
    """
    notes: list[str] = []
    wanted = method == "journal"
    if wanted and check_mode:
        wanted = False
        notes.append(
            "the method journal switches the debug log, so in check mode the database is sampled instead"
        )
    sampler = Sampler(database, keep_rows=wanted)
    device = block_writes.device_behind(store)
    write_back(device["measured_path"], run)

    def watch() -> _Watched:
        before = writers.counters(store, database, pid_file, run=run)
        return before, *_sampled(sampler, window_seconds, sample_seconds, clock, sleep)

    debug, watched = _with_journal(watch, window_seconds, notes, database, pve, run_dir, run) if wanted else (None, None)
    before, seconds, problem = watched or watch()
    write_back(device["measured_path"], run)
    after = {**writers.counters(store, database, pid_file, run=run), "root_version": sampler.last}

    written = block_writes.difference(before, after, seconds)
    notes += written["notes"]
    debug, transactions, files, exact = _counted(debug, sampler, problem, notes)
    names = node_names(database, pve, run)
    _label(files, names, exact)
    heartbeats = _heartbeats(files)
    attributed = sum(int(file["transactions_at_least"]) for file in files)
    writes = {
        "method": "window",
        "attribution": "database" if debug is None else "journal",
        "from": before["time"],
        "to": after["time"],
        "seconds": seconds,
        "transactions": transactions,
        "transactions_per_minute": block_writes.per_minute(transactions, seconds),
        "device_bytes": written["device_bytes"],
        "device_bytes_per_minute": block_writes.per_minute(written["device_bytes"], seconds),
        "pmxcfs_write_bytes": written["pmxcfs_write_bytes"],
        "pmxcfs_write_bytes_per_minute": block_writes.per_minute(written["pmxcfs_write_bytes"], seconds),
        **{key: written[key] for key in ("services", "services_source", "services_notes")},
        "league": writers.table(before["league"], after["league"], seconds),
        "database_in_memory": after["database"]["in_memory"],
        "files": files,
        "classes": write_classes.by_class(files, transactions, seconds),
        "writers": names.writers(files, transactions, seconds),
        "unattributed_transactions": None if transactions is None else max(0, transactions - attributed),
        "lrm_status_transactions_per_minute": None
        if problem
        else block_writes.per_minute(sum(heartbeats.values()), seconds),
        "lrm_status_nodes": {node: block_writes.per_minute(count, seconds) for node, count in heartbeats.items()},
        "journal": None if debug is None else debug.journal(),
        "notes": notes,
    }
    return after, writes


#: What a window began with (counters), its length in seconds, and what went wrong.
_Watched = tuple[dict[str, Any], float, "str | None"]


def _with_journal(
    watch: Callable[[], _Watched],
    window_seconds: float,
    notes: list[str],
    database: str,
    pve: str,
    run_dir: str,
    run: Run,
) -> tuple[_Debug | None, _Watched | None]:
    """Watch with the debug log on. No log where that cannot be done, and no window where that shows before its end."""
    watched: _Watched | None = None
    try:
        debug = _Debug(database)
        start = pmxcfs_journal.monotonic_us()
        with pmxcfs_journal.switched_on(window_seconds, pve=pve, run_dir=run_dir, run=run) as was_on:
            debug.switched(was_on)
            watched = watch()
            debug.window_ended()
        debug.read(start, window_seconds, run)
        debug.after = pmxcfs_journal.is_on(pve)
    except PveguardError as error:
        notes.append(f"the database was sampled instead of the journal: {error}")
        return None, watched
    return debug, watched


def _counted(
    debug: _Debug | None, sampler: Sampler, problem: str | None, notes: list[str]
) -> tuple[_Debug | None, int | None, list[dict[str, Any]], bool]:
    """The log if the counts are from it, transactions, files, and whether the counts of these are exact."""
    if problem:
        notes.append(problem)
        debug = None
    elif sampler.went_back:
        notes.append("the version of the database went back: it was replaced while it was observed")
        debug = None
    transactions = None if problem else sampler.transactions
    if debug is not None and (counted := debug.result(sampler, transactions, notes)) is not None:
        return debug, *counted
    return None, transactions, sampler.files(), sampler.exact


def _label(files: Iterable[dict[str, Any]], names: NodeNames, exact: bool) -> None:
    """Say of each file who writes it and what kind of state it is."""
    for file in files:
        kind = write_classes.classify(file["path"])
        file.update({"node": names.of(file["writer"]), "class": kind.name, "label": kind.label, "exact": exact})


def _sampled(
    sampler: Sampler,
    window_seconds: float,
    sample_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[float, str | None]:
    """Sample the database until the window ends; its length in seconds, and what went wrong."""
    began = clock()
    trouble: str | None = None
    try:
        sampler.sample()
        ticks = 1
        while (left := began + window_seconds - clock()) > 0:
            sleep(min(left, max(0.05, began + ticks * sample_seconds - clock())))
            sampler.sample()
            ticks += 1
    except PveguardError as error:
        trouble = str(error)
        sleep(max(0.0, began + window_seconds - clock()))
    return round(clock() - began, 3), trouble


def _heartbeats(files: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Transactions of each node's lrm_status."""
    heartbeats: dict[str, int] = {}
    for file in files:
        if match := _LRM_STATUS.match(file["path"]):
            heartbeats[match.group(1)] = heartbeats.get(match.group(1), 0) + int(file["transactions_at_least"])
    return heartbeats


class _Debug:
    """One window with the debug log on: versions around it, rows before and after it, the lines in between."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.after: bool | None = None
        self.lines: list[pmxcfs_journal.Line] = []
        self.was_on = False
        # Read on both sides of the switch, because what is written in between may be logged or not.
        self._outer_first, self._rows = snapshot(database)
        self._inner_first = self._inner_last = self._outer_last = self._outer_first

    def switched(self, was_on: bool) -> None:
        self.was_on = was_on
        version = root_version(self.database)
        self._inner_first = self._outer_first if version is None else version

    def window_ended(self) -> None:
        version = root_version(self.database)
        self._inner_last = self._inner_first if version is None else version

    def read(self, start: int, seconds: float, run: Run) -> None:
        self._outer_last, self._rows_after = snapshot(self.database)
        self.lines = pmxcfs_journal.read(start, seconds, run)

    def journal(self) -> dict[str, Any]:
        cost = pmxcfs_journal.cost(self.lines)
        return {**cost, "debug_before": self.was_on, "debug_after": self.after}

    def result(
        self, sampler: Sampler, transactions: int | None, notes: list[str]
    ) -> tuple[int | None, list[dict[str, Any]], bool] | None:
        """Transactions of the window, files, and whether the counts of the files are exact; None where the log cannot be
        counted, and the samples of the database are what there is.
        """
        messages = [line.message for line in self.lines if line.identifier == "pmxcfs"]
        parsed = pmxcfs_journal.parse(messages)
        found = parsed.transactions
        least, most = self._inner_last - self._inner_first, self._outer_last - self._outer_first
        dropped = pmxcfs_journal.suppressed(self.lines)
        if least and not found and not dropped:
            shown = f", for example {messages[0][:100]!r}" if messages else ""
            notes.append(
                f"the database was sampled instead of the journal: of {len(messages)} lines of pmxcfs none tells of a "
                f"transaction in a form that is known{shown}"
            )
            return None
        if len(found) > most:
            notes.append(
                f"the database was sampled instead of the journal: that seems to hold {len(found)} transactions, and there were "
                f"{most} at most; the name of a file may look like lines of the log"
            )
            return None
        if parsed.strange:
            notes.append(
                f"{parsed.strange} lines of the debug log are about rows and not understood: figures per file are lower bounds"
            )
        complete = least <= len(found)
        window = self._window(found, sampler) if complete else range(len(found))
        counts = pmxcfs_journal.attribute(found, self._rows, sampler.seen, self._rows_after, window)
        files = [
            {"path": path, "writer": writer, "changes": count, "transactions_at_least": count}
            for (path, writer), count in counts.items()
        ]
        files.sort(key=lambda f: (-int(str(f["transactions_at_least"])), str(f["path"])))
        if complete:
            transactions = len(window)
        else:
            said = f"; it says that it dropped {dropped} lines of pve-cluster.service" if dropped else ""
            notes.append(
                f"the journal holds {len(found)} of {least} transactions, so figures per file are lower bounds{said}."
                " journald drops lines of a service above RateLimitBurst (journald.conf)"
            )
            transactions = least if transactions is None else transactions
        return transactions, files, complete and not parsed.strange and sum(counts.values()) == len(window)

    def _window(self, found: Sequence[pmxcfs_journal.Transaction], sampler: Sampler) -> range:
        """The indexes of the transactions of the window: the log is on a little longer, on a busy node for seconds."""
        everything = range(len(found))
        version = pmxcfs_journal.first_version(found, self._rows)
        if version is None or sampler.first is None or sampler.last is None:
            return everything
        window = range(sampler.first + 1 - version, sampler.last + 1 - version)
        return window if window.start >= 0 and window.stop <= len(found) else everything


def snapshot(database: str) -> tuple[int, dict[int, pmxcfs_journal.Row]]:
    """The version of the row ``__version__`` and the metadata of all others, of one moment."""

    def read(connection: sqlite3.Connection) -> tuple[int, list[Any]]:
        query = "SELECT inode, parent, CAST(name AS BLOB), version, writer FROM tree WHERE inode != 0"
        return _version(connection), connection.execute(query).fetchall()

    version, rows = _looked_at(database, read)
    return version, {row[0]: pmxcfs_journal.Row(row[1], _text(row[2]), *row[3:]) for row in rows}


def _version(connection: sqlite3.Connection) -> int:
    """The root version; the daemon loads a database without the row ``__version__``, and counts from 0."""
    row = connection.execute("SELECT version FROM tree WHERE inode = 0").fetchone()
    if row is not None and type(row[0]) is not int:
        raise PveguardError(f"the row __version__ has the version {row[0]!r}")
    return row[0] if row else 0


def _text(name: object) -> str:
    """A name may be any bytes; what is not UTF-8 comes as surrogates."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else ""


class NodeNames:
    """Names of writing nodes. ``alone``: the only one there is, on a node without a cluster."""

    def __init__(self, by_id: Mapping[int, str] | None = None, alone: str | None = None) -> None:
        self.by_id = dict(by_id or {})
        self.alone = alone

    def of(self, writer: int | None) -> str | None:
        """The name of the node with the id ``writer``, None when it is not known."""
        if self.alone is not None:
            return self.alone
        return None if writer is None else self.by_id.get(writer)

    def writers(
        self, files: Sequence[Mapping[str, Any]], transactions: int | None, seconds: float | None
    ) -> list[dict[str, Any]]:
        """As :func:`write_classes.by_writer`. A node without a cluster makes all transactions itself."""
        if self.alone is None or not transactions:
            return write_classes.by_writer(files, transactions, seconds)
        ids = {file["writer"] for file in files} - {None}
        return [
            {
                "node_id": ids.pop() if len(ids) == 1 else None,
                "node": self.alone,
                "transactions": transactions,
                "transactions_per_minute": block_writes.per_minute(transactions, seconds),
                "exact": True,
            }
        ]


def node_names(
    database: str = block_writes.DATABASE, pve: str = pmxcfs_journal.PVE, run: Run = real_run
) -> NodeNames:
    """Names by node id, from the corosync.conf in the database, else from ``.members``; nothing is guessed.

    Without a corosync.conf in the database the daemon knows no cluster, and the node of ``.members`` is alone.
    """
    try:
        found = _looked_at(database, lambda connection: tree.content_of(connection, "corosync.conf"))
    except PveguardError:
        return NodeNames()
    if found is not None:
        try:
            text = found.decode(errors="replace")
            by_id = {
                node.node_id: node.name
                for node in corosync_conf.parse(text).nodes()
                if node.node_id is not None and node.name
            }
        except PveguardError:
            by_id = {}
        if by_id:
            return NodeNames(by_id)
    try:
        said = members.read(pve, run)
    except PveguardError:
        return NodeNames()
    if found is None and not said.get("nodelist"):
        return NodeNames(alone=said.get("nodename") or None)
    return NodeNames(members.names_by_id(said))


def since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was written between two readings of :func:`measure`'s ``counters``, without having waited.

    Keys: ``method`` (``since``), ``from``, ``to``, ``seconds``, ``transactions``,
    ``transactions_per_minute``, ``device_bytes``, ``device_bytes_per_minute``, ``pmxcfs_write_bytes``,
    ``pmxcfs_write_bytes_per_minute``, ``services``, ``services_source``, ``services_notes``,
    ``database_in_memory``, ``notes``. A figure that the readings cannot
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
        # Counters of an earlier release have none.
        "league": writers.table(before["league"], after.get("league")) if before.get("league") else None,
        "database_in_memory": after["database"]["in_memory"],
        "notes": written["notes"],
    }


def _looked_at(database: str, function: Callable[[sqlite3.Connection], Value]) -> Value:
    """What ``function`` returns for one consistent state, read beside the daemon without an effect on it."""
    if not os.path.exists(database):
        raise PveguardError(
            f"{database} does not exist: the cluster file system is not installed or never ran"
        )
    if not os.path.exists(f"{database}-shm"):
        raise PveguardError(f"{database} is not in use: the daemon of the cluster file system does not run")

    def read(connection: sqlite3.Connection) -> Value:
        unknown = live_database.unknown_schema(connection)
        if unknown:
            raise PveguardError(
                f"{database}: its schema is not known to this version of pveguard ({unknown}), so what was written is not known"
            )
        return function(connection)

    try:
        return live_database.look(database, read)
    except live_database.Unreadable as error:
        raise PveguardError(f"{database} cannot be read: {error}") from error


def write_back(path: str, run: Run = real_run) -> None:
    """Have the file system of ``path`` written to its device; without ``sync`` nothing happens."""
    try:
        run(["sync", "-f", path], timeout=60)
    except CommandMissing:
        pass
