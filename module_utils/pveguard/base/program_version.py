# SPDX-License-Identifier: Apache-2.0
"""The installed version of a program on a node, read without the program's own files; :mod:`.node_program` installs it."""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
from collections.abc import Mapping
from pathlib import Path

from .atomic import read_or_none

HOME = "/usr/local/lib/pveguard"


def version(wanted: Mapping[str, bytes]) -> str:
    """The name of the version with these files: 16 hexadecimal digits of a hash of names and contents."""
    digest = hashlib.sha256()
    for path, data in sorted(wanted.items()):
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]


def installed(name: str, command: str, root: Path = Path("/"), home: str = HOME) -> str:
    """The version that is called by ``command``; empty where there is none, or where it is not whole.

    A version is named by the hash of its files, so it proves itself.
    """
    link, called = root / home.lstrip("/") / name, root / command.lstrip("/")
    folder = linked(link)
    if folder is None or not called.is_symlink() or os.readlink(called) != way(called, link):
        return ""
    found = {}
    for top, _, names in os.walk(folder):
        if os.path.basename(top) == "__pycache__":
            continue
        for each in names:
            file = Path(top, each)
            if each.endswith(".py") and not is_compiled(file) or file == folder / name and not os.access(file, os.X_OK):
                return ""
            found[file.relative_to(folder).as_posix()] = file.read_bytes()
    digest = version(found)
    return digest if is_of(folder, digest) else ""


def way(command: Path, link: Path) -> str:
    """What the link at ``command`` says: through the program's own link, so that it never has to change."""
    return os.path.relpath(link / link.name, command.parent)


def linked(link: Path) -> Path | None:
    """The version that a link in the folder of versions leads to."""
    if not link.is_symlink():
        return None
    folder = link.parent / os.readlink(link)
    return folder if folder.parent == link.parent and folder.is_dir() else None


def is_of(folder: Path, name: str) -> bool:
    return folder.name.partition("-")[0] == name


def is_compiled(file: Path) -> bool:
    """Whether Python can load what is compiled of a file; of a damaged one a program would die at its start."""
    data = read_or_none(importlib.util.cache_from_source(str(file)))
    if data is None or data[:4] != importlib.util.MAGIC_NUMBER:
        return False
    try:
        marshal.loads(data[16:])
    except (EOFError, ValueError, TypeError):
        return False
    return True
