# SPDX-License-Identifier: Apache-2.0
"""File operations on the tree, and the virtual files and links in its root."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from . import fuse
from .memdb import DIRECTORY, FILE, FILE_MAX, LOCK, LOCK_SECONDS, Entry, MemDB, Op, Update, encode

BLOCKS = 128 * 1024 * 1024 // 4096
INODES = 262144


class Control(Protocol):
    """What the file system asks of the daemon."""

    log_debugging: bool

    @property
    def quorate(self) -> bool: ...

    @property
    def attribute_seconds(self) -> int: ...

    def submit(self, update: Update, done: Callable[[int], None]) -> None:
        """Carry out the update on all members. `done` gets 0 or an errno, or is never called when blocked."""


class Virtual(NamedTuple):
    """A file (`mode` 0440 or 0640) or link in the root that is not in the database."""

    handle: int
    mode: int
    content: Callable[[], bytes]


def is_private(entry: Entry) -> bool:
    """True for `priv`, `nodes/NAME/priv` and everything below them."""
    names = entry.path().split("/")
    return names[0] == "priv" or (len(names) >= 3 and names[0] == "nodes" and names[2] == "priv")


class FileSystem:
    def __init__(self, memdb: MemDB, control: Control, virtual: dict[str, Virtual], group: int) -> None:
        self.memdb = memdb
        self.control = control
        self.virtual = virtual
        self.by_handle = {item.handle: item for item in virtual.values()}
        self.group = group
        self.reply: Callable[..., None] = lambda unique, payload=b"", error=0: None
        self._open: dict[int, list[bytes] | bytes] = {}
        self._next_open = 1
        self._opened: dict[int, int] = {}  # handle of an entry -> how often it is open on this node
        self._hidden: set[int] = set()  # handles of entries that go once nobody has them open
        self._next_hidden = 1
        self._started = int(time.time())

    # helpers

    def _entry(self, node: int) -> Entry:
        entry = self.memdb.handles.get(node)
        if entry is None:
            raise OSError(errno.EACCES if node in self.by_handle else errno.ENOENT, "entry")
        return entry

    def _child_path(self, parent: int, name: str) -> str:
        entry = self._entry(parent)
        if entry.type != DIRECTORY:
            raise OSError(errno.ENOTDIR, name)
        return name if entry.parent is None else f"{entry.path()}/{name}"

    def _mode(self, entry: Entry) -> int:
        """The mode that the path dictates; nothing else can be set."""
        if entry.type == DIRECTORY:
            return stat.S_IFDIR | (0o700 if is_private(entry) else 0o755)
        return stat.S_IFREG | (0o600 if is_private(entry) else 0o640)

    def _attributes(self, node: int) -> bytes:
        item = self.by_handle.get(node)
        if item is not None:
            mode, mtime = item.mode, self._started
            if stat.S_ISLNK(mode) and not self.control.quorate:
                mode &= ~0o222
            return self._pack(node, len(item.content()), mtime, mode, 1)
        entry = self._entry(node)
        links = 2 if entry.type == DIRECTORY else 1
        mode = self._mode(entry)
        if not self.control.quorate:
            mode &= ~0o222
        return self._pack(node, len(entry.data), entry.mtime, mode, links)

    def _pack(self, node: int, size: int, mtime: int, mode: int, links: int) -> bytes:
        blocks = (size + 511) // 512
        times = mtime & 0xFFFFFFFFFFFFFFFF
        return fuse.ATTRIBUTES.pack(
            node, size, blocks, times, times, times, 0, 0, 0, mode, links, 0, self.group, 0, 4096, 0
        )

    def _seconds(self, node: int) -> int:
        return 0 if node in self.by_handle else self.control.attribute_seconds

    def _entry_reply(self, node: int) -> bytes:
        return fuse.entry_reply(node, self._attributes(node), self._seconds(node))

    def _submit(self, unique: int, update: Update, success: Callable[[], bytes]) -> None:
        def done(error: int) -> None:
            if error:
                self.reply(unique, error=error)
                return
            try:
                payload = success()
            except OSError as failure:
                self.reply(unique, error=failure.errno or errno.EIO)
            else:
                self.reply(unique, payload)

        self.control.submit(update, done)

    # operations, called by fuse.Session

    def lookup(self, unique: int, parent: int, name: str) -> bytes:
        if parent == 1 and name in self.virtual:
            return self._entry_reply(self.virtual[name].handle)
        child = self._entry(parent).children.get(name)
        if child is None:
            raise OSError(errno.ENOENT, name)
        return self._entry_reply(child.handle)

    def getattr(self, node: int) -> bytes:
        return fuse.attr_reply(self._attributes(node), self._seconds(node))

    def setattr(self, unique: int, node: int, change: fuse.Change) -> bytes | None:
        item = self.by_handle.get(node)
        entry = None if item else self._entry(node)
        if change.mode is not None:
            dictated = item.mode if item else self._mode(entry) if entry else 0
            if change.mode & 0o7777 != dictated & 0o7777:
                raise OSError(errno.EPERM, "mode")
        if change.uid not in (None, 0, 0xFFFFFFFF) or change.gid not in (None, self.group, 0xFFFFFFFF):
            raise OSError(errno.EPERM, "owner")
        if entry is None:
            if change.mtime is not None and change.size is None:
                raise OSError(errno.EACCES, "virtual file")
            return self.getattr(node)
        if change.size is not None:
            if entry.type != FILE:
                raise OSError(errno.EISDIR, "truncate")
            if change.size > FILE_MAX:
                raise OSError(errno.EFBIG, "truncate")
            update = Update(Op.TRUNCATE, entry.path(), int(time.time()), change.size)
        elif change.mtime == 0 and entry.type == DIRECTORY and LOCK.fullmatch(entry.path()):
            self._unlock(unique, node, entry)
            return None
        elif change.mtime is not None:
            mtime = int(time.time()) if change.mtime == -1 else change.mtime
            if mtime >= 1 << 63:
                mtime -= 1 << 64
            update = Update(Op.UTIMENS, entry.path(), mtime)
        else:
            return self.getattr(node)
        self._submit(unique, update, lambda: self.getattr(node))
        return None

    def _unlock(self, unique: int, node: int, entry: Entry) -> None:
        """Somebody asks for a lock that its holder may have forgotten: the daemon removes none unasked."""
        # The answer has attributes, of a lock that may be gone by then, so the kernel must not remember them.
        before = fuse.attr_reply(self._attributes(node), 0)
        update = Update(Op.UNLOCK, entry.path(), int(time.time()), LOCK_SECONDS)
        self._submit(unique, update, lambda: before)

    def readlink(self, node: int) -> bytes:
        item = self.by_handle.get(node)
        if item is None or not stat.S_ISLNK(item.mode):
            raise OSError(errno.EINVAL, "link")
        return item.content()

    def mkdir(self, unique: int, parent: int, name: str) -> None:
        path = self._child_path(parent, name)
        self._submit(unique, Update(Op.MKDIR, path, int(time.time())), lambda: self._reply_for(path))

    def _reply_for(self, path: str) -> bytes:
        entry = self.memdb.lookup(path)
        if entry is None:
            raise OSError(errno.ENOENT, path)
        return self._entry_reply(entry.handle)

    def create(self, unique: int, parent: int, name: str, flags: int | None) -> None:
        """`flags` None is mknod: the reply has no open file."""
        path = self._child_path(parent, name)
        tail = b"" if flags is None else fuse.open_reply()

        def done(error: int) -> None:
            entry = self.memdb.lookup(path)
            may_exist = flags is not None and not flags & os.O_EXCL
            if error == errno.EEXIST and may_exist and entry is not None and entry.type == FILE:
                error = 0  # another member was first
            if error or entry is None:
                self.reply(unique, error=error or errno.ENOENT)
            else:
                if flags is not None:
                    self._opened[entry.handle] = self._opened.get(entry.handle, 0) + 1
                self.reply(unique, self._entry_reply(entry.handle) + tail)

        self.control.submit(Update(Op.CREATE, path, int(time.time())), done)

    def unlink(self, unique: int, parent: int, name: str) -> None:
        """A file that somebody here has open stays under another name until it is closed."""
        entry = None if parent == 1 and name in self.virtual else self._entry(parent).children.get(name)
        if entry is not None and self._opened.get(entry.handle):
            self._hide(unique, entry, lambda: self.reply(unique))
        else:
            self._delete(unique, parent, name)

    def _hide(self, unique: int, entry: Entry, go_on: Callable[[], None]) -> None:
        handle = entry.handle
        above = entry.path()[: -len(entry.name)]
        while True:
            target = f"{above}.fuse_hidden{handle:08x}{self._next_hidden:08x}"
            self._next_hidden += 1
            if self.memdb.lookup(target) is None:
                break

        def done(error: int) -> None:
            if error:
                self.reply(unique, error=error)
                return
            self._hidden.add(handle)
            if not self._opened.get(handle):
                self._remove_hidden(handle)  # closed while the cluster was asked
            go_on()

        self.control.submit(Update(Op.RENAME, entry.path(), int(time.time()), target=target), done)

    def _remove_hidden(self, handle: int) -> None:
        self._hidden.discard(handle)
        entry = self.memdb.handles.get(handle)
        if entry is not None:
            self.control.submit(Update(Op.DELETE, entry.path(), int(time.time())), lambda error: None)

    def rmdir(self, unique: int, parent: int, name: str) -> None:
        self._delete(unique, parent, name)

    def _delete(self, unique: int, parent: int, name: str) -> None:
        if parent == 1 and name in self.virtual:
            raise OSError(errno.EACCES, name)
        path = self._child_path(parent, name)
        self._submit(unique, Update(Op.DELETE, path, int(time.time())), lambda: b"")

    def rename(self, unique: int, parent: int, new_parent: int, name: str, new_name: str) -> None:
        if (parent == 1 and name in self.virtual) or (new_parent == 1 and new_name in self.virtual):
            raise OSError(errno.EACCES, name)
        source, target = self._child_path(parent, name), self._child_path(new_parent, new_name)

        def go_on() -> None:
            self._submit(unique, Update(Op.RENAME, source, int(time.time()), target=target), lambda: b"")

        old = self.memdb.lookup(target)
        if old is not None and source != target and self._opened.get(old.handle):
            self._hide(unique, old, go_on)
        else:
            go_on()

    def open(self, node: int, flags: int) -> bytes:
        item = self.by_handle.get(node)
        if item is None:
            self._entry(node)
            self._opened[node] = self._opened.get(node, 0) + 1
            return fuse.open_reply()
        return fuse.open_reply(self._remember(item.content()), fuse.OPEN_DIRECT_IO)

    def _remember(self, content: list[bytes] | bytes) -> int:
        file_handle = self._next_open
        self._next_open += 1
        self._open[file_handle] = content
        return file_handle

    def read(self, node: int, file_handle: int, offset: int, size: int) -> bytes:
        if file_handle:
            content = self._open[file_handle]
            assert isinstance(content, bytes)
            return content[offset : offset + size]
        return self._entry(node).data[offset : offset + size]

    def write(self, unique: int, node: int, offset: int, data: bytes) -> bytes | None:
        if node in self.by_handle:
            if not self.by_handle[node].mode & 0o200:
                raise OSError(errno.EIO, "virtual file")
            if offset or data not in (b"0\n", b"1\n"):
                raise OSError(errno.EIO, "expected 0 or 1 and a newline")
            self.control.log_debugging = data == b"1\n"
            return fuse.write_reply(len(data))
        if offset + len(data) > FILE_MAX:
            raise OSError(errno.EFBIG, "write")
        update = Update(Op.WRITE, self._entry(node).path(), int(time.time()), offset, data=data)
        self._submit(unique, update, lambda: fuse.write_reply(len(data)))
        return None

    def release(self, node: int, file_handle: int) -> bytes:
        if file_handle:
            self._open.pop(file_handle, None)
        elif self._opened.get(node, 0) > 1:
            self._opened[node] -= 1
        else:
            self._opened.pop(node, None)
            if node in self._hidden:
                self._remove_hidden(node)
        return b""

    def statfs(self) -> bytes:
        used = files = 0
        for entry in self.memdb.handles.values():
            used += (len(entry.data) + 4095) // 4096
            files += 1
        return fuse.statfs_reply(BLOCKS, max(0, BLOCKS - used), INODES, max(0, INODES - files))

    def opendir(self, node: int) -> bytes:
        entry = self._entry(node)
        if entry.type != DIRECTORY:
            raise OSError(errno.ENOTDIR, "opendir")
        parent = entry.parent or entry
        found = [(node, DIRECTORY, b"."), (parent.handle, DIRECTORY, b"..")]
        found += [(child.handle, child.type, encode(name)) for name, child in entry.children.items()]
        if node == 1:
            for name, item in self.virtual.items():
                found.append((item.handle, stat.S_IFMT(item.mode) >> 12, name.encode()))
        listing = [
            fuse.directory_entry(handle, position, kind, name)
            for position, (handle, kind, name) in enumerate(found, start=1)
        ]
        return fuse.open_reply(self._remember(listing))

    def readdir(self, file_handle: int, offset: int, size: int) -> bytes:
        listing = self._open[file_handle]
        assert isinstance(listing, list)
        chosen: list[bytes] = []
        for item in listing[offset:]:
            size -= len(item)
            if size < 0:
                break
            chosen.append(item)
        return b"".join(chosen)

    def releasedir(self, node: int, file_handle: int) -> bytes:
        return self.release(node, file_handle)
