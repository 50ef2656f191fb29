# SPDX-License-Identifier: Apache-2.0
"""Nodes that are gone and whose directory still lies on /etc/pve.

``pvecm delnode`` takes a node off corosync.conf and leaves /etc/pve/nodes/NAME, with its TLS key, and root's SSH key of it in
/etc/pve/priv/authorized_keys. Guests configured there run nowhere and can be started nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..base.errors import PveguardError
from ..formats import corosync_conf
from .tree import DIRECTORY, FILE, GUEST_FOLDERS

#: All that lies where configurations of guests do, a copy under another name too.
_GUESTS = re.compile(rf"nodes/[^/]+/(?:{'|'.join(GUEST_FOLDERS)})/[^/]+")
AUTHORIZED_KEYS = "priv/authorized_keys"

Tree = Mapping[str, tuple[int, bytes]]


def of_tree(tree: Tree, own_name: str) -> list[dict[str, Any]]:
    """The directories below nodes/ that belong to no node, by name; empty where the names of the nodes are not known.

    ``tree``: as :func:`tree.read_tree` gives it. ``own_name``: of this node, the only one where there is no corosync.conf.
    Each is ``{name, guests: paths of configurations, files: number of all files, private_key: bool (a TLS key lies there),
    authorized_key: bool (root's SSH key of it is still accepted)}``.
    """
    names = _members(tree, own_name)
    if names is None:
        return []
    found = []
    for path, (kind, _) in sorted(tree.items()):
        folder, _, name = path.partition("/")
        if folder != "nodes" or not name or "/" in name or kind != DIRECTORY or name in names:
            continue
        files = [each for each, (type_, _) in tree.items() if each.startswith(f"{path}/") and type_ == FILE]
        found.append(
            {
                "name": name,
                "guests": sorted(each for each in files if _GUESTS.fullmatch(each)),
                "files": len(files),
                "private_key": any(each.endswith(".key") for each in files),
                "authorized_key": _authorized(tree, name),
            }
        )
    return found


def _members(tree: Tree, own_name: str) -> Collection[str] | None:
    conf = tree.get("corosync.conf")
    if conf is None:
        return {own_name}
    try:
        names = [node.name for node in corosync_conf.parse(conf[1].decode("utf-8", "replace"), "/etc/pve/corosync.conf").nodes()]
    except PveguardError:
        return None
    # An address in the place of a name says nothing about the directory; and a list without this node is not its own.
    known = {name for name in names if name and corosync_conf.address(name) is None}
    return known if len(known) == len(names) and own_name in known else None


def _authorized(tree: Tree, name: str) -> bool:
    lines = tree.get(AUTHORIZED_KEYS, (FILE, b""))[1].decode("utf-8", "replace").splitlines()
    return any(line.split()[-1:] == [f"root@{name}"] for line in lines if not line.lstrip().startswith("#"))
