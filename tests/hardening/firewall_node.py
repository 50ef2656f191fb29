# SPDX-License-Identifier: Apache-2.0
"""Members of a cluster whose /etc/pve is one file system. The firewall of each is a double: while it runs, it has loaded what
cluster.fw says. The undo is the real program, run by the double of systemd of the rollback timer's test.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base import rollback_timer
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.formats import firewall_config
from ansible.module_utils.pveguard.hardening import firewall_change, firewall_undo
from ansible.module_utils.pveguard.hardening.firewall_rules import Options

from tests.base.test_rollback_timer import Systemd

OPERATORS = "203.0.113.0/24"
CONTROLLER = "203.0.113.9"
#: Of somebody: with a comment, an end of its own and a rule.
BEFORE = "# ours\r\n[OPTIONS]\r\nenable: 0\r\n\r\n[RULES]\r\nIN ACCEPT -p tcp -dport 9100 # exporter\r\n"
ENFORCE = Options("enforce", (OPERATORS, "10.99.0.0/24"), "lab")
RULES = Options("rules", (OPERATORS, "10.99.0.0/24"))
#: A node's programs, as far as the undo asks for them.
PROGRAMS = {
    "pve-firewall": 'echo "pve-firewall $*" >>"$here/calls"; : >"$here/stopped"',
    "systemctl": """
        echo "systemctl $*" >>"$here/calls"
        case "$*" in
        "--no-block start pve-firewall.service") [ -e "$here/../HELD" ] || rm -f "$here/stopped" ;;
        esac""",
    "iptables-legacy": "exit 1",
    "ip6tables-legacy": "exit 1",
    "nft": "exit 1",
    "sync": "exit 0",
}


class Shared:
    """The cluster file system: mounted, writable, or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "firewall").mkdir(parents=True)
        self.file = folder / "firewall/cluster.fw"
        (folder / ".version").write_text("{}")
        self.file.write_bytes(BEFORE.encode())

    @property
    def text(self) -> str:
        """With the ends of its lines."""
        return self.file.read_bytes().decode()

    def write(self, text: str) -> None:
        self.file.write_bytes(text.encode())

    @property
    def bytes(self) -> bytes | None:
        return self.file.read_bytes() if self.file.exists() else None


class FirewallNode(Systemd):
    def __init__(self, root: Path, shared: Shared, number: int = 1) -> None:
        super().__init__(root)
        self.shared, self.number = shared, number
        #: What the firewall has loaded, where it loads no more; and lines of others.
        self.stuck: str | None = None
        self.others = ""
        self.at = root / "etc/pve"
        self.at.mkdir(parents=True)
        self.bin = root / "bin"
        self.bin.mkdir()
        for name, text in PROGRAMS.items():
            text = text.replace("HELD", firewall_undo.HELD.lstrip("/"))
            (self.bin / name).write_text(f'#!/bin/sh\nhere={self.bin}\n{text}\n')
            (self.bin / name).chmod(0o755)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "--bind", str(self.shared.folder), str(self.at)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.at)], check=True)

    def quorum(self, there: bool) -> None:
        """Without it the file system takes no writes."""
        subprocess.run(["mount", "-o", f"remount,bind,{'rw' if there else 'ro'}", str(self.at)], check=True)

    # -- systemd and the firewall

    def __call__(self, argv: Any, **more: Any) -> Result:
        argv = list(argv)
        if argv[0] == "iptables-legacy-save":
            return Result(0, self.kernel())
        if argv[0] != "systemctl":
            raise CommandMissing(argv[0])
        if "pve-firewall.service" in argv:
            self.calls.append(argv)
            if "start" in argv:
                self._program("systemctl", "--no-block", "start", "pve-firewall.service")
            return Result(0)
        return super().__call__(argv, **more)

    def _program(self, name: str, *words: str) -> None:
        subprocess.run([self.bin / name, *words], check=True)

    def _here(self, command: str) -> list[str]:
        return ["env", f"PATH={self.bin}:{os.environ['PATH']}", *super()._here(command)]

    @property
    def held(self) -> bool:
        """Whether its units would not start."""
        places = [self.root / firewall_undo.drop_in(unit).lstrip("/") for unit in firewall_undo.UNITS]
        conditions = [place.exists() and firewall_undo.HELD in place.read_text() for place in places]
        return all(conditions) and (self.root / firewall_undo.HELD.lstrip("/")).exists()

    @property
    def runs(self) -> bool:
        return not (self.bin / "stopped").exists()

    @property
    def forced(self) -> bool:
        """Whether proxmox-firewall is kept from setting rules."""
        return (self.root / firewall_undo.FORCE_DISABLE.lstrip("/")).exists()

    def boot(self) -> None:
        """/etc/pve comes later than the undo, and the firewall starts after both where nothing holds it."""
        self.unmount()
        (self.bin / "stopped").write_text("")
        self.reboot()
        if not self.held:
            (self.bin / "stopped").unlink(missing_ok=True)

    def retry(self) -> None:
        """systemd's Restart= of an undo that failed."""
        self.start(f"{rollback_timer.PREFIX}{firewall_change.TIMER}.service")

    def start_program(self) -> None:
        """The undo once more, by hand."""
        place = self.root / firewall_undo.PROGRAM.lstrip("/")
        subprocess.run(["/bin/sh", place], env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}, check=True)

    def kernel(self) -> str:
        text = self.shared.text if self.shared.file.exists() else ""
        text = text if self.stuck is None else self.stuck
        if not self.runs or not firewall_config.parse(text).on("enable", False):
            return "*filter\n:INPUT ACCEPT [1:2]\nCOMMIT\n"
        rules = f"-A INPUT -j PVEFW-INPUT\n-A PVEFW-HOST-IN -m comment --comment {json.dumps(text)}"
        return f"*filter\n:INPUT ACCEPT [1:2]\n{rules}\n{self.others}COMMIT\n"

    @property
    def closed(self) -> bool:
        return "PVEFW-INPUT" in self.kernel()

    # -- the work

    def facts(self, members: int = 2) -> dict[str, Any]:
        parsed = firewall_config.parse(self.shared.text if self.shared.file.exists() else "")
        return {
            "known": True,
            "implementation": "legacy",
            "node": f"pve{self.number}",
            "cluster_name": "lab",
            "services": {"pve-firewall": {"installed": True, "active": self.runs, "enabled": True}},
            "cluster": {"path": "/etc/pve/firewall/cluster.fw", "present": True, "enable": parsed.on("enable", False),
                        "rules": [each.text() for each in parsed.rules], "sets": {}, "strange": []},
            "host": {"path": "/etc/pve/local/host.fw", "present": False, "rules": [], "strange": []},
            "members": [
                {"name": f"pve{each}", "own": each == self.number, "address": f"10.99.0.{each}",
                 "links": {"0": f"10.99.0.{each}", "1": f"10.98.0.{each}"}}
                for each in range(1, members + 1)
            ],
            "links": [0, 1],
            "addresses": [f"10.99.0.{self.number}/24"],
            "address": f"10.99.0.{self.number}",
            "local_network": "10.99.0.0/24",
            "controllers": [CONTROLLER],
            "controller": CONTROLLER,
        }  # fmt: skip

    def arm(self, options: Options = ENFORCE, **more: Any) -> firewall_change.Result:
        facts = {**self.facts(), **more.pop("facts", {})}
        return firewall_change.arm(options, facts, **{"seconds": 300, **more}, root=self.root, run=self)

    def write(self, digest: str) -> firewall_change.Result:
        return firewall_change.write(digest, root=self.root)

    def present(self, digest: str, write: bool = True, **more: Any) -> firewall_change.Result:
        done = self.write(digest) if write else None
        time = iter(range(10**6))
        more = {"sleep": lambda _seconds: None, "clock": lambda: float(next(time)), **more}
        seen = firewall_change.present(digest, root=self.root, run=self, **more)
        return done or seen

    def undo(self, **more: Any) -> bool:
        return firewall_change.undo(root=self.root, run=self, **more)

    def confirm(self) -> bool:
        # This test came by no ssh.
        return firewall_change.confirm(root=self.root, run=self, pid=1)

    def revert(self, **more: Any) -> firewall_change.Result:
        return firewall_change.revert(root=self.root, run=self, **more)

    def timer(self) -> str:
        return str(rollback_timer.status(firewall_change.TIMER, root=self.root, ticks=lambda: self.now)["state"])

    def picture(self) -> dict[str, str]:
        """Every file of the node but the doubles', and of /etc/pve."""
        found = (path for path in self.root.rglob("*") if path.is_file() and self.bin not in path.parents)
        return {str(path.relative_to(self.root)): path.read_bytes().hex() for path in sorted(found)}
