# SPDX-License-Identifier: Apache-2.0
"""What is mounted. Imports little, as programs on a node start with it."""

from __future__ import annotations

import re


def mountinfo(root: str = "/") -> list[dict[str, str]]:
    """All mounts of this process in the order in which they were made; none where they cannot be read.

    ``root`` is / but in tests. Each has ``number`` (of its device, ``"254:16"``), ``mount_point``, ``mount_options``,
    ``filesystem`` (its type), ``source`` and ``filesystem_options``, which are those of the file system itself.
    """
    try:
        with open(f"{root.rstrip('/')}/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
            lines = handle.read().split("\n")
    except OSError:
        return []
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        # A source may be empty.
        fields, rest = left.split(" "), [*right.split(" "), "", ""]
        if len(fields) < 6 or not rest[0]:
            continue
        found.append(
            {
                "number": fields[2],
                "mount_point": _unescaped(fields[4]),
                "mount_options": fields[5],
                "filesystem": rest[0],
                "source": _unescaped(rest[1]),
                "filesystem_options": rest[2],
            }
        )
    return found


def _unescaped(text: str) -> str:
    """Blanks and backslashes are written as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
