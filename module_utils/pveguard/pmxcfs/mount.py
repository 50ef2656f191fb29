# SPDX-License-Identifier: Apache-2.0
"""The mount of the cluster file system: whether it is there, and whether it takes writes.

Imports little, as programs on a node start with it.
"""

from __future__ import annotations

import os

from ..base.mountinfo import mountinfo

#: (mount point, type, source, options)
Mount = tuple[str, str, str, str]


def mounts(root: str = "/") -> list[Mount]:
    """All mounts of this process in the order in which they were made; none where they cannot be read.

    ``root`` is / but in tests.
    """
    return [
        (each["mount_point"], each["filesystem"], each["source"], each["filesystem_options"]) for each in mountinfo(root)
    ]


def on_top(point: str, among: list[Mount]) -> Mount | None:
    """The topmost mount on a mount point, None when there is none."""
    return next((mount for mount in reversed(among) if mount[0] == point), None)


def is_fuse(point: str, among: list[Mount]) -> bool:
    """Whether a FUSE file system, which the daemon's is, is mounted there."""
    mount = on_top(point, among)
    return mount is not None and mount[1].startswith("fuse")


def answers(path: str) -> bool:
    """True when ``path`` is the mount point of a FUSE file system that answers."""
    try:
        parent = os.path.dirname(path.rstrip("/"))
        return is_fuse(os.path.realpath(path), mounts()) and os.stat(path).st_dev != os.stat(parent).st_dev
    except OSError:
        return False


def has_write_bits(path: str) -> bool | None:
    """Whether the modes of the file system at ``path`` let it be written; None where there is nothing.

    Without quorum the link ``local``, and where that is missing the mount itself, has no write bits. A daemon in cluster mode
    whose Corosync has not run yet has none.
    """
    for each in (f"{path}/local", path):
        try:
            return bool(os.lstat(each).st_mode & 0o222)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return None
