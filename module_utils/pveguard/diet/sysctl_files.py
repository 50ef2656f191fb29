# SPDX-License-Identifier: Apache-2.0
"""Files of sysctl.d that are read after one of pveguard's: what they set counts at every boot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..base.errors import PveguardError
from .parts import text

#: Of files of one name the first folder's counts (sysctl.d(5)); all are read in the order of their names.
FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")


def refuse(name: str, files: Mapping[str, str], root: Path) -> None:
    """Raises PveguardError where a later file sets what one of ``files`` (path -> text) is to set, for the measure ``name``."""
    for path, content in files.items():
        if path.startswith(f"{FOLDERS[0]}/"):
            later = _later(path, root)
            for key, value in _settings(content).items():
                if key in later and later[key][1] != value:
                    at, found = later[key]
                    raise PveguardError(
                        f"write diet, {name}: {at} sets {key} = {found}, and is read after {path}, so it would count again at "
                        f"the next boot: take the line out there, or set write_diet_{name}: false. Nothing was changed"
                    )


def _later(path: str, root: Path) -> dict[str, tuple[str, str]]:
    """``{key: (path, value)}`` of all files that are read after ``path``."""
    names: dict[str, str] = {}
    for folder in FOLDERS:
        for each in (root / folder.lstrip("/")).glob("*.conf"):
            names.setdefault(each.name, f"{folder}/{each.name}")
    found = {}
    for name in sorted(names):
        if name > path.rpartition("/")[2]:
            for key, value in _settings(text(root / names[name].lstrip("/"))).items():
                found[key] = names[name], value
    return found


def _settings(content: str) -> dict[str, str]:
    """``key = value`` lines; a key may be written with slashes, and a minus before it ignores errors."""
    found = {}
    for line in content.splitlines():
        if match := re.match(r"\s*-?([a-z][\w./-]*)\s*=\s*(.*?)\s*$", line):
            found[match[1].replace("/", ".")] = match[2]
    return found
