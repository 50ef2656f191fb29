# SPDX-License-Identifier: Apache-2.0
"""What is judged about nodes that are gone and whose directory still lies on /etc/pve; apart from :mod:`.left_nodes`, so that the
facts of a node do not carry it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..base.findings import WARNING, Finding, check, some
from . import left_nodes

LEFT = check(
    "node-left-behind",
    WARNING,
    "A directory below /etc/pve/nodes belongs to no node (any more)",
    "Remove it where that node is gone for good; move guests that are configured in it to the node that holds their disks.",
    "rm -r /etc/pve/nodes/NAME",
)


def finding(left: Mapping[str, Any]) -> Finding:
    """What is wrong with one directory of :func:`left_nodes.of_tree`.

    A command that removes it is given only where no guest is configured in it.
    """
    name = str(left["name"])
    guests: Sequence[str] = left["guests"]
    shown = ascii(name)[1:-1]
    text = f"/etc/pve/nodes/{shown} belongs to no node (any more)"
    if guests:
        first = some([ascii(each.removeprefix(f"nodes/{name}/"))[1:-1] for each in guests])
        text += f", and guests are configured in it ({first}) that no node runs"
        fix = "move each to the directory of the node that holds its disks, with mv, or remove it"
    else:
        kept = f" ({left['files']} files{', its TLS key among them' if left['private_key'] else ''})" if left["files"] else ""
        text += kept
        fix = f"if that node is gone for good, remove it with 'rm -r {shlex.quote(f'/etc/pve/nodes/{shown}')}'"
    if left["authorized_key"]:
        fix += f". Its root may still log in: take the line of root@{shown} out of /etc/pve/{left_nodes.AUTHORIZED_KEYS}"
    return LEFT(text, fix=fix)
