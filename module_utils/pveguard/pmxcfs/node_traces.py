"""What the cluster's configuration holds of one node: guests, jobs, HA, its directory; and the removal of that directory.

Read from the database of a member, in one transaction and without touching /etc/pve. A node that leaves must not be
needed by any of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import PveguardError
from ..formats import corosync_conf, section_config
from . import pmxcfs, pve_file
from .tree import FILE, Noise, guests_in

#: A host name: what /etc/pve/nodes has as directories.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*\Z")

Tree = Mapping[str, tuple[int, bytes]]


def collect(name: str, root: Path = Path("/"), patterns: Iterable[str] | None = None) -> dict[str, Any]:
    """What names the node ``name``. Raises PveguardError for no host name, or a database that cannot be read.

    ``patterns``: what is noise, as ``ram_state_noise``; the default list where None is given.

    ``guests``: ids with a configuration in its directory; ``replication``: jobs from or to it; ``ha_services``: HA
    resources that the manager has on it; ``ha_rules``: groups and rules of HA with it; ``storages`` and ``backup_jobs``
    that are restricted to it; ``files``: paths below /etc/pve of its directory, noise aside; ``directory``: whether that
    exists.
    """
    if not _NAME.match(name):
        raise PveguardError(f"{name!r} is no host name")
    return of_tree(name, pmxcfs.read_tree(root / pmxcfs.DATABASE)[1], pmxcfs.noise(patterns))


def lists(name: str, root: Path = Path("/")) -> bool:
    """Whether the cluster's corosync.conf lists the node. Raises PveguardError when it cannot be read."""
    text = _text(pmxcfs.read_tree(root / pmxcfs.DATABASE)[1], "corosync.conf")
    return corosync_conf.parse(text, "/etc/pve/corosync.conf").node(name) is not None


def of_tree(name: str, tree: Tree, noise: Noise) -> dict[str, Any]:
    """:func:`collect` of a tree as :func:`pmxcfs.read_tree` gives it."""
    own = f"nodes/{name}/"
    files = [path for path, (kind, _) in tree.items() if path.startswith(own) and kind == FILE]
    replication = sections(_text(tree, "replication.cfg"))
    groups = sections(_text(tree, "ha/groups.cfg")) + sections(_text(tree, "ha/rules.cfg"))
    return {
        "guests": guests_in({path: entry for path, entry in tree.items() if path.startswith(own)}),
        "replication": [job for job, keys in replication if name in (keys.get("target"), keys.get("source"))],
        "ha_services": _services(tree, name),
        "ha_rules": [found for found, keys in groups if name in _nodes(keys.get("nodes"))],
        "storages": [found for found, keys in sections(_text(tree, "storage.cfg")) if name in _nodes(keys.get("nodes"))],
        "backup_jobs": [found for found, keys in sections(_text(tree, "jobs.cfg")) if keys.get("node") == name],
        "files": sorted(path for path in files if not noise.leaves_out(path)),
        "directory": own.rstrip("/") in tree,
    }


def sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """``[(id, {key: value})]`` of a Proxmox section configuration."""
    return [(section.name, section.values) for section in section_config.parse(text).sections]


def remove_directory(
    name: str,
    shown: Sequence[str],
    root: Path = Path("/"),
    check: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    patterns: Iterable[str] | None = None,
) -> bool:
    """Remove /etc/pve/nodes/NAME; True when it was, or in ``check`` would be, there.

    ``shown``: the files that were named to whoever decided it. Raises PveguardError when others have come since, while
    corosync.conf lists the node, or when /etc/pve takes no writes; what a passing loss of quorum explains is tried again.
    """
    traces = collect(name, root, patterns)
    if not traces["directory"]:
        return False
    # In a dry run it has not been taken off yet.
    if not check and lists(name, root):
        raise PveguardError(f"corosync.conf lists {name}: its directory stays as long as it is a member")
    new = sorted(set(traces["files"]) - set(shown))
    if new:
        raise PveguardError(f"/etc/pve/nodes/{name} holds files that were not shown before: {', '.join(new[:8])}; run again")
    if check:
        return True
    pve_file.await_writable(root, sleep, clock)
    target = root / "etc/pve/nodes" / name
    try:
        pve_file.patiently(lambda: _remove(target), root, sleep, clock)
    except OSError as error:
        raise PveguardError(
            f"/etc/pve/nodes/{name}: {error.strerror}: it is removed in part at most; run again when /etc/pve takes writes "
            "('corosync-quorumtool -s')"
        ) from error
    return True


def _remove(target: Path) -> None:
    def failed(error: OSError) -> None:
        if error.errno != errno.ENOENT:
            raise error

    for directory, _, files in os.walk(target, topdown=False, onerror=failed):
        for file in files:
            Path(directory, file).unlink(missing_ok=True)
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass  # an earlier try did it, and its answer was lost


def _services(tree: Tree, name: str) -> list[str]:
    try:
        status = json.loads(_text(tree, "ha/manager_status"))["service_status"]
        return sorted(sid for sid, facts in status.items() if facts.get("node") == name)
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _nodes(value: str | None) -> list[str]:
    """Names of ``pve1,pve2:5`` (with priorities)."""
    return [part.split(":")[0].strip() for part in (value or "").split(",")]


def _text(tree: Tree, path: str) -> str:
    return tree.get(path, (8, b""))[1].decode("utf-8", "replace")
