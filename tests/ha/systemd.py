# SPDX-License-Identifier: Apache-2.0
"""A node with an HA stack: files under a root, and a systemctl that knows stop, start, mask, unmask and enable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.ha import ha_info, ha_services

CRM, LRM, MUX = ha_info.CRM, ha_info.LRM, ha_info.MUX


class Killed(BaseException):
    """The run was ended in the middle."""


class Node:
    """``calls`` holds every argument vector; ``hook`` is asked before each systemctl verb and may fail or end it."""

    def __init__(self, root: Path, watchdogs: Sequence[str] = ("0",), installed: bool = True) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        #: By command: for how long it may take.
        self.timeouts: dict[str, float] = {}
        self.active = dict.fromkeys(ha_info.UNITS, "active" if installed else "inactive")
        self.hook: Callable[[list[str]], Result | None] = lambda argv: None
        #: Asked before each call of ha-manager, with its arguments.
        self.manager_hook: Callable[[list[str]], Result | None] = lambda arguments: None
        self.now = 1.0
        #: What ``ha-manager status`` shows of fencing; None: a manager that cannot disarm.
        self.fencing: str | None = None
        #: What ``ha-manager status`` prints; None: quorum, and fencing where it is shown.
        self.status_text: str | None = None
        #: How long a call of ``ha-manager`` takes.
        self.manager_seconds = 0.0
        #: What ``ss -xpnH`` prints.
        self.sockets = ""
        #: What happens while the code waits, by the number of the wait.
        self.events: dict[int, Callable[[], None]] = {}
        self.sleeps = 0
        #: State and mode that the LRM writes when it is stopped, and when it is started.
        self.stopped = ("wait_for_agent_lock", "restart")
        self.started: tuple[str, str] | None = ("wait_for_agent_lock", "active")
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
            (device / "options").write_text("0x8180\n")
            if flag:
                (device / "nowayout").write_text(f"{flag}\n")

    def pve(self, path: str, text: str) -> None:
        target = self.root / "etc/pve" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def lrm(self, state: str, mode: str = "active", name: str = "pve1") -> None:
        status = {"mode": mode, "state": state, "timestamp": int(self.now)}
        self.pve(f"nodes/{name}/lrm_status", json.dumps(status))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        self.events.get(self.sleeps, lambda: None)()

    def hold_watchdog(self, held: bool = True) -> None:
        client = self.root / "run/watchdog-mux.active"
        if held:
            client.mkdir(parents=True, exist_ok=True)
        else:
            client.rmdir()

    def lose_quorum(self) -> None:
        local = self.root / "etc/pve/local"
        local.mkdir()
        local.chmod(0o555)

    def unmount(self) -> None:
        shutil.rmtree(self.root / "etc/pve")

    def reboot(self) -> None:
        for unit in ha_info.UNITS:
            wanted = self._wanted(unit) or unit == MUX
            self.active[unit] = "active" if wanted and not self._masked(unit) else "inactive"

    def facts(self, ask_manager: bool = True) -> dict[str, Any]:
        return ha_info.collect(
            run=self.run, root=self.root, hostname="pve1", now=self.now, ask_manager=ask_manager
        )

    def apply(
        self, state: str, part: str = "all", check: bool = False, blacklist_softdog: bool = False, wait: float = 0
    ) -> dict[str, Any]:
        return ha_services.apply(
            state, part, check=check, blacklist_softdog=blacklist_softdog, run=self.run, root=self.root,
            hostname="pve1", sleep=self.sleep, clock=lambda: self.now, ticks=lambda: self.now, release_wait_s=wait,
        )  # fmt: skip

    @property
    def verbs(self) -> list[list[str]]:
        """The calls that change something; of systemctl without the program's name."""
        looks = (["systemctl", "show"], ["ha-manager", "status"], ["ha-manager", "help"])
        changing = [argv for argv in self.calls if argv[:2] not in looks and argv[0] != "ss"]
        return [argv[1:] if argv[0] == "systemctl" else argv for argv in changing]

    def snapshot(self) -> dict[str, Any]:
        files = {
            str(path.relative_to(self.root)): str(path.readlink()) if path.is_symlink() else path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.name != ha_services.LOCK.name and (path.is_symlink() or path.is_file())
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
        self.timeouts[" ".join(argv)] = timeout
        program, verb, *units = argv
        if program == "ss":
            return Result(0, self.sockets, "")
        if program == "ha-manager":
            return self._manager([verb, *units])
        if program == "modprobe":
            refused = self.hook(list(argv))
            shutil.rmtree(self.root / "sys/module/softdog", ignore_errors=True)
            return refused or Result(0, "", "")
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
                said = self.stopped if verb == "stop" else self.started
                if unit == LRM and said:
                    self.lrm(*said)
            elif verb == "mask":
                (system / unit).symlink_to("/dev/null")
            elif verb == "unmask":
                (system / unit).unlink()
            elif verb == "enable":
                (system / "multi-user.target.wants" / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
            else:
                raise AssertionError(verb)
        return Result(0, "", "")

    def _manager(self, arguments: list[str]) -> Result:
        self.now += self.manager_seconds
        refused = self.manager_hook(arguments)
        if refused is not None:
            return refused
        if arguments == ["help", "crm-command"]:
            return Result(0, "ha-manager crm-command disarm-ha <resource-mode>\n" if self.fencing else "", "")
        if arguments == ["status"]:
            said = f"quorum OK\nfencing {self.fencing}\n" if self.fencing else "quorum OK\n"
            return Result(0, said if self.status_text is None else self.status_text, "")
        assert self.fencing and arguments[0] == "crm-command", arguments
        return self.hook(["ha-manager", *arguments]) or Result(0, "", "")

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
