# SPDX-License-Identifier: Apache-2.0
"""HA off and on against the programs of the lab's double: managers that hold a watchdog, and a multiplexer that would let it
fire. Only systemctl is made up: it starts and stops these programs.

The watchdog is a file: a feeder that ends well writes V last; one that gives up says so in the log.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard import ha_info, ha_services
from ansible.module_utils.pveguard.run import Result

from lab.tests.packages import test_ha as double

# Real programs with real periods.
pytestmark = pytest.mark.slow

LRM, CRM, MUX = ha_info.UNITS
FIRES = "will reset this machine"


class Killed(BaseException):
    """The run was ended in the middle."""


class Machine:
    """One node: the double's programs as units, and a root in which pveguard sees them."""

    def __init__(self, node: double.Node, root: Path) -> None:
        self.node, self.root = node, root
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.masked: set[str] = set()
        self.calls: list[str] = []
        self.kill_before = ""
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
        node.conf.write_text("feed_interval=0.1\narm=always\ndisarm=yes\n")
        self.boot()

    def boot(self) -> None:
        for unit in (MUX, CRM, LRM):
            if unit not in self.masked:
                self._start(unit)

    def active(self, unit: str) -> bool:
        return unit in self.processes and self.processes[unit].poll() is None

    def armed_and_unfed(self) -> bool:
        """Whether a real watchdog would fire now."""
        said = self.node.log.read_text() if self.node.log.exists() else ""
        return FIRES in said or (self.node.armed and not self.active(MUX))

    def apply(self, state: str, kill_before: str = "") -> dict[str, Any]:
        self.kill_before = kill_before
        self.calls.clear()
        return ha_services.apply(
            state, run=self.run, root=self.root, hostname="pve1", sleep=lambda seconds: time.sleep(seconds / 10)
        )

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
            if self.calls[-1] == self.kill_before:
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
            double.wait_for("watchdog-mux", (self.node.run / "watchdog-mux.sock").exists)

    def _shown(self, unit: str) -> str:
        masked = unit in self.masked
        load, enabled = ("masked", "masked") if masked else ("loaded", "enabled")
        active = "active" if self.active(unit) else "inactive"
        return f"Id={unit}\nLoadState={load}\nActiveState={active}\nUnitFileState={enabled}"

    def lrm_state(self) -> str | None:
        try:
            state = json.loads(self.node.status.read_text())["state"]
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
    double.wait_for("the LRM to hold the watchdog", lambda: machine.lrm_state() == "active" and node.armed)
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
    double.wait_for("the LRM to be active", lambda: machine.lrm_state() == "active")
    assert machine.node.fed() and not machine.armed_and_unfed()


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
        double.wait_for("the LRM to be active", lambda: machine.lrm_state() == "active")
        assert machine.node.fed()
    assert not machine.armed_and_unfed()
