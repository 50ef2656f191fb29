# SPDX-License-Identifier: Apache-2.0
"""The role's firewall on a node with the double of the cluster file system over FUSE, the double of pve-firewall, and the real
netfilter, all in namespaces of its own. systemd is a program that does what the units say, as far as the undo needs it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.hardening import firewall_undo

from lab.packages.build import HERE
from lab.tests.doubles import harness
from lab.tests.doubles.harness import ROOT, Node, wait_for
from tests.project.ansible_runs import environment

TOOLS = ("iptables-legacy-restore", "ip6tables-legacy-restore", "ipset", "ip")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
    pytest.mark.skipif(harness.why_not() is not None, reason=str(harness.why_not())),
]
BEFORE = "[OPTIONS]\n\nenable: 0\n\n[RULES]\n\nIN ACCEPT -p tcp -dport 9100 # exporter\n"
UNDO = "pveguard-rollback-hardening-firewall"
SYSTEMCTL = """#!/usr/bin/python3
import os, shlex, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
verb, unit = words[0], words[1] if len(words) > 1 else ""
folder = f"/etc/systemd/system/{unit}.d"
condition = os.path.isdir(folder) and any("HELD" in open(f"{folder}/{name}").read() for name in os.listdir(folder))
held = condition and os.path.exists("HELD")
if verb == "show" and unit.endswith(".timer"):
    print("ActiveState=active\\nSubState=waiting")
elif verb == "show":
    for each in words[1:]:
        on = each == "pve-firewall.service" and os.path.exists("/run/pve-firewall.pid")
        print(f"Id={each}\\nLoadState=loaded\\nActiveState={'active' if on else 'inactive'}\\nUnitFileState=enabled\\n")
elif verb == "start" and unit == "pve-firewall.service" and not held:
    quiet = subprocess.DEVNULL
    sys.exit(subprocess.run(["pve-firewall", "start"], stdin=quiet, stdout=quiet, stderr=quiet).returncode)
elif verb == "start" and unit.startswith("pveguard-rollback"):
    for line in open(f"/etc/systemd/system/{unit}").read().splitlines():
        key, _, command = line.partition("=")
        if key.startswith("Exec") and subprocess.run(shlex.split(command.replace("%%", "%").replace("$$", "$"))).returncode:
            sys.exit(1)
"""
WRAPPER = f"""#!/bin/sh
export PVE_LAB_NODE=pve1
exec {HERE}/pve-firewall/root/usr/sbin/pve-firewall "$@"
"""


#: Stand-ins first, wherever the tests were started from.
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Firewalled(Node):
    folder: Path

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return super().run("env", PATH, *command, timeout=timeout)

    def begin(self, folder: Path) -> None:
        self.folder = folder
        self.start()
        self.sh("ip link add ring0 type veth peer name ring1 && ip address add 10.77.0.1/24 dev ring0")
        self.sh("ip link set ring0 up && ip link set ring1 up")
        # /usr/sbin with one program more.
        self.sh(
            "mkdir /run/sbin && mount --bind /usr/sbin /run/sbin && mount -t tmpfs sbin /usr/sbin && ln -s /run/sbin/* /usr/sbin/"
            " && mkdir -p /etc/systemd/system /run/systemd/system"
        )
        self.program("pve-firewall", WRAPPER)
        self.sh("rm -f /usr/sbin/systemctl; mkdir /run/bin; mount --bind /run/bin /usr/local/sbin")
        self.program("systemctl", SYSTEMCTL.replace("HELD", firewall_undo.HELD), "run/bin")
        (self.root / "etc/pve-firewall-lab.conf").write_text("seconds=0.5\n")
        (self.pve / "nodes/pve1").mkdir(parents=True, exist_ok=True)
        self.file = self.pve / "firewall/cluster.fw"
        self.file.parent.mkdir()
        self.file.write_text(BEFORE)
        self.sh("systemctl start pve-firewall.service")

    def program(self, name: str, text: str, folder: str = "usr/sbin") -> None:
        place = self.root / folder / name
        place.write_text(text)
        place.chmod(0o755)

    def play(self, mode: str, *options: str, tasks: str = "together.yml") -> tuple[int, str]:
        # Ansible is not in the node, its modules are.
        python = Path(f"{self.folder}/python")
        # A process of this name above each module stands for the login that it came by.
        sshd = python.with_name("sshd")
        sshd.write_text(f"#!/bin/sh\n{' '.join(self.enter(['env', PATH, '/usr/bin/python3']))} \"$@\"\nexit $?\n")
        python.write_text(f'#!/bin/sh\nexec {sshd} "$@"\n')
        for each in (sshd, python):
            each.chmod(0o755)
        host = {"ansible_connection": "local", "ansible_pipelining": True, "ansible_python_interpreter": str(python)}
        role = {"name": "node_hardening", "tasks_from": tasks}
        values = {"node_hardening_firewall": mode, "node_hardening_firewall_management": ["10.77.0.0/24"]}
        play = {"hosts": "pve1", "gather_facts": False, "tasks": [{"import_role": role, "vars": values}]}
        (self.folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"pve1": host}}}))
        (self.folder / "play.yml").write_text(json.dumps([play]))
        program = Path(sys.executable).with_name("ansible-playbook")
        words = [str(program), "-i", str(self.folder / "hosts.json"), *options, str(self.folder / "play.yml")]
        # As if it came from there.
        more = {"SSH_CONNECTION": "10.77.0.9 1 10.77.0.1 22", "ANSIBLE_LOCAL_TEMP": str(self.folder / "tmp")}
        done = subprocess.run(
            words, cwd=ROOT, env=environment(**more), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def netfilter(self) -> str:
        return self.sh("iptables-legacy-save -t filter")

    @property
    def closed(self) -> bool:
        return "-A INPUT -j PVEFW-INPUT" in self.netfilter()

    @property
    def held(self) -> bool:
        return (self.root / firewall_undo.HELD.lstrip("/")).exists()

    def left(self) -> list[str]:
        units = "/etc/systemd/system/*pveguard* /etc/systemd/system/*.d"
        return self.sh(f"ls -d /var/lib/pveguard/node_hardening/* {units} 2>/dev/null; true").split()

    def armed(self) -> None:
        """As a controller that dies before the proof leaves it."""
        program = (
            "import sys, types; from pathlib import Path; m = types.ModuleType('ansible.module_utils');"
            "m.__path__ = [sys.argv[1]]; sys.modules |= {'ansible': types.ModuleType('ansible'), m.__name__: m};"
            "from ansible.module_utils.pveguard.base.run import run;"
            "from ansible.module_utils.pveguard.hardening import firewall, firewall_change as c;"
            "from ansible.module_utils.pveguard.hardening.firewall_rules import Options;"
            "seen = c.arm(Options('enforce', ('10.77.0.0/24',)), firewall.look(Path('/'), run));"
            "c.write(seen.digest); c.present(seen.digest, settle_s=1)"
        )
        came = "SSH_CONNECTION=10.77.0.9 1 10.77.0.1 22"
        done = self.run("env", came, "/usr/bin/python3", "-c", program, f"{ROOT}/module_utils")
        assert done.returncode == 0, done.stderr
        assert self.closed and self.file.read_text() != BEFORE

    def undo(self) -> int:
        """As its timer, a boot or a next try starts it."""
        return self.run("systemctl", "start", f"{UNDO}.service").returncode

    def boot(self) -> None:
        self.sh("pve-firewall stop; rm -rf /run/pveguard /run/proxmox-nftables-firewall-force-disable")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Firewalled]:
    made = Firewalled()
    try:
        made.begin(tmp_path)
        yield made
    finally:
        made.run("pve-firewall", "stop")
        made.close()


@pytest.mark.campaign
def test_check_run_second_run_and_back(node: Firewalled) -> None:
    code, said = node.play("enforce", "--check", "--diff")
    assert code == 0 and "changed=1 " in said and "+policy_in: DROP" in said, said
    assert node.file.read_text() == BEFORE and not node.left()
    code, said = node.play("enforce")
    assert code == 0 and node.closed, said
    assert node.left() == ["/var/lib/pveguard/node_hardening/firewall"], "neither timer nor condition"
    assert "--dport 22,3128" in node.netfilter() or "22,3128,5900:5999,8006,60000:60050" in node.netfilter()
    code, said = node.play("enforce", "--diff")
    assert code == 0 and "changed=0 " in said, said
    code, said = node.play("enforce", tasks="revert.yml")
    assert code == 0 and "changed=1 " in said and node.file.read_text() == BEFORE and not node.left(), said
    wait_for("the end of the rules", lambda: not node.closed)


def test_the_undo_opens_the_node_without_the_clusters_file_system(node: Firewalled) -> None:
    node.armed()
    node.stop()
    assert node.undo() != 0 and not node.closed and node.held, "tried again later"
    assert node.run("pve-firewall", "status").returncode != 0
    node.boot()
    assert node.undo() != 0 and node.held
    node.sh("systemctl start pve-firewall.service")
    assert not (node.root / "run/pve-firewall.pid").exists(), "kept from starting"
    node.start()
    assert node.undo() == 0 and node.file.read_text() == BEFORE and not node.held
    assert (node.root / "run/pve-firewall.pid").exists() and not node.closed
    assert node.left() == ["/var/lib/pveguard/node_hardening/firewall"]


def test_the_undo_of_a_firewall_whose_daemon_was_killed(node: Firewalled) -> None:
    node.armed()
    node.sh("kill -9 $(cat /run/pve-firewall.pid)")
    assert node.closed, "its rules outlive it"
    assert node.undo() == 0 and not node.closed and node.file.read_text() == BEFORE
