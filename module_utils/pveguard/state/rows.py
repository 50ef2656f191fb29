# SPDX-License-Identifier: Apache-2.0
"""Databases of the daemon's schema: rows, paths, checks, hashes."""

from __future__ import annotations

import hashlib
import os
import sqlite3

from ..base.atomic import fsync_file
from ..formats.corosync_version import config_version
from ..pmxcfs.live_database import Unreadable, look, snapshot, unknown_schema
from ..pmxcfs.tree import (
    DIRECTORY,
    FILE,
    LENGTH,
    META,
    NAME,
    PARENT,
    ROW_VERSION,
    TYPE,
    all_paths,
    as_bytes,
    guests_of,
    misshapen,
    path_of,
    read_rows,
    root_version,
)
from .exits import Damaged
from .files import read_text, remove_database, size_of
from .system import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    Value = TypeVar("Value")

    from ..pmxcfs.tree import Row, Rows
    from .paths import Paths

PLACEHOLDER_MARK = b"This is not a database."
# Of the daemon's database.
PAGE = 4096
NO_FILE = "it holds no file at all"
SCHEMA_UNKNOWN = "its schema is not known to this version of pveguard"
NO_COROSYNC_CONF = "it has no corosync.conf, but this node is a member of a cluster"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS tree ("
    "  inode INTEGER PRIMARY KEY NOT NULL,"
    "  parent INTEGER NOT NULL CHECK(typeof(parent)=='integer'),"
    "  version INTEGER NOT NULL CHECK(typeof(version)=='integer'),"
    "  writer INTEGER NOT NULL CHECK(typeof(writer)=='integer'),"
    "  mtime INTEGER NOT NULL CHECK(typeof(mtime)=='integer'),"
    "  type INTEGER NOT NULL CHECK(typeof(type)=='integer'),"
    "  name TEXT NOT NULL,"
    "  data BLOB)"
)
INSERT = "INSERT OR REPLACE INTO tree VALUES(?,?,?,?,?,?,CAST(? AS TEXT),?)"


def connect(path: str, mode: str, timeout: float = 10.0) -> sqlite3.Connection:
    """Open a database of ours in autocommit mode. ``mode`` is rw, rwc, or immutable (no locks, no files beside it).

    Never for the live database: see :func:`read_live`.
    """
    options = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        return sqlite3.connect(f"file:{quoted}?{options}", uri=True, isolation_level=None, timeout=timeout)
    except sqlite3.Error as error:
        raise Damaged(f"{path}: {error}") from error


def read_only(path: str, function: Callable[[sqlite3.Connection], Value]) -> Value:
    """What ``function`` returns for a connection to one consistent state of any database, whoever writes it, without an
    effect on anybody. It may be called again, see :func:`look`. Raises Damaged.
    """
    try:
        return look(path, function)
    except Unreadable as error:
        raise Damaged(str(error)) from error


def in_memory(path: str) -> sqlite3.Connection:
    """A connection to a copy of a database in memory: what it was at one moment, whoever writes it next."""
    try:
        return snapshot(path)
    except Unreadable as error:
        raise Damaged(str(error)) from error


def read_hashes(connection: sqlite3.Connection) -> dict[int, bytes]:
    """{inode: digest of data} of every row."""
    found = {}
    for inode, data in connection.execute("SELECT inode, CAST(data AS BLOB) FROM tree"):
        found[inode] = hashlib.blake2b(as_bytes(data), digest_size=16).digest()
    return found


def unloadable(rows: Rows) -> list[str]:
    """Why the daemon would not load a table, as a list of sentences; empty when it would.

    Exactly its rules: types, directories, unique names, a way to the root, unique guests. What it loads it may serve, and
    what it serves must reach the disk, however strange; that is for :func:`suspicious`.
    """
    bad = misshapen(rows)
    if bad is not None:
        return [f"row {bad}: values of the wrong type"]
    if 0 in rows and rows[0][NAME] != b"__version__":
        return [f"row 0 has the name {shown(rows[0][NAME])}, not __version__"]
    paths = all_paths(rows)

    def name(inode: int) -> str:
        path = paths.get(inode)
        return f"row {inode} ({shown(rows[inode][NAME])})" if path is None else f"/etc/pve/{printable(path, '')}"

    problems = []
    seen: dict[tuple[int, bytes], int] = {}
    for inode, row in rows.items():
        if inode == 0:
            continue
        if row[TYPE] not in (DIRECTORY, FILE):
            problems.append(f"{name(inode)}: type {row[TYPE]} is neither a directory nor a file")
        if row[TYPE] == DIRECTORY and row[LENGTH]:
            problems.append(f"{name(inode)}: a directory with {row[LENGTH]} bytes of data")
        key = (row[PARENT], row[NAME])
        if key in seen:
            problems.append(f"the same name twice: {name(inode)} (rows {seen[key]} and {inode})")
        seen[key] = inode
        parent = rows.get(row[PARENT])
        if row[PARENT] != 0 and parent is None:
            problems.append(f"{name(inode)}: its directory {row[PARENT]} is missing")
        elif parent is not None and row[PARENT] != 0 and parent[TYPE] != DIRECTORY:
            problems.append(f"{name(inode)}: {name(row[PARENT])} above it is not a directory")
        elif paths[inode] is None and path_of(inode, rows) is None:
            problems.append(f"{name(inode)}: no way from it to the root")
        if len(problems) > 20:
            return problems
    for guest, inodes in guests_of(rows).items():
        if len(inodes) > 1:
            problems.append(f"the guest {guest} twice: {' and '.join(name(i) for i in inodes[:2])}")
    return problems


def suspicious(rows: Rows, member: bool = False) -> list[str]:
    """What is strange in a table that the daemon loads, as a list of sentences: worth a warning at a save, and a
    restore refuses it unless told otherwise.

    ``member``: the host has a cluster's corosync.conf, so the state must have one as well.
    """
    problems = []
    if 0 not in rows:
        problems.append("row __version__ (inode 0) is missing")
    top = root_version(rows)
    files = 0
    conf = None
    for inode, row in rows.items():
        if inode == 0:
            continue
        files += row[TYPE] == FILE
        if row[PARENT] == 0 and row[NAME] == b"corosync.conf":
            conf = row
        if len(problems) > 20:
            continue
        if row[ROW_VERSION] > top:
            problems.append(f"{file_name(inode, rows)}: version {row[ROW_VERSION]} is above the root version {top}")
        if inode > top:
            problems.append(f"{file_name(inode, rows)}: inode {inode} is above the root version {top}")
        if not row[NAME] or b"/" in row[NAME] or row[NAME] in (b".", b".."):
            problems.append(f"row {inode}: bad name {shown(row[NAME])}")
    if files == 0:
        problems.append(NO_FILE)
    if member and (conf is None or not conf[LENGTH]):
        problems.append(NO_COROSYNC_CONF)
    return problems


def check_rows(rows: Rows, member: bool = False) -> list[str]:
    """What is wrong with a table, as a list of sentences; empty when it is sound: loadable, and nothing is strange."""
    return unloadable(rows) or suspicious(rows, member)


def emptied(rows: Rows, replica: Rows) -> str | None:
    """Why a table must not go over the replica although the daemon loads it, or None: it holds nothing, or corosync.conf
    alone, as after a start on an empty database, and the replica holds more.
    """

    def files(table: Rows) -> list[Row]:
        return [row for i, row in table.items() if i and row[TYPE] == FILE]

    left, had = files(rows), files(replica)
    if any(row[PARENT] or row[NAME] != b"corosync.conf" for row in left) or len(had) <= len(left):
        return None
    what = "corosync.conf alone" if left else "no file at all"
    return f"the live state holds {what}, and the replica {len(had)} files"


def file_name(inode: int, rows: Rows) -> str:
    path = path_of(inode, rows)
    return f"row {inode}" if path is None else f"/etc/pve/{printable(path, '')}"


def shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))


def verify_database(path: str, member: bool = False, sound: bool = True) -> tuple[list[str], Rows]:
    """Check everything in a database file. Returns (problems, rows). Without ``sound`` only whether the daemon loads it,
    and for a member that it has a corosync.conf.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(len(PLACEHOLDER_MARK) + 16)
    except OSError as error:
        return [f"{path}: {error.strerror}"], {}
    if not head and size_of(path + "-wal") == 0:
        return [f"{path} is empty (0 bytes)"], {}
    if head and not head.startswith(b"SQLite format 3\0"):
        return [f"{path} is not a SQLite database"], {}
    try:
        return look(path, lambda connection: check_connection(connection, member, sound))
    except Unreadable as error:
        return [str(error)], {}


def check_connection(
    connection: sqlite3.Connection, member: bool = False, sound: bool = True
) -> tuple[list[str], Rows]:
    found = [line[0] for line in connection.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        return [f"integrity check: {line}" for line in found], {}
    unknown = unknown_schema(connection)
    try:
        rows = read_rows(connection)
    except sqlite3.Error as error:
        if not unknown:
            return [f"table tree: {error}"], {}
        rows = {}
    if unknown:
        # What its own daemon would load is for that daemon to say.
        return [f"{SCHEMA_UNKNOWN}: {unknown}"] if sound else [], rows
    problems = check_rows(rows, member) if sound else unloadable(rows)
    if not problems and not sound and NO_COROSYNC_CONF in suspicious(rows, member):
        problems = [NO_COROSYNC_CONF]
    return problems, rows


def content_sha256(connection: sqlite3.Connection) -> str:
    """One hash of every field and the data of all rows, ``__version__`` included."""
    digest = hashlib.sha256()
    for *fields, data in connection.execute(f"{META.replace(' FROM', ',CAST(data AS BLOB) FROM')} ORDER BY inode"):
        digest.update(repr(fields).encode())
        digest.update(as_bytes(data))
    return digest.hexdigest()


def is_member(paths: Paths) -> bool:
    """True when the host has a cluster's corosync.conf. Debian's example has no config_version and does not
    count.
    """
    return bool(config_version(read_text(paths.corosync_conf)))


def plain_copy(connection: sqlite3.Connection, target: str) -> None:
    """Copy a whole database through SQLite into one plain file without a log, fsynced."""
    remove_database(target)
    copy = connect(target, "rwc")
    try:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()
    finally:
        copy.close()
    os.chmod(target, 0o600)
    fsync_file(target)


def is_placeholder(path: str) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(len(PLACEHOLDER_MARK)) == PLACEHOLDER_MARK
    except OSError:
        return False


def placeholder_text() -> bytes:
    return (
        PLACEHOLDER_MARK
        + b"""
The state of Proxmox's cluster file system lies in RAM on this node, and this file stands where the database
would be.
The daemon reading it means that the RAM file system is not mounted. The configuration is safe in the store.
  To see what is wrong:            pve-state status
  To start as it should:           systemctl daemon-reload && systemctl restart pve-cluster
  To go back to disk:              pve-state disable
  By hand, without this program:   see "The exit by hand" in docs/ram-state.md; the state is
                                   /var/lib/pveguard/state/config.db (with config.db-wal when there is one)
"""
    )
