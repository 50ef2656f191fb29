# SPDX-License-Identifier: Apache-2.0
"""What the daemon's database holds: rows, their paths, which of them are noise, one hash of the rest, guests.

The one home of these rules. It needs the standard library and :mod:`live_database` alone, and imports little: programs on a
node start with it.

A table is ``{inode: row}``, a row a tuple without its data (:data:`META`), as what compares thousands of them every second
wants it. A tree is ``{path: (type, data)}``. Paths have no slash at their beginning; bytes of a name that are not UTF-8 come as
surrogates, so that they go back as they were.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3

from .live_database import Unreadable, look, unknown_schema

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Not at run time: programs on a node start at boot and at every stop.
    from collections.abc import Iterable, Mapping
    from typing import Final

DIRECTORY, FILE = 4, 8
Row = tuple[int, int, int, int, int, int, bytes, int | None]
Rows = dict[int, Row]
Entries = dict[str, tuple[int, bytes]]

INODE: Final = 0
PARENT: Final = 1
ROW_VERSION: Final = 2
WRITER: Final = 3
MTIME: Final = 4
TYPE: Final = 5
NAME: Final = 6
LENGTH: Final = 7
# Names are read as bytes: the file system takes any bytes, and they must come back as they were.
# So do data that are no blob, as the bytes that the daemon gets. The length of a blob is known without reading it.
META = (
    "SELECT inode,parent,version,writer,mtime,type,CAST(name AS BLOB),"
    "CASE typeof(data) WHEN 'blob' THEN length(data) ELSE length(CAST(data AS BLOB)) END FROM tree"
)

#: Regular expressions for paths whose content is a heartbeat, a lock or a file in the middle of being replaced: no operator
#: misses them. The default of ``ram_state_noise`` and of every program; there is no other list.
NOISE = (
    r"^nodes/[^/]+/lrm_status$",
    r"^ha/manager_status$",
    r"^priv/lock/.+$",
    r"^(?:.*/)?[^/]+\.tmp\.[0-9]+$",
)
#: Paths that no pattern may match: losing one of them is losing configuration.
NEVER_NOISE = (
    "corosync.conf",
    "storage.cfg",
    "user.cfg",
    "datacenter.cfg",
    "ha/resources.cfg",
    "nodes/n/qemu-server/100.conf",
    "nodes/n/lxc/100.conf",
    "priv/authorized_keys",
    "priv/shadow.cfg",
    "firewall/cluster.fw",
    "priv",
    "nodes",
    "nodes/n",
)
#: The directory of locks. It comes and goes with them, so two nodes need not agree on it.
LOCKS = "priv/lock"

#: The daemon takes a folder of nodes/ for a node's, and a file in it for a guest's, only with such names.
GUEST_FOLDERS = ("qemu-server", "lxc", "openvz")
_GUEST_FILE = r"[1-9][0-9]{0,999}\.conf"  # Python reads no 5,000 digits
_GUEST = re.compile(rf"nodes/[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/(?:{'|'.join(GUEST_FOLDERS)})/({_GUEST_FILE})")


class Noise:
    """Which paths carry no configuration. A path below a noisy directory is noise as well.

    ``patterns``: regular expressions for whole paths, from ``^`` to ``$``. Raises ValueError for others, and for one that
    matches configuration.
    """

    def __init__(self, patterns: Iterable[str] = NOISE) -> None:
        self.patterns = list(patterns)
        for pattern in self.patterns:
            if not (pattern.startswith("^") and pattern.endswith("$")):
                raise ValueError(f"noise pattern {pattern!r} must begin with ^ and end with $")
            try:
                compiled = re.compile(pattern, re.DOTALL)
            except re.error as error:
                raise ValueError(f"noise pattern {pattern!r}: {error}") from error
            for path in NEVER_NOISE:
                if compiled.fullmatch(path):
                    raise ValueError(f"noise pattern {pattern!r} matches {path}: that would lose configuration")
        joined = "|".join(f"(?:{pattern})" for pattern in self.patterns)
        self._match = re.compile(joined, re.DOTALL).fullmatch if self.patterns else None

    def matches(self, path: str) -> bool:
        """True for a path that is noise, by itself or by a directory above it."""
        if self._match is None:
            return False
        if self._match(path):
            return True
        cut = path.rfind("/")
        while cut > 0:
            path = path[:cut]
            if self._match(path):
                return True
            cut = path.rfind("/")
        return False

    def leaves_out(self, path: str) -> bool:
        """True for a path that two nodes, or a state and a former one, are not compared by."""
        return path == LOCKS or self.matches(path)


# Rows


def read_rows(connection: sqlite3.Connection) -> Rows:
    """{inode: (inode, parent, version, writer, mtime, type, name, length)} of every row."""
    return {row[0]: row for row in connection.execute(META)}


def as_bytes(data: object) -> bytes:
    """Data as the bytes that the daemon gets: written by hand a blob may be text, or a number."""
    if data is None:
        return b""
    return bytes(data) if isinstance(data, bytes) else str(data).encode("utf-8", "surrogateescape")


def data_of(connection: sqlite3.Connection, inode: int) -> bytes:
    """The data of a row that is there."""
    return as_bytes(stored_data(connection, inode))


def stored_data(connection: sqlite3.Connection, inode: int) -> bytes | None:
    """The data of a row that is there as the table has it: None for none, as a directory has."""
    found: bytes | None = connection.execute("SELECT CAST(data AS BLOB) FROM tree WHERE inode=?", (inode,)).fetchone()[0]
    return found


def misshapen(rows: Rows) -> int | None:
    """The inode of a row with values of the wrong type, None when there is none. A damaged page can hold anything."""
    for inode, row in rows.items():
        if not all(type(value) is int for value in row[:6]) or type(row[NAME]) is not bytes:
            return inode
    return None


def root_version(rows: Rows) -> int:
    """The root version of a table. The daemon loads a database without the row ``__version__``, and counts from 0."""
    return rows[0][ROW_VERSION] if 0 in rows else 0


def path_of(inode: int, rows: Rows) -> str | None:
    """Path of a row, None when a parent is missing or in a loop."""
    names: list[bytes] = []
    while inode != 0:
        row = rows.get(inode)
        if row is None or len(names) > len(rows):
            return None
        names.append(row[NAME])
        inode = row[PARENT]
    return b"/".join(reversed(names)).decode("utf-8", "surrogateescape")


def all_paths(rows: Rows) -> dict[int, str | None]:
    """{inode: path} of every row but the root; None for a row without a way to the root."""
    found: dict[int, str | None] = {0: ""}
    for start in rows:
        chain: list[int] = []
        seen: set[int] = set()
        inode = start
        while inode not in found and inode in rows and inode not in seen:
            chain.append(inode)
            seen.add(inode)
            inode = rows[inode][PARENT]
        base = found.get(inode)
        for inode in reversed(chain):
            if base is not None:
                name = rows[inode][NAME].decode("utf-8", "surrogateescape")
                base = f"{base}/{name}" if base else name
            found[inode] = base
    del found[0]
    return found


def inodes_by_path(rows: Rows) -> dict[str, int]:
    """{path: inode} of every row with a way to the root. Of two rows of one name the one that was made later counts."""
    return {path: inode for inode, path in sorted(all_paths(rows).items()) if path is not None}


def without_noise(rows: Rows, noise: Noise) -> Rows:
    """The rows that are configuration, ``__version__`` included."""
    paths = all_paths(rows)
    return {i: row for i, row in rows.items() if i == 0 or (path := paths[i]) is None or not noise.matches(path)}


def content_of(connection: sqlite3.Connection, path: str) -> bytes | None:
    """Bytes of a file by its path, None when there is no such file."""
    row = row_at(connection, path)
    return None if row is None else data_of(connection, row[0])


def row_at(connection: sqlite3.Connection, path: str) -> tuple[int, int] | None:
    """(inode, node id of the writer) of the row of a path, None when there is no such path."""
    inode, writer = 0, 0
    for name in path.split("/"):
        row = connection.execute(
            "SELECT inode,writer FROM tree WHERE parent=? AND CAST(name AS BLOB)=? AND inode<>0",
            (inode, name.encode("utf-8", "surrogateescape")),
        ).fetchone()
        if row is None:
            return None
        inode, writer = row
    return inode, writer


# The tree


def tree_in(connection: sqlite3.Connection) -> tuple[int, Entries]:
    """``(root version, tree)`` of a database.

    Raises Unreadable for a schema that is not known, and for a tree that is none.
    """
    unknown = unknown_schema(connection)
    if unknown:
        raise Unreadable(f"its schema is not known to this version of pveguard ({unknown}), so neither is what it holds")
    rows = read_rows(connection)
    bad = misshapen(rows)
    if bad is not None:
        raise Unreadable(f"damaged: row {bad} has values of the wrong type")
    paths = all_paths(rows)
    tree: Entries = {}
    for inode, data in connection.execute("SELECT inode,CAST(data AS BLOB) FROM tree WHERE inode<>0 ORDER BY inode"):
        path = paths[inode]
        if path is None:
            raise Unreadable(f"damaged: row {inode} has no way to the root: one above it is missing, or they are in a loop")
        tree[path] = (rows[inode][TYPE], as_bytes(data))
    return root_version(rows), tree


def read_tree(database: str, whole: bool = False) -> tuple[int, Entries]:
    """``(root version, tree)`` of one consistent state, whether or not the daemon runs, and without an effect on it.

    ``whole``: only if SQLite finds no damage in the file. Raises Unreadable, whose text names the file.
    """

    def read(connection: sqlite3.Connection) -> tuple[int, Entries]:
        if whole:
            (check,) = connection.execute("PRAGMA integrity_check").fetchone()
            if check != "ok":
                raise Unreadable(f"damaged: {check}")
        return tree_in(connection)

    try:
        return look(database, read)
    except Unreadable as error:
        # What is wrong with the tree does not name the file.
        text = str(error)
        if text.startswith(database):
            raise
        raise type(error)(f"{database}: {text}") from error


# One hash, equal on members that are in sync


def sha256_of(tree: Mapping[str, tuple[int, bytes]], noise: Noise) -> str:
    """One hash of path, type and content of everything in a tree that nodes are compared by."""
    return _sha256((path, *tree[path]) for path in sorted(tree) if not noise.leaves_out(path))


def tree_sha256(connection: sqlite3.Connection, noise: Noise) -> str:
    """:func:`sha256_of` the tree in a database, one file at a time in memory."""
    rows = read_rows(connection)
    inodes = inodes_by_path(rows)
    wanted = [path for path in sorted(inodes) if not noise.leaves_out(path)]
    return _sha256((path, rows[inodes[path]][TYPE], data_of(connection, inodes[path])) for path in wanted)


def _sha256(entries: Iterable[tuple[str, int, bytes]]) -> str:
    """Nodes of two releases are compared, and a copy with a hash of former times: it must never become another."""
    digest = hashlib.sha256()
    for path, kind, data in entries:
        digest.update(f"{path}\0{kind}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()


# Guests


def guest_of(path: str) -> int | None:
    """Id of the guest whose configuration a file is, by the daemon's rules; None for any other path."""
    match = _GUEST.fullmatch(path)
    return int(match.group(1)[: -len(".conf")]) if match else None


def guests_in(tree: Mapping[str, tuple[int, bytes]]) -> list[int]:
    """Ids of all guests in a tree, in order."""
    return sorted(guest for path in _files(tree) if (guest := guest_of(path)) is not None)


def guests_on(files: Iterable[str], node: str) -> list[str]:
    """Those of the files that configure a guest of a node, in order."""
    return sorted(path for path in files if path.startswith(f"nodes/{node}/") and guest_of(path) is not None)


def own_guests(tree: Mapping[str, tuple[int, bytes]], node: str) -> list[str]:
    """Paths of the configurations of a node's guests."""
    return guests_on(_files(tree), node)


def guests_of(rows: Rows) -> dict[int, list[int]]:
    """{guest id: [inodes]} as the daemon counts."""
    found: dict[int, list[int]] = {}
    for inode, row in rows.items():
        if row[TYPE] == FILE and row[NAME].endswith(b".conf") and b"/" not in row[NAME]:
            path = path_of(inode, rows)
            guest = None if path is None else guest_of(path)
            if guest is not None:
                found.setdefault(guest, []).append(inode)
    return found


def guest_lock(data: object) -> str | None:
    """The lock that a guest's configuration holds, None without one. Snapshots below it have their own."""
    text = re.split(r"^\[", as_bytes(data).decode("utf-8", "replace"), maxsplit=1, flags=re.MULTILINE)[0]
    match = re.search(r"^lock:\s*(\S+)", text, re.MULTILINE)
    return match.group(1) if match else None


def _files(tree: Mapping[str, tuple[int, bytes]]) -> Iterable[str]:
    return (path for path, (kind, _) in tree.items() if kind == FILE)
