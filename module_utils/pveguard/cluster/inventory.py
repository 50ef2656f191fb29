"""Mistakes in an inventory that can be seen without connecting to any host.

The contract: a host is clustered when ``corosync_cluster_name`` is set for it; then it also has ``corosync_node_id``
(1 to 65535; to 4294967295 where ``corosync_totem`` names the transport udp or udpu of the cluster) and ``corosync_links``
(a list of addresses, index = link number). Hosts without these stay stand-alone. A host of the group ``pve_probe`` watches
such a cluster and has the same variables. A host may be named by its address: the node's name is then its own host name,
which is known once it was asked.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ..base.variables import UNKNOWN
from ..corosync import probe_members
from ..formats import corosync_conf

#: Variables of former releases: name -> what to set instead. A run that still sets one fails and names it.
REMOVED_VARIABLES: dict[str, str] = {}

#: corosync.conf(5): knet carries at most 8 links.
MAX_LINKS = 8

_SECRET_NAME = re.compile(r"(?:^|_)(?:password|passwd|passphrase|secret|authkey|private_key|api_token|become_pass|ssh_pass)$")
_IPV4 = re.compile(r"^\d{1,3}(?:\.\d{1,3}){3}$")
# What corosync-cfgtool, pvecm and file names on /etc/pve take as a host name.
_HOST_NAME = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$")
_CLUSTER_NAME = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,13}[A-Za-z0-9])?$")


def inventory_errors(
    hosts: Mapping[str, Mapping[str, Any]],
    *,
    group_clusters: Mapping[str, str] | None = None,
    host_groups: Mapping[str, Iterable[str]] | None = None,
    known_variables: Iterable[str] = (),
    prefixes: Iterable[str] = (),
    plain_secrets: Mapping[str, Iterable[tuple[str, str]]] | None = None,
) -> list[str]:
    """Every mistake as one line of text, in a stable order; an empty list when there is none.

    ``hosts``: host name -> its variables, ``UNKNOWN`` for a value of which a mistake is known already. ``group_clusters``:
    group -> the ``corosync_cluster_name`` the group itself sets. ``host_groups``: host -> its groups. ``known_variables``:
    every documented variable; a variable that starts with one of ``prefixes`` and is not known is a mistake.
    ``plain_secrets``: host -> (variable, where) of secrets found in plain text.
    """
    errors: list[str] = []
    errors += _cluster_errors(hosts)
    errors += _two_cluster_errors(group_clusters or {}, host_groups or {})
    errors += _probe_errors(hosts, host_groups or {})
    errors += _noise_errors(hosts)
    errors += _variable_errors(hosts, set(known_variables), tuple(prefixes))
    errors += _secret_errors(plain_secrets or {})
    return errors


def _noise_errors(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The trees of a cluster's members are compared without noise, so what is noise must be the same for all of them."""
    lists: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for host, variables in hosts.items():
        name, noise = variables.get("corosync_cluster_name"), variables.get("ram_state_noise")
        if name and UNKNOWN not in (name, noise):
            lists[str(name)]["unset" if noise is None else str(noise)].append(host)
    return [
        f"{name}: ram_state_noise differs between its members "
        f"({'; '.join(f'{_join(members)}: {noise}' for noise, members in found.items())}); set it once, in the cluster's group"
        for name, found in lists.items()
        if len(found) > 1
    ]


def is_secret_name(name: str) -> bool:
    """True for variables whose value must be vaulted, such as ``ansible_password`` or ``corosync_authkey``."""
    return bool(_SECRET_NAME.search(name))


def _cluster_errors(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    errors: list[str] = []
    clusters: dict[str, list[str]] = defaultdict(list)
    for host, variables in hosts.items():
        name = variables.get("corosync_cluster_name")
        if name is UNKNOWN:
            errors += _node_errors(host, variables)
            continue
        if not name:
            for variable in ("corosync_node_id", "corosync_links"):
                if variables.get(variable) is not None:
                    errors.append(
                        f"{host}: {variable} is set but corosync_cluster_name is not; set corosync_cluster_name in the "
                        f"cluster's group, or remove {variable} to leave the host stand-alone"
                    )
            continue
        if not _CLUSTER_NAME.match(str(name)):
            errors.append(
                f"{host}: corosync_cluster_name {name!r} is not 1 to 15 letters, digits and hyphens (Proxmox's limit)"
            )
        clusters[str(name)].append(host)
        if corosync_conf.address(host) is None and not _HOST_NAME.match(corosync_conf.short_name(host)):
            errors.append(f"{host}: is not a valid host name for a cluster node (letters, digits, hyphens)")
        errors += _node_errors(host, variables)

    for cluster, members in clusters.items():
        ids: dict[int, list[str]] = defaultdict(list)
        names: dict[str, list[str]] = defaultdict(list)
        link_counts: dict[int, list[str]] = defaultdict(list)
        for host in members:
            node_id = _as_int(hosts[host].get("corosync_node_id"))
            if node_id is not None:
                ids[node_id].append(host)
            names[corosync_conf.address_key(corosync_conf.short_name(host))].append(host)
            links = hosts[host].get("corosync_links")
            if isinstance(links, list) and links:
                link_counts[len(links)].append(host)
        for node_id, same in sorted(ids.items()):
            if len(same) > 1:
                errors.append(f"cluster {cluster}: corosync_node_id {node_id} is set for {_join(same)}; each needs its own")
        for short, same in names.items():
            if len(same) > 1:
                errors.append(f"cluster {cluster}: {_join(same)} share the node name {short!r}")
        if len(link_counts) > 1:
            shown = "; ".join(f"{count}: {_join(same)}" for count, same in sorted(link_counts.items()))
            errors.append(
                f"cluster {cluster}: corosync_links has not the same number of addresses on every host ({shown}); "
                "each host needs one address for each link"
            )

    addresses: dict[str, list[str]] = defaultdict(list)
    for members in clusters.values():
        for host in members:
            links = hosts[host].get("corosync_links")
            if isinstance(links, list):
                for number, address in enumerate(links):
                    if address is UNKNOWN:
                        continue
                    addresses[corosync_conf.address_key(str(address))].append(f"{host} (link {number})")
    for address, users in addresses.items():
        if address and len(users) > 1:
            errors.append(f"address {address} of corosync_links is used by {_join(users)}; each link needs its own")
    return errors


def _node_errors(host: str, variables: Mapping[str, Any]) -> list[str]:
    errors: list[str] = []
    node_id = variables.get("corosync_node_id")
    if node_id is UNKNOWN:
        pass
    elif node_id is None:
        errors.append(f"{host}: corosync_cluster_name is set but corosync_node_id is missing; give each node a number from 1")
    else:
        number = _as_int(node_id)
        totem = variables.get("corosync_totem")
        transport = str(totem.get("transport") or "knet") if isinstance(totem, Mapping) else "knet"
        highest = corosync_conf.MAX_NODE_ID.get(transport, corosync_conf.MAX_NODE_ID["knet"])
        if number is None or not 1 <= number <= highest:
            what = f"; that is what corosync's transport {transport} takes" if number is not None and number > highest else ""
            errors.append(f"{host}: corosync_node_id {node_id!r} is not a whole number from 1 to {highest}{what}")
    links = variables.get("corosync_links")
    if links is UNKNOWN:
        pass
    elif links is None or links == []:
        errors.append(
            f"{host}: corosync_links is missing; list the node's address on each corosync link, e.g. corosync_links: [10.0.0.1]"
        )
    elif not isinstance(links, list):
        errors.append(f"{host}: corosync_links {links!r} is not a list; write corosync_links: [{links}]")
    else:
        if len(links) > MAX_LINKS:
            errors.append(f"{host}: corosync_links has {len(links)} addresses; corosync takes at most {MAX_LINKS}")
        for number, address in enumerate(links):
            problem = _address_problem(address)
            if problem:
                errors.append(f"{host}: corosync_links[{number}] {problem}")
    return errors


def _address_problem(address: Any) -> str:
    import ipaddress

    if address is UNKNOWN:
        return ""
    if address is None or str(address).strip() == "":
        return "is empty; give the node's address on this link"
    text = str(address)
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        if _IPV4.match(text) or ":" in text:
            return f"{text!r} is not a valid IP address"
        if not all(_HOST_NAME.match(part) for part in text.removesuffix(".").split(".")):
            return f"{text!r} is neither an IP address nor a host name"
        return ""
    if parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified:
        return f"{text!r} is not an address that other nodes can reach"
    return ""


def _two_cluster_errors(group_clusters: Mapping[str, str], host_groups: Mapping[str, Iterable[str]]) -> list[str]:
    errors = []
    for host, groups in host_groups.items():
        seen = {group: str(group_clusters[group]) for group in groups if group_clusters.get(group)}
        if len(set(seen.values())) > 1:
            shown = ", ".join(f"{cluster} (group {group})" for group, cluster in sorted(seen.items()))
            errors.append(f"{host}: is in the groups of several clusters: {shown}; a node belongs to one cluster only")
    return errors


def _probe_errors(hosts: Mapping[str, Mapping[str, Any]], host_groups: Mapping[str, Iterable[str]]) -> list[str]:
    errors = []
    probes = [host for host in hosts if probe_members.GROUP in host_groups.get(host, ())]
    watched = {str(variables.get("corosync_cluster_name")) for host, variables in hosts.items() if host not in probes}
    for host in probes:
        cluster = hosts[host].get("corosync_cluster_name")
        if cluster is UNKNOWN:
            continue
        if not cluster:
            errors.append(
                f"{host}: is in the group {probe_members.GROUP} but corosync_cluster_name is not set: name the cluster that "
                "it is to watch. Nodes by themselves have no ring that a probe could watch"
            )
        elif str(cluster) not in watched and str(UNKNOWN) not in watched:
            errors.append(f"{host}: is a probe of the cluster {cluster}, of which the inventory has no node")
    return errors


def _variable_errors(
    hosts: Mapping[str, Mapping[str, Any]], known: set[str], prefixes: tuple[str, ...]
) -> list[str]:
    unknown: dict[str, list[str]] = defaultdict(list)
    removed: dict[str, list[str]] = defaultdict(list)
    for host, variables in hosts.items():
        for name in variables:
            if name in REMOVED_VARIABLES:
                removed[name].append(host)
            elif prefixes and name.startswith(prefixes) and name not in known:
                unknown[name].append(host)
    errors = [
        f"{_join(where)}: the variable {name} was removed: {REMOVED_VARIABLES[name]}" for name, where in sorted(removed.items())
    ]
    for name, where in sorted(unknown.items()):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "; see the variable tables in roles/*/README.md"
        errors.append(f"{_join(where)}: {name} is not a variable of pveguard{hint}")
    return errors


def _secret_errors(plain: Mapping[str, Iterable[tuple[str, str]]]) -> list[str]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for host, items in plain.items():
        for name, where in items:
            found[(name, where)].append(host)
    return [
        f"{_join(hosts)}: {name} is a secret in plain text ({where}); encrypt it with "
        f"'ansible-vault encrypt_string --name {name}' or move it to a vaulted file"
        for (name, where), hosts in sorted(found.items())
    ]


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(str(value))
    except ValueError:
        return None


def _join(names: Iterable[str]) -> str:
    items = list(names)
    if len(items) > 6:
        return ", ".join(items[:5]) + f" and {len(items) - 5} more"
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]
