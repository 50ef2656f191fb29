"""Files that are either the old or the new text after a power cut, never something between."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def read_or_none(path: str | os.PathLike[str]) -> bytes | None:
    """The file's bytes, or None when it does not exist (a dangling link counts as missing)."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make a rename or unlink in the directory ``path`` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    """Replace ``path`` by ``data``: temporary file in the same directory, fsync, rename, fsync of the directory.

    ``mode`` is octal permission bits; ``uid``/``gid`` are set only when running as root. The directory must exist.
    """
    target = Path(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            if os.geteuid() == 0:
                os.fchown(handle.fileno(), uid, gid)
            os.fsync(handle.fileno())
        os.rename(temporary, target)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise
    fsync_dir(target.parent)


def link_atomic(path: str | os.PathLike[str], to: str) -> None:
    """Make ``path`` a symbolic link to ``to``, in place of whatever file or link is there. The directory must exist."""
    link = Path(path)
    # One name: what a power cut left is taken away by the next.
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(to)
    temporary.rename(link)
    fsync_dir(link.parent)
