# SPDX-License-Identifier: Apache-2.0
"""The FUSE kernel protocol (version 7) spoken directly on /dev/fuse.

One thread reads requests and hands them to an object with one method per operation. A method returns the
reply's payload, raises OSError, or returns None and answers later through `Session.reply`: that is how a
write waits for the cluster without a thread. Sizes and numbers are from the kernel's
include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from .memdb import decode

MAX_WRITE = 131072
BUFFER_SIZE = MAX_WRITE + 4096
BIG_WRITES = 1 << 5

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_MTIME, FATTR_MTIME_NOW = 1, 2, 4, 8, 32, 256
OPEN_DIRECT_IO = 1

MS_NOSUID, MS_NODEV = 2, 4
MNT_DETACH = 2

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTRIBUTES = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")
_SETATTR = struct.Struct("<IIQQQQQQ8I")
_OPEN_OUT = struct.Struct("<QII")
_READ = struct.Struct("<QQI")
_WRITE = struct.Struct("<QQI")
_WRITE_OUT = struct.Struct("<II")
_STATFS = struct.Struct("<5Q4I24x")
_DIRENT = struct.Struct("<QQII")


class Change(NamedTuple):
    """What SETATTR asks for; None = leave. `mtime` is in seconds, -1 = now."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    mtime: int | None


def entry_reply(handle: int, attributes: bytes, valid: int) -> bytes:
    return _ENTRY.pack(handle, 0, valid, valid, 0, 0) + attributes


def attr_reply(attributes: bytes, valid: int) -> bytes:
    return _ATTR_OUT.pack(valid, 0, 0) + attributes


def open_reply(file_handle: int = 0, flags: int = 0) -> bytes:
    return _OPEN_OUT.pack(file_handle, flags, 0)


def write_reply(size: int) -> bytes:
    return _WRITE_OUT.pack(size, 0)


def statfs_reply(blocks: int, free: int, files: int, files_free: int) -> bytes:
    return _STATFS.pack(blocks, free, free, files, files_free, 4096, 256, 4096, 0)


def directory_entry(inode: int, offset: int, kind: int, name: bytes) -> bytes:
    entry = _DIRENT.pack(inode, offset, len(name), kind) + name
    return entry + bytes(-len(entry) % 8)


Handler = Callable[[int, int, memoryview], "bytes | None"]


class Session:
    def __init__(self, mountpoint: str) -> None:
        """Mount; requests are served by `pump`. Raises OSError."""
        self.mountpoint = mountpoint
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
        try:
            _mount("/dev/fuse", mountpoint, "fuse", MS_NOSUID | MS_NODEV, options)
        except OSError:
            os.close(self.fd)
            raise
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._handlers: dict[int, Handler] = {26: self._init}
        self.ready = False
        self.on_error: Callable[[Exception], None] = lambda error: None

    def serve(self, fs: object) -> None:
        """Route operations to `fs` (see filesystem.FileSystem).

        Long because each operation of FUSE has its own layout of arguments: a handler of a few lines each, and their table.
        """

        def text(raw: memoryview | bytes) -> str:
            return decode(bytes(raw).rstrip(b"\0"))  # the kernel has the only limit of its length

        def two(raw: memoryview) -> tuple[str, str]:
            first, second, *_ = bytes(raw).split(b"\0")
            return text(first), text(second)

        def setattr_(unique: int, node: int, body: memoryview) -> bytes | None:
            valid, _, _, size, _, _, mtime, _, _, _, _, mode, _, uid, gid, _ = _SETATTR.unpack_from(body)
            change = Change(
                mode=mode if valid & FATTR_MODE else None,
                uid=uid if valid & FATTR_UID else None,
                gid=gid if valid & FATTR_GID else None,
                size=size if valid & FATTR_SIZE else None,
                mtime=(-1 if valid & FATTR_MTIME_NOW else mtime) if valid & FATTR_MTIME else None,
            )
            return operation["setattr"](unique, node, change)

        def read(unique: int, node: int, body: memoryview) -> bytes | None:
            file_handle, offset, size = _READ.unpack_from(body)
            return operation["read"](node, file_handle, offset, size)

        def write(unique: int, node: int, body: memoryview) -> bytes | None:
            _, offset, size = _WRITE.unpack_from(body)
            return operation["write"](unique, node, offset, bytes(body[40 : 40 + size]))

        def rename(start: int) -> Handler:
            def handler(unique: int, node: int, body: memoryview) -> bytes | None:
                new_parent = int.from_bytes(body[:8], "little")
                if start == 16 and any(body[8:12]):
                    raise OSError(errno.EINVAL, "rename flags")
                return operation["rename"](unique, node, new_parent, *two(body[start:]))

            return handler

        def mknod(unique: int, node: int, body: memoryview) -> bytes | None:
            if int.from_bytes(body[:4], "little") & 0o170000 != 0o100000:
                raise OSError(errno.EPERM, "only regular files")
            return operation["create"](unique, node, text(body[16:]), None)

        def create(unique: int, node: int, body: memoryview) -> bytes | None:
            return operation["create"](unique, node, text(body[16:]), int.from_bytes(body[:4], "little"))

        names = (
            "lookup getattr setattr readlink mkdir create unlink rmdir rename open read write statfs release"
        )
        operation: dict[str, Callable[..., bytes | None]] = {
            name: getattr(fs, name) for name in f"{names} opendir readdir releasedir".split()
        }

        def named(name: str, skip: int = 0) -> Handler:
            method = operation[name]
            return lambda unique, node, body: method(unique, node, text(body[skip:]))

        def readdir(unique: int, node: int, body: memoryview) -> bytes | None:
            return operation["readdir"](*_READ.unpack_from(body))

        self._handlers.update(
            {
                1: named("lookup"),
                3: lambda unique, node, body: operation["getattr"](node),
                4: setattr_,
                5: lambda unique, node, body: operation["readlink"](node),
                8: mknod,
                9: named("mkdir", 8),
                10: named("unlink"),
                11: named("rmdir"),
                12: rename(8),
                14: lambda unique, node, body: operation["open"](node, int.from_bytes(body[:4], "little")),
                15: read,
                16: write,
                17: lambda unique, node, body: operation["statfs"](),
                18: lambda unique, node, body: operation["release"](node, int.from_bytes(body[:8], "little")),
                20: lambda unique, node, body: b"",
                25: lambda unique, node, body: b"",
                27: lambda unique, node, body: operation["opendir"](node),
                28: readdir,
                29: lambda unique, node, body: operation["releasedir"](node, int.from_bytes(body[:8], "little")),
                30: lambda unique, node, body: b"",
                35: create,
                38: lambda unique, node, body: b"",
                45: rename(16),
            }
        )

    def pump(self, limit: int = 64) -> bool:
        """Serve up to `limit` waiting requests. False once the file system is unmounted."""
        view = self._view
        for _ in range(limit):
            try:
                size = os.readv(self.fd, (self._buffer,))
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return False
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was interrupted before it was read
                raise
            _, opcode, unique, node, _, _, _, _ = _IN.unpack_from(view)
            if opcode in (2, 36, 42):  # forget, interrupt, batch forget: no reply
                continue
            handler = self._handlers.get(opcode)
            if handler is None:
                self.reply(unique, error=errno.ENOSYS)
                continue
            try:
                payload = handler(unique, node, view[_IN.size : size])
            except OSError as error:
                self.reply(unique, error=error.errno or errno.EIO)
                continue
            except Exception as error:  # one bad request must not take the mount down
                self.on_error(error)
                self.reply(unique, error=errno.EIO)
                continue
            if payload is not None:
                self.reply(unique, payload)
        return True

    def reply(self, unique: int, payload: bytes = b"", error: int = 0) -> None:
        try:
            os.write(self.fd, _OUT.pack(_OUT.size + len(payload), -error, unique) + payload)
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENODEV, errno.EINTR):
                raise

    def unmount(self) -> None:
        unmount(self.mountpoint)
        os.close(self.fd)

    def _init(self, unique: int, node: int, body: memoryview) -> bytes:
        major, minor, readahead, flags = struct.unpack_from("<IIII", body)
        if major != 7 or minor < 23:
            raise OSError(errno.EPROTO, "FUSE protocol")
        self.ready = True
        return _INIT_OUT.pack(7, min(minor, 31), readahead, flags & BIG_WRITES, 0, 0, MAX_WRITE, 1, 0, 0, 0)


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if _libc.mount(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def unmount(target: str) -> None:
    """Detach; open files keep the connection until the process ends."""
    if _libc.umount2(target.encode(), MNT_DETACH):
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise OSError(code, os.strerror(code), target)
