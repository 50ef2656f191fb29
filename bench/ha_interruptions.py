#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Interrupt the role ha at random moments on lab nodes whose watchdog really resets them, and let a second run finish.

Every node's LRM holds the watchdog all the time that HA is on (arm=always of the lab's double), so a wrong step resets the
node within seconds. Each round, from a seed:

1. playbooks/protect.yml switches HA off, or on again, and is interrupted: the play killed (kill -9), the node's ssh
   sessions killed while the module goes on (connection), a node's power cut, or a node rebooted in good order.
2. When the nodes are up again, no watchdog is armed without watchdog-mux feeding it.
3. After the time in which an armed watchdog fires, a second run completes what was begun, or undoes it, and succeeds.
4. Then every node is as that run promises, and no node was ever reset that the round did not take down itself.

    python -m lab --name ha up --profile cluster
    python bench/ha_interruptions.py --name ha --rounds 30 --seed 1 --json

``--prove`` first stops watchdog-mux under its client on the last node, which has to be reset for it: the check can fail.
Exit status: 0 nothing was violated, 1 violations, 2 the test could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402
from totals import show  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

KINDS = ("kill", "connection", "power", "reboot")
UNITS = ("pve-ha-lrm.service", "pve-ha-crm.service", "watchdog-mux.service")
#: The watchdog fires 10 s after its last food (watchdog_timeout of the double); the rest is for emulation.
FIRES_SECONDS = 20.0
#: An emulated node from power-on until all of it answers; a run that is not interrupted.
UP_SECONDS = 300.0
RUN_SECONDS = 900.0
#: What a run takes until it is known; moments are drawn from the length of the last whole run to the same state.
FIRST_RUN_SECONDS = 60.0
#: An emulated LRM beats every 5 s and more.
HEARTBEATS_SECONDS = 60.0
LAB_CONF = r"arm=always\ndisarm=yes\n"

#: What a node is like, as JSON; standard library only.
LOOK = r"""
import glob, json, os, subprocess
units = {}
names = ["pve-ha-lrm.service", "pve-ha-crm.service", "watchdog-mux.service"]
shown = subprocess.run(["systemctl", "show", "-p", "Id,LoadState,ActiveState", *names], capture_output=True, text=True).stdout
for block in shown.split("\n\n"):
    values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    units[values.get("Id", "?")] = {"load": values.get("LoadState"), "active": values.get("ActiveState")}
def text(path):
    try:
        return open(path).read().strip()
    except OSError:
        return ""
try:
    lrm = json.loads(text(f"/etc/pve/nodes/{os.uname().nodename}/lrm_status") or "{}")
except ValueError:
    lrm = {}
print(json.dumps({
    "boot_id": text("/proc/sys/kernel/random/boot_id"),
    "units": units,
    "held": os.path.isdir("/run/watchdog-mux.active"),
    "watchdogs": [text(f"{path}/state") for path in sorted(glob.glob("/sys/class/watchdog/watchdog*"))],
    "mounted": os.path.exists("/etc/pve/local"),
    "lrm": lrm,
    "status_files": sorted(glob.glob("/etc/pve/nodes/*/lrm_status") + glob.glob("/etc/pve/ha/manager_status")),
    "remembered": os.path.exists("/etc/pveguard/ha.json"),
}))
"""

#: Ends the ssh sessions of a node, not what they have started.
DROP_SESSIONS = r"""
for name in sshd sshd-session; do
    for pid in $(pgrep -x "$name"); do
        # The listener is the one that systemd started.
        [ "$(ps -o ppid= -p "$pid" | tr -d ' ')" = 1 ] || kill -9 "$pid"
    done
done; true
"""


class CannotTest(Exception):
    """The test could not be done; nothing is said about the role."""


# --- what must hold -------------------------------------------------------------------------------------------------


def off_units(seen: Mapping[str, Any]) -> int:
    """How many of the node's HA units are masked and stopped."""
    return sum(
        unit["load"] == "masked" and unit["active"] not in ("active", "deactivating") for unit in seen["units"].values()
    )


def unfed(node: str, seen: Mapping[str, Any]) -> list[str]:
    """A watchdog that counts down with nobody to feed it."""
    if "active" in seen["watchdogs"] and seen["units"][UNITS[2]]["active"] != "active":
        return [f"{node}: a watchdog is armed and watchdog-mux is {seen['units'][UNITS[2]]['active']}"]
    return []


def resets(before: Mapping[str, str], seen: Mapping[str, Mapping[str, Any]], victims: Sequence[str]) -> list[str]:
    """Nodes that booted although the round did not take them down; ``before``: {node: boot id}."""
    return [
        f"{node}: was reset" for node, each in seen.items() if node not in victims and each["boot_id"] != before[node]
    ]


def unlike(wanted: str, seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not as a complete run to ``wanted`` (disabled or enabled) leaves it."""
    found = []
    for node, each in seen.items():
        units = each["units"]
        if wanted == "disabled":
            found += [
                f"{node}: {unit} is {s['active']}, {s['load']}"
                for unit, s in units.items()
                if not off_units({"units": {unit: s}})
            ]
            found += [f"{node}: its watchdog is armed" for state in each["watchdogs"] if state == "active"]
            found += [f"{node}: {path} is still there" for path in each["status_files"]]
            found += [] if each["remembered"] else [f"{node}: nobody knows what ran before"]
        else:
            found += [
                f"{node}: {unit} is {s['active']}, {s['load']}"
                for unit, s in units.items()
                if s["active"] != "active" or s["load"] == "masked"
            ]
            if each["lrm"].get("state") != "active":
                found.append(f"{node}: its LRM is {each['lrm'].get('state')!r}, not active")
    return found


# --- the lab ---------------------------------------------------------------------------------------------------------


class Nodes:
    """The nodes of a lab, by their serial consoles: no ssh, no network, no quorum needed."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.names = [machine.name for machine in lab.machines()]

    def console(self, node: str, script: str, seconds: float = 120) -> str:
        status, output = self.lab.machine(node).console.run(script, seconds)
        if status != 0:
            raise CannotTest(f"{node}: {script[:60]!r} ended with {status}: {output[-1000:]}")
        return output

    def look_at(self, node: str, seconds: float = UP_SECONDS) -> dict[str, Any]:
        """What LOOK says, once the node answers and /etc/pve is there."""
        deadline = time.monotonic() + seconds
        said = "no answer"
        while time.monotonic() < deadline:
            try:
                status, output = self.lab.machine(node).console.run(f"/usr/bin/python3 - <<'EOF'\n{LOOK}\nEOF", 60)
                seen = json.loads(output.strip().splitlines()[-1]) if status == 0 else {}
                if seen.get("mounted"):
                    assert isinstance(seen, dict)
                    return seen
                said = "/etc/pve is not mounted" if seen else output[-300:]
            except (LabError, ValueError, IndexError) as error:
                said = str(error)
                self.lab.machine(node).reset_if_stuck()
            time.sleep(0.5)
        raise CannotTest(f"{node}: not up within {seconds:.0f} s: {said}")

    def look(self) -> dict[str, dict[str, Any]]:
        with ThreadPoolExecutor(len(self.names)) as pool:
            return dict(zip(self.names, pool.map(self.look_at, self.names), strict=True))

    def wait(self, what: str, holds: Any, seconds: float = UP_SECONDS) -> dict[str, dict[str, Any]]:
        """Look until ``holds`` of what all nodes say returns no problem."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self.look()
            problems = holds(seen)
            if not problems:
                return seen
            if time.monotonic() > deadline:
                raise CannotTest(f"{what}: {'; '.join(problems)}")
            time.sleep(1)

    def hold_watchdogs(self) -> dict[str, dict[str, Any]]:
        """Every LRM takes the watchdog, and the manager can disarm."""
        for node in self.names:
            self.console(node, f"printf '{LAB_CONF}' > /etc/pve-ha-lab.conf")
        return self.wait("the LRMs do not take the watchdog", lambda seen: unlike("enabled", seen))


def command(wanted: str, inventory: str) -> list[str]:
    variables = {"ha_state": wanted, "ram_state_enabled": False, "write_report_measure": "never"}
    return [ad_hoc.program("ansible-playbook"), "-i", inventory, str(ROOT / "playbooks/protect.yml"), "-e", json.dumps(variables)]


def start(wanted: str, inventory: str, log: Path, retries: int = 0) -> subprocess.Popen[bytes]:
    """A run with its own process group, so that all of it can be killed.

    ``retries`` of a connection that fails: after one was cut, the first login may meet the dead end of the shared one.
    """
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_RETRIES": str(retries),
    }
    with log.open("wb") as stream:
        return subprocess.Popen(
            command(wanted, inventory), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Totals:
    """The summary."""

    seed: str
    rounds: int = 0
    completed: int = 0
    undone: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    #: Units that were off, of all, at the interruptions: shows how they are spread over the work.
    units_off_at_interruption: list[str] = field(default_factory=list)
    #: Runs that had ended before their interruption came.
    too_late: int = 0
    resets_for_the_wrong_order: int = 0
    unwanted_resets: int = 0
    longest_run_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Campaign:
    """Rounds on one lab. ``totals`` grows with each."""

    def __init__(self, nodes: Nodes, seed: str, inventory: str, work: Path, kinds: Sequence[str] = KINDS) -> None:
        self.nodes, self.seed, self.inventory, self.work, self.kinds = nodes, seed, inventory, work, list(kinds)
        self.totals = Totals(seed)
        self.run_seconds = {"disabled": FIRST_RUN_SECONDS, "enabled": FIRST_RUN_SECONDS}
        work.mkdir(parents=True, exist_ok=True)

    def prove(self) -> None:
        """The wrong order resets a node: watchdog-mux is stopped under its client."""
        node = self.nodes.names[-1]
        before = self.nodes.look_at(node)["boot_id"]
        self.nodes.console(node, "systemctl stop --no-block watchdog-mux")
        deadline = time.monotonic() + UP_SECONDS
        while self.nodes.look_at(node)["boot_id"] == before:
            if time.monotonic() > deadline:
                raise CannotTest(f"{node} was not reset by its watchdog: the test could not fail")
            time.sleep(1)
        self.totals.resets_for_the_wrong_order += 1

    def plan(self, number: int) -> tuple[str, str, str, str, float]:
        """Of a round, from the seed alone: what is wanted, what the second run is to reach, how the first is interrupted,
        on which node, and at which part of a whole run."""
        rng = random.Random(f"{self.seed}/{number}")
        wanted = "disabled" if number % 2 else "enabled"
        # Each kind once at first, so that a short run has them all.
        kind = self.kinds[number - 1] if number <= len(self.kinds) else rng.choice(self.kinds)
        # The first rounds are completed, so that a short run switches HA off and on; later a fourth is undone, and the
        # next round may then find its wish fulfilled.
        undo = number > len(self.kinds) and rng.random() < 0.25
        second = {"disabled": "enabled", "enabled": "disabled"}[wanted] if undo else wanted
        return wanted, second, kind, rng.choice(self.nodes.names), rng.uniform(0.05, 0.95)

    def round(self, number: int) -> None:
        """One interruption and the run after it."""
        wanted, second, kind, victim, part = self.plan(number)
        before = {node: seen["boot_id"] for node, seen in self.nodes.look().items()}
        process = start(wanted, self.inventory, self.work / f"{number}-first.log")
        try:
            time.sleep(part * self.run_seconds[wanted])
            late = process.poll() is not None
            victims = self._interrupt(kind, victim, process)
        finally:
            end(process)
        seen = self.nodes.look()
        violations = resets(before, seen, victims) + self._unfed(seen)
        off = sum(off_units(each) for each in seen.values())
        time.sleep(FIRES_SECONDS)
        violations += resets(before, self.nodes.look(), victims)
        boots = {node: each["boot_id"] for node, each in self.nodes.look().items()}

        begun = time.monotonic()
        process = start(second, self.inventory, self.work / f"{number}-second.log", retries=2)
        try:
            code = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            end(process)
        self.run_seconds[second] = time.monotonic() - begun
        seen = self._settled(second)
        if code != 0:
            said = (self.work / f"{number}-second.log").read_text(errors="replace")[-1500:]
            violations.append(f"the second run ({second}) ended with {code}: {said}")
        violations += unlike(second, seen) + resets(boots, seen, []) + self._unfed(seen)
        self._count(wanted, second, kind, late, off, violations)
        what = f"round {number} ({wanted}, {kind} on {victim} at {part:.0%}, then {second})"
        self.totals.violations += [f"{what}: {line}" for line in violations]

    def _settled(self, wanted: str) -> dict[str, dict[str, Any]]:
        """What the nodes say at the end of a run. An LRM that was disarmed takes its watchdog with its next heartbeat."""
        deadline = time.monotonic() + (HEARTBEATS_SECONDS if wanted == "enabled" else 0.0)
        while True:
            seen = self.nodes.look()
            if not unlike(wanted, seen) or time.monotonic() > deadline:
                return seen
            time.sleep(1)

    def begin(self) -> None:
        """HA on, every watchdog held: also where an earlier campaign has left it off."""
        if any(unit["load"] == "masked" for each in self.nodes.look().values() for unit in each["units"].values()):
            process = start("enabled", self.inventory, self.work / "begin.log")
            try:
                code = process.wait(RUN_SECONDS)
            finally:
                end(process)
            if code != 0:
                raise CannotTest(f"HA could not be switched on; see {self.work / 'begin.log'}")
        self.nodes.hold_watchdogs()

    def _interrupt(self, kind: str, victim: str, process: subprocess.Popen[bytes]) -> list[str]:
        """Do it; returns the nodes that it takes down."""
        if kind == "kill":
            end(process)
            return []
        if kind == "connection":
            self.nodes.console(victim, DROP_SESSIONS)
        elif kind == "power":
            self.nodes.lab.power_cut([victim])
            end(process)
            self.nodes.lab.start([victim], wait=False)
        else:
            self.nodes.lab.reboot([victim], wait=True)
            end(process)
        try:
            # What the run makes of it is its own: it ends by itself, or it is ended.
            process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        return [] if kind == "connection" else [victim]

    def _unfed(self, seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Looked at twice: a module that goes on without its play may be between two steps."""
        if not any(unfed(node, each) for node, each in seen.items()):
            return []
        time.sleep(3)
        return [line for node, each in self.nodes.look().items() for line in unfed(node, each)]

    def _count(self, wanted: str, second: str, kind: str, late: bool, off: int, violations: Sequence[str]) -> None:
        totals = self.totals
        totals.rounds += 1
        totals.completed += second == wanted
        totals.undone += second != wanted
        totals.kinds[kind] = totals.kinds.get(kind, 0) + 1
        totals.too_late += late
        totals.units_off_at_interruption.append(f"{wanted}: {off} of {len(UNITS) * len(self.nodes.names)}")
        totals.unwanted_resets += sum("was reset" in line for line in violations)
        totals.longest_run_seconds = max(totals.longest_run_seconds, round(self.run_seconds[second], 1))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    name = os.environ.get("PVEGUARD_LAB") or "default"
    top.add_argument("--name", default=name, help="the lab (default: $PVEGUARD_LAB)")
    top.add_argument("-i", "--inventory", default=str(ROOT / "inventory/lab"))
    top.add_argument("--rounds", type=int, default=4, metavar="N", help="interruptions (default 4: one of each kind)")
    top.add_argument("--kinds", default=",".join(KINDS), help=f"of {','.join(KINDS)} (default all)")
    top.add_argument("--seed", default="1", help="the same seed draws the same rounds")
    top.add_argument("--minutes", type=float, default=0, metavar="M", help="begin no round later than this")
    top.add_argument("--prove", action="store_true", help="first let the wrong order reset a node")
    top.add_argument("--work", type=Path, default=ROOT / ".cache/ha_interruptions", help="where the runs' output is kept")
    top.add_argument("--json", action="store_true", help="print the summary as JSON")
    return top


def main() -> int:
    options = parser().parse_args()
    kinds = [kind for kind in options.kinds.split(",") if kind]
    if not kinds or set(kinds) - set(KINDS):
        print(f"ha_interruptions: --kinds {options.kinds}: wanted some of {','.join(KINDS)}", file=sys.stderr)
        return 2
    begin, totals = time.monotonic(), Totals(options.seed)
    os.environ["PVEGUARD_LAB"] = options.name  # the inventory of the lab asks for it
    try:
        lab = Lab(options.name)
        lab.select(["all"], running=True)
        campaign = Campaign(Nodes(lab), options.seed, options.inventory, options.work, kinds)
        totals = campaign.totals
        campaign.begin()
        if options.prove:
            campaign.prove()
            campaign.nodes.hold_watchdogs()
        for number in range(1, options.rounds + 1):
            if options.minutes and time.monotonic() - begin > options.minutes * 60:
                print(f"stopped after {options.minutes:g} minutes", file=sys.stderr)
                break
            started, known = time.monotonic(), len(totals.violations)
            campaign.round(number)
            new = totals.violations[known:]
            print(f"round {number}: {'; '.join(new) or 'good'} ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    except (CannotTest, LabError) as error:
        print(f"ha_interruptions: {error}", file=sys.stderr)
        if totals.rounds:
            totals.seconds = round(time.monotonic() - begin, 1)
            show(totals, options.json)
        return 2
    totals.seconds = round(time.monotonic() - begin, 1)
    return show(totals, options.json)


if __name__ == "__main__":
    sys.exit(main())
