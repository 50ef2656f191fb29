"""What /etc/pve holds of HA, read by a child process: a daemon that hangs must not hang who asks."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import supervised
from ..pmxcfs import pve_file

#: Seconds until all of it is read.
ANSWER_S = 20.0
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_FILES = {
    "resources": "ha/resources.cfg",
    "groups": "ha/groups.cfg",
    "rules": "ha/rules.cfg",
    "manager": "ha/manager_status",
    "commands": "ha/crm_commands",
}


@dataclass(frozen=True)
class Files:
    """``texts``: of each file that exists, by its path below /etc/pve. ``nodes``: names below ``nodes/``. ``there``: it is
    mounted, or looks so; ``quorate``: it takes writes. ``error``: why what it holds is not known; all else is empty then.
    """

    there: bool = False
    quorate: bool = False
    nodes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    def text(self, name: str) -> str:
        """Text of ``resources``, ``groups``, ``rules``, ``manager`` or ``commands``; empty where there is no such file."""
        return self.texts.get(_FILES[name], "")

    def has(self, name: str) -> bool:
        return _FILES[name] in self.texts

    @property
    def manager(self) -> dict[str, Any] | None:
        """manager_status; None where there is none, or it is no JSON object."""
        return json_object(self.texts.get(_FILES["manager"]))

    @property
    def lrms(self) -> dict[str, dict[str, Any] | None]:
        """``{node: lrm_status}`` of the nodes that have one; None for one that is no JSON object."""
        paths = {node: f"nodes/{node}/lrm_status" for node in self.nodes}
        return {node: json_object(self.texts[path]) for node, path in paths.items() if path in self.texts}


def json_object(text: str | None) -> dict[str, Any] | None:
    """None for everything else."""
    try:
        value = json.loads((text or "").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read(root: Path = Path("/")) -> Files:
    """All of it; never raises, but SystemExit when a signal asks this process to end."""
    try:
        found = supervised.ask(lambda: _read(root), ANSWER_S)
    except supervised.Stalled:
        return Files(error=f"{pve_file.MOUNT} does not answer within {ANSWER_S:g} s")
    except OSError as error:
        return Files(error=f"{pve_file.MOUNT} cannot be read: {error.strerror}")
    return _files(found)


def read_here(root: Path = Path("/")) -> Files:
    """As :func:`read`, in this process, which a daemon that does not answer hangs."""
    return _files(_read(root))


def _files(found: dict[str, Any]) -> Files:
    if "there" not in found:
        return Files(error=found.get("error") or f"{pve_file.MOUNT} cannot be read: the process that was to read it was ended")
    return Files(found["there"], found["quorate"], tuple(found["nodes"]), found["texts"])


def _read(root: Path) -> dict[str, Any]:
    pve = root / pve_file.MOUNT.lstrip("/")
    path = pve
    try:
        # What lies beneath the mount point is nobody's configuration. Elsewhere (in tests) it is no mount point.
        there = pve_file.is_mounted(root) if root == Path("/") else (pve / "ha").is_dir() or (pve / "nodes").is_dir()
        if not there:
            # Not mounted is no error; a daemon that is gone and left its mount is one.
            list(pve.iterdir())
            return {"there": False, "quorate": pve_file.has_quorum(root), "nodes": [], "texts": {}}
        path = pve / "nodes"
        nodes = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
        texts = {}
        for name in [*_FILES.values(), *(f"nodes/{node}/lrm_status" for node in nodes)]:
            path = pve / name
            try:
                texts[name] = path.read_text(errors="replace")
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
    except FileNotFoundError:
        return {"there": False, "quorate": pve_file.has_quorum(root), "nodes": [], "texts": {}}
    except OSError as error:
        return {"error": f"/{path.relative_to(root)} cannot be read: {error.strerror}"}
    return {"there": True, "quorate": pve_file.has_quorum(root), "nodes": nodes, "texts": texts}
