# SPDX-License-Identifier: Apache-2.0
"""Files of sysctl.d: what they set, and what counts at every boot where several set the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .atomic import read_or_none
from .errors import PveguardError

#: Of files of one name the first folder's counts (sysctl.d(5)); all are read in the order of their names.
FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")


class Line(NamedTuple):
    path: str
    key: str
    value: str


def normal(key: str) -> str:
    """A key with dots, as sysctl has it: where its first separator is a slash, the two change places."""
    first = re.search(r"[./]", key)
    return key.translate(str.maketrans("./", "/.")) if first and first[0] == "/" else key


def parse(text: str) -> dict[str, str]:
    """``{key: value}`` of a file; the last one counts. A leading ``-`` only hides errors."""
    found = {}
    for line in text.split("\n"):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.lstrip("-").partition("=")
        if equals:
            found[normal(key.strip())] = value.strip()
    return found


def in_order(root: Path) -> list[Line]:
    """What all files set, in the order in which they are read. What cannot be read sets nothing."""
    names: dict[str, str] = {}
    for folder in FOLDERS:
        for each in (root / folder.lstrip("/")).glob("*.conf"):
            names.setdefault(each.name, f"{folder}/{each.name}")
    return [
        Line(names[name], key, value)
        for name in sorted(names)
        for key, value in parse(_text(root / names[name].lstrip("/"))).items()
    ]


def refuse(what: str, switch: str, files: Mapping[str, str], root: Path) -> None:
    """Raises PveguardError where a later file sets what one of ``files`` (path -> text) is to set. ``what`` wants that, by the
    variable ``switch``.
    """
    for path, content in files.items():
        if not path.startswith(f"{FOLDERS[0]}/"):
            continue
        after = [line for line in in_order(root) if line.path.rpartition("/")[2] > path.rpartition("/")[2]]
        later = {line.key: line for line in after}
        for key, value in parse(content).items():
            if key in later and later[key].value != value:
                raise PveguardError(
                    f"{what}: {later[key].path} sets {key} = {later[key].value}, and is read after {path}, so it would count "
                    f"again at the next boot: take the line out there, or set {switch}: false. Nothing was changed"
                )


def _text(path: Path) -> str:
    try:
        # A FIFO in the place of a file would block.
        return (read_or_none(path) or b"").decode("utf-8", "replace") if path.is_file() else ""
    except OSError:
        return ""
