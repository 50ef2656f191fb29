# SPDX-License-Identifier: Apache-2.0
"""What the daemon says in its file ``.members``, and in which mode it works by that.

Imports little, as programs on a node start with it.
"""

from __future__ import annotations

import json

from ..base.errors import PveguardError
from .places import MOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ..base.run import Ask

_FILE = f"{MOUNT}/.members"
LOCAL, CLUSTER = "local", "cluster"
#: What an operator is told of a daemon in cluster mode that has not met its Corosync.
NOT_MET = "its Corosync has not run since the daemon started: /etc/pve is read-only"
#: Until the daemon answers; one that hangs must not hang who asks.
ANSWER_S = 10.0


def parse(text: str) -> Any:
    """The text of ``.members``: ``{nodename, version, cluster: {name, version, nodes, quorate}, nodelist: {NAME: {id, online,
    ip}}}``, without a cluster the first two. Raises ValueError where it is not JSON, or nested too deep; other JSON is given
    back as it is, for :func:`unknown_members`.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def ask(pve: str, run: Ask) -> object:
    """What the daemon at ``pve`` says, as JSON. Raises PveguardError when it does not answer, or not in JSON.

    Read by a child: a daemon that hangs would hold this process too.
    """
    done = run(["cat", f"{pve}/.members"], timeout=ANSWER_S)
    if not done.ok:
        raise PveguardError(f"{_FILE} cannot be read: {' '.join(done.stderr.split()) or f'cat ended with {done.rc}'}")
    try:
        return parse(done.stdout)
    except ValueError as error:
        raise PveguardError(f"{_FILE} cannot be read: it is not JSON: {error}") from error


def known(said: Any) -> dict[str, Any]:
    """What was said, as it is. Raises PveguardError when that is not as the daemon is known to say it."""
    unknown = unknown_members(said)
    if unknown:
        raise PveguardError(f"{_FILE} is not as it is known ({unknown}), so members and quorum are not known")
    found: dict[str, Any] = said
    return found


def read(pve: str, run: Ask) -> dict[str, Any]:
    """:func:`ask` and :func:`known`."""
    return known(ask(pve, run))


def unknown_members(said: object) -> str | None:
    """What of the text in ``.members`` is not as the daemon is known to write it, None when all of it is.

    Without a key ``cluster`` it has nothing but the node's name and a version; what else may stand there is not taken for a
    node without a cluster.
    """
    if not isinstance(said, dict):
        return "it is no JSON object"
    if "cluster" not in said:
        if not isinstance(said.get("nodename"), str) or not said["nodename"]:
            return "it has no nodename"
        others = sorted(str(key) for key in said if key not in ("nodename", "version"))
        return f"it has no cluster but {', '.join(others[:5])}" if others else None
    cluster, nodes = said["cluster"], said.get("nodelist", {})
    if not isinstance(cluster, dict) or cluster.get("quorate") not in (0, 1):
        return "its cluster does not say quorate 0 or 1"
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        return "its nodelist does not tell of each node by its name"
    return None


def names_by_id(said: Mapping[str, Any]) -> dict[int, str]:
    """``{node id: name}`` of the nodes that were told of."""
    nodes = said.get("nodelist") or {}
    return {int(node["id"]): str(name) for name, node in nodes.items() if str(node.get("id", "")).isdecimal()}


def offline(said: Mapping[str, Any]) -> list[str]:
    """Names of members that Corosync does not see."""
    return sorted(str(name) for name, node in (said.get("nodelist") or {}).items() if node.get("online") == 0)


class Judged:
    """How the daemon works by what it says. ``name``: :data:`CLUSTER`, :data:`LOCAL`, or None where that is not known.
    ``quorate``: None in local mode and where it is not known. ``met`` is False when Corosync has not run since a daemon in
    cluster mode started.
    """

    def __init__(self, name: str | None, quorate: bool | None = None, met: bool = True) -> None:
        self.name, self.quorate, self.met = name, quorate, met


def judge(said: Mapping[str, Any], writable: bool, again: Callable[[], Mapping[str, Any]]) -> Judged:
    """The mode of the daemon that serves /etc/pve. ``said``: by :func:`known`, {} where it is not known. ``writable``: whether
    the file system's own modes let it be written, looked at after that. ``again`` asks once more.

    Cluster mode if and only if the database held a corosync.conf when the daemon started, without -l. ``.members`` names
    the cluster only once Corosync has run since then. The database of now is not asked: what it holds counts from the next
    start on. In local mode the daemon has quorum by itself, so what is read-only is in cluster mode.
    """
    if said and not said.get("cluster") and writable:
        # Corosync may have come between the two looks.
        said = again()
    if not said:
        return Judged(None)
    cluster = said.get("cluster")
    if cluster:
        return Judged(CLUSTER, bool(cluster.get("quorate")))
    return Judged(LOCAL) if writable else Judged(CLUSTER, False, met=False)
