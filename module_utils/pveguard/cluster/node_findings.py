# SPDX-License-Identifier: Apache-2.0
"""What the facts of ``node_info`` say of one node, judged by the cores of each subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.findings import Finding, with_others
from ..corosync import corosync_findings, probe_members
from ..ha import ha_findings
from ..pmxcfs import left_nodes_findings, pmxcfs_findings
from ..state import status_findings


def of_node(node: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """What is there and what is wrong with it. ``plan``: what becomes of the node, may be empty."""
    found = [*_names(node), *_filesystem(node), *_corosync(node), *ha_findings.of_facts(node)]
    # What a probe stores is nobody's, also where it has left its cluster.
    if plan.get("action") != "probe":
        found = with_others(found, _ram(node))
    return [*found, *_found(pmxcfs_findings.login(bool(node["login"]["authorized_keys_depends_on_pve"])))]


def _names(node: Mapping[str, Any]) -> list[Finding]:
    return _found(pmxcfs_findings.host_name(str(node.get("hostname")), node.get("resolved_address")))


def _filesystem(node: Mapping[str, Any]) -> list[Finding]:
    pmxcfs = node["pmxcfs"]
    if not node["packages"].get("pve-cluster"):
        return [pmxcfs_findings.absent()]
    database = pmxcfs["database_bytes"] is not None if "database_bytes" in pmxcfs else None
    down = pmxcfs_findings.mounted(bool(pmxcfs["mounted"]), database)
    if down:
        return [down]
    found = _found(pmxcfs_findings.understood(pmxcfs.get("error")))
    if pmxcfs["mode"] == "cluster":
        members, live = probe_members.members_up(node["corosync"])
        found += _found(corosync_findings.quorum(pmxcfs["quorate"], pmxcfs.get("met_corosync"), live, members or None))
    found += [left_nodes_findings.finding(each) for each in pmxcfs.get("left_nodes") or []]
    return [*found, pmxcfs_findings.content(pmxcfs["mode"], pmxcfs["guests"], pmxcfs.get("database_bytes"))]


def _corosync(node: Mapping[str, Any]) -> list[Finding]:
    corosync, pmxcfs = node["corosync"], node["pmxcfs"]
    if pmxcfs["mode"] != "cluster" and not pmxcfs["has_corosync_conf"]:
        return []
    found = []
    host, cluster = corosync.get("host"), corosync.get("cluster")
    if host and cluster and not corosync.get("copies_equal"):
        found.append(corosync_findings.copies(cluster.get("config_version"), host.get("config_version")))
    found += _found(
        corosync_findings.running(corosync.get("running_config_version"), (host or {}).get("config_version")),
        corosync_findings.service(bool(corosync.get("running")), pmxcfs.get("met_corosync"), alone=pmxcfs["mode"] == "local"),
        corosync_findings.authkey(bool(corosync.get("authkey_exposed")), corosync.get("authkey_mode")),
    )
    name = corosync.get("cluster_name")
    if probe_members.is_one(node):
        found.append(corosync_findings.probe(name))
    members, live = probe_members.members_up(corosync)
    found += _found(corosync_findings.members(name, live, members, corosync.get("quorate")))
    return found + corosync_findings.votes(members, bool(corosync.get("two_node")), bool(corosync.get("qdevice")))


def _ram(node: Mapping[str, Any]) -> list[Finding]:
    status = node["ram_state"]
    if status.get("state") not in status_findings.STOCK:
        return status_findings.of_status(status)
    resources = node["ha"].get("resources") or []
    return _found(status_findings.on_disk(bool(node["pmxcfs"]["mounted"]), probe_members.is_one(node), resources))


def _found(*found: Finding | None) -> list[Finding]:
    return [each for each in found if each]
