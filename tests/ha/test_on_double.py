# SPDX-License-Identifier: Apache-2.0
"""HA off and on against the programs of the lab's double: managers that hold a watchdog, and a multiplexer that would let it
fire. Only systemctl is made up: it starts and stops these programs.

The watchdog is a file: a feeder that ends well writes V last; one that gives up says so in the log.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.ha import ha_info, ha_services

from lab.tests.doubles.harness import wait_for
from lab.tests.packages import test_ha as double

# Real programs with real periods.
pytestmark = pytest.mark.slow

LRM, CRM, MUX = ha_info.UNITS
FIRES = "will reset this machine"
#: How much shorter than on a node the waits between two looks are.
HURRY = 10


class Killed(BaseException):
    """The run was ended in the middle."""


class Machine:
    """One node: the double's programs as units, and a root in which pveguard sees them."""

    def __init__(self, node: double.Node, root: Path, name: str = "pve1") -> None:
        self.node, self.root, self.name = node, root, name
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.masked: set[str] = set()
        self.calls: list[str] = []
        self.kill_before = ""
        #: Changing commands until the run is ended; None: never.
        self.left: list[int] | None = None
        (root / "etc").mkdir(parents=True)
        (root / "etc/pve").symlink_to(node.pve)
        (root / "run").symlink_to(node.run)
        units = root / "usr/lib/systemd/system"
        units.mkdir(parents=True)
        for unit in ha_info.UNITS:
            (units / unit).write_text("[Unit]\n")
        device = root / "sys/class/watchdog/watchdog0"
        device.mkdir(parents=True)
        for name, text in (("identity", "i6300ESB timer"), ("nowayout", "0"), ("options", "0x8180")):
            (device / name).write_text(text)
        self.configure()
        self.boot()

    def configure(self, text: str = "arm=always\n") -> None:
        self.node.conf.write_text(f"feed_interval=0.1\n{text}")

    def boot(self) -> None:
        for unit in (MUX, CRM, LRM):
            if unit not in self.masked:
                self._start(unit)

    def reset(self) -> None:
        """What a reset or a power cut does; then the machine boots."""
        for process in self.processes.values():
            process.kill()
            process.wait(10)
        shutil.rmtree(self.node.run)
        self.node.run.mkdir()
        self.node.log.write_text("")
        manager = self.node.pve / "ha/manager_status"
        if manager.exists() and json.loads(manager.read_text()).get("master_node") == self.name:
            # The others take over after two minutes; here they have passed.
            for lock in self.node.pve.glob("priv/lock/ha_manager_lock"):
                os.utime(lock, (0, 0))
        self.boot()

    def active(self, unit: str) -> bool:
        return unit in self.processes and self.processes[unit].poll() is None

    def armed_and_unfed(self) -> bool:
        """Whether a real watchdog would fire now."""
        said = self.node.log.read_text() if self.node.log.exists() else ""
        return FIRES in said or (self.node.armed and not self.active(MUX))

    def apply(self, state: str, part: str = "all", kill_before: str = "", **more: Any) -> dict[str, Any]:
        self.kill_before = kill_before
        self.calls.clear()
        return ha_services.apply(
            state, part, run=self.run, root=self.root, hostname=self.name,
            **{"sleep": lambda seconds: time.sleep(seconds / HURRY), **more},
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return ha_info.collect(run=self.run, root=self.root, hostname=self.name)

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:  # fmt: skip
        program, verb, *units = argv
        if program == "ss":
            return Result(0, "", "")
        if verb == "show":
            return Result(0, "\n\n".join(self._shown(unit) for unit in ha_info.UNITS), "")
        if verb not in ("help", "status"):
            self.calls.append(" ".join(argv))
            if self.left is not None:
                self.left[0] -= 1
            if self.calls[-1] == self.kill_before or (self.left is not None and self.left[0] < 0):
                raise Killed
        if program == "ha-manager":
            done = self.node.manager(*argv[1:])
            return Result(done.returncode, done.stdout, done.stderr)
        assert program == "systemctl"
        for unit in units:
            if verb == "stop" and self.active(unit):
                self.node.stop(self.processes[unit])
            elif verb == "start":
                self._start(unit)
            elif verb == "mask":
                self.masked.add(unit)
            elif verb == "unmask":
                self.masked.discard(unit)
        return Result(0, "", "")

    def _start(self, unit: str) -> None:
        if unit == MUX:
            self.node.device.write_bytes(b"")  # a program that starts writes from the beginning
        self.processes[unit] = self.node.start(unit.removesuffix(".service"))
        if unit == MUX:
            wait_for("watchdog-mux", (self.node.run / "watchdog-mux.sock").exists)

    def _shown(self, unit: str) -> str:
        masked = unit in self.masked
        load, enabled = ("masked", "masked") if masked else ("loaded", "enabled")
        active = "active" if self.active(unit) else "inactive"
        return f"Id={unit}\nLoadState={load}\nActiveState={active}\nUnitFileState={enabled}"

    def wait_active(self) -> None:
        what = f"the LRM of {self.name} to hold the watchdog"
        wait_for(what, lambda: self.lrm_state() == "active" and self.node.armed)

    def lrm_state(self) -> str | None:
        try:
            state = json.loads((self.node.pve / "nodes" / self.name / "lrm_status").read_text())["state"]
        except OSError:
            return None
        assert isinstance(state, str)
        return state


@pytest.fixture
def node(tmp_path: Path) -> Iterator[double.Node]:
    yield from double.node.__wrapped__(tmp_path, None)  # type: ignore[attr-defined]


@pytest.fixture
def machine(node: double.Node, tmp_path: Path) -> Machine:
    machine = Machine(node, tmp_path / "root")
    machine.wait_active()
    return machine


def ended_well(machine: Machine) -> bool:
    return machine.node.device.read_bytes().endswith(b"V") and not machine.armed_and_unfed()


def test_the_wrong_order_lets_the_watchdog_fire(machine: Machine) -> None:
    machine.run(["systemctl", "stop", MUX])
    assert machine.armed_and_unfed() and not ended_well(machine)


def test_off_and_on_with_a_watchdog_that_is_held(machine: Machine) -> None:
    result = machine.apply("disabled")
    assert result["steps"][0] == "ha-manager crm-command disarm-ha freeze"
    assert ended_well(machine)
    assert not list(machine.node.pve.rglob("*_status"))
    assert not machine.apply("disabled")["changed"]
    machine.apply("restored")
    machine.wait_active()
    machine.node.wait_for_food()
    assert not machine.armed_and_unfed()


# --- after the last resource was removed ----------------------------------------------------------------------------


@pytest.fixture
def used(node: double.Node, tmp_path: Path) -> Machine:
    """A node whose last resource was removed a moment ago; the managers keep the watchdog for ten minutes."""
    machine = Machine(node, tmp_path / "root")
    machine.configure("idle_seconds=600\nstop_seconds=1\n")
    node.add("vm:100")
    machine.wait_active()
    wait_for("the manager", lambda: "fencing armed (CRM watchdog active)" in node.lines())
    assert node.manager("remove", "vm:100").returncode == 0
    node.wait_for_beats(3)
    assert node.armed and machine.lrm_state() == "active"
    return machine


def units(machine: Machine) -> dict[str, bool]:
    return {unit: machine.active(unit) and unit not in machine.masked for unit in ha_info.UNITS}


ALL_ON = dict.fromkeys(ha_info.UNITS, True)


def test_the_manager_disarms_itself_and_comes_back_armed(used: Machine) -> None:
    predicted = used.apply("disabled", check=True)
    assert used.calls == [] and used.node.armed and units(used) == ALL_ON
    assert predicted["steps"][0] == "ha-manager crm-command disarm-ha freeze"
    result = used.apply("disabled")
    # What the manager left came since.
    assert result["steps"][: len(predicted["steps"])] == predicted["steps"]
    (waited,) = result["waited"]
    assert "until 'ha-manager status' said fencing 'disarmed' and the watchdog was free" in waited
    assert ended_well(used) and not any(units(used).values())
    assert not used.apply("disabled")["changed"]
    assert used.apply("restored")["warnings"] == []
    assert units(used) == ALL_ON and "fencing standby (CRM watchdog standby)" in used.node.lines()
    used.node.add("vm:100")
    used.wait_active()
    wait_for("fencing as it was", lambda: "fencing armed (CRM watchdog active)" in used.node.lines())
    assert not used.armed_and_unfed()


@pytest.mark.parametrize("second", ["restored", "enabled"])
def test_a_cluster_that_was_left_disarmed_is_armed_again(used: Machine, second: str) -> None:
    with pytest.raises(Killed):
        used.apply("disabled", kill_before=f"systemctl stop {LRM}")
    assert "fencing disarmed (resource mode: freeze)" in used.node.lines() and units(used) == ALL_ON
    assert used.apply(second)["steps"] == ["ha-manager crm-command arm-ha"]
    assert "disarm" not in " ".join(used.node.lines()) and not used.armed_and_unfed()
    used.node.add("vm:100")
    used.wait_active()


def test_without_disarm_it_is_refused_with_what_helps_and_nothing_is_changed(used: Machine) -> None:
    used.configure("idle_seconds=600\ndisarm=no\n")
    with pytest.raises(PveguardError) as refusal:
        used.apply("disabled")
    said = str(refusal.value)
    assert said.startswith("there is no HA resource any more, but the LRM is still active and holds the watchdog: pve1 (")
    assert "wait for that and run again" in said and "crm-command disarm-ha freeze" in said and "online" not in said
    assert used.calls == [] and units(used) == ALL_ON and used.node.armed
    assert not (used.root / "etc/pveguard").exists()
    used.node.wait_for_food()
    (objection,) = ha_info.objections({"pve1": used.facts()})
    assert "the LRM is still active" in objection


def test_without_disarm_a_run_waits_until_the_managers_idle(used: Machine) -> None:
    used.configure("idle_seconds=600\ndisarm=no\n")
    looks: list[bool] = []

    def sleep(seconds: float) -> None:
        looks.append(used.node.armed)
        if len(looks) == 3:  # now the ten minutes have passed
            used.configure("idle_seconds=0\ndisarm=no\n")
        time.sleep(seconds / HURRY)

    result = used.apply("disabled", release_wait_s=900, sleep=sleep)
    assert looks[:3] == [True, True, True]
    assert "until the managers had let go of the watchdog" in result["waited"][0]
    assert result["steps"][0] == f"systemctl stop {LRM}" and ended_well(used)


def test_slow_managers_and_slow_calls_break_no_deadline(used: Machine) -> None:
    """As on an emulated node, in proportion: a stop takes three times the wait between two looks, each call one."""
    used.configure("idle_seconds=600\nstop_seconds=3\ncall_seconds=0.5\n")
    assert used.apply("disabled")["warnings"] == []
    assert ended_well(used) and not any(units(used).values())
    used.apply("restored")
    assert units(used) == ALL_ON and not used.armed_and_unfed()


def test_an_lrm_that_was_killed_is_no_free_watchdog(used: Machine) -> None:
    """Its watchdog stays armed and is fed no more: the node will be reset, and nothing is made worse before that."""
    used.processes[LRM].kill()
    used.processes[LRM].wait(10)
    wait_for("the multiplexer to see it", used.armed_and_unfed)
    assert used.facts()["watchdog_active"]
    with pytest.raises(PveguardError, match="the watchdog is armed, but the LRM does not run and no client is connected"):
        used.apply("disabled", release_wait_s=900)
    assert used.calls == [] and used.active(MUX) and used.active(CRM)


STEPS = [
    "ha-manager crm-command disarm-ha freeze",
    f"systemctl stop {LRM}",
    f"systemctl stop {CRM}",
    f"systemctl mask {LRM} {CRM}",
    f"systemctl stop {MUX}",
    f"systemctl mask {MUX}",
]


@pytest.mark.parametrize("second", ["disabled", "enabled", "restored"])
@pytest.mark.parametrize("at", STEPS)
def test_interrupted_anywhere_it_is_completed_or_undone(machine: Machine, at: str, second: str) -> None:
    with pytest.raises(Killed):
        machine.apply("disabled", kill_before=at)
    assert not machine.armed_and_unfed()
    machine.apply(second)
    if second == "disabled":
        assert ended_well(machine) and not list(machine.node.pve.rglob("*_status"))
    else:
        machine.wait_active()
        machine.node.wait_for_food()
    assert not machine.armed_and_unfed()


# --- three nodes ---------------------------------------------------------------------------------------------------


class Cluster:
    """Three machines over one /etc/pve, and the order in which the role goes over them."""

    def __init__(self, machines: list[Machine]) -> None:
        self.machines = machines

    def run(self, state: str) -> None:
        if state == "enabled":
            for machine in self.machines:
                machine.apply("enabled")
            return
        for machine in self.machines:
            machine.apply("disabled", "managers")
        facts = {
            machine.name: ha_info.collect(run=machine.run, root=machine.root, hostname=machine.name)
            for machine in self.machines
        }
        assert ha_info.watchdog_holders(facts) == []
        for machine in self.machines:
            machine.apply("disabled", "watchdog")

    def interrupted(self, state: str, commands: int) -> bool:
        """End the run before its next changing command after so many; whether there was one."""
        left = [commands]
        for machine in self.machines:
            machine.left = left
        try:
            self.run(state)
        except Killed:
            return True
        finally:
            for machine in self.machines:
                machine.left = None
        return False

    def unfed(self) -> list[str]:
        return [machine.name for machine in self.machines if machine.armed_and_unfed()]

    def wait_active(self) -> None:
        for machine in self.machines:
            machine.wait_active()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    nodes: list[double.Node] = []
    pve = tmp_path / "pve"
    try:
        for name in ("pve1", "pve2", "pve3"):
            (tmp_path / name).mkdir()
            (pve / "nodes" / name).mkdir(parents=True)
            # The socket's path must be short.
            short = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pvg-XXXXXX"], text=True).strip())
            node = double.Node(tmp_path / name, short)
            node.pve = pve
            node.environment |= {"PVE_LAB_ETC_PVE": str(pve), "PVE_LAB_NODE": name}
            nodes.append(node)
        names = [node.environment["PVE_LAB_NODE"] for node in nodes]
        yield Cluster([Machine(node, tmp_path / name / "root", name) for node, name in zip(nodes, names, strict=True)])
    finally:
        for node in nodes:
            for process in node.processes:
                if process.poll() is None:
                    process.kill()
                process.wait(10)
            shutil.rmtree(node.run)


#: Two are part of every test run; `make campaign` does more.
SEEDS = 16 if os.environ.get("PVEGUARD_CAMPAIGN") else 2


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_random_interruptions_of_a_cluster(cluster: Cluster, seed: int) -> None:
    """Off and on, ended anywhere, half of the time with a reset of a node on top; a second run completes or undoes."""
    cluster.wait_active()
    ended, second = 0, "enabled"
    for number in range(1, 9):
        rng = random.Random(f"{seed}/{number}")
        wanted = "enabled" if second == "disabled" else "disabled"
        # Off is 16 commands over three nodes, on is 12.
        ended += cluster.interrupted(wanted, rng.randrange(16 if wanted == "disabled" else 12))
        assert cluster.unfed() == [], f"round {number}"
        if rng.random() < 0.5:
            rng.choice(cluster.machines).reset()
        second = wanted if rng.random() < 0.75 else rng.choice(["disabled", "enabled"])
        cluster.run(second)
        assert cluster.unfed() == [], f"round {number}"
        if second == "disabled":
            assert not any(machine.active(unit) for machine in cluster.machines for unit in ha_info.UNITS)
            assert not list(cluster.machines[0].node.pve.rglob("*_status"))
        else:
            cluster.wait_active()
    assert ended >= 7, "the runs were to be ended in the middle"
