# SPDX-License-Identifier: Apache-2.0
"""The own table of nftables on a host without Proxmox's firewall: a file, a unit that loads it at boot, and the way back.

The steps are those of the core ``firewall_change``, which asks here where the host is such a one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base import managed_file
from ..base.atomic import read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.managed_file import FileSpec
from ..base.run import CommandMissing, Run
from . import firewall_rules, firewall_undo
from .firewall_rules import NFTABLES_FILE, Options

KEPT_FOR = f"{firewall_rules.ROLE}.firewall"
UNIT = firewall_undo.TABLE_UNIT
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
WANTED = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"
UNIT_TEXT = f"""\
# Managed by pveguard.
[Unit]
Description=pveguard: what may come in to this host
DefaultDependencies=no
Wants=network-pre.target
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {NFTABLES_FILE}
ExecStop=/usr/sbin/nft delete table {firewall_rules.TABLE}

[Install]
WantedBy=multi-user.target
"""


def specs(text: str) -> list[FileSpec]:
    return [FileSpec(NFTABLES_FILE, text), FileSpec(UNIT_FILE, UNIT_TEXT), FileSpec(WANTED, link=UNIT_FILE)]


def plan(facts: Mapping[str, Any], options: Options, root: Path, run: Run) -> tuple[str, list[managed_file.Change]]:
    """The text of the file, and what would change. Raises PveguardError, also where nft does not take it."""
    text = firewall_rules.nftables(facts, options)
    changes = managed_file.plan(specs(text), KEPT_FOR, root)
    if changes:
        try:
            done = run(["nft", "-c", "-f", "-"], input=text)
        except CommandMissing:
            raise PveguardError("nft is not installed: 'apt install nftables'; nothing was changed") from None
        if not done.ok:
            raise PveguardError(f"nft does not take {NFTABLES_FILE}, nothing was changed: {' '.join(done.stderr.split())[-400:]}")
    return text, changes


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pend(pending: Path, root: Path) -> None:
    """What was there before, for the undo."""
    for name, path in (("rules", NFTABLES_FILE), ("unit", UNIT_FILE)):
        data = read_or_none(root / path.lstrip("/"))
        if data is not None:
            write_atomic(pending / f"{name}.before", data, 0o644)
        write_atomic(pending / f"{name}.path", path.encode(), 0o600)


def apply(text: str, root: Path, run: Run) -> Sequence[managed_file.Change]:
    changes = managed_file.apply(specs(text), KEPT_FOR, root)
    for argv in (["systemctl", "daemon-reload"], ["nft", "-f", str(root / NFTABLES_FILE.lstrip("/"))]):
        done = run(argv)
        if not done.ok:
            raise PveguardError(f"{' '.join(argv)}: {' '.join(done.stderr.split())[-400:] or f'code {done.rc}'}")
    return changes


def is_loaded(run: Run) -> bool:
    return run(["nft", "list", "table", *firewall_rules.TABLE.split()]).ok


def plan_revert(drift: str, root: Path) -> list[managed_file.Change]:
    return managed_file.plan_revert(KEPT_FOR, root, None, drift) if KEPT_FOR in managed_file.names(root) else []


def revert(drift: str, root: Path, run: Run) -> None:
    if KEPT_FOR not in managed_file.names(root):
        return
    managed_file.revert(KEPT_FOR, root, None, drift)
    run(["nft", "delete", "table", *firewall_rules.TABLE.split()])
    run(["systemctl", "daemon-reload"])


def forget(root: Path) -> None:
    """What the undo has put back is not kept any more, where nothing but the first change was made."""
    if KEPT_FOR in managed_file.names(root) and not managed_file.plan_revert(KEPT_FOR, root, None, managed_file.OVERWRITE):
        managed_file.revert(KEPT_FOR, root, None, managed_file.OVERWRITE)
