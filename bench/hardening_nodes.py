# SPDX-License-Identifier: Apache-2.0
"""What lab nodes are like before and after hardening, seen by their serial consoles: files, logins, ring, /etc/pve.

Nothing here is taken from the product, as it is what judges it. For bench/hardening_rounds.py and the scenario hardening.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

T = TypeVar("T")
#: What LOOK says of each node.
Seen = dict[str, dict[str, Any]]
#: From a node, or from the controller, to a node.
Way = tuple[str | None, str]
#: An emulated node from power-on until all of it answers; a login over ssh.
UP_SECONDS = 300.0
LOGIN_SECONDS = 120.0
RING1 = "10.78.0"
#: The states of a rollback timer that still does something.
AT_WORK = ("armed", "rolling_back")

#: Everything that is on a node of a configuration, and what still waits there to take something back.
LOOK = r"""
import glob, hashlib, json, os, stat, subprocess
files = {}
for top in ("/etc", "/root/.ssh"):
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) != "/etc/pve"]
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            if path == "/etc/pve":
                continue
            seen = os.lstat(path)
            what = stat.S_IFMT(seen.st_mode)
            inside = ""
            if stat.S_ISLNK(what):
                inside = os.readlink(path)
            elif stat.S_ISREG(what):
                inside = hashlib.sha256(open(path, "rb").read()).hexdigest()
            files[path] = f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid} {inside}"
for path in glob.glob("/etc/pve/firewall/*") + glob.glob("/etc/pve/nodes/*/host.fw"):
    files[path] = hashlib.sha256(open(path, "rb").read()).hexdigest()
def out(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout
timers = {}
for folder in sorted(glob.glob("/var/lib/pveguard/rollback/*") + glob.glob("/run/pveguard/rollback/*")):
    timers[os.path.basename(folder)] = sorted(name[:-5] for name in os.listdir(folder) if name.endswith(".json"))
units = [path for place in ("/etc", "/run") for path in sorted(glob.glob(place + "/systemd/system/pveguard-rollback-*"))]
print(json.dumps({
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "files": files, "timers": timers, "units": units,
    "ssh": out("systemctl", "is-active", "ssh.service").strip(),
    "mounted": os.path.exists("/etc/pve/local"),
}))
"""

#: As one node goes to others: Proxmox VE's options, a new connection, and a UNIX socket through which something must come back.
REACH = r"""
import json, os, socket, subprocess, sys, tempfile, threading
ECHO = ("import os,socket,sys\nserver = socket.socket(socket.AF_UNIX)\nserver.settimeout(60)\nserver.bind(sys.argv[1])\n"
        "server.listen(1)\nprint('ready', flush=True)\nother = server.accept()[0]\nother.sendall(other.recv(9).upper())\n"
        "other.close()\nos.unlink(sys.argv[1])\n")
def reach(name, address):
    with tempfile.TemporaryDirectory() as folder:
        here, there = folder + "/here", "/run/lab-reach-" + os.urandom(8).hex()
        argv = ["ssh", "-o", "BatchMode=yes", "-o", "HostKeyAlias=" + name, "-o", "ConnectTimeout=30",
                "-o", f"UserKnownHostsFile=/etc/pve/nodes/{name}/ssh_known_hosts", "-o", "GlobalKnownHostsFile=none",
                "-o", "ControlPath=none", "-L", f"{here}:{there}", "-o", "ExitOnForwardFailure=yes", "root@" + address,
                f'python3 -c "{ECHO}" {there}']
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        killer = threading.Timer(SECONDS, process.kill)
        killer.start()
        try:
            if process.stdout.readline() != "ready\n":
                return "no login: " + " ".join(process.stderr.read().split())[-300:]
            with socket.socket(socket.AF_UNIX) as way:
                way.settimeout(30)
                way.connect(here)
                way.sendall(b"forwarded")
                if way.recv(9) != b"FORWARDED":
                    return "no forwarded UNIX socket"
        except OSError as error:
            return f"no forwarded UNIX socket: {error}"
        finally:
            process.kill()
            process.wait()
            killer.cancel()
    return ""
print(json.dumps({name: reach(name, address) for name, address in PEERS}))
"""

#: Membership, both links from corosync's own view, and a write on /etc/pve.
MEMBER = r"""
import json, os, re, subprocess
def out(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
quorum, links = out("corosync-quorumtool", "-s"), out("corosync-cfgtool", "-n")
path = f"/etc/pve/nodes/{os.uname().nodename}/lab-write"
try:
    with open(path, "w") as stream:
        stream.write("here")
    written = open(path).read() == "here"
    os.unlink(path)
except OSError as error:
    written = str(error)
print(json.dumps({
    "quorate": bool(re.search(r"^Quorate:\s+Yes", quorum, re.M)),
    "members": len(re.findall(r"^ +[0-9]+ +[0-9]+ ", quorum.partition("Membership information")[2], re.M)),
    # A link that is down lacks the word.
    "links_down": [line for line in links.splitlines() if "LINK: " in line and not re.search(r"\bconnected\b", line)],
    "links": len(re.findall(r"LINK: [0-9]+", links)),
    "written": written,
}))
"""


class CannotTest(Exception):
    """The test could not be done; nothing is said about the product."""


def python(program: str) -> str:
    return f"/usr/bin/python3 - <<'EOF'\n{program}\nEOF"


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is not as it was, by path."""
    return [
        f"{path}: {before.get(path, 'was not there')} -> {after.get(path, 'is gone')}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]


class Nodes:
    """The nodes of a lab: their serial consoles need no ssh, no network and no quorum."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.names = [machine.name for machine in lab.machines() if machine.running]

    def everywhere(self, ask: Callable[[str], T], names: Sequence[str] = ()) -> dict[str, T]:
        chosen = list(names or self.names)
        with ThreadPoolExecutor(len(chosen)) as pool:
            return dict(zip(chosen, pool.map(ask, chosen), strict=True))

    def console(self, node: str, script: str, seconds: float = 120) -> str:
        status, output = self.lab.machine(node).console.run(script, seconds)
        if status != 0:
            raise CannotTest(f"{node}: {script[:60]!r} ended with {status}: {output[-1000:]}")
        return output

    def ask(self, node: str, program: str, seconds: float = 120) -> dict[str, Any]:
        """The JSON that a program of Python prints there."""
        said = self.console(node, python(program), seconds).strip().splitlines()
        try:
            found = json.loads(said[-1])
        except (ValueError, IndexError):
            raise CannotTest(f"{node}: answered {said[-3:]}") from None
        assert isinstance(found, dict)
        return found

    def look_at(self, node: str) -> dict[str, Any]:
        """What LOOK says, once the node answers, its sshd is there and /etc/pve is mounted."""
        deadline = time.monotonic() + UP_SECONDS
        said = "no answer"
        while time.monotonic() < deadline:
            try:
                seen = self.ask(node, LOOK)
                if seen["mounted"] and seen["ssh"] == "active":
                    return seen
                said = f"ssh.service is {seen['ssh']}, /etc/pve is {'' if seen['mounted'] else 'not '}mounted"
            except (LabError, CannotTest) as error:
                said = str(error)
                self.lab.machine(node).reset_if_stuck()
            time.sleep(0.5)
        raise CannotTest(f"{node}: not up within {UP_SECONDS:.0f} s: {said}")

    def look(self) -> Seen:
        return self.everywhere(self.look_at)

    # -- who gets in

    def from_controller(self, node: str, seconds: float = LOGIN_SECONDS) -> str:
        """Why a new login does not work; empty when it does."""
        try:
            done = subprocess.run(
                self.lab.ssh_argv(node, ["echo in"]),
                capture_output=True,
                text=True,
                timeout=seconds,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return f"no login within {seconds:.0f} s"
        return (
            ""
            if done.returncode == 0 and done.stdout == "in\n"
            else " ".join(done.stderr.split())[-300:] or "no login"
        )

    def from_node(self, node: str, to: Sequence[str], ring: str = "10.77.0") -> dict[str, str]:
        peers = [(name, f"{ring}.{name.removeprefix('pve')}") for name in to]
        program = REACH.replace("PEERS", repr(peers)).replace("SECONDS", f"{LOGIN_SECONDS:g}")
        return self.ask(node, program, LOGIN_SECONDS * len(peers) + 30)

    def locked_out(self, patience: float = 45.0) -> list[str]:
        """Who does not get in where, of the controller and all pairs of members.

        sshd that has just been told to read its files
        answers nobody for a moment, and one with penalties not a source that has failed: who gets in soon is not locked out.
        """
        ways: list[Way] = [(None, node) for node in self.names]
        ways += [(node, each) for node in self.names for each in self.names if each != node]
        deadline = time.monotonic() + patience
        while True:
            began = time.monotonic()
            found = self._fail(ways)
            if not found or began > deadline:
                return [f"{node or 'controller'} to {to}: {why}" for (node, to), why in found.items()]
            ways = list(found)
            time.sleep(2)

    def _fail(self, ways: Sequence[Way]) -> dict[Way, str]:
        """Those of ``(node, to)`` that do not work, with the reason; without a node it is the controller."""

        def ask(node: str | None) -> dict[Way, str]:
            targets = [to for each, to in ways if each == node]
            if node is None:
                return {(None, to): why for to, why in self.everywhere(self.from_controller, targets).items()}
            return {(node, to): why for to, why in self.from_node(node, targets).items()}

        comes_from = list(dict.fromkeys(node for node, _ in ways))
        with ThreadPoolExecutor(len(comes_from)) as pool:
            return {way: why for seen in pool.map(ask, comes_from) for way, why in seen.items() if why}

    # -- the cluster

    def not_in_order(self, links: int = 1, seconds: float = 120) -> list[str]:
        """What is wrong with quorum, links and writes on /etc/pve, once that has settled."""
        deadline = time.monotonic() + seconds
        while True:
            seen = self.everywhere(lambda node: self.ask(node, MEMBER))
            wrong = []
            for node, each in seen.items():
                if not each["quorate"] or each["members"] != len(self.names):
                    wrong.append(f"{node}: quorate {each['quorate']}, {each['members']} members")
                wrong += [f"{node}: {line.strip()}" for line in each["links_down"]]
                if each["links"] != links * (len(self.names) - 1):
                    wrong.append(
                        f"{node}: {each['links']} links to others, not {links * (len(self.names) - 1)}"
                    )
                if each["written"] is not True:
                    wrong.append(f"{node}: no write on /etc/pve: {each['written']}")
            if not wrong or time.monotonic() > deadline:
                return wrong
            time.sleep(1)

    def add_second_ring(self) -> None:
        """A VLAN of its own on the ring's card, at this and later boots, and link 1 on it, as an administrator adds it."""

        def address(node: str) -> None:
            number = node.removeprefix("pve")
            lines = (
                "link add link eth1 name eth1.78 type vlan id 78",
                f"address add {RING1}.{number}/24 dev eth1.78",
                "link set eth1.78 up",
            )
            text = "\\n".join(lines)
            self.console(
                node,
                f"grep -q eth1.78 /etc/lab-network || {{ printf '{text}\\n' > /run/ring1 && ip -batch /run/ring1 "
                "&& cat /run/ring1 >> /etc/lab-network; }",
            )

        self.everywhere(address)
        # The numbers of nodes are the ends of their addresses in the lab.
        self.console(
            self.names[0],
            "grep -q ring1_addr /etc/pve/corosync.conf || { "
            rf"sed -E 's/^( *)ring0_addr: 10\.77\.0\.([0-9]+)$/&\n\1ring1_addr: {RING1}.\2/;"
            r"s/^( *)linknumber: 0$/&\n  }\n  interface {\n    linknumber: 1/' /etc/pve/corosync.conf > /run/conf && "
            "version=$(sed -n 's/^ *config_version: //p' /run/conf) && "
            'sed "s/config_version: .*/config_version: $((version + 1))/" /run/conf > /etc/pve/corosync.conf.new && '
            "mv /etc/pve/corosync.conf.new /etc/pve/corosync.conf; }",
        )  # fmt: skip

    def keys_of_root(self) -> None:
        """What an installation and pvecm make and the lab does not: RSA keys of hosts and root, known to all members."""
        has = self.everywhere(
            lambda node: self.console(node, "[ -e /root/.ssh/id_rsa ] && echo has; true").strip()
        )
        without = [node for node in self.names if not has[node]]
        if not without:
            return
        with tempfile.TemporaryDirectory() as folder:

            def keys(node: str) -> dict[str, str]:
                found: dict[str, str] = {}
                for path in ("/etc/ssh/ssh_host_rsa_key", "/root/.ssh/id_rsa"):
                    file = Path(folder, f"{node}-{os.path.basename(path)}")
                    argv = ["ssh-keygen", "-q", "-N", "", "-C", f"root@{node}", "-t", "rsa", "-f", str(file)]
                    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
                    found |= {f"{path}{end}": Path(f"{file}{end}").read_text() for end in ("", ".pub")}
                return found

            made = self.everywhere(keys, without)
        shared = ""
        for node in without:
            script = "set -e; umask 077; pvecm updatecerts --silent; "
            for path, text in made[node].items():
                script += f"printf %s {shlex.quote(text)} > {path}; "
            kind, public = made[node]["/etc/ssh/ssh_host_rsa_key.pub"].split()[:2]
            script += (
                f"echo {node} {kind} {public} > /etc/pve/nodes/{node}/ssh_known_hosts; systemctl reload ssh"
            )
            self.console(node, script)
            shared += made[node]["/root/.ssh/id_rsa.pub"]
        self.console(self.names[0], f"printf %s {shlex.quote(shared)} >> /etc/pve/priv/authorized_keys")

    def second_key(self) -> None:
        """The controller's key beside /etc/pve, as an administrator puts it there before passwords go off."""
        key = (self.lab.directory / "id_ed25519.pub").read_text().strip()
        file = "/root/.ssh/authorized_keys2"
        self.everywhere(
            lambda node: self.console(node, f"umask 077; grep -qxF '{key}' {file} || echo '{key}' >> {file}")
        )


def environment(**more: str) -> dict[str, str]:
    """For a run of Ansible whose output is read. molecule asks for colours, which come before what is wanted without."""
    uncoloured = {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
    return {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **uncoloured, **more}
