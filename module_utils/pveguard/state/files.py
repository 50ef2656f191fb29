# SPDX-License-Identifier: Apache-2.0
"""Files of the store and below /run, and the lock of the store."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time

from ..base.atomic import fsync_dir, write_atomic
from .exits import Locked, StoreError
from .paths import MIB
from .system import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .paths import Paths


def write_json(path: str, value: object) -> None:
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), 0o600)


def write_volatile(path: str, value: object) -> None:
    """JSON into a file below /run: atomic, no fsync; a failure is not worth stopping for."""
    write_volatile_text(path, json.dumps(value, sort_keys=True) + "\n")


def write_volatile_text(path: str, text: str, mode: int | None = None) -> None:
    temporary = f"{path}.tmp{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as handle:
            if mode is not None:
                os.fchmod(handle.fileno(), mode)
            handle.write(text)
        os.rename(temporary, path)
    except OSError as error:
        log("warning", f"{path}: {error}")


def read_json(path: str) -> dict[str, Any]:
    """The JSON object in a file, {} when it is missing or not one."""
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def remove_database(path: str) -> None:
    """Remove a database with what SQLite keeps beside it, the log first: a log without its database is
    harmless.
    """
    for suffix in ("-wal", "-shm", "-journal", ""):
        remove(path + suffix)


def copy_file(source: str, target: str) -> None:
    """Copy bytes, mode 0600, and fsync the copy."""
    with open(source, "rb") as reader:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            while True:
                block = reader.read(MIB)
                if not block:
                    break
                view = memoryview(block)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)


def file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while True:
            block = handle.read(MIB)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def stat_id(path: str) -> tuple[int, int] | None:
    """(device, inode) of a file, None when it does not exist."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def ensure_store(paths: Paths) -> None:
    """Make the store's directories, 0700: they hold private keys."""
    try:
        os.makedirs(os.path.dirname(paths.store), mode=0o755, exist_ok=True)
        for directory in (paths.store, paths.generations):
            if not os.path.isdir(directory):
                os.mkdir(directory, 0o700)
                fsync_dir(os.path.dirname(directory))
    except OSError as error:
        raise StoreError(f"{paths.store}: {error.strerror}") from error


class Lock:
    """An exclusive flock on a file or directory, for a ``with`` statement."""

    def __init__(self, path: str, what: str, wait: float = 0.0, create: bool = False) -> None:
        self.path, self.what, self.wait, self.create = path, what, wait, create
        self.fd = -1

    def __enter__(self) -> Lock:
        try:
            if self.create:
                os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            else:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        end = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if time.monotonic() >= end:
                    holder = lock_holder(self.fd)
                    os.close(self.fd)
                    raise Locked(f"{self.what}: {holder} holds the lock on {self.path}") from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def lock_holder(fd: int) -> str:
    """Who holds the flock on an open file, for a message: the kernel knows the process."""
    inode = str(os.fstat(fd).st_ino)
    for line in read_text("/proc/locks").splitlines():
        fields = line.split()
        if "FLOCK" in fields[1:2] and fields[5].rpartition(":")[2] == inode:
            return f"process {fields[4]} ({read_text(f'/proc/{fields[4]}/comm').strip() or 'unknown'})"
    return "another process"


def store_lock(paths: Paths, wait: float = 30.0) -> Lock:
    # The directory itself is locked, so that a store on a read-only file system can be locked too.
    return Lock(paths.store, "the store is busy", wait)
