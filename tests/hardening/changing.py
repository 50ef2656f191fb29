# SPDX-License-Identifier: Apache-2.0
"""A node whose concerns are changed: files under a root, with a systemctl, auditctl and apt-get that keep what they are told.

apt-config is the real one where the machine has it, on the files of the root. ``hook`` is asked before each command and may
fail it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import hardening_files, sysctl_change

from tests.hardening.node import Node, clean

STATE = ("var/lib/pveguard/", "run/pveguard/")


class ChangingNode(Node):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.hook: Callable[[list[str]], Result | None] = lambda argv: None
        self.units: dict[str, str] = {"apt-daily-upgrade.timer": "active"}
        self.restarts: list[str] = []
        self.audit: list[str] = []
        self.audit_enabled = 1
        for name in ("auditctl", "env", "cat"):
            self.answers[name] = getattr(self, name)
        self.answers["apt-config"] = self.apt_config

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        said = self.hook(list(argv))
        return super().run(argv) if said is None else said

    def cat(self, argv: Sequence[str]) -> Result:
        done = subprocess.run(argv, capture_output=True, text=True)
        return Result(done.returncode, done.stdout, done.stderr)

    def systemctl(self, argv: Sequence[str]) -> Result:
        verb, *units = [word for word in argv[1:] if not word.startswith("-")]
        if verb == "show":
            names = [word for word in units if "." in word and "," not in word]
            shown = [
                f"Id={name}\nLoadState={'loaded' if name in self.units else 'not-found'}\n"
                f"ActiveState={self.units.get(name, 'inactive')}\nUnitFileState=enabled"
                for name in names
            ]
            return Result(0, "\n\n".join(shown) + "\n")
        if verb in ("restart", "stop"):
            return next((done for unit in units if not (done := self.unit(verb, unit)).ok), Result(0))
        return Result(0)

    def unit(self, verb: str, unit: str) -> Result:
        if verb == "restart":
            self.restarts.append(unit)
        lines = self.text(f"/etc/systemd/system/{unit}").splitlines()
        keys = ("ExecStop",) if verb == "stop" else ("ExecStop", "ExecStartPre", "ExecStart")
        for key in keys:
            for line in lines:
                name, _, command = line.partition("=")
                if name == key:
                    words = shlex.split(command.lstrip("-"))
                    done = self.run([words[0].rpartition("/")[2], *words[1:]])
                    if not done.ok and not command.startswith("-"):
                        return done
        return Result(0)

    def auditctl(self, argv: Sequence[str]) -> Result:
        """Keeps rules, and lists a pure watch as -w, as the real one does."""
        if argv[1] == "-s":
            return Result(0, f"enabled {self.audit_enabled}\nfailure 1\npid 512\n")
        if argv[1] == "-l":
            return Result(0, "".join(f"{rule}\n" for rule in self.audit) or "No rules\n")
        if argv[1] == "-D":
            key = argv[3]
            self.audit = [rule for rule in self.audit if not rule.endswith((f"-k {key}", f"key={key}"))]
            return Result(0, "No rules\n")
        assert argv[1] == "-R", argv
        for line in self.text(argv[2]).splitlines():
            if line.startswith("-a never"):
                self.audit.append(line)
            elif line.startswith("-a"):
                words = line.split()
                place = next(word for word in words if word.startswith(("path=", "dir="))).partition("=")[2]
                self.audit.append(f"-w {place} -p wa -k {words[-1].partition('=')[2]}")
        return Result(0)

    def env(self, argv: Sequence[str]) -> Result:
        """apt-get that installs what is asked for."""
        assert argv[2] == "apt-get" and argv[-2] == "install", argv
        {"auditd": self.has_auditd, "unattended-upgrades": self.has_unattended}[argv[-1]]()
        return Result(0)

    def has_auditd(self) -> None:
        self.write("/usr/sbin/auditctl", "")
        self.write("/etc/audit/auditd.conf", "disk_full_action = SUSPEND\nmax_log_file_action = ROTATE\n")
        self.write("/etc/audit/rules.d/audit.rules", "-D\n-b 8192\n-f 1\n")
        self.write("/proc/self/mountinfo", "".join(f"{line}\n" for line in self.mounts))

    def has_unattended(self) -> None:
        self.write("/usr/bin/unattended-upgrade", "")
        # As the package ships it, shortened.
        self.write(
            "/etc/apt/apt.conf.d/50unattended-upgrades",
            'Unattended-Upgrade::Origins-Pattern {\n  "origin=Debian,codename=${distro_codename},label=Debian";\n'
            '  "origin=Debian,codename=${distro_codename}-security,label=Debian-Security";\n};\n'
            'Unattended-Upgrade::Package-Blacklist {\n  "mine$";\n};\n',
        )

    def apt_config(self, argv: Sequence[str]) -> Result:
        """The real one, on the files of the root."""
        main = self.root.parent / f"{self.root.name}.apt"
        main.write_text(f'Dir::Etc "{self.root}/etc/apt";\n')
        done = subprocess.run(
            ["apt-config", "dump"],
            capture_output=True,
            text=True,
            env={**os.environ, "APT_CONFIG": str(main)},
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def text(self, path: str) -> str:
        place = self.root / path.lstrip("/")
        return place.read_text() if place.exists() else ""

    def others(self) -> dict[str, Any]:
        """Everything but what pveguard keeps for itself: files with their mode, links, folders."""
        found: dict[str, Any] = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if f"{name}/".startswith(STATE) or name in (
                "var",
                "var/lib",
                "run",
                "var/lib/pveguard",
                "run/pveguard",
            ):
                continue
            if path.is_symlink():
                found[name] = os.readlink(path)
            elif path.is_file():
                found[name] = (path.read_bytes(), path.stat().st_mode)
            else:
                found[name] = "folder"
        return found

    def apply(
        self, name: str, check: bool = False, controller: str = "10.0.0.200", **options: Any
    ) -> hardening_files.Result:
        return hardening_files.apply(name, {"enabled": True, **options}, check, controller, self.run, self.root)

    def revert(self, check: bool = False, drift: str = "refuse") -> hardening_files.Result:
        return hardening_files.revert(check, drift, self.run, self.root)

    def kept(self) -> list[str]:
        """What pveguard still keeps."""
        return [
            str(path)
            for path in self.root.rglob("*")
            if str(path.relative_to(self.root)).startswith(STATE) and path.is_file()
        ]


def changing(root: Path, release: int = 9) -> ChangingNode:
    """``clean`` with the kernel settings of Debian's kernel."""
    root.mkdir(exist_ok=True)
    node = ChangingNode(root)
    plain = clean(root, release)
    node.mounts = plain.mounts
    loose = {
        "kernel.dmesg_restrict": 1,
        "kernel.randomize_va_space": 2,
        "fs.protected_hardlinks": 1,
        "fs.protected_symlinks": 1,
    }
    for key in sysctl_change.KEYS:
        on = loose.get(key, 1 if key in (*sysctl_change.ANSWERS, *sysctl_change.REDIRECTS) else 0)
        node.kernel({key.replace(".", "/"): str(on)})
    node.write(
        "/proc/modules", "bridge 311296 1 br_netfilter, Live 0x0000000000000000\nsctp 1 0 - Live 0x0\n"
    )
    return node
