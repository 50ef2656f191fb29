# SPDX-License-Identifier: Apache-2.0
"""A node with an HA stack: files under a root, and a systemctl that knows stop, start, mask, unmask and enable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard import ha_info, ha_services
from ansible.module_utils.pveguard.run import Result

CRM, LRM, MUX = ha_info.CRM, ha_info.LRM, ha_info.MUX


class Killed(BaseException):
    """The run was ended in the middle."""


class Node:
    """``calls`` holds every argument vector; ``hook`` is asked before each systemctl verb and may fail or end it."""

    def __init__(self, root: Path, watchdogs: Sequence[str] = ("0",), installed: bool = True) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.active = dict.fromkeys(ha_info.UNITS, "active" if installed else "inactive")
        self.hook: Callable[[list[str]], Result | None] = lambda argv: None
        units = root / "usr/lib/systemd/system"
        units.mkdir(parents=True)
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        if installed:
            for unit in ha_info.UNITS:
                # watchdog-mux is pulled in by the managers, as on Proxmox.
                install = "" if unit == MUX else "[Install]\nWantedBy=multi-user.target\n"
                (units / unit).write_text(f"[Unit]\n{install}")
                if install:
                    (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
            self.pve("ha/.keep", "")
            self.lrm("wait_for_agent_lock")
        for number, flag in enumerate(watchdogs):
            device = root / f"sys/class/watchdog/watchdog{number}"
            device.mkdir(parents=True)
            (device / "identity").write_text("Software Watchdog\n")
            if flag:
                (device / "nowayout").write_text(f"{flag}\n")

    def pve(self, path: str, text: str) -> None:
        target = self.root / "etc/pve" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def lrm(self, state: str) -> None:
        self.pve("nodes/pve1/lrm_status", json.dumps({"mode": "active", "state": state, "timestamp": 1}))

    def hold_watchdog(self, held: bool = True) -> None:
        client = self.root / "run/watchdog-mux.active"
        if held:
            client.mkdir(parents=True, exist_ok=True)
        else:
            client.rmdir()

    def unmount(self) -> None:
        shutil.rmtree(self.root / "etc/pve")

    def reboot(self) -> None:
        for unit in ha_info.UNITS:
            wanted = self._wanted(unit) or unit == MUX
            self.active[unit] = "active" if wanted and not self._masked(unit) else "inactive"

    def facts(self) -> dict[str, Any]:
        return ha_info.collect(run=self.run, root=self.root, hostname="pve1")

    def apply(self, state: str, part: str = "all", check: bool = False) -> dict[str, Any]:
        return ha_services.apply(
            state, part, check=check, run=self.run, root=self.root, hostname="pve1", sleep=lambda _: None
        )

    @property
    def verbs(self) -> list[list[str]]:
        """The calls that change something, without the program's name."""
        return [argv[1:] for argv in self.calls if argv[1] != "show"]

    def snapshot(self) -> dict[str, Any]:
        files = {
            str(path.relative_to(self.root)): str(path.readlink()) if path.is_symlink() else path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_symlink() or path.is_file()
        }
        return {"active": dict(self.active), "files": files}

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        self.calls.append(list(argv))
        program, verb, *units = argv
        assert program == "systemctl"
        if verb == "show":
            return Result(0, "\n\n".join(self._shown(unit) for unit in ha_info.UNITS) + "\n", "")
        refused = self.hook(list(argv))
        if refused is not None:
            return refused
        system = self.root / "etc/systemd/system"
        for unit in units:
            if verb in ("stop", "start"):
                assert verb == "stop" or not self._masked(unit), f"{unit} is masked"
                self.active[unit] = "inactive" if verb == "stop" else "active"
            elif verb == "mask":
                (system / unit).symlink_to("/dev/null")
            elif verb == "unmask":
                (system / unit).unlink()
            elif verb == "enable":
                (system / "multi-user.target.wants" / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
            else:
                raise AssertionError(verb)
        return Result(0, "", "")

    def _masked(self, unit: str) -> bool:
        return (self.root / "etc/systemd/system" / unit).is_symlink()

    def _wanted(self, unit: str) -> bool:
        return (self.root / "etc/systemd/system/multi-user.target.wants" / unit).is_symlink()

    def _shown(self, unit: str) -> str:
        if self._masked(unit):
            load, enabled = "masked", "masked"
        elif (self.root / "usr/lib/systemd/system" / unit).exists():
            load, enabled = (
                "loaded",
                "static" if unit == MUX else "enabled" if self._wanted(unit) else "disabled",
            )
        else:
            load, enabled = "not-found", ""
        return f"Id={unit}\nLoadState={load}\nActiveState={self.active[unit]}\nUnitFileState={enabled}"
