# SPDX-License-Identifier: Apache-2.0
"""Reading a database that another process has open and writes, without any effect on that process.

The daemon of the cluster file system opens its database before it forks. POSIX locks do not survive a fork, so SQLite's
locks do not tell anybody that it is there, and an ordinary SQLite opener (``mode=ro`` as well) takes itself for the first,
truncates the index of the log (``-shm``) that the daemon has mapped, and the daemon dies of SIGBUS.

Ways to read all the same, and why this one:

- ``mode=ro&readonly_shm=1`` takes shared locks that a checkpoint waits for: the log grows.
- A lock of one's own on byte 128 of ``-shm`` maps and may write the daemon's index.
- ``vfs=unix-none`` with ``locking_mode=EXCLUSIVE`` takes no lock and keeps its index in memory, but believes to be alone:
  closing it deletes a log that holds no frames, and opening it makes one that is missing. The daemon then writes a log that
  nobody else can see.
- Copying both files for each look costs their length, and under heavy writing is torn more often than a short look.

So SQLite reads through a VFS that is ``unix-none`` but opens every file for reading only: it cannot create, truncate, delete
or write, takes no lock, and has no shared memory to map. What SQLite's locks would have kept from happening is detected
afterwards, in the files as documented in https://www.sqlite.org/walformat.html: the log was not begun anew (its salts), and
no checkpoint copied frames into the database that are younger than those the look knew (``nBackfillAttempted``). The header
of the log alone does not tell that: a checkpoint changes the database under the same header. A look that was torn is taken
again; after three, both files are copied into memory (consistent as long as the log is not begun anew meanwhile, whatever is
appended and copied) and the checked copy is read.

Read-write is only for :func:`merge_log`, while holding the daemon's own lock.

This file stands alone (standard library, no imports of this package), so that a test can hand it to a node that has nothing.
"""

from __future__ import annotations

import _thread
import fcntl
import os
import signal
import sqlite3
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Not at run time: programs on a node start at boot and at every stop.
    from collections.abc import Callable
    from typing import Any, TypeVar

    Value = TypeVar("Value")

#: Torn looks in a row after which both files are copied.
LOOKS_BEFORE_COPY = 3
#: Seconds after which a state that moves faster than it can be read is given up.
LOOK_SECONDS = 10.0
#: The daemon waits 10 s for its lock at its start; who holds it meanwhile is done long before.
MERGE_SECONDS = 2.0
#: File systems in memory for copies, the first that is there.
MEMORY = ("/dev/shm", "/run")
#: Memory that stays free there.
MEMORY_RESERVE = 16 * 1024 * 1024

#: That wait for the end of a look: what their handlers raise would be lost where SQLite calls into Python. (Another thread of
#: the process may still be given one; none of ours that has a handler which raises reads beside others.)
_HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_VFS = "pveguard-read"
_LOG_HEADER = 32
_INDEX = struct.Struct("=3I2BH2I8s8s8s")
_INDEX_VERSION = 3007000
_INDEX_BYTES = 136
_OPEN_READONLY, _OPEN_READWRITE, _OPEN_CREATE, _OPEN_MAIN_DB, _OPEN_WAL = 0x1, 0x2, 0x4, 0x100, 0x80000
_CANTOPEN, _CANNOT_DELETE = 14, 10 | 10 << 8


class Unreadable(Exception):
    """The database cannot be read; the text names the file and why."""


class Busy(Unreadable):
    """It could not be looked at this time; that says nothing of what it holds."""


class _Torn(Exception):
    pass


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _opened(path: str) -> int:
    """Open for reading, without a note of it in the inode where that is allowed: a file system writes it down."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _head(path: str, length: int) -> bytes:
    try:
        fd = _opened(path)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(fd, length, 0)
    finally:
        os.close(fd)


class _Files:
    """The files of a database at one moment: what tells whether a look at them was torn."""

    def __init__(self, path: str) -> None:
        log, index = f"{path}-wal", f"{path}-shm"
        self.path = path
        self.identity = _identity(path), _identity(log)
        if self.identity[0] is None:
            raise Unreadable(f"{path} does not exist")
        self.content = _size_and_time(path), _size_and_time(log)
        self.header = _head(log, _LOG_HEADER)
        shared = _head(index, _INDEX_BYTES)
        #: The index's header, b"" where it is missing, in the making or that of another program.
        self.index = shared[:48] if len(shared) == _INDEX_BYTES and shared[:48] == shared[48:96] else b""
        self.frames = self.tried = 0
        self.salts = b""
        if self.index:
            version, _, _, made, _, _, self.frames, _, _, self.salts, _ = _INDEX.unpack(self.index)
            (self.tried,) = struct.unpack_from("=I", shared, 128)
            if version != _INDEX_VERSION or not made:
                self.index, self.frames, self.tried, self.salts = b"", 0, 0, b""
        #: Without a log the database's file is the whole state.
        self.has_log = len(self.header) == _LOG_HEADER
        #: Whether the index speaks of this log. Where it does not nobody writes, or somebody is just beginning to.
        self.indexed = self.has_log and bool(self.index) and self.salts == self.header[16:24]

    def position(self) -> tuple[Any, ...]:
        """What is another value after each transaction, and when a file is replaced."""
        if self.index:
            return (*self.identity, self.header, self.index)
        return (*self.identity, self.header, *self.content)

    def torn(self) -> bool:
        """Whether one who knew the frames of this moment and has read until now has seen a mixture."""
        now = _Files(self.path)
        if self.indexed:
            return not (self.same_log(now) and now.tried <= self.frames)
        return self.position() != now.position() or self.content != now.content

    def same_log(self, now: _Files) -> bool:
        """Whether the log was only appended to since."""
        return now.indexed and (self.identity, self.header, self.salts) == (now.identity, now.header, now.salts)

    def copy_torn(self) -> bool:
        """As :meth:`torn`, for one who has read the database first and all of the log after it."""
        now = _Files(self.path)
        if self.indexed:
            return not self.same_log(now)
        return self.position() != now.position() or self.content != now.content


def position(path: str) -> tuple[Any, ...]:
    """What is another value after each transaction, and when a file is replaced. Raises Unreadable."""
    try:
        return _Files(path).position()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error


def look(path: str, function: Callable[[sqlite3.Connection], Value], seconds: float = LOOK_SECONDS) -> Value:
    """What ``function`` returns for a read-only connection to one consistent state of the database.

    It is called again with another connection when the state moved while it worked, so it keeps nothing of a former call.
    Raises Unreadable when the database is missing or damaged, or moves faster than it can be read for ``seconds``.
    """
    end = time.monotonic() + seconds
    tries = failed = 0
    while True:
        tries += 1
        try:
            files = _Files(path)
            if os.path.exists(f"{path}-journal") and os.stat(f"{path}-journal").st_size:
                raise Unreadable(f"{path}-journal: a transaction was not finished; the daemon finishes it at its start")
            if tries % (LOOKS_BEFORE_COPY + 1) and (not files.has_log or _vfs()):
                former = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
                try:
                    return _through(files, function)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, former)
            return _copied(files, function)
        except _Torn:
            failed = 0
        except FileNotFoundError:
            # Removed or replaced at this moment; missing for good is told by the next look.
            pass
        except OSError as error:
            raise Busy(f"{path}: {error.strerror or error}") from error
        except sqlite3.Error as error:
            failed += 1
            if failed >= LOOKS_BEFORE_COPY:
                raise Unreadable(f"{path}: {error}") from error
        if time.monotonic() >= end:
            raise Busy(f"{path} changed faster than it could be read for {seconds:g} s")
        time.sleep(0.001)


def snapshot(path: str, seconds: float = LOOK_SECONDS) -> sqlite3.Connection:
    """A private copy in memory of one consistent state of the database. Raises Unreadable."""

    def copy(connection: sqlite3.Connection) -> sqlite3.Connection:
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            connection.backup(memory)
        except BaseException:
            memory.close()
            raise
        return memory

    return look(path, copy, seconds)


def _through(files: _Files, function: Callable[[sqlite3.Connection], Value]) -> Value:
    """A look through SQLite at the files themselves."""
    # Without frames in the log the file is the state, and SQLite need not look beside it.
    options = ([f"vfs={_VFS}"] if _vfs() else []) + ([] if files.has_log else ["immutable=1"])
    connection = _open(files.path, "&".join(options))
    try:
        if files.has_log:
            # The log's index in memory: SQLite then needs no file for it.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
        return _judged(files.torn, connection, function)
    finally:
        connection.close()


def _judged(
    torn: Callable[[], bool], connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], Value]
) -> Value:
    try:
        value = function(connection)
    except Exception:
        # What is wrong with a mixture says nothing of the state.
        if torn():
            raise _Torn from None
        raise
    if torn():
        _close(value)
        raise _Torn
    return value


def _close(value: object) -> None:
    if isinstance(value, sqlite3.Connection):
        value.close()


def _copied(files: _Files, function: Callable[[sqlite3.Connection], Value]) -> Value:
    """A look at a checked copy of both files in memory."""
    size = sum(content[0] for content in files.content if content)
    folder = next((place for place in MEMORY if os.path.isdir(place)), "/tmp")
    _sweep_copies(folder)
    room = os.statvfs(folder)
    if room.f_bavail * room.f_frsize < size + MEMORY_RESERVE:
        raise Busy(f"{files.path}: {folder} has no room for a copy of {size} bytes")
    work = f"{folder}/pveguard-{os.getpid()}-{os.urandom(8).hex()}"
    os.mkdir(work, 0o700)
    connection = None
    try:
        copy = f"{work}/config.db"
        # The log last: whatever a checkpoint copied into the database meanwhile is in it.
        for suffix in ("", "-wal") if files.has_log else ("",):
            _copy(files.path + suffix, copy + suffix)
        if files.copy_torn():
            raise _Torn
        connection = _open(copy, "mode=rw")
        connection.execute("PRAGMA locking_mode=EXCLUSIVE").fetchone()
        (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        # Open files need no names, and nothing is left when this process is killed.
        _discard_copy(work)
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        return function(connection)
    finally:
        if connection is not None:
            connection.close()
        _discard_copy(work)


def _sweep_copies(folder: str) -> None:
    """Remove copies whose makers were killed."""
    for name in os.listdir(folder):
        words = name.split("-")
        if len(words) == 3 and words[0] == "pveguard" and words[1].isdigit() and not os.path.exists(f"/proc/{words[1]}"):
            try:
                _discard_copy(f"{folder}/{name}")
            except FileNotFoundError:
                # Somebody else sweeps as well.
                continue


def _discard_copy(work: str) -> None:
    if os.path.isdir(work):
        for name in os.listdir(work):
            os.unlink(f"{work}/{name}")
        os.rmdir(work)


def _copy(source: str, target: str) -> None:
    with open(_opened(source), "rb") as reader:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as writer:
            while block := reader.read(1024 * 1024):
                writer.write(block)


def _open(path: str, options: str) -> sqlite3.Connection:
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    mode = "" if options.startswith("mode=") else "mode=ro&"
    return sqlite3.connect(f"file:{quoted}?{mode}{options}", uri=True, isolation_level=None, timeout=0)


#: Whether SQLite has the VFS; None before the first use.
_registered: bool | None = None
#: Two threads would register two, and SQLite would go on to look at the one that is freed.
_registering = _thread.allocate_lock()


def _vfs() -> bool:
    """Register the VFS with the SQLite library that Python uses; False where that cannot be done."""
    global _registered
    with _registering:
        if _registered is None:
            try:
                _register()
                _registered = True
            except (ImportError, OSError, AttributeError, MemoryError):
                _registered = False
    return _registered


def _read_quietly(path: bytes) -> None:
    """As :func:`_opened`, of the file that SQLite has just opened."""
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return
    for number in numbers:
        try:
            if os.readlink(f"/proc/self/fd/{number}".encode()) == path:
                fcntl.fcntl(int(number), fcntl.F_SETFL, fcntl.fcntl(int(number), fcntl.F_GETFL) | os.O_NOATIME)
        except OSError:
            # Closed by now, or not ours to say.
            continue


def _register() -> None:
    import _sqlite3
    import ctypes

    if hasattr(_sqlite3, "pveguard_read"):
        # By another copy of this code in the same process.
        return

    # Found through the module that uses it: the very library, whichever others there are.
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    opener = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
    )

    deleter = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)

    class Vfs(ctypes.Structure):
        # struct sqlite3_vfs; what follows xDelete is copied as it is.
        _fields_ = (
            ("version", ctypes.c_int),
            ("file_bytes", ctypes.c_int),
            ("path_bytes", ctypes.c_int),
            ("next", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("data", ctypes.c_void_p),
            ("open", opener),
            ("delete", deleter),
            ("others", ctypes.c_void_p * 14),
        )

    library.sqlite3_vfs_find.restype = ctypes.POINTER(Vfs)
    library.sqlite3_vfs_find.argtypes = (ctypes.c_char_p,)
    library.sqlite3_vfs_register.argtypes = (ctypes.POINTER(Vfs), ctypes.c_int)
    base = library.sqlite3_vfs_find(b"unix-none")
    if not base or base.contents.version < 3:
        raise OSError("SQLite has no VFS unix-none")
    vfs = Vfs()
    ctypes.pointer(vfs)[0] = base.contents
    open_file = base.contents.open

    def read_only(this: int, name: int, file: int, flags: int, out: int) -> int:
        try:
            if flags & _OPEN_WAL:
                # As a database: of a log SQLite would set the owner.
                flags = flags & ~_OPEN_WAL | _OPEN_MAIN_DB
            if flags & _OPEN_MAIN_DB:
                flags = flags & ~(_OPEN_READWRITE | _OPEN_CREATE) | _OPEN_READONLY
            elif name:
                return _CANTOPEN
            result = int(open_file(this, name, file, flags, out))
            if result == 0:
                _read_quietly(ctypes.string_at(name))
            return result
        except BaseException:
            # An interrupt; without an answer SQLite would take the file for opened.
            return _CANTOPEN

    vfs.name = _VFS.encode()
    vfs.open = opener(read_only)
    # Beside an empty database SQLite removes the log.
    vfs.delete = deleter(lambda this, name, sync: _CANNOT_DELETE)
    if library.sqlite3_vfs_register(ctypes.byref(vfs), 0):
        raise OSError("SQLite did not take the VFS")
    # SQLite has pointers to it for as long as the process lives, whatever becomes of this module.
    setattr(_sqlite3, "pveguard_read", (library, vfs, open_file))  # noqa: B010


def whole_size(path: str) -> int:
    """Bytes of a database and its log, where what it holds may lie for long. Raises OSError where there is none."""
    found = os.stat(path).st_size
    try:
        return found + os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return found


# What is in it


#: The daemon's one table, as PRAGMA table_xinfo tells it: name, type, whether NULL is refused, place in the key, hidden.
_COLUMNS = (
    ("inode", "INTEGER", 1, 1, 0),
    *((name, "INTEGER", 1, 0, 0) for name in ("parent", "version", "writer", "mtime", "type")),
    ("name", "TEXT", 1, 0, 0),
    ("data", "BLOB", 0, 0, 0),
)


def unknown_schema(connection: sqlite3.Connection) -> str | None:
    """What of a database is not as the daemon is known to make it, None when all of it is.

    What such a database means is not known: a program that reads the table alone may miss a part of it, or take it for
    something else. What SQLite makes for itself (``sqlite_stat1``) does not count.
    """
    for setting, wanted in (("encoding", "UTF-8"), ("user_version", 0), ("application_id", 0)):
        (found,) = connection.execute(f"PRAGMA {setting}").fetchone()
        if found != wanted:
            return f"its {setting} is {found}, not {wanted}"
    query = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
    objects = [(str(kind), str(name)) for kind, name in connection.execute(query)]
    if ("table", "tree") not in objects:
        return "it has no table tree"
    others = [f"{kind} {name}" for kind, name in objects if (kind, name) != ("table", "tree")]
    if others:
        return f"beside the table tree it has the {', the '.join(others[:5])}"
    columns = [(row[1], str(row[2]).upper(), *row[3:4], *row[5:7]) for row in connection.execute("PRAGMA table_xinfo(tree)")]
    if columns != list(_COLUMNS):
        known = {name: rest for name, *rest in _COLUMNS}
        strange = [str(name) for name, *rest in columns if known.get(name) != rest]
        strange += [f"{name} (missing)" for name in known if name not in [column[0] for column in columns]]
        return f"its table tree has other columns than the {len(known)} known: {', '.join(strange[:8]) or 'their order'}"
    return None


class Running(Unreadable):
    """The daemon has the database, or is about to."""


def merge_log(path: str, seconds: float = MERGE_SECONDS) -> None:
    """Merge the log of a database that no daemon uses into its file, so that the one file is the whole state.

    Holds the daemon's own lock meanwhile, for which it waits ``seconds`` at most. Raises Running when it is held, Unreadable
    when the log cannot be merged.
    """
    lock = os.path.join(os.path.dirname(path), ".pmxcfs.lockfile")
    end = time.monotonic() + seconds
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unreadable(f"{lock}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise Running(f"{path}: the daemon runs") from None
                time.sleep(0.05)
        connection = _open(path, "mode=rw")
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        finally:
            connection.close()
        if mode != "delete":
            raise Unreadable(f"{path}: its log could not be merged (journal mode {mode})")
    except sqlite3.Error as error:
        raise Unreadable(f"{path}: {error}") from error
    finally:
        os.close(fd)
