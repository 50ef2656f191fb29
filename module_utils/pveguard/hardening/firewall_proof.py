# SPDX-License-Identifier: Apache-2.0
"""What must still answer after a change of the firewall: the ring on all links, quorum, the web interface, and logins (core
``sshd_proof``). Each proof makes a new connection; what is open already passes any firewall.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import sshd_proof
from .sshd import Who

WEB_PORT = 8006
#: A packet that is dropped is not answered; one that gets lost is sent again after 1, 3 and 7 s.
WEB_S = 10.0
AT_ONCE = 8
#: What ssh says where the other side has ended a connection before any login, as sshd does where many wait for theirs
#: (MaxStartups). It is tried once more, after so long.
_RESET = re.compile("kex_exchange_identification|connection reset by", re.IGNORECASE)
AGAIN_S = 2.0
#: For a ring that forms anew.
RING_S = 30.0


def web(address: str, port: int = WEB_PORT, seconds: float = WEB_S) -> str:
    """Why nothing answers there; empty where something does."""
    try:
        socket.create_connection((address, port), seconds).close()
    except OSError as error:
        return f"TCP {port}: {error.strerror or f'no answer within {seconds:g} s'}"
    return ""


def answering(targets: Sequence[Who], port: int = WEB_PORT, seconds: float = WEB_S) -> list[str]:
    """Names of those whose web interface answers now: they must do so after the change as well."""
    return [each.name for each in targets if not web(each.address, port, seconds)]


def ring(corosync: Mapping[str, Any]) -> list[str]:
    """What is wrong with it, by the facts of Corosync (core ``corosync_info``); empty on a node without a cluster."""
    if not corosync.get("members"):
        return []
    if not corosync.get("running"):
        return ["corosync does not run"]
    found = [] if corosync.get("quorate") else ["no quorum"]
    # A probe may be off.
    members = {str(each.get("id")): each for each in corosync["members"] if not each.get("probe")}
    names = {number: str(each.get("name")) for number, each in members.items()}
    own = str(corosync.get("node_id"))
    links = corosync.get("links") or []
    if len(names) > 1 and not links:
        found.append("corosync does not say how its links are")
    for link in links:
        states = {str(node): str(state) for node, state in (link.get("peers") or {}).items()}
        for node, name in names.items():
            # Corosync may leave one out that has no address on this link.
            on_it = len(members[node].get("addresses") or []) >= len(links)
            state = states.get(node) or ("not known" if on_it else "connected")
            if node != own and state != "connected":
                found.append(f"link {link.get('link')} to {name}: {state}")
    absent = sorted(set(names) - {own} - {str(each) for each in corosync.get("live_member_ids") or []})
    found += [f"{names[node]} is not in the membership" for node in absent]
    return found


def prove(
    targets: Sequence[Who],
    web_names: Sequence[str],
    corosync: Callable[[], Mapping[str, Any]],
    *,
    own: str = "",
    logins: bool = True,
    ssh_port: int = 22,
    web_port: int = WEB_PORT,
    seconds: float = sshd_proof.SECONDS,
    ring_s: float = RING_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """What does not answer, in words; empty when all does. ``own``: the name of this node. All members do this at the same time,
    so each begins with the one that comes after it.
    """

    def log_in(who: Who) -> str:
        error = str(sshd_proof.prove(who, port=ssh_port, seconds=seconds)["error"])
        if _RESET.search(error):
            sleep(AGAIN_S)
            error = str(sshd_proof.prove(who, port=ssh_port, seconds=seconds)["error"])
        return error

    def one(who: Who) -> list[str]:
        wrong = web(who.address, web_port) if who.name in web_names else ""
        login = log_in(who) if logins else ""
        return [*([f"{who.shown}: {wrong}"] if wrong else []), *([f"ssh to {who.shown}: {login}"] if login else [])]

    # At once: those that do not answer, one after the other, would outlast the time for the proof.
    ordered = sorted(targets, key=lambda who: (who.name <= own, who.name))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [why for each in pool.map(one, ordered) for why in each]
    deadline = clock() + ring_s
    while (wrong := ring(corosync())) and clock() < deadline:
        sleep(1)
    return found + wrong
