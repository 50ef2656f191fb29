# SPDX-License-Identifier: Apache-2.0
"""The tree in memory and its SQLite backend.

Every update is one SQLite transaction that raises the version of row 0 (`__version__`) by one. The tree in
memory changes only after the transaction is committed; a commit that fails makes the database refuse all
later updates.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sqlite3
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .log import Log

DIRECTORY = 4
FILE = 8
FILE_MAX = 1024 * 1024
ROOT_NAME = "__version__"
GUEST_TYPE = {"qemu-server": "qemu", "lxc": "lxc", "openvz": "openvz"}
NODE = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
#: The file of a guest; no other file counts, whatever it is called and wherever it lies.
GUEST = re.compile(rf"nodes/({NODE})/({'|'.join(GUEST_TYPE)})/([1-9][0-9]*)\.conf")
#: The directory of a lock.
LOCK = re.compile(r"priv/lock/[^/]+")
#: A lock may be taken from its holder at this age. The variable is for tests of this double.
LOCK_SECONDS = int(os.environ.get("PMXCFS_LAB_LOCK_SECONDS", "120"))

COLUMNS = ("inode", "parent", "version", "writer", "mtime", "type")
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS tree ("
    "  inode INTEGER PRIMARY KEY NOT NULL,"
    + "".join(f"  {name} INTEGER NOT NULL CHECK(typeof({name})=='integer')," for name in COLUMNS[1:])
    + "  name TEXT NOT NULL,"
    "  data BLOB)"
)
# Whatever SQLite keeps as name or data is read as text and bytes. Names are bound as bytes, because they need not be
# UTF-8, and stored as text.
READ = "SELECT inode, parent, version, writer, mtime, type, CAST(name AS TEXT), CAST(data AS BLOB) FROM tree"
WRITE = "INSERT OR REPLACE INTO tree VALUES (?,?,?,?,?,?,CAST(? AS TEXT),?)"
DELETE = "DELETE FROM tree WHERE inode = ?"

# inode, parent, version, writer, mtime, type, name, data
Row = tuple[int, int, int, int, int, int, str, "bytes | None"]


def encode(name: str) -> bytes:
    """The bytes of a name or path, which need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def stored(row: Row, kind: int) -> tuple[object, ...]:
    """The parameters of WRITE."""
    return (*row[:5], kind, encode(row[6]), row[7])


class DatabaseFailure(Exception):
    """The database cannot be used; the text is for the log."""

    domain = "database"


class DuplicateGuest(DatabaseFailure):
    domain = "status"


class Op:
    CREATE = 1
    MKDIR = 2
    WRITE = 3
    TRUNCATE = 4
    UTIMENS = 5
    RENAME = 6
    DELETE = 7
    UNLOCK = 8


_UPDATE = struct.Struct("<BxHHqq")


class Update(NamedTuple):
    """One change of the tree.

    `number` is the offset of a write, the size of a truncate, or the age from which a lock is removed.
    """

    op: int
    path: str
    mtime: int
    number: int = 0
    target: str = ""
    data: bytes = b""

    def pack(self) -> bytes:
        path, target = encode(self.path), encode(self.target)
        head = _UPDATE.pack(self.op, len(path), len(target), self.mtime, self.number)
        return b"".join((head, path, target, self.data))

    @staticmethod
    def unpack(message: bytes) -> Update:
        op, path_length, target_length, mtime, number = _UPDATE.unpack_from(message)
        start = _UPDATE.size
        middle = start + path_length
        end = middle + target_length
        path, target = decode(message[start:middle]), decode(message[middle:end])
        return Update(op, path, mtime, number, target, message[end:])


class Entry:
    """A file or a directory. `handle` names it towards FUSE, is never reused, and is 0 once it is gone."""

    __slots__ = (
        "children",
        "data",
        "digest",
        "handle",
        "inode",
        "mtime",
        "name",
        "parent",
        "type",
        "version",
        "writer",
    )

    def __init__(self, handle: int, row: Row, parent: Entry | None) -> None:
        self.handle = handle
        self.parent = parent
        self.children: dict[str, Entry] = {}
        self.data = b""
        self.load(row)

    def load(self, row: Row) -> None:
        self.inode, _, self.version, self.writer, self.mtime, self.type, self.name, data = row
        self.data = data or b""
        self.digest: bytes | None = None

    def row(self) -> Row:
        parent = self.parent.inode if self.parent else 0
        return (
            self.inode,
            parent,
            self.version,
            self.writer,
            self.mtime,
            self.type,
            self.name,
            self.data or None,
        )

    def path(self) -> str:
        names: list[str] = []
        entry: Entry = self
        while entry.parent is not None:
            names.append(entry.name)
            entry = entry.parent
        return "/".join(reversed(names))


def digest(row: Row) -> bytes:
    """8 bytes that differ when any field of the row differs."""
    name = encode(row[6])
    head = struct.pack("<qqqqqqI", *row[:6], len(name))
    return hashlib.blake2b(b"".join((head, name, row[7] or b"")), digest_size=8).digest()


class MemDB:
    def __init__(self, path: str, log: Log, reserved: Iterable[str] = ()) -> None:
        """Open or create the database. Raises DatabaseFailure when it is damaged or contradicts itself."""
        self.path = path
        self.log = log
        self.reserved = frozenset(reserved)
        self.failed = False
        self.on_update: Callable[[Update], None] = lambda update: None
        self.guests: dict[int, tuple[str, str, int]] = {}
        self.guests_version = 0
        self.handles: dict[int, Entry] = {}
        self._next_handle = 100
        old_umask = os.umask(0o077)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._db.text_factory = decode
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=1000")
            self._db.execute(SCHEMA)
            rows = self._db.execute(READ).fetchall()
            if not rows:
                rows = [(0, 0, 1, 0, 0, DIRECTORY, ROOT_NAME, None)]
                self._db.execute(WRITE, stored(rows[0], FILE))
        except sqlite3.Error as error:
            raise DatabaseFailure(f"unable to open database '{path}': {error}") from error
        finally:
            os.umask(old_umask)
        self._execute = self._db.execute
        self.root = self._build(rows)

    # reading

    def lookup(self, path: str) -> Entry | None:
        entry: Entry | None = self.root
        if path:
            for name in path.split("/"):
                entry = entry.children.get(name) if entry is not None else None
        return entry

    def rows(self) -> list[Row]:
        return [entry.row() for entry in self._walk()]

    def index(self) -> dict[int, bytes]:
        """Digest of each row by inode, for comparing trees of members."""
        result: dict[int, bytes] = {}
        for entry in self._walk():
            if entry.digest is None:
                entry.digest = digest(entry.row())
            result[entry.inode] = entry.digest
        return result

    def _walk(self) -> Iterable[Entry]:
        stack = [self.root]
        while stack:
            entry = stack.pop()
            yield entry
            stack.extend(entry.children.values())

    # writing

    def apply(self, update: Update, writer: int) -> int:
        """Carry out one update in one transaction.

        Returns 0 or an errno, the same on every member with this tree.
        """
        if self.failed:
            return errno.EIO
        try:
            return self._apply[update.op](self, update, writer)
        except sqlite3.Error as error:
            self.fail(error)
            return errno.EIO

    def fail(self, error: Exception) -> None:
        self.failed = True
        self.log.crit("database", f"commit transaction failed: {error}")
        try:
            self._execute("ROLLBACK")
        except sqlite3.Error:
            pass

    def _commit(self, update: Update, writer: int, row: Row | None, deleted: int = 0) -> None:
        """One backend write. Raises sqlite3.Error, then nothing has changed."""
        root = self.root
        version = root.version + 1
        execute = self._execute
        debugging = self.log.debugging
        execute("BEGIN")
        if deleted:
            if debugging:
                self.log.write(
                    "debug",
                    "database",
                    "enter dbd_backend_delete_inode (database.c:199:dbd_backend_delete_inode)",
                )
            execute(DELETE, (deleted,))
        if row is not None and row[0]:
            if debugging:
                self._debug_write(row)
            execute(WRITE, stored(row, row[5]))
        root_row: Row = (0, 0, version, writer, update.mtime, DIRECTORY, ROOT_NAME, None)
        if debugging:
            self._debug_write(root_row)
        execute(WRITE, stored(root_row, FILE))
        execute("COMMIT")
        root.load(root_row)

    def _debug_write(self, row: Row) -> None:
        self.log.write(
            "debug",
            "database",
            f"enter backend_write_inode {row[0]:016X} '{row[6]}', size {len(row[7] or b'')}"
            " (database.c:150:backend_write_inode)",
        )

    def _find_parent(self, path: str) -> tuple[Entry | None, str]:
        folder, _, name = path.rpartition("/")
        parent = self.lookup(folder)
        return (parent if parent is not None and parent.type == DIRECTORY else None), name

    def _make(self, update: Update, writer: int) -> int:
        parent, name = self._find_parent(update.path)
        if parent is None:
            return errno.ENOENT
        if name in parent.children or (parent is self.root and name in self.reserved):
            return errno.EEXIST
        kind = FILE if update.op == Op.CREATE else DIRECTORY
        guest = GUEST.fullmatch(update.path) if kind == FILE else None
        if guest and int(guest[3]) in self.guests:
            return errno.EEXIST
        version = self.root.version + 1
        data = update.data if kind == FILE else b""
        row: Row = (version, parent.inode, version, writer, update.mtime, kind, name, data or None)
        self._commit(update, writer, row)
        self._add(row, parent)
        if guest:
            self._set_guest(guest)
        self.on_update(update)
        return 0

    def _write(self, update: Update, writer: int) -> int:
        entry = self.lookup(update.path)
        if entry is None:
            return errno.ENOENT
        if entry.type != FILE:
            return errno.EISDIR
        old = entry.data
        offset = update.number
        if update.op == Op.TRUNCATE:
            if offset > FILE_MAX:
                return errno.EFBIG
            data = old[:offset] if offset <= len(old) else old + bytes(offset - len(old))
        else:
            end = offset + len(update.data)
            if end > FILE_MAX:
                return errno.EFBIG
            if offset == len(old):
                data = old + update.data
            else:
                gap = bytes(max(0, offset - len(old)))
                data = b"".join((old[:offset], gap, update.data, old[end:]))
        self._store(entry, update, writer, data)
        guest = GUEST.fullmatch(update.path)
        if guest:
            self._set_guest(guest)
        self.on_update(update)
        return 0

    def _utimens(self, update: Update, writer: int) -> int:
        entry = self.lookup(update.path)
        if entry is None:
            return errno.ENOENT
        self._store(entry, update, writer, entry.data)
        return 0

    def _store(self, entry: Entry, update: Update, writer: int, data: bytes) -> None:
        version = self.root.version + 1
        parent = entry.parent.inode if entry.parent else 0
        row: Row = (entry.inode, parent, version, writer, update.mtime, entry.type, entry.name, data or None)
        self._commit(update, writer, row)
        entry.load(row)

    def _rename(self, update: Update, writer: int) -> int:
        entry = self.lookup(update.path)
        parent, name = self._find_parent(update.target)
        if entry is None or parent is None:
            return errno.ENOENT
        if entry is self.root or (parent is self.root and name in self.reserved):
            return errno.EACCES
        above: Entry | None = parent
        while above is not None:
            if above is entry:
                return errno.EINVAL
            above = above.parent
        old = parent.children.get(name)
        if old is entry:
            return 0
        if old is not None:
            if old.type == DIRECTORY and entry.type != DIRECTORY:
                return errno.EISDIR
            if old.type != DIRECTORY and entry.type == DIRECTORY:
                return errno.ENOTDIR
            if old.children:
                return errno.ENOTEMPTY
        if entry.children:
            return errno.ENOTEMPTY
        source, target = GUEST.fullmatch(update.path), GUEST.fullmatch(update.target)
        if entry.type == FILE and target and int(target[3]) in self.guests:
            replaces_itself = source is not None and source[3] == target[3]
            if not replaces_itself and old is None:
                return errno.EEXIST
        version = self.root.version + 1
        row: Row = (
            entry.inode,
            parent.inode,
            version,
            writer,
            update.mtime,
            entry.type,
            name,
            entry.data or None,
        )
        self._commit(update, writer, row, deleted=old.inode if old else 0)
        if old is not None:
            self._remove(old)
        assert entry.parent is not None
        del entry.parent.children[entry.name]
        entry.load(row)
        entry.parent = parent
        parent.children[name] = entry
        if entry.type == FILE and (source or target):
            self._find_guests(self.root)
        self.on_update(update)
        return 0

    def _delete(self, update: Update, writer: int) -> int:
        entry = self.lookup(update.path)
        if entry is None:
            return errno.ENOENT
        if entry is self.root:
            return errno.EBUSY
        if entry.children:
            return errno.ENOTEMPTY
        self._commit(update, writer, None, deleted=entry.inode)
        self._remove(entry)
        guest = GUEST.fullmatch(update.path) if entry.type == FILE else None
        if guest:
            self.guests.pop(int(guest[3]), None)
            self.guests_version += 1
        self.on_update(update)
        return 0

    def _unlock(self, update: Update, writer: int) -> int:
        """Remove the directory of a stale lock. What is no stale lock stays as it is, and that is no error."""
        entry = self.lookup(update.path)
        if entry is None:
            return errno.ENOENT
        if entry.type != DIRECTORY or entry.children or update.mtime - entry.mtime <= update.number:
            return 0
        return self._delete(update, writer)

    _apply = {
        Op.CREATE: _make,
        Op.MKDIR: _make,
        Op.WRITE: _write,
        Op.TRUNCATE: _write,
        Op.UTIMENS: _utimens,
        Op.RENAME: _rename,
        Op.DELETE: _delete,
        Op.UNLOCK: _unlock,
    }

    def replace(self, rows: Iterable[Row], deleted: Iterable[int]) -> int:
        """Take rows over from a leader: one transaction for all of them. Returns 0 or an errno."""
        if self.failed:
            return errno.EIO
        merged = {row[0]: row for row in self.rows()}
        rows = list(rows)
        deleted = list(deleted)
        for inode in deleted:
            del merged[inode]
        merged.update((row[0], row) for row in rows)
        before = (self.guests, self.handles)
        try:
            root = self._build(list(merged.values()))
            self._execute("BEGIN")
            self._db.executemany(DELETE, ((inode,) for inode in deleted))
            self._db.executemany(WRITE, [stored(row, row[5]) for row in rows])
            self._execute("COMMIT")
        except (sqlite3.Error, DatabaseFailure) as error:
            self.guests, self.handles = before
            self.fail(error)
            return errno.EIO
        self.root = root
        return 0

    def close(self) -> None:
        self._db.close()

    # the tree in memory

    def _build(self, rows: list[Row]) -> Entry:
        """A tree from rows, by the rules of a load. Raises DatabaseFailure when they are no tree.

        Entries keep the handle of the entry with the same inode and type. Not looked at: how the root's version
        compares with those of the rows, and what bytes a name is made of. Without a root row the version is 0.
        """
        known = {(entry.inode, entry.type): handle for handle, entry in self.handles.items()}
        entries: dict[int, Entry] = {}
        handles: dict[int, Entry] = {}
        if not any(row[0] == 0 for row in rows):
            rows = [(0, 0, 0, 0, 0, DIRECTORY, ROOT_NAME, None), *rows]
        for row in rows:
            inode, kind, name = row[0], row[5], row[6]
            if inode == 0:
                handle = 1
                if name != ROOT_NAME:
                    raise DatabaseFailure(f"inode 0 has name '{name}', not '{ROOT_NAME}'")
                row = (*row[:5], DIRECTORY, ROOT_NAME, None)
            else:
                if kind not in (FILE, DIRECTORY):
                    raise DatabaseFailure(f"inode {inode:016X} '{name}' has unknown type {kind}")
                if kind == DIRECTORY and row[7]:
                    raise DatabaseFailure(f"inode {inode:016X} '{name}' is a directory with data")
                handle = known.get((inode, kind), 0)
                if not handle:
                    handle = self._next_handle
                    self._next_handle += 1
            entries[inode] = handles[handle] = Entry(handle, row, None)
        root = entries[0]
        for row in rows:
            inode, parent_inode, name = row[0], row[1], row[6]
            if inode == 0:
                continue
            parent = entries.get(parent_inode)
            if parent is None or parent.type != DIRECTORY:
                raise DatabaseFailure(
                    f"inode {inode:016X} '{name}' has no parent directory {parent_inode:016X}"
                )
            if name in parent.children:
                raise DatabaseFailure(
                    f"found entry with duplicate name '{name}' in directory {parent_inode:016X}"
                )
            entry = entries[inode]
            entry.parent = parent
            parent.children[name] = entry
        # rows that name each other as parent are in no list of children below the root
        reached, stack = 0, [root]
        while stack:
            reached += 1
            stack.extend(stack.pop().children.values())
        if reached != len(entries):
            raise DatabaseFailure(f"{len(entries) - reached} entries cannot be reached from the root")
        self._find_guests(root)
        self.handles = handles
        return root

    def _find_guests(self, root: Entry) -> None:
        """Find the guests' files anew. Raises DuplicateGuest."""
        guests: dict[int, tuple[str, str, int]] = {}
        nodes = root.children.get("nodes")
        self.guests_version += 1
        for node in nodes.children.values() if nodes else ():
            for folder in node.children.values():
                for entry in folder.children.values():
                    match = GUEST.fullmatch(entry.path()) if entry.type == FILE else None
                    if match is None:
                        continue
                    guest_id = int(match[3])
                    if guest_id in guests:
                        raise DuplicateGuest(f"detected duplicate VMID {guest_id}")
                    guests[guest_id] = (match[1], GUEST_TYPE[match[2]], self.guests_version)
        self.guests = guests

    def _set_guest(self, match: re.Match[str]) -> None:
        self.guests_version += 1
        self.guests[int(match[3])] = (match[1], GUEST_TYPE[match[2]], self.guests_version)

    def _add(self, row: Row, parent: Entry) -> None:
        entry = Entry(self._next_handle, row, parent)
        self._next_handle += 1
        parent.children[entry.name] = entry
        self.handles[entry.handle] = entry

    def _remove(self, entry: Entry) -> None:
        assert entry.parent is not None
        del entry.parent.children[entry.name]
        del self.handles[entry.handle]
        entry.handle = 0
