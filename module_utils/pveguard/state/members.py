# SPDX-License-Identifier: Apache-2.0
"""The daemon's mode and the members of its cluster, as /etc/pve says."""

from __future__ import annotations

from ..base.errors import PveguardError
from ..pmxcfs.members import CLUSTER, LOCAL, NOT_MET, ask, judge, read
from ..pmxcfs.mount import has_write_bits
from .rows import is_member
from .system import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..pmxcfs.members import Judged
    from .paths import Paths


def members_said(paths: Paths) -> Any:
    """What /etc/pve/.members holds, None when it does not answer."""
    try:
        return ask(paths.pve, run)
    except PveguardError:
        return None


def members_file(paths: Paths) -> dict[str, Any]:
    """What /etc/pve/.members says; {} when it does not answer, or not as it is known."""
    try:
        return read(paths.pve, run)
    except PveguardError:
        return {}


ALONE = "the daemon works alone (local mode) although this node is a member of a cluster: what is written here rolls the \
others back when it meets them"


def daemon_mode(
    paths: Paths, members: Mapping[str, Any], again: Callable[[], Mapping[str, Any]] | None = None
) -> Judged:
    """How the daemon that serves /etc/pve works; ``members`` is what :func:`members_file` said, ``again`` asks once more.
    Its ``quorate`` is always known here: in local mode it is whether the node is no member.
    """
    mode = judge(members, takes_writes(paths), again or (lambda: members_file(paths)))
    if mode.name != CLUSTER:
        mode.quorate = mode.name == LOCAL and not is_member(paths)
    return mode


def said_quorate(paths: Paths) -> bool:
    """Whether the daemon names a cluster and says that it is quorate."""
    return bool((members_file(paths).get("cluster") or {}).get("quorate"))


def takes_writes(paths: Paths) -> bool:
    """Whether the file system's own modes let /etc/pve be written."""
    return bool(has_write_bits(paths.pve))


def no_quorum(mode: Judged) -> str:
    """Why this node has no quorum, for people; "" when it has, or needs none."""
    if mode.name is None:
        return (
            "/etc/pve/.members does not answer, or not as it is known, so whether there is quorum is not known; see "
            "'journalctl -u pve-cluster' and 'cat /etc/pve/.members'"
        )
    if not mode.met:
        return f"{NOT_MET}; see 'systemctl status corosync'"
    if mode.name == LOCAL:
        return "" if mode.quorate else f"{ALONE}; see 'systemctl status pve-cluster'"
    return "" if mode.quorate else "the cluster is not quorate; bring it to quorum first"
