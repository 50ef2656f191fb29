# SPDX-License-Identifier: Apache-2.0
"""Facts of nodes as the module node_info returns them, for clusters in every state of disorder."""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any

from ansible.module_utils.pveguard.corosync import corosync_info
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_edit

NAME = "production"


@functools.cache
def conf(version: int = 5, nodes: int = 3, note: str = "", **settings: Any) -> str:
    """A corosync.conf of ``nodes`` nodes pve1, pve2, ...; ``note`` makes another text of the same meaning."""
    members = [{"name": f"pve{n}", "node_id": n, "links": [f"10.0.0.{n}", f"10.1.0.{n}"]} for n in range(1, nodes + 1)]
    text = corosync_edit.render_new(settings.pop("name", NAME), members, config_version=version, **settings)
    return text + (f"# {note}\n" if note else "")


def a_copy(text: str | None) -> dict[str, Any] | None:
    """As corosync_info returns it."""
    if text is None:
        return None
    try:
        version = corosync_conf.parse(text).config_version
    except corosync_conf.CorosyncConfError:
        version = None
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "config_version": version, "text": text}


def node(
    number: int,
    cluster: str | None = "",
    host: str | None = "",
    *,
    live: tuple[int, ...] = (1, 2, 3),
    quorate: bool | None = True,
    running: bool = True,
    runs: int | None = 5,
    mode: str = "cluster",
    root_version: int | None = 1000,
    tree: str = "t",
    authkey: str | None = "a" * 64,
    **more: Any,
) -> dict[str, Any]:
    """Node ``pveN``. ``cluster`` and ``host`` are the texts of its copies: empty for the usual one, None for none."""
    cluster = conf() if cluster == "" else cluster
    host = conf() if host == "" else host
    members: list[dict[str, Any]] = []
    name = None
    for text in (host, cluster):
        try:
            document = corosync_conf.parse(text or "")
        except corosync_conf.CorosyncConfError:
            continue
        if document.nodes():
            name = document.cluster_name
            members = [corosync_info._member(each, (False, False)) for each in document.nodes()]
    info = {
        "installed": True,
        "running": running,
        "cluster_name": name,
        "host": a_copy(host),
        "cluster": a_copy(cluster),
        "copies_equal": host == cluster if host and cluster else None,
        "example_conf": False,
        "running_config_version": runs if running else None,
        "member_config_versions": {str(n): runs for n in live} if running else {},
        "members": members,
        "live_member_ids": list(live) if running else [],
        "quorate": quorate if running else None,
        "expected_votes": 3,
        "total_votes": len(live),
        "authkey_sha256": authkey,
        "authkey_mode": "0400" if authkey else None,
        "authkey_exposed": False,
        "qdevice": False,
        "two_node": False,
        "token_ms": 3125,
        "configured_token_ms": 3000,
        "node_id": number if running else None,
        "restart_pending": [],
        "links": [],
        "link_statistics": None,
        "errors": [],
    }
    facts: dict[str, Any] = {
        "hostname": f"pve{number}",
        "packages": {"pve-cluster": "9.1.6", "corosync": "3.1.9"},
        "pmxcfs": {
            "mounted": mode != "down",
            "writable": mode == "local" or bool(quorate),
            "mode": mode,
            "quorate": quorate if mode == "cluster" else None,
            "root_version": root_version,
            "tree_sha256": tree,
            "guests": [100 + number],
            "has_corosync_conf": cluster is not None,
            "database_bytes": 40960,
            "member_addresses": {f"pve{n}": f"192.0.2.{n}" for n in range(1, len(members) + 1)},
            "error": None,
        },
        "corosync": info,
        "ha": {"installed": False, "resources": []},
        "ram_state": {"state": "absent"},
    }
    for key, value in more.items():
        facts[key] = {**facts.get(key, {}), **value} if isinstance(value, dict) else value
    return copy.deepcopy(facts)


def healthy(nodes: int = 3) -> dict[str, dict[str, Any]]:
    live = tuple(range(1, nodes + 1))
    text = conf(nodes=nodes)
    return {f"pve{n}": node(n, text, text, live=live) for n in live}


def assert_shape_is_that_of_the_module() -> None:
    """The facts above have the keys that corosync_info returns, no more and no fewer."""
    assert set(node(1)["corosync"]) == set(corosync_info.collect(root="/nowhere"))
