"""Where the lab keeps its files: everything lies below one ignored folder, ``.lab/`` in the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import LabError

REPOSITORY = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


def lab_root() -> Path:
    """``.lab/`` of this repository, or ``$PVEGUARD_LAB_ROOT``."""
    return Path(os.environ.get("PVEGUARD_LAB_ROOT") or REPOSITORY / ".lab")


def images_dir() -> Path:
    return lab_root() / "images"


def labs_dir() -> Path:
    return lab_root() / "labs"


def check_name(name: str, what: str = "lab name") -> str:
    """Return ``name`` when it is fit for a directory, a host name and QEMU, else raise :class:`LabError`."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{what} {name!r}: use 1 to 31 of a-z, 0-9 and '-', beginning with a letter or digit")
    return name


def node_name(number: int) -> str:
    return f"pve{number}"


def node_number(name: str) -> int:
    return int(name.removeprefix("pve"))


def ring_address(number: int) -> str:
    """Address of node ``number`` on the cluster network (eth1)."""
    return f"10.77.0.{number}"
