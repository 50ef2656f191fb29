"""What waits for a restart of Corosync on this node, remembered until that restart.

A setting that Corosync takes only at its start is in corosync.conf before it is in force. Where a run ends in between, the
file is as it was wanted and nothing else tells. The note lies in /run, because a boot is a restart, and names the run of
the unit (systemd's InvocationID) that it was made in, so that any restart settles it, also one by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.atomic import write_atomic
from ..base.run import Run
from ..base.run import run as real_run
from ..base.systemd import properties
from ..formats import corosync_conf
from ..formats.corosync_conf import CorosyncConfError
from ..pmxcfs import places

NOTE = Path("run/pveguard/corosync-restart.json")
CONF = Path(places.HOST_CONF.lstrip("/"))
UNIT = "corosync.service"


def announce(keys: Sequence[str], run: Run = real_run, root: str | Path = "/") -> bool:
    """Note before a change that ``keys`` will wait for a restart; True when it was noted.

    Nothing is noted where Corosync does not run: its start takes everything. What waits already goes on waiting, also
    after :func:`withdraw`.
    """
    invocation = _invocation(run)
    if not invocation:
        return False
    former = _note(root)
    note = {"keys": list(keys), "config_version": _version(root), "invocation": invocation, "former": None}
    if former is not None and former["invocation"] == invocation:
        note["former"] = former
    _write(note, root)
    return True


def waiting(run: Run = real_run, root: str | Path = "/") -> list[str]:
    """The settings that wait for a restart, none without a note.

    systemd is asked only where there is a note. A note whose change was never written (the file still has the version of
    before) says nothing.
    """
    note = _note(root)
    if note is None or note["invocation"] != _invocation(run):
        return []
    version = _version(root)
    found: set[str] = set()
    while note is not None:
        if version > note["config_version"]:
            found.update(note["keys"])
        note = note["former"]
    return sorted(found)


def withdraw(run: Run = real_run, root: str | Path = "/") -> bool:
    """The change that was announced is out of the file again; True when the note changed.

    Where Corosync was restarted since, it runs what is no longer in the file, so that the former values wait now.
    """
    note, invocation = _note(root), _invocation(run)
    if note is None or not invocation:
        return False
    if note["invocation"] != invocation:
        _write({**note, "invocation": invocation, "former": None}, root)
    elif note["former"] is not None:
        _write(note["former"], root)
    else:
        (Path(root) / NOTE).unlink(missing_ok=True)
    return True


def _version(root: str | Path) -> int:
    """config_version of the file that Corosync reads at its start; 0 where there is none or it cannot be read."""
    try:
        text = (Path(root) / CONF).read_text("utf-8", "replace")
        return corosync_conf.parse(text, f"/{CONF}").config_version or 0
    except (OSError, CorosyncConfError):
        return 0


def _invocation(run: Run) -> str:
    """Of the run of Corosync that goes on, empty without one."""
    values = properties(UNIT, ["InvocationID", "ActiveState"], run)
    return values.get("InvocationID", "") if values.get("ActiveState") == "active" else ""


def _note(root: str | Path) -> dict[str, Any] | None:
    try:
        note = json.loads((Path(root) / NOTE).read_text())
    except (OSError, ValueError):
        return None
    return note if _is_note(note) else None


def _is_note(note: Any) -> bool:
    return (
        isinstance(note, dict)
        and isinstance(note.get("keys"), list)
        and all(isinstance(key, str) for key in note["keys"])
        and isinstance(note.get("config_version"), int)
        and isinstance(note.get("invocation"), str)
        and (note.get("former") is None or _is_note(note["former"]))
    )


def _write(note: dict[str, Any], root: str | Path) -> None:
    path = Path(root) / NOTE
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(note, sort_keys=True) + "\n").encode(), 0o644)
