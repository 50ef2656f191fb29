# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernel that measures set: at every boot by a file, and at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .parts import Work, text


def sysctl_path(key: str) -> str:
    """Where the kernel has a sysctl such as ``vm.swappiness``."""
    return f"/proc/sys/{key.replace('.', '/')}"


def read(keys: Mapping[str, str], root: Path) -> dict[str, int]:
    """``{key: value}`` of ``{key: path}``; what is not there is left out."""
    found = {key: text(root / path.lstrip("/")).strip() for key, path in keys.items()}
    return {key: int(value) for key, value in found.items() if value.lstrip("-").isdigit()}


def set_all(work: Work, values: Mapping[str, tuple[str, int]]) -> None:
    """``{key: (path, value)}``, those that differ."""
    for key, (path, value) in values.items():
        place = work.at(path)
        if text(place).strip() != str(value):
            place.write_text(f"{value}\n")
            work.done.append(f"{key} = {value}")
