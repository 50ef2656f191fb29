# SPDX-License-Identifier: Apache-2.0
"""What was written right before all nodes went off is there again, and nothing of ours stood in the way of the boot."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from testinfra.host import Host

STATE, WATCH, RAM = "pveguard-state.service", "pveguard-state-watch.service", r"var-lib-pve\x2dcluster.mount"
OURS = {STATE, WATCH, RAM, r"var-lib-pve\x2dcluster-backup.mount"}
#: A login, and what everything else on a node begins with.
OTHERS = (
    "ssh.service", "systemd-user-sessions.service", "systemd-logind.service", "getty.target", "sysinit.target",
    "basic.target", "local-fs.target", "network.target", "network-online.target",
)  # fmt: skip
#: What is only there when other machines, Corosync or the daemon answer.
DISTANT = re.compile(r"(network|network-online|remote-fs|nss-lookup|time-sync)\.target|(corosync|pve-cluster|ssh)\.service")

#: One command a node: emulated, each start of a program counts.
BOOT = {
    "state": "systemctl is-system-running --wait",
    "jobs": "systemctl list-jobs --no-legend --no-pager",
    "chain": "systemd-analyze critical-chain --no-pager pve-cluster.service multi-user.target",
    "blame": "systemd-analyze blame --no-pager | head -15",
    "verify": f"systemd-analyze verify --man=no {STATE} {WATCH} pve-cluster.service 2>&1",
    "restored": f"journalctl -b --no-pager -o cat -u {STATE}",
    "units": "systemctl show --no-pager -p Id,After,TimeoutStartUSec,TimeoutStopUSec,InactiveExitTimestampMonotonic,"
    "ActiveEnterTimestampMonotonic '*'",
}


@pytest.fixture(scope="module")
def boots(nodes: dict[str, Host]) -> dict[str, dict[str, str]]:
    """{node: {what of BOOT: its text}}"""
    script = "\n".join(f"echo @{what}; {command}" for what, command in BOOT.items())

    def ask(host: Host) -> dict[str, str]:
        parts = re.split(r"(?m)^@(\w+)\n", host.run(script).stdout)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    with ThreadPoolExecutor() as pool:
        return dict(zip(nodes, pool.map(ask, nodes.values()), strict=True))


def units(said: dict[str, str]) -> dict[str, dict[str, str]]:
    found = {}
    for block in said["units"].strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        found[values["Id"]] = values
    return found


def waits_for(unit: str, known: dict[str, dict[str, str]]) -> set[str]:
    """What a unit is ordered after, directly and through others."""
    seen: set[str] = set()
    left = [unit]
    while left:
        after = set(known.get(left.pop(), {}).get("After", "").split()) - seen
        seen |= after
        left += after
    return seen


def test_last_change_before_the_reboot_survived(everywhere: Any) -> None:
    look = everywhere("look.py")
    seen = {name: node["markers"]["molecule-reboot"] for name, node in look.items()}
    assert seen == dict.fromkeys(look, "written before the reboot\n")


def test_each_had_saved_its_state_when_it_went_off(boots: dict[str, dict[str, str]]) -> None:
    for name, said in boots.items():
        assert "from the replica, after a clean stop" in said["restored"], f"{name}: {said['restored']}"


def test_the_boot_came_to_its_end(boots: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for name, said in boots.items():
            print(f"\n{name}: {said['state']}{said['chain']}\n{said['blame']}\n{said['jobs']}")
    for name, said in boots.items():
        assert said["jobs"] == "", name
        assert "pveguard" not in said["verify"] and r"pve\x2dcluster" not in said["verify"], f"{name}: {said['verify']}"


def test_no_login_waits_for_ours(boots: dict[str, dict[str, str]]) -> None:
    for name, said in boots.items():
        known = units(said)
        assert {STATE, WATCH, RAM, "ssh.service", "sysinit.target"} <= set(known), name
        waiting = {other: waits_for(other, known) & OURS for other in OTHERS if other in known}
        assert not any(waiting.values()), f"{name}: {waiting}"


def test_the_restore_waits_for_local_file_systems_alone(boots: dict[str, dict[str, str]]) -> None:
    for name, said in boots.items():
        known = units(said)
        for unit in (STATE, RAM):
            distant = {other for other in waits_for(unit, known) if DISTANT.fullmatch(other)}
            assert not distant, f"{name}: {unit} waits for {distant}"
        # It had the state before there was anybody to ask.
        assert int(known[STATE]["ActiveEnterTimestampMonotonic"]) > 0
        for later in ("pve-cluster.service", "corosync.service"):
            begun = int(known[later]["InactiveExitTimestampMonotonic"])
            assert begun >= int(known[STATE]["ActiveEnterTimestampMonotonic"]), f"{name}: {later}"


def test_the_watcher_waits_for_the_daemon_and_nobody_for_the_watcher(boots: dict[str, dict[str, str]]) -> None:
    for name, said in boots.items():
        known = units(said)
        distant = {other for other in known[WATCH]["After"].split() if DISTANT.fullmatch(other)}
        assert distant == {"pve-cluster.service"}, name
        waiting = {unit for unit, values in known.items() if WATCH in values.get("After", "").split()}
        # systemd itself stops it before the machine goes off.
        assert waiting <= {"shutdown.target"}, f"{name}: {waiting}"


def test_ours_end_after_a_while(boots: dict[str, dict[str, str]]) -> None:
    for name, said in boots.items():
        known = units(said)
        for unit in (STATE, WATCH):
            for limit in ("TimeoutStartUSec", "TimeoutStopUSec"):
                assert known[unit][limit] not in ("infinity", "0"), f"{name}: {unit}: {limit}"
