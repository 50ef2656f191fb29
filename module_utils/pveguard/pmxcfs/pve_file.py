"""Files on /etc/pve, written the way the cluster file system allows and only when it is really mounted.

It gives every file the mode its path dictates (0640, or 0600 below priv/) and the owner root:www-data; chmod
to anything else fails there, as do tools that copy a file with its mode. A file left beneath the mount point
would stop the daemon's next start.
"""

from __future__ import annotations

import errno
import os
import posixpath
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..base import supervised
from ..base.atomic import read_or_none
from ..base.errors import PveguardError
from . import mount
from .places import MOUNT as MOUNT

#: Largest file the cluster file system takes, in bytes.
MAX_BYTES = 1024 * 1024
#: Made by the daemon itself; nothing can be written to them.
VIRTUAL = frozenset({".version", ".members", ".vmlist", ".rrd", ".clusterlog"})
#: What the daemon answers when there is no quorum.
_READ_ONLY = (errno.EACCES, errno.EROFS, errno.EPERM)
#: What a change of the membership explains, so that it may be over in a moment.
_PASSING = (*_READ_ONLY, errno.EIO, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT)
#: Seconds that such a moment may last.
PATIENCE_S = 20.0
#: Seconds that one call may take. A daemon whose connection to the cluster broke never answers a write.
ANSWER_S = 20.0


@dataclass(frozen=True)
class Change:
    """What a file is and becomes; None when it does not exist."""

    path: str
    before: bytes | None
    after: bytes | None

    @property
    def changed(self) -> bool:
        return self.before != self.after


def is_mounted(root: Path = Path("/")) -> bool:
    """True when /etc/pve is the mount point of a FUSE file system that answers."""
    return is_mounted_at(root / MOUNT.lstrip("/"))


def is_mounted_at(at: Path) -> bool:
    """True when ``at`` is the mount point of a FUSE file system that answers."""
    return mount.answers(str(at))


def has_quorum(root: Path = Path("/")) -> bool:
    """False when the file system is read-only: without quorum the link ``local``, and where that is missing the mount itself,
    has no write bits. A daemon in cluster mode whose Corosync has not run yet has none.
    """
    return mount.has_write_bits(str(root / MOUNT.lstrip("/"))) is not False


def require_writable(root: Path = Path("/")) -> None:
    """Raise PveguardError unless /etc/pve is the mounted file system and takes writes."""
    if not is_mounted(root):
        raise PveguardError(
            f"{MOUNT} is not mounted, and a file written beneath it would keep the daemon from starting: "
            "start it with "
            "'systemctl start pve-cluster' and look at 'journalctl -u pve-cluster' if it fails"
        )
    if not has_quorum(root):
        raise PveguardError(
            f"{MOUNT} is read-only because this node has no quorum: see 'corosync-quorumtool -s' and bring "
            "the other "
            "members back first"
        )


def await_writable(
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    deadline_s: float = PATIENCE_S,
) -> None:
    """As :func:`require_writable`, but a lack of quorum may be over within ``deadline_s`` seconds."""
    end = clock() + deadline_s
    while is_mounted(root) and not has_quorum(root) and clock() < end:
        sleep(0.5)
    require_writable(root)


def resolve(path: str) -> str:
    """The path relative to /etc/pve. Raises PveguardError for anything outside it or not writable by
    nature."""
    normal = posixpath.normpath(path)
    if not normal.startswith(f"{MOUNT}/") or ".." in path.split("/"):
        raise PveguardError(f"{path}: wanted an absolute path below {MOUNT}")
    relative = normal[len(MOUNT) + 1 :]
    if relative in VIRTUAL:
        raise PveguardError(f"{path} is made by the daemon itself and cannot be written")
    return relative


def plan(path: str, content: bytes | None, root: Path = Path("/")) -> Change:
    """What :func:`apply` would change. ``content`` None means that the file must not exist.

    On a node without the file system nothing exists yet. Raises PveguardError for a refused path or content.
    """
    relative = resolve(path)
    if content is not None and len(content) > MAX_BYTES:
        raise PveguardError(
            f"{path}: {len(content)} bytes; the cluster file system takes at most {MAX_BYTES} per file"
        )
    if not is_mounted(root):
        return Change(path, None, content)
    target = root / MOUNT.lstrip("/") / relative
    if target.is_dir():
        raise PveguardError(f"{path} is a directory; wanted a file")
    return Change(path, read_or_none(target), content)


def apply(
    path: str,
    content: bytes | None,
    root: Path = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Change:
    """Bring a file to its content and return what changed. Parent directories are made.

    What fails for want of quorum is tried for :data:`PATIENCE_S` seconds. Raises PveguardError when the file system is
    not mounted, has no quorum, or the file reads back differently.
    """
    change = plan(path, content, root)
    await_writable(root, sleep, clock)
    if not change.changed:
        return change
    target = root / MOUNT.lstrip("/") / resolve(path)

    def write() -> None:
        if content is None:
            target.unlink(missing_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_in_place(target, content, change.before)

    try:
        patiently(write, root, sleep, clock)
        if read_or_none(target) != content:
            raise PveguardError(f"{path} reads back differently from what was written; another node may write it too")
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise PveguardError(
                f"{path}: {error.strerror}: quorum was lost, or the path cannot be written; see "
                "'corosync-quorumtool -s'"
            ) from error
        raise PveguardError(f"{path}: {error.strerror}; see 'journalctl -u pve-cluster'") from error
    return change


def patiently(
    action: Callable[[], object],
    root: Path | None = Path("/"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    deadline_s: float = PATIENCE_S,
) -> None:
    """Do ``action``, which changes /etc/pve and may be done twice, again as long as a passing loss of quorum explains that
    it fails, for ``deadline_s`` seconds. Raises the last OSError; ETIMEDOUT when the daemon does not answer. ``root`` is None
    where the action makes nothing, so that the mount need not be looked at.
    """
    end = clock() + deadline_s
    while True:
        try:
            # Beneath the mount point it would keep the daemon from starting.
            if root is not None and not is_mounted(root):
                raise OSError(errno.ENOTCONN, f"{MOUNT} is not mounted any more")
            return answered(action)
        except OSError as error:
            if error.errno not in _PASSING or clock() >= end:
                raise
        sleep(0.5)


def answered(action: Callable[[], object], answer_s: float = ANSWER_S) -> None:
    """Do ``action`` in a process of its own, so that a daemon that never answers does not hang this one.

    It may raise OSError, which is raised here again; ETIMEDOUT when it is not done after ``answer_s`` seconds.
    """

    def work() -> dict[str, str]:
        try:
            action()
        except OSError:
            raise
        except Exception:  # it would die with that process, unseen
            return {"mistake": traceback.format_exc()}
        return {"done": "yes"}

    try:
        done = supervised.ask(work, answer_s)
    except supervised.Stalled:
        raise OSError(errno.ETIMEDOUT, f"no answer from the daemon within {answer_s:g} s") from None
    if "mistake" in done:
        raise RuntimeError(done["mistake"])
    if not done:
        raise OSError(errno.EIO, "the process that was to write it was ended")


def write_in_place(target: Path, content: bytes, before: bytes | None = None) -> None:
    """Write without chmod and without a rename. Only a file that becomes shorter is cut first, so that the
    others never are empty for a moment; each write replaces the whole row of the database, so it is one
    write."""
    flags = os.O_WRONLY | os.O_CREAT
    if before is None or len(before) > len(content):
        flags |= os.O_TRUNC
    fd = os.open(target, flags, 0o640)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
