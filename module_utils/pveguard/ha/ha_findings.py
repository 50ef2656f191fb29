# SPDX-License-Identifier: Apache-2.0
"""What is judged about HA on one node, from whatever knows it: facts of ``node_info``, an entry of the report, or
``pve-state status`` on the node itself.

Imports little, as ``pve-state`` does it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..base.findings import GOOD, PROBLEM, WARNING, Finding, check, some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Transactions a minute that one HA stack costs while it is idle: three every five seconds.
TRANSACTIONS = 36
MUX = "watchdog-mux.service"

UNATTENDED = check(
    "ha-masked-with-resources",
    PROBLEM,
    "HA is masked, stopped or disarmed on a node, and there are HA resources: nothing recovers them there",
    "Bring HA back, or remove the resources.",
    "ha_state: enabled, then make site; or ha-manager remove SID",
)
IN_RAM = check(
    "ha-resources-with-ram-state",
    WARNING,
    "There are HA resources, and the node keeps its state in RAM, which pveguard sets up only where HA is not used",
    "Remove the resources from HA, or run site.yml again.",
    "ha-manager remove SID; or make site",
)
RETURNED = check(
    "ha-returned",
    WARNING,
    "HA services that pveguard had switched off are on again: a package upgrade, or somebody by hand",
    "Switch it off again, or set ha_state: keep.",
    "make site",
)
UNUSED = check(
    "ha-running-unused",
    WARNING,
    f"HA runs although there is no HA resource: about {TRANSACTIONS} transactions a minute from each node",
    "Switch it off; it comes back with one command.",
    "ha_state: auto, then make site",
)
ARMED = check(
    "ha-watchdog-armed",
    WARNING,
    "A client holds the watchdog although there is no HA resource: a node that stalls would be reset",
    "Switch HA off, which stops its clients in the order that resets nothing.",
    "ha_state: auto, then make site",
)
UNTIL_REBOOT = check(
    "ha-watchdog-until-reboot",
    WARNING,
    "watchdog-mux is masked and still runs, as the driver of the watchdog cannot be stopped without a reset",
    "Nothing has to be done: watchdog-mux is masked, and the next planned reboot ends it.",
    "systemctl status watchdog-mux",
)
IN_USE = check("ha-in-use", GOOD, "There are HA resources: HA stays on, and the state stays on disk")
OFF = check("ha-off", GOOD, "HA is off, and there are no HA resources")


def findings(
    *,
    installed: bool = True,
    resources: Sequence[str] = (),
    unattended: Sequence[str] = (),
    masked: Sequence[str] = (),
    returned: Sequence[str] = (),
    on: bool = False,
    running: Sequence[str] = (),
    watchdog_armed: bool = False,
    watchdog_until_reboot: bool = False,
    state_in_ram: bool = False,
) -> list[Finding]:
    """What is to be said of HA on a node; empty where it is not installed.

    ``resources``: of its cluster; ``unattended``: those that nothing on this node recovers. ``masked``: names of masked
    managers, where they are known. ``returned``: units that had been switched off and are on again. ``on``: the managers run
    or would. ``running``: their names, where they are known. ``watchdog_armed``: a client holds it.
    ``watchdog_until_reboot``: all is masked, and watchdog-mux runs on. ``state_in_ram``: of the node.
    """
    if unattended:
        return [_unattended(unattended, masked)]
    if resources and state_in_ram:
        return [
            IN_RAM(
                f"HA manages {some(resources)}, but the state is in RAM",
                code=f"ha-manager remove {resources[0]}; or make site",
            )
        ]
    if not installed:
        return []
    found = []
    if watchdog_until_reboot:
        found.append(
            UNTIL_REBOOT(
                "its watchdog is fed until the next boot: the driver has nowayout or no magic close, so stopping it could "
                "reset the node"
            )
        )
    if returned:
        found.append(
            RETURNED(f"HA was switched off and came back ({some(returned)}): a package upgrade, or somebody by hand")
        )
    if resources:
        return [*found, IN_USE(f"HA is in use ({some(resources)}): it stays on, and the state stays on disk")]
    if watchdog_armed:
        found.append(ARMED("the watchdog is armed although no HA resource exists: a stalled node would be reset"))
    if on and not returned:
        who = f" ({some(running)})" if running else ""
        found.append(
            UNUSED(f"HA runs although nothing uses it{who}: about {TRANSACTIONS} transactions a minute on every member")
        )
    return found or [OFF("HA is off and unused")]


def _unattended(unattended: Sequence[str], masked: Sequence[str]) -> Finding:
    why = f"{' and '.join(masked)} {'are' if masked[1:] else 'is'} masked, so " if masked else ""
    return UNATTENDED(
        f"HA is off but has resources ({some(unattended)}): {why}nothing recovers them",
        code=f"ha_state: enabled, then make site; or ha-manager remove {unattended[0]}" if masked else None,
    )


def unattended_warning(host: str, resources: Sequence[str]) -> str:
    """Of a module, about resources that nothing looks after."""
    return (
        f"HA is off on {host} but there are HA resources: {some(resources, 8)}. Nothing recovers them when a node fails. "
        f"{UNATTENDED.fix.rstrip('.')} ({UNATTENDED.code})"
    )


def state(ha: Mapping[str, Any]) -> str:
    """``not installed``, ``off``, ``partly off`` or ``on``, from facts of ``ha_info``."""
    if not ha.get("installed"):
        return "not installed"
    if ha.get("disabled"):
        return "off"
    return "partly off" if not ha.get("enabled") and ha.get("managers_off") else "on"


def until_reboot(ha: Mapping[str, Any]) -> bool:
    """Whether watchdog-mux runs on although HA is off, from facts of ``ha_info``."""
    mux = (ha.get("services") or {}).get(MUX) or {}
    return bool(ha.get("disabled") and ha.get("installed") and mux.get("active") == "active")


def nothing_recovers(ha: Mapping[str, Any]) -> list[str]:
    """The resources that nothing on the node recovers, from facts of ``ha_info``: one masked unit is enough for that."""
    return list(ha.get("unattended") or ((ha.get("resources") or []) if state(ha) == "off" else []))


def of_facts(node: Mapping[str, Any]) -> list[Finding]:
    """From the facts of ``node_info``."""
    ha = node["ha"]
    running = sorted(
        name for name, unit in node["units"].items() if name.startswith("pve-ha-") and unit["active"] == "active"
    )
    return findings(
        installed=bool(ha.get("installed")),
        resources=list(ha.get("resources") or []),
        unattended=nothing_recovers(ha),
        returned=list(ha.get("returned") or []),
        on=bool(running),
        running=running,
        watchdog_armed=bool(ha.get("watchdog_active")),
        watchdog_until_reboot=until_reboot(ha),
        state_in_ram=(node.get("ram_state") or {}).get("state") == "enabled",
    )


def of_status(resources: Sequence[str], masked: Sequence[str]) -> list[Finding]:
    """On a node with its state in RAM: HA resources by its database, and the managers that are masked."""
    return findings(resources=resources, unattended=resources if masked else (), masked=masked, state_in_ram=True)
