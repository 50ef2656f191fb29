# SPDX-License-Identifier: Apache-2.0
"""What is at a path, in a form that can be compared, kept and sent to the controller."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

ABSENT: dict[str, Any] = {"kind": "absent"}


def look(target: Path) -> dict[str, Any]:
    """``{kind: absent | file | link | other}`` with what tells it from another of its kind: ``sha256``, ``mode`` (octal text),
    ``uid`` and ``gid`` of a file, ``target`` of a link, ``what`` it is else.
    """
    try:
        found = os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return dict(ABSENT)
    if stat.S_ISLNK(found.st_mode):
        return {"kind": "link", "target": os.readlink(target)}
    if not stat.S_ISREG(found.st_mode):
        return {"kind": "other", "what": "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"}
    return of_file(target.read_bytes(), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def of_file(data: bytes, mode: int, uid: int, gid: int) -> dict[str, Any]:
    """What :func:`look` says of a regular file."""
    return {"kind": "file", "sha256": hashlib.sha256(data).hexdigest(), "mode": f"{mode:04o}", "uid": uid, "gid": gid}
