# SPDX-License-Identifier: Apache-2.0
"""Files of a node as it looks while a daemon serves /etc/pve, in the states in which a daemon can be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.corosync.cluster_facts import conf
from tests.corosync.fakes import make_database

#: What ``.members`` holds in local mode, and in cluster mode until Corosync has run since the daemon started.
UNNAMED: dict[str, Any] = {"nodename": "pve1", "version": 0}


def serve(
    root: Path,
    *,
    members: Mapping[str, Any] | str | None = UNNAMED,
    writable: bool = True,
    database: Mapping[str, str] | None = None,
    host: str | None = None,
    options: str | None = None,
) -> Path:
    """``members``: None for none. ``writable``: by the link ``local``. ``database``: its files, None for none. ``host``: text
    of /etc/corosync/corosync.conf. ``options``: of the daemon's command line, None where its PID is not known.
    """
    for folder in ("proc/self", "etc/pve", "etc/corosync", "var/lib/pve-cluster", "run"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text("36 25 0:32 / /etc/pve rw,nosuid - fuse /dev/fuse rw\n")
    if members is not None:
        (root / "etc/pve/.members").write_text(members if isinstance(members, str) else json.dumps(members))
    link(root / "etc/pve", writable)
    if database is not None:
        make_database(root / "var/lib/pve-cluster/config.db", database)
    if host is not None:
        (root / "etc/corosync/corosync.conf").write_text(host)
    if options is not None:
        (root / "run/pve-cluster.pid").write_text("4711\n")
        (root / "proc/4711").mkdir()
        (root / "proc/4711/cmdline").write_text(
            "\0".join(["/usr/bin/python3", "-IS", "/usr/bin/pmxcfs", *options.split(), ""])
        )
    return root


def unconnected(root: Path, files: Mapping[str, str] | None = None) -> Path:
    """A member whose daemon was started and whose Corosync has not run since: read-only, and no cluster in ``.members``."""
    return serve(root, writable=False, database={"corosync.conf": conf(), **(files or {})}, host=conf())


def link(pve: Path, writable: bool) -> None:
    """The link ``local``. A link of an ordinary file system always has all its bits, so it is a directory here."""
    (pve / "local").mkdir(exist_ok=True)
    os.chmod(pve / "local", 0o755 if writable else 0o555)
