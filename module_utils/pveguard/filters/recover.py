# SPDX-License-Identifier: Apache-2.0
"""Filters of playbooks/recover.yml: the plan from what the nodes say, and the copies that the controller keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from ..base.host_variables import facts_of, rendered
from ..cluster import corosync_recover, recovery_plan
from ..corosync import probe_members
from . import ROOT


def recover(
    hostvars: Any, asked: Collection[str], hosts: Collection[str], done: Collection[str] = (), choice: str = ""
) -> dict[str, Any]:
    """What is to be done, over all clusters: ``{healthy, steps, next, open, lines, hosts}``.

    ``{{ hostvars | pveguard_recover(ansible_play_hosts, ansible_play_hosts_all) }}``. ``asked``: the hosts that answered in
    this run and are still in it; the facts of another one are old. ``next`` is the first of ``steps``, ``{}`` without any;
    ``open`` what no step repairs; ``hosts`` those whose state is saved first.
    """
    if not isinstance(asked, (list, tuple)) or not isinstance(hosts, (list, tuple)):
        raise AnsibleFilterError("pveguard_recover takes the hosts that answered and all hosts of the play")
    every = rendered(hostvars)
    nodes = {host: facts_of(own) if host in asked else None for host, own in every.items()}
    wanted = {host: own.get("corosync_cluster_name") or None for host, own in every.items()}
    probes = [host for host, own in every.items() if probe_members.is_described(own)]
    found = recovery_plan.plan(nodes, wanted, done, choice, probes)
    steps = [step for cluster in found for step in cluster["steps"]]
    return {
        "healthy": all(cluster["healthy"] for cluster in found),
        "steps": steps,
        "next": steps[0] if steps else {},
        "open": [f"{cluster['cluster']}: {text}" for cluster in found for text in cluster["open"]],
        "lines": [line for cluster in found for line in cluster["lines"]],
        "hosts": [host for cluster in found if not cluster["healthy"] for host in cluster["hosts"]],
    }


def recover_words(confirm: Any) -> list[str]:
    """The decisions that ``recover_confirm`` names: a list, or words with commas between them."""
    if isinstance(confirm, (list, tuple)):
        return [str(word).strip() for word in confirm]
    return [word.strip() for word in str(confirm or "").split(",") if word.strip()]


def recover_files(
    hostvars: Mapping[str, Any], saved: Mapping[str, str], reports_dir: str = ""
) -> list[dict[str, str]]:
    """Both copies of corosync.conf of each host as files for the controller, a key in them masked.

    ``saved``: host -> the directory that its state was saved to; its name is that of the directory here.
    """
    base = Path(reports_dir or ROOT / "reports").absolute() / "recover"
    files = []
    for host, directory in saved.items():
        info = (facts_of(hostvars[host]) or {}).get("corosync") or {}
        for key, name in (("cluster", "etc-pve-corosync.conf"), ("host", "etc-corosync-corosync.conf")):
            if info.get(key):
                parts = [re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in (host, Path(directory).name)]
                text = corosync_recover.masked(str(info[key]["text"]))
                files.append({"path": str(base.joinpath(*parts, name)), "content": text, "mode": "0640"})
    return files


FILTERS: dict[str, Callable[..., Any]] = {
    "pveguard_recover": recover,
    "pveguard_recover_words": recover_words,
    "pveguard_recover_files": recover_files,
}
