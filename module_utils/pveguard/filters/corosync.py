# SPDX-License-Identifier: Apache-2.0
"""Filters over what the nodes say of their Corosync: where they differ, and the inventory that describes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..base.host_variables import facts_of, rendered
from ..cluster import corosync_compare, corosync_export
from ..corosync import probe_members
from . import ROOT


def differences(hostvars: Any, hosts: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every cluster of the inventory with what its nodes have, where they differ and which copy to keep.

    ``{{ hostvars | pveguard_corosync_differences(ansible_play_hosts_all) }}``: see ``compare`` in the core
    ``corosync_compare``. Hosts that --limit leaves out are there as not asked.
    """
    nodes, wanted = {}, {}
    probes = []
    for host, own in rendered(hostvars).items():
        nodes[host] = facts_of(own)
        wanted[host] = own.get("corosync_cluster_name") or None
        if probe_members.is_described(own):
            probes.append(host)
    return corosync_compare.compare(nodes, wanted, probes)


def export(
    hostvars: Any, hosts: Collection[str], path: str = "", overwrite: bool = False, reports_dir: str = ""
) -> dict[str, Any]:
    """The inventory that describes the hosts of the play, and the file that it belongs into.

    ``{{ hostvars | pveguard_corosync_export(ansible_play_hosts_all, export_path) }}``: ``{path, text, hosts, notes,
    errors}``; with an error it must not be written. ``path``: the file, or a directory for a hosts.yml; below the reports
    when empty. A file that is there with another text is an error unless ``overwrite``.
    """
    nodes = {host: facts_of(hostvars[host]) for host in hosts}
    every = rendered(hostvars)
    wanted = {host: {name: every[host].get(name) for name in corosync_export.CONNECTION} for host in hosts}
    found = corosync_export.inventory(nodes, wanted)
    text = corosync_export.render(found)
    target = _target(path, found, reports_dir)
    errors = list(found.errors)
    try:
        there: str | None = target.read_text()
    except FileNotFoundError:
        there = None
    except (OSError, ValueError) as error:
        there = ""
        errors.append(f"{target} cannot be read: {error}")
    if there is not None and there != text and not overwrite:
        errors.append(
            f"{target} is there with another content: -e export_overwrite=true replaces it, -e export_path=FILE writes elsewhere"
        )
    return {"path": str(target), "text": text, "hosts": found.hosts(), "notes": found.notes, "errors": errors}


def _target(path: str, found: corosync_export.Inventory, reports_dir: str) -> Path:
    if not path:
        name = found.clusters[0] if len(found.clusters) == 1 else "nodes"
        # The name comes from a node.
        name = "".join(char if char.isalnum() or char in "-_" else "_" for char in name)
        return Path(reports_dir or ROOT / "reports").absolute() / "inventory" / name / "hosts.yml"
    target = Path(os.path.abspath(os.path.expanduser(path)))
    return target / "hosts.yml" if path.endswith("/") or target.is_dir() else target


FILTERS: dict[str, Callable[..., Any]] = {"pveguard_corosync_differences": differences, "pveguard_corosync_export": export}
