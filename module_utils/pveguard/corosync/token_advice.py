"""How long the token timeout of a ring has to be for the links and disks it has. It advises and writes nothing.

Totem passes one token around the ring. corosync.conf(5):

* the timeout in force is ``token + (nodes - 2) * token_coefficient`` with three nodes or more;
* a node that passed the token on and sees nothing of it sends it again after
  ``token / (token_retransmits_before_loss_const + 0.2)``, four times by default, before the ring is formed anew;
* a warning is logged when 75 % of the timeout have gone by without the token (``token_warning``).

A slow round must not look like a lost token, so one round has to fit into the time of one retransmit:

    round  = nodes * p99 of the round-trip time + sum of the nodes' p99 of fsync
    needed = round * (token_retransmits_before_loss_const + 0.2)

That is cautious on purpose: a hop takes half a round-trip time, and rarely do all nodes wait for their disk in the same
round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..base.units import number_text

#: corosync.conf(5): token and token_coefficient in ms since corosync 3.1, token_retransmits_before_loss_const,
#: token_warning.
DEFAULT_TOKEN_MS = 3000
DEFAULT_COEFFICIENT_MS = 650
RETRANSMITS = 4
WARNING_SHARE = 0.75


def effective_ms(token_ms: float, nodes: int, coefficient_ms: float = DEFAULT_COEFFICIENT_MS) -> float:
    """The token timeout in force, in ms."""
    return token_ms + max(0, nodes - 2) * coefficient_ms


def advise(
    nodes: int,
    rtt_p99_ms: float | None,
    fsync_p99_ms: Mapping[str, float | None],
    *,
    token_ms: float = DEFAULT_TOKEN_MS,
    coefficient_ms: float = DEFAULT_COEFFICIENT_MS,
    retransmits: int = RETRANSMITS,
) -> dict[str, Any]:
    """Whether the token timeout of a ring of ``nodes`` is long enough, and which one would be.

    ``rtt_p99_ms``: the highest of its links; None when none was measured. ``fsync_p99_ms``: node -> 99th percentile or
    None; a node that was not measured counts as the slowest of those that were. ``token_ms``, ``coefficient_ms`` and
    ``retransmits``: as configured, or to be.

    Returns ``verdict`` (``pass``; ``warn`` when a slow round would make corosync log a warning; ``fail``; ``unknown``
    without a measured link), ``message``, ``nodes``, ``rtt_p99_ms``, ``fsync_p99_ms_sum``, ``fsync_measured``
    (number of nodes), ``round_ms``, ``needed_ms``, ``effective_ms`` and ``advised_token_ms``: the value of ``token``
    that is enough without a warning, never below corosync's default.
    """
    effective = effective_ms(token_ms, nodes, coefficient_ms)
    known = [value for value in fsync_p99_ms.values() if value is not None]
    fsync_sum = sum(known) + max(known, default=0.0) * max(0, nodes - len(known))
    advice: dict[str, Any] = {
        "verdict": "unknown",
        "nodes": nodes,
        "rtt_p99_ms": rtt_p99_ms,
        "fsync_p99_ms_sum": round(fsync_sum, 3) if known else None,
        "fsync_measured": len(known),
        "round_ms": None,
        "needed_ms": None,
        "effective_ms": effective,
        "advised_token_ms": None,
    }
    if rtt_p99_ms is None:
        return {**advice, "message": "no link was measured, so nothing is known of the token timeout"}
    turn = nodes * rtt_p99_ms + fsync_sum
    needed = turn * (retransmits + 0.2)
    enough = needed / WARNING_SHARE - effective_ms(0, nodes, coefficient_ms)
    advised = max(DEFAULT_TOKEN_MS, math.ceil(enough / 100) * 100)
    advice.update(round_ms=round(turn, 3), needed_ms=round(needed, 3), advised_token_ms=advised)
    seen = (
        f"a slow round of {nodes} nodes takes {number_text(turn)} ms, so the token timeout has to be at least "
        f"{number_text(needed)} ms; it is {number_text(effective)} ms"
    )
    if not known:
        seen += "; no disk was measured"
    if needed > effective:
        return {**advice, "verdict": "fail", "message": f"{seen}: set token to {advised} in corosync.conf"}
    if needed > WARNING_SHARE * effective:
        return {**advice, "verdict": "warn", "message": f"{seen}: tight, token {advised} would be enough"}
    return {**advice, "verdict": "pass", "message": f"{seen}: safe"}
