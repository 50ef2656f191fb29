# SPDX-License-Identifier: Apache-2.0
"""In which mode the daemon runs, and whether /etc/pve takes writes.

The daemon is in cluster mode if and only if its database held a corosync.conf when it started and it was not given the
option ``-l``. In local mode it has quorum by itself and /etc/pve takes writes. In cluster mode ``.members`` names the
cluster only once Corosync has run since the daemon started; until then /etc/pve is read-only, and that is not local mode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..base.run import Run
from ..base.run import run as real_run
from ..formats import corosync_conf
from . import places, pve_file
from .members import CLUSTER, LOCAL, judge, read

PID_FILE = Path(places.PID_FILE.lstrip("/"))
HOST_CONF = Path(places.HOST_CONF.lstrip("/"))


@dataclass(frozen=True)
class Mode:
    """``quorate``: None in local mode and where it is not known.

    ``met_corosync``: whether Corosync has run since a daemon in cluster mode started;
    None in local mode and where it is not known. ``members``: what ``.members`` says. ``error``: why that is not known.
    """

    mode: str
    quorate: bool | None
    writable: bool
    met_corosync: bool | None = None
    members: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def look(root: Path = Path("/"), has_conf: bool | None = None, run: Run = real_run) -> Mode:
    """The mode of the daemon that serves /etc/pve (which is mounted); never raises.

    ``has_conf``: whether its database holds a corosync.conf, None when that cannot be read. What is not known is never
    taken for local mode, and does not count as writable.
    """
    said, error = members(root, run)

    def again() -> Mapping[str, Any]:
        nonlocal said, error
        said, error = members(root, run)
        return said

    writable = error is None and pve_file.has_quorum(root)
    seen = judge(said, writable, again)
    # The second answer may have failed.
    writable = writable and error is None
    if seen.name == CLUSTER and seen.met:
        return Mode(CLUSTER, seen.quorate, writable and bool(seen.quorate), True, said)
    known = error is None and has_conf is not None
    if started_local(root):
        return Mode(LOCAL, None, writable, members=said, error=error)
    local = seen.name == LOCAL
    if error is not None:
        local = has_conf is False
    elif has_conf is None:
        local = local and not _host_of_cluster(root)
    if local:
        return Mode(LOCAL, None, writable and known, members=said, error=error)
    # What is not answered is neither a quorum nor its loss.
    return Mode(CLUSTER, None if error else False, False, None if error else False, said, error)


def members(root: Path = Path("/"), run: Run = real_run) -> tuple[dict[str, Any], str | None]:
    """What the daemon says in ``.members``, and why that is not known."""
    try:
        return read(str(root / pve_file.MOUNT.lstrip("/")), run), None
    except PveguardError as error:
        return {}, str(error)


def takes_writes(root: Path = Path("/"), run: Run = real_run) -> bool:
    """Whether /etc/pve, which is mounted, answers and takes writes."""
    said, error = members(root, run)
    cluster = said.get("cluster")
    quorate = not cluster or (isinstance(cluster, dict) and bool(cluster.get("quorate")))
    return error is None and quorate and pve_file.has_quorum(root)


def started_local(root: Path = Path("/")) -> bool:
    """Whether the daemon was started with -l, alone or among other short options, or --local."""
    try:
        pid = int((root / PID_FILE).read_text())
        words = (root / f"proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except (OSError, ValueError):
        return False
    for number, word in enumerate(words):
        if word.rpartition("/")[2] == "pmxcfs":
            return any(
                option == "--local" or re.fullmatch("-[a-zA-Z]*l[a-zA-Z]*", option)
                for option in words[number + 1 :]
            )
    return False


def _host_of_cluster(root: Path) -> bool:
    """Whether /etc/corosync/corosync.conf is a cluster's. Debian's example has no config_version; what cannot be judged is
    taken for one.
    """
    try:
        text = (root / HOST_CONF).read_text("utf-8", "surrogateescape")
        return bool(corosync_conf.parse(text).config_version)
    except FileNotFoundError:
        return False
    except (OSError, PveguardError):
        return True
