# SPDX-License-Identifier: Apache-2.0
"""The facts of all areas of the hardening verdict, in one look that changes nothing and never raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ..base.run import Run
from ..base.run import run as real_run
from . import accounts, auditd, firewall, others, pveproxy, sshd, sysctl, updates
from .looking import Facts

AREAS: dict[str, Callable[[Path, Run], Facts]] = {
    "sshd": sshd.look,
    "firewall": firewall.look,
    "sysctl": sysctl.look,
    "accounts": accounts.look,
    "pveproxy": pveproxy.look,
    "auditd": auditd.look,
    "updates": updates.look,
    "others": others.look,
}


def collect(areas: Iterable[str] = (), root: Path = Path("/"), run: Run = real_run) -> dict[str, Facts]:
    """``{area: facts}``; all of AREAS where none is named."""
    return {name: AREAS[name](root, run) for name in list(areas) or AREAS}
