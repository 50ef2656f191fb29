# SPDX-License-Identifier: Apache-2.0
"""A disk that notes every write and fails on demand: a FUSE file system over a folder, served by its own process.

:class:`Disk` is the side of the test. :func:`crashes` gives the states in which the disk could be after power
failed at a point of what was noted.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What the control page holds: operations so far, index from which operations fail, how many of them, errno, kinds.
CONTROL = struct.Struct("qqqqq")
WRITE, SYNC, META = 1, 2, 4
ANY = WRITE | SYNC | META
FOREVER = 1 << 40


class Disk:
    """``path`` is the mount point. All that changes is noted in order; -shm files, which no boot reads, are not."""

    def __init__(self, folder: Path) -> None:
        self.path, self.backing, self.log = folder / "disk", folder / "backing", folder / "log"
        for made in (self.path, self.backing):
            made.mkdir()
        self.log.touch()
        control = folder / "control"
        control.write_bytes(CONTROL.pack(0, FOREVER, 0, 0, ANY))
        with open(control, "r+b") as handle:
            self.control = mmap.mmap(handle.fileno(), CONTROL.size)
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(self.path), str(self.backing), str(self.log), str(control)]
        )
        deadline = time.monotonic() + 20
        while not os.path.ismount(self.path):
            assert self.server.poll() is None and time.monotonic() < deadline, "the disk was not mounted"
            time.sleep(0.01)

    @property
    def count(self) -> int:
        """Changes noted so far; those that failed are counted as well."""
        return int(CONTROL.unpack_from(self.control)[0])

    def fail(self, number: int, after: int = 0, times: int = FOREVER, kinds: int = ANY) -> None:
        """From the ``after``-th change from now on, fail ``times`` changes of these kinds with an errno."""
        CONTROL.pack_into(self.control, 0, self.count, self.count + after, times, number, kinds)

    def heal(self) -> None:
        CONTROL.pack_into(self.control, 0, self.count, FOREVER, 0, 0, ANY)

    def changes(self) -> list[tuple[Any, ...]]:
        found = []
        with open(self.log, "rb") as handle:
            while True:
                try:
                    found.append(pickle.load(handle))
                except EOFError:
                    return found

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        try:
            self.server.wait(10)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.control.close()


class Crash:
    """Files of a disk that lost power, by path below its root: bytes, None for a directory.

    As on a journaling file system: names (create, rename, unlink, mkdir) survive in order, all of those before an
    fsync of anything. What was written to a file since its own last fsync may be there or not, page by page.
    """

    def __init__(self) -> None:
        self.names: dict[str, int | None] = {}
        self.pending_names: list[tuple[Any, ...]] = []
        self.data: dict[int, bytearray] = {}
        self.pending: dict[int, list[tuple[Any, ...]]] = {}

    def feed(self, change: tuple[Any, ...]) -> None:
        kind = change[0]
        if kind in ("write", "truncate"):
            self.pending.setdefault(change[1], []).append(change)
        elif kind == "fsync":
            self._settle_names(len(self.pending_names))
            if change[1] is not None:
                for written in self.pending.pop(change[1], []):
                    _apply(self.data.setdefault(change[1], bytearray()), written)
        else:
            self.pending_names.append(change)

    def _settle_names(self, count: int) -> None:
        for change in self.pending_names[:count]:
            _rename(self.names, change)
        del self.pending_names[:count]

    def files(self, choose: random.Random | None, all_written: bool = False) -> dict[str, bytes | None]:
        """One state: everything pending written (what a killed process leaves), nothing of it, or by chance."""
        names = dict(self.names)
        count = len(self.pending_names)
        if choose is not None:
            count = choose.randint(0, count)
        elif not all_written:
            count = 0
        for change in self.pending_names[:count]:
            _rename(names, change)
        found: dict[str, bytes | None] = {}
        for name, inode in names.items():
            if inode is None:
                found[name] = None
                continue
            data = bytearray(self.data.get(inode, b""))
            for change in self.pending.get(inode, []):
                if all_written or (choose is not None and choose.random() < 0.5):
                    if choose is not None and change[0] == "write" and choose.random() < 0.3:
                        # Torn: a part of it in sectors.
                        cut = 512 * choose.randint(0, len(change[3]) // 512)
                        change = (*change[:3], change[3][:cut])
                    _apply(data, change)
            found[name] = bytes(data)
        return found


def _apply(data: bytearray, change: tuple[Any, ...]) -> None:
    if change[0] == "truncate":
        size = change[2]
        del data[size:]
        data.extend(bytes(size - len(data)))
        return
    _, _, offset, written = change
    if not written:
        return
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(written)] = written


def _rename(names: dict[str, int | None], change: tuple[Any, ...]) -> None:
    kind, name, *rest = change
    if kind in ("create", "mkdir"):
        names[name] = rest[0]
    elif kind == "unlink":
        names.pop(name, None)
    elif kind == "rename":
        new = rest[0]
        for old in [n for n in names if n == name or n.startswith(name + "/")]:
            names[new + old[len(name) :]] = names.pop(old)


def crashes(changes: list[tuple[Any, ...]]) -> Iterator[tuple[int, Crash]]:
    """(n, what the disk may hold after the first n changes) for each n."""
    state = Crash()
    yield 0, state
    for n, change in enumerate(changes, 1):
        state.feed(change)
        yield n, state


def put(files: dict[str, bytes | None], folder: Path) -> None:
    """Write the files of a crash into an empty folder."""
    for name, data in sorted(files.items()):
        target = folder / name.lstrip("/")
        if data is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def serve(mount: str, backing: str, log: str, control: str) -> None:
    import fuse

    with open(control, "r+b") as handle:
        page = mmap.mmap(handle.fileno(), CONTROL.size)
    notes = open(log, "ab", buffering=0)  # noqa: SIM115

    def inode(fh: int) -> int:
        return os.fstat(fh).st_ino

    def change(kind: int, quiet: bool = False) -> None:
        """Count a change and fail it when that was asked for."""
        if quiet:
            return
        count, first, times, number, kinds = CONTROL.unpack_from(page)
        failing = count >= first and times > 0 and bool(kinds & kind)
        CONTROL.pack_into(page, 0, count + 1, first, times - failing, number, kinds)
        if failing:
            # A place in the notes for it, so that numbers and notes agree.
            notes.write(pickle.dumps(("failed",)))
            raise fuse.FuseOSError(number)

    def note(*what: Any) -> None:
        notes.write(pickle.dumps(what))

    class Serving(fuse.Operations):  # type: ignore[misc]
        use_ns = True

        def at(self, path: str) -> str:
            return backing + path

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            try:
                found = os.fstat(fh) if fh else os.lstat(self.at(path))
            except OSError as error:
                raise fuse.FuseOSError(error.errno) from None
            keys = ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink", "st_ino", "st_blocks")
            return {key: getattr(found, key) for key in keys} | {
                "st_mtime": found.st_mtime_ns,
                "st_ctime": found.st_ctime_ns,
                "st_atime": found.st_atime_ns,
            }

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self.at(path))]

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(self.at(path))
            return {
                key: getattr(found, key) for key in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")
            }

        def open(self, path: str, flags: int) -> int:
            return os.open(self.at(path), flags & ~os.O_TRUNC)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            quiet = path.endswith("-shm")
            change(META, quiet)
            fh = os.open(self.at(path), os.O_RDWR | os.O_CREAT, mode)
            if not quiet:
                note("create", path, inode(fh))
            return fh

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            quiet = path.endswith("-shm")
            change(WRITE, quiet)
            if not quiet:
                note("write", inode(fh), offset, data)
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            quiet = path.endswith("-shm")
            change(WRITE, quiet)
            if not quiet:
                note("truncate", os.stat(self.at(path)).st_ino, length)
            os.truncate(self.at(path), length)

        def fsync(self, path: str, datasync: int, fh: int) -> None:
            change(SYNC, path.endswith("-shm"))
            note("fsync", inode(fh))

        def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
            change(SYNC)
            note("fsync", None)

        def flush(self, path: str, fh: int) -> None:
            pass

        def release(self, path: str, fh: int) -> None:
            os.close(fh)

        def rename(self, old: str, new: str) -> None:
            change(META)
            note("rename", old, new)
            os.rename(self.at(old), self.at(new))

        def unlink(self, path: str) -> None:
            quiet = path.endswith("-shm")
            change(META, quiet)
            if not quiet:
                note("unlink", path)
            os.unlink(self.at(path))

        def mkdir(self, path: str, mode: int) -> None:
            change(META)
            note("mkdir", path, None)
            os.mkdir(self.at(path), mode)

        def rmdir(self, path: str) -> None:
            change(META)
            note("unlink", path)
            os.rmdir(self.at(path))

        def chmod(self, path: str, mode: int) -> None:
            os.chmod(self.at(path), mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.chown(self.at(path), uid, gid)

        def utimens(self, path: str, times: Any = None) -> None:
            pass

    try:
        fuse.FUSE(
            Serving(),
            mount,
            foreground=True,
            nothreads=True,
            big_writes=True,
            hard_remove=True,
            fsname="disk",
        )
    except RuntimeError as error:
        sys.exit(int(error.args[0]) or errno.EIO)


if __name__ == "__main__":
    serve(*sys.argv[1:])
