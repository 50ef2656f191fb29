# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the scenario corosync have of corosync.conf, and how its playbooks are called."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pveguard.formats import corosync_conf

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]
Playbook = Callable[..., Done]
Look = Callable[..., dict[str, "Seen"]]

#: Seconds in which a change must have arrived; an emulated member needs up to 5, and longer on a busy machine.
ARRIVAL_SECONDS = 60

LOOK = r"""
import json, re, subprocess
def out(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
def text(path):
    try:
        return open(path, encoding="utf-8", errors="replace").read()
    except OSError:
        return None
quorum, cmap = out("corosync-quorumtool", "-s"), out("corosync-cmapctl")
def number(key):
    found = re.search(rf"^{re.escape(key)} \(\S+\) = (\d+)", cmap, re.M)
    return int(found.group(1)) if found else None
print(json.dumps({
    "cluster": text("/etc/pve/corosync.conf"), "host": text("/etc/corosync/corosync.conf"),
    "running": number("totem.config_version"), "token_ms": number("runtime.config.totem.token"),
    "quorate": bool(re.search(r"^Quorate:\s+Yes", quorum, re.M)),
    "live": sorted(int(n) for n in re.findall(r"^ +([0-9]+) +[0-9]+ ", quorum.partition("Membership information")[2], re.M)),
    "key": out("sha256sum", "/etc/corosync/authkey").split(" ")[0],
}))
"""


class Seen:
    """What a node has: the texts of both copies, the config_version that runs, the membership."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.cluster: str | None = facts["cluster"]
        self.host: str | None = facts["host"]
        self.running: int | None = facts["running"]
        self.token_ms: int | None = facts["token_ms"]
        self.quorate: bool = facts["quorate"]
        self.live: list[int] = facts["live"]
        self.key: str = facts["key"]

    @property
    def version(self) -> int:
        return corosync_conf.parse(self.cluster or "").config_version or 0

    def lacks(self, members: list[int]) -> str:
        """What this node has not as a member in order has it."""
        if self.live != members or not self.quorate:
            return f"members {self.live}, quorate {self.quorate}"
        if self.cluster is None or self.cluster != self.host:
            return "the copies differ"
        return "" if self.running == self.version else f"runs {self.running}, the file has {self.version}"


def arguments_of(name: str, *arguments: str, reports: Path, inventory: Path | None = None, **variables: Any) -> list[str]:
    variables = {"pveguard_reports_dir": str(reports), "__corosync_change_deadline": ARRIVAL_SECONDS, **variables}
    more = ["-i", str(inventory)] if inventory else []
    base = ["ansible-playbook", "-i", str(ROOT / "inventory/lab"), *more, str(ROOT / name)]
    return [*base, *arguments, "-e", json.dumps(variables)]


def environment() -> dict[str, str]:
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}


def plain(done: Done) -> str:
    """The output on one line: Ansible breaks long messages."""
    return " ".join((done.stdout + (done.stderr or "")).split())


def changed(done: Done) -> int:
    return sum(int(number) for number in re.findall(r"\bchanged=(\d+)", done.stdout))
