# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old or the new text after a power cut, never something between.

Programs on a node start with this, at boot and at every stop: no pathlib, no tempfile.
"""

from __future__ import annotations

import os


def read_or_none(path: str | os.PathLike[str]) -> bytes | None:
    """The file's bytes, or None when it does not exist (a dangling link counts as missing)."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make a rename or unlink in the directory ``path`` survive a power cut."""
    _fsync(path, os.O_DIRECTORY)


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Make the content of a file that others have written survive a power cut."""
    _fsync(path)


def _fsync(path: str | os.PathLike[str], flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    """Replace ``path`` by ``data``: temporary file in the same directory, fsync, rename, fsync of the directory.

    ``mode`` is octal permission bits; ``uid``/``gid`` are set only when running as root. The directory must exist.
    A power cut may leave the temporary file, ``.NAME.`` and twelve hexadecimal digits.
    """
    folder, name = _split(path)
    # By chance, and never one that is there: others may write to the directory of a user.
    temporary = os.path.join(folder, f".{name}.{os.urandom(6).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            if os.geteuid() == 0:
                os.fchown(handle.fileno(), uid, gid)
            os.fsync(handle.fileno())
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise
    fsync_dir(folder)


def link_atomic(path: str | os.PathLike[str], to: str) -> None:
    """Make ``path`` a symbolic link to ``to``, in place of whatever file or link is there. The directory must exist."""
    folder, name = _split(path)
    # One name: what a power cut left is taken away by the next.
    temporary = os.path.join(folder, f".{name}.new")
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        pass
    os.symlink(to, temporary)
    os.rename(temporary, path)
    fsync_dir(folder)


def _split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The directory of a path, and its name there."""
    folder, name = os.path.split(os.fspath(path))
    return folder or ".", name
