# SPDX-License-Identifier: Apache-2.0
"""The replica of the live database in the store, row by row."""

from __future__ import annotations

import os
import sqlite3
import sys
import time

from ..base.atomic import fsync_dir
from ..pmxcfs.tree import as_bytes, read_rows
from .exits import StoreError
from .files import ensure_store, read_json, size_of, stat_id, write_json
from .generations import cut_generation, damaged_folder, next_lineage
from .node import CLOCK_OF_FILES
from .paths import FORMAT, MIB
from .rows import INSERT, SCHEMA, connect
from .system import log, utc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    #: Of the database and of its log: (inode, size, mtime in ns), None where there is none.
    Look = list[tuple[int, int, int] | None]

    from ..pmxcfs.tree import Rows
    from .compare import Change
    from .paths import Paths
    from .settings import Config

# The replica's log: made this long at once, so that a save overwrites what is there and the file system has no size to
# record (28 KiB instead of 44 on ext4). Checkpointed when that much was saved or so many seconds have gone by
# and the database rests, and beyond the limit in any case.
LOG_BYTES = 256 * 1024
LOG_LIMIT = 4 * MIB
CHECKPOINT_SECONDS = 60.0


class Store:
    """The replica and what belongs to it. Open it under the store's lock only.

    ``alone``: for the process that saves all the time. It opens the replica for one save and with SQLite's exclusive
    locking, so that the log's index is in memory instead of in a file that is written as well, and leaves the log as it
    is. Between two saves anybody may open the replica.
    """

    def __init__(self, paths: Paths, config: Config, alone: bool = False) -> None:
        self.paths, self.config, self.alone = paths, config, alone
        self.connection: sqlite3.Connection | None = None
        self.identity: object = None
        self.logged = 0  # bytes in the log since its last checkpoint, about
        self._exclusive = False
        self._unsynced = False
        self._rows: Rows | None = None
        self._signature: Look | None = None
        self.owed: str | None = None  # reason of a generation that could not be cut yet
        self.rescued: Store | None = None  # the store of the rescue copy, once there was a reason for one
        self.lineage = 0  # until the state was read
        self._read_state()

    def _read_state(self) -> None:
        """Another process may have begun a lineage, or noted a clean stop, since this one looked."""
        state = read_json(self.paths.state_file)
        lineage = state.get("lineage")
        if type(lineage) is int and lineage > 0:
            self.lineage = lineage
        elif not self.lineage:
            self.lineage = next_lineage(self.paths)
        self.state = state

    @property
    def opened(self) -> sqlite3.Connection:
        """The connection to the replica, which must be open."""
        assert self.connection is not None
        return self.connection

    def __enter__(self) -> Store:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        if self.alone:
            self.release()

    def open(self) -> sqlite3.Connection:
        """Open (or make) the replica; a damaged one is moved aside, never overwritten."""
        self._read_state()
        path = self.paths.replica
        if self.connection is not None and stat_id(path) == self.identity:
            return self.connection
        ensure_store(self.paths)
        self.close(checkpoint=False)
        if self._look() != self._signature:
            self._rows = None
        # Looked through once; a file that was put in its place is another one.
        if os.path.exists(path) and stat_id(path) != self.identity:
            problem = self._damage()
            if problem:
                self._set_aside(problem)
        made = not os.path.exists(path)
        try:
            if made:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            connection = self._connect()
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            # FULL: a commit is on the disk before it is reported. The log is checkpointed when it is quiet, and then
            # overwritten in place, which costs less than making and removing it.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0").fetchone()
            connection.execute(f"PRAGMA journal_size_limit={LOG_LIMIT}").fetchone()
            # Debian builds SQLite so that freed pages are written over with zeros: half of what a large file costs.
            connection.execute("PRAGMA secure_delete=FAST").fetchone()
            connection.execute(SCHEMA)
            if made:
                fsync_dir(self.paths.store)
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self.connection = connection
        self.identity = stat_id(path)
        self._unsynced = False
        return connection

    def _connect(self) -> sqlite3.Connection:
        """A connection to the replica, with exclusive locking where that is wanted and nobody else has it open."""
        self._exclusive = False
        if self.alone:
            connection = connect(self.paths.replica, "rw", timeout=0.2)
            try:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
                self._exclusive = True
                return connection
            except sqlite3.OperationalError:
                connection.close()
        return connect(self.paths.replica, "rw")

    def _failure(self, error: OSError | sqlite3.Error) -> StoreError:
        """The StoreError for what SQLite or the disk said."""
        self._rows = None
        if "FSYNC" in getattr(error, "sqlite_errorname", ""):
            self._unsynced = True
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            # Malformed: looked through, and set aside, before it is used again.
            self.identity = None
        return StoreError(f"{self.paths.replica}: {error}")

    def _damage(self) -> str | None:
        """Why the replica cannot be used, or None. An empty file without a log is a store that was never
        filled.
        """
        path = self.paths.replica
        try:
            if size_of(path) == 0 and size_of(path + "-wal") == 0:
                return None
            connection = connect(path, "rw")
            try:
                found = [line[0] for line in connection.execute("PRAGMA integrity_check(3)")]
                if found != ["ok"]:
                    return str(found[0])
                connection.execute("SELECT name FROM sqlite_master").fetchall()
                return None
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "malformed" in text or "not a database" in text or "corrupt" in text:
                return text
            raise StoreError(f"{path}: {text}") from error

    def _set_aside(self, problem: str) -> None:
        folder = self.paths.damaged
        try:
            folder = damaged_folder(self.paths)
            log("error", f"{self.paths.replica} is damaged ({problem}); it is kept in {folder}")
            for suffix in ("-wal", "-shm", "-journal", ""):
                source = self.paths.replica + suffix
                if os.path.exists(source):
                    os.rename(source, f"{folder}/config.db{suffix}")
            fsync_dir(self.paths.store)
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from error

    def _look(self) -> Look:
        """What changes when the replica is written, by whomever."""
        found: Look = []
        for path in (self.paths.replica, self.paths.replica + "-wal"):
            try:
                status = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def _last_look(self) -> Look:
        """A look after which no write goes unseen: the kernel stamps files with a clock that stands still for some
        milliseconds, and another process may leave a file of the same length.
        """
        while True:
            now = time.clock_gettime_ns(CLOCK_OF_FILES)
            found = self._look()
            if all(one is None or one[2] != now for one in found):
                return found
            time.sleep(0.001)

    def rows(self) -> Rows:
        """The replica's table; read again only when it changed."""
        if self._rows is not None and self._look() == self._signature:
            return self._rows
        opened = self.connection is None
        try:
            self._rows = rows = read_rows(self.open())
            self._signature = self._last_look()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        finally:
            if self.alone and opened:
                self.release()
        return rows

    def write(self, change: Change, blobs: Mapping[int, bytes | None]) -> None:
        """Commit a change in one transaction. ``blobs`` is {inode: data} for the rows to copy and inode 0, where there
        is one.
        """
        connection = self.opened
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                # Deletes first: a name may move to another inode.
                connection.executemany(
                    "DELETE FROM tree WHERE inode=?", [(i,) for i in sorted(change.delete)]
                )
                connection.executemany(
                    INSERT, (change.rows[i][:7] + (blobs[i],) for i in sorted(change.upsert | ({0} & blobs.keys())))
                )
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._failure(error) from error
        self._unsynced = False
        if self.alone:
            self._lengthen_log()
        # A frame for the page of each row, and for each page that a long row overflows to.
        self.logged += sum(4120 * (1 + len(as_bytes(data)) // 4084) for data in blobs.values())
        self._rows = change.rows
        self._signature = self._last_look()

    def _lengthen_log(self) -> None:
        """Zeros behind the log's end, where SQLite expects remains of older logs and ends reading."""
        path = self.paths.replica + "-wal"
        missing = LOG_BYTES - size_of(path)
        if 0 < missing < LOG_BYTES:
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(fd, bytes(missing), LOG_BYTES - missing)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError:
                # The next saves cost more, and one that does not fit says so itself.
                pass

    def cut(self, reason: str) -> dict[str, Any]:
        """Cut a generation from the replica. The reason is owed until that has worked."""
        self.owed = reason
        made: dict[str, Any] = cut_generation(self.opened, self.paths, self.config, self.lineage, reason, replica=True)
        self.owed = None
        return made

    def checkpoint(self) -> None:
        """Bring config.db up to date with its log, so that the one file is the whole state."""
        try:
            _, frames, folded = self.opened.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            raise self._failure(error) from error
        # A reader may still need what was there before the log: the rest is for another time.
        self.logged = 0 if folded == frames else 1

    def restart_log(self) -> None:
        """Checkpoint, and begin the log anew in the file that is there, with a page that is written as it was."""
        connection = self.open()
        try:
            self.checkpoint()
            if self._exclusive:
                connection.execute("BEGIN IMMEDIATE")
                # What is the same already would not be written.
                for step in (1, -1):
                    connection.execute("UPDATE tree SET version=version+? WHERE inode=0", (step,))
                connection.execute("COMMIT")
            self._unsynced = False
        except sqlite3.Error as error:
            raise self._failure(error) from error
        finally:
            self.release()

    def release(self) -> None:
        """Close the replica and leave its log as it is. The next one who opens it reads the log.

        Not after a sync that failed. The log then reads like a commit, out of a cache that the disk may not hold; who
        has it open knows better, and writes it again at the next try.
        """
        if self.connection is None or self._unsynced:
            return
        # Whoever shares the replica with us may have written it.
        rows = self._rows if self._exclusive else None
        if self._exclusive:
            if sys.version_info >= (3, 12):
                self.connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            else:
                # Interrupts the checkpoint that closing would begin.
                self.connection.interrupt()
        self.close(checkpoint=False)
        self._rows, self._signature = rows, self._last_look()

    def update_state(self, **values: object) -> None:
        """Change state.json; written only when something is different."""
        self._read_state()
        new = {**self.state, "format": FORMAT, "lineage": self.lineage, **values}
        if "clean" in values:
            new["clean_sha256"] = values.get("clean_sha256")
        if new != self.state:
            try:
                write_json(self.paths.state_file, new)
            except OSError as error:
                raise StoreError(f"{self.paths.state_file}: {error.strerror}") from error
            self.state, self.lineage = new, new["lineage"]

    def new_lineage(self, reason: str) -> None:
        self.update_state(lineage=self.lineage + 1, lineage_reason=reason, lineage_since=utc())

    def close(self, checkpoint: bool = True) -> None:
        if self.rescued is not None:
            self.rescued.close(checkpoint)
        if self.connection is None:
            return
        try:
            if checkpoint:
                self.checkpoint()
        finally:
            try:
                self.connection.close()
            except sqlite3.Error as error:
                log("warning", f"{self.paths.replica}: {error}")
            self.connection = None
