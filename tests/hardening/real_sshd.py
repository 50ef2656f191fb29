# SPDX-License-Identifier: Apache-2.0
"""A node with Debian's real sshd on loopback, whose /etc, /run and home of root are the test's own.

They are mounted over this machine's in a mount namespace of the test, which changes nothing of it. systemd is the double of the
rollback timer's test, with an ``ssh.service`` whose reload is what Debian's unit does: SIGHUP to the real process.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.base.run import run as real_run
from ansible.module_utils.pveguard.hardening import sshd_change, sshd_proof
from ansible.module_utils.pveguard.hardening.sshd import Who

from tests.base.test_rollback_timer import Systemd

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
#: As Debian ships it, but for the port.
MAIN = """\
# This is the sshd server system-wide configuration file.
Include /etc/ssh/sshd_config.d/*.conf
{port}
#PermitRootLogin prohibit-password
KbdInteractiveAuthentication no
UsePAM no
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem	sftp	/usr/lib/openssh/sftp-server
"""
#: Of this machine's /etc, what programs need to find users, libraries and addresses.
NEEDED = ("group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd")


class SshdNode(Systemd):
    """``peer`` and ``controller`` log in from 127.0.0.2 and 127.0.0.3."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.me = Who(os.uname().nodename.partition(".")[0], "127.0.0.1")
        self.peer = Who("pve2", "127.0.0.2")
        self.controller = "127.0.0.3"
        self.login = {"independent": True, "file": "/root/.ssh/authorized_keys2", "how": "the key in use stands there"}
        for folder in ("etc/ssh/sshd_config.d", "etc/pve", "root/.ssh", "bin", "run"):
            (root / folder).mkdir(parents=True)
        for name in NEEDED:
            shutil.copy(f"/etc/{name}", root / "etc")
        users = [line.split(":") for line in self.text("/etc/passwd").splitlines()]
        homes = [[*user[:5], f"{root}/root", *user[6:]] if user[0] == "root" else user for user in users]
        self.write("/etc/passwd", "".join(":".join(user) + "\n" for user in homes))
        # A password that nothing matches; without any the account counts as locked.
        self.write("/etc/shadow", "root:NP:20000:0:99999:7:::\n")
        (root / "root/.ssh").chmod(0o700)
        self._keys()
        self.write("/etc/ssh/sshd_config", MAIN.format(port=f"Port {self.port}\nListenAddress 127.0.0.1"))
        self.write("/bin/systemctl", '#!/bin/sh\nkill -HUP "$(cat "$0.pid")"\n')
        (root / "bin/systemctl").chmod(0o755)
        self.reloads = 0

    def _keys(self) -> None:
        for name, text in keys().items():
            self.write(name, text)
            (self.root / name.lstrip("/")).chmod(0o600)
        rsa = self.text("/etc/ssh/ssh_host_rsa_key.pub").split()
        self.write(f"/etc/pve/nodes/{self.me.name}/ssh_known_hosts", f"{self.me.name} {rsa[0]} {rsa[1]}\n")
        self.write("/etc/pve/priv/authorized_keys", self.text("/root/.ssh/id_rsa.pub") + self.text("/bin/controller.pub"))
        (self.root / "root/.ssh/authorized_keys").symlink_to("/etc/pve/priv/authorized_keys")
        self.write("/root/.ssh/authorized_keys2", self.text("/bin/controller.pub"))
        said = {self.me.name: {"id": 1, "online": 1, "ip": "127.0.0.1"}, "pve2": {"id": 2, "online": 1, "ip": "127.0.0.2"}}
        self.write("/etc/pve/.members", json.dumps({"cluster": {"quorate": 1}, "nodelist": said}))
        for path in (self.root / "etc/pve/priv/authorized_keys", self.root / "root/.ssh/authorized_keys2"):
            path.chmod(0o600)

    def mount(self) -> None:
        """In the namespace of the test alone."""
        subprocess.run(["mount", "--bind", str(self.root / "etc"), "/etc"], check=True)
        self._fresh_run()

    def _fresh_run(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
        os.mkdir("/run/sshd", 0o755)

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def write(self, path: str, text: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def add(self, text: str, name: str = "50-other.conf") -> None:
        """A file of somebody else, which sshd has not read yet."""
        self.write(f"/etc/ssh/sshd_config.d/{name}", text)

    @property
    def drop_in(self) -> Path:
        return self.root / "etc/ssh/sshd_config.d/00-pveguard.conf"

    def files(self) -> dict[str, tuple[bytes, int]]:
        folder = self.root / "etc/ssh"
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode) for path in found}

    # -- sshd

    def start_sshd(self) -> None:
        assert SSHD
        quiet = subprocess.DEVNULL
        argv = [SSHD, "-D", "-E", str(self.root / "sshd.log")]
        self.process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet)
        self.write("/bin/systemctl.pid", f"{self.process.pid}\n")
        self.wait(lambda: bool(sshd_change.listening(self.process.pid if self.process else 0)), "sshd listens")

    def stop_sshd(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
            self.process = None

    def boot(self) -> None:
        """A reboot: what is in memory is gone, the undo runs before sshd starts (the order that its unit asks for)."""
        self.stop_sshd()
        self.write("/bin/systemctl", "#!/bin/sh\nexit 0\n")
        self.reboot()
        self._fresh_run()
        self.start_sshd()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process is None or self.process.poll() is None, f"sshd ended: {self.text('/sshd.log')}"
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.02)

    # -- the seam

    def __call__(self, argv: Any, **more: Any) -> Result:
        argv = list(argv)
        if argv[0] != "systemctl":
            return real_run(argv, **more)
        if "ssh.service" in argv or "ssh.socket" in argv:
            self.calls.append(argv)
            if argv[1] == "show":
                active = "active" if argv[2] == "ssh.service" and self.process else "inactive"
                return Result(0, f"ActiveState={active}\nMainPID={self.process.pid if self.process else 0}\n")
            assert argv[1:] == ["reload", "ssh.service"] and self.process
            self.reloads += 1
            os.kill(self.process.pid, signal.SIGHUP)
            return Result(0)
        return super().__call__(argv, **more)

    def _here(self, command: str) -> list[str]:
        words = super()._here(command)
        # The undo's systemctl is the one of this node.
        return ["env", f"PATH={self.root}/bin:{os.environ['PATH']}", *words]

    def start(self, service: str) -> bool:
        """As it is, and where sshd was told to read its files, until it has."""
        pid = self.process.pid if self.process else 0
        before = sshd_change.listening(pid) if pid else set()
        there = self.drop_in.exists()
        done = super().start(service)
        if pid and there and not self.drop_in.exists():
            self.wait(lambda: bool(again := sshd_change.listening(pid)) and not again & before, "sshd begins anew")
        return done

    # -- the work

    def present(self, **more: Any) -> sshd_change.Result:
        more = {"keys_only": True, "algorithms": True, "login": self.login, "peers": [self.peer], **more}
        return sshd_change.present(**more, controller=self.controller, root=self.root, run=self)

    def prove(self) -> dict[str, Any]:
        """As the peer goes to this node. The address that it comes from is in the ssh_config of root."""
        self.write("/root/.ssh/config", f"Host *\n BindAddress {self.peer.address}\n")
        return sshd_proof.prove(self.me, port=self.port, seconds=60)

    def ssh(self, *words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """The controller's login, over a new connection unless ``options`` say something else."""
        argv = ["ssh", *options, "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
        argv += ["-i", str(self.root / "bin/controller")]
        argv += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ControlPath=none"]
        argv += ["-b", self.controller, "-p", str(self.port), f"root@{self.me.address}", *words]
        return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    def methods(self) -> str:
        """The ways to log in that sshd offers to root from the controller."""
        done = self.ssh("true", options=("-v", "-o", "PreferredAuthentications=none"))
        said = (line for line in done.stderr.splitlines() if "Authentications that can continue" in line)
        return next((line.rpartition(": ")[2] for line in said), "")


@functools.cache
def keys() -> dict[str, str]:
    """Of hosts, root and the controller; made once, as RSA takes a while."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in (
            ("/etc/ssh/ssh_host_rsa_key", "rsa"),
            ("/etc/ssh/ssh_host_ed25519_key", "ed25519"),
            ("/root/.ssh/id_rsa", "rsa"),
            ("/bin/controller", "ed25519"),
        ):
            file = f"{folder}/{os.path.basename(name)}"
            subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "test", "-t", kind, "-f", file], check=True)
            found |= {f"{name}{end}": Path(f"{file}{end}").read_text() for end in ("", ".pub")}
    return found


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
