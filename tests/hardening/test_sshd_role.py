# SPDX-License-Identifier: Apache-2.0
"""The role's sshd as it is run: Ansible over Debian's real sshd, with connections kept open, as the checkout has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import managed_file, rollback_timer
from ansible.module_utils.pveguard.hardening import sshd

from tests.hardening.real_sshd import SSHD, SshdNode
from tests.project.ansible_runs import environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None or not Path("/usr/bin/python3").exists(), reason="no openssh-server or no python3 here"),
]
#: The double of systemd as a program: what the role's modules and the undo ask of it.
SYSTEMCTL = """#!/usr/bin/python3
import os, re, shlex, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("-")]
pid = int(open("PIDFILE").read())
if words[0] == "show":
    if words[1] == "ssh.service":
        print(f"ActiveState=active\\nMainPID={pid}")
    elif words[1].endswith(".timer"):
        print("ActiveState=active\\nSubState=waiting")
elif words[0] in ("reload", "try-reload-or-restart"):
    os.kill(pid, signal.SIGHUP)
elif words[0] == "start":
    for line in open(f"/etc/systemd/system/{words[1]}").read().splitlines():
        key, _, command = line.partition("=")
        if key.startswith("Exec") and subprocess.run(shlex.split(command.replace("%%", "%").replace("$$", "$"))).returncode:
            sys.exit(1)
"""


@pytest.fixture
def cluster(sshd_node: SshdNode) -> SshdNode:
    """A node and another member, which is the same machine seen from another address, and a controller."""
    node = sshd_node
    main = node.text("/etc/ssh/sshd_config")
    one = "ListenAddress 127.0.0.1\n"
    node.write("/etc/ssh/sshd_config", main.replace(one, f"{one}ListenAddress 127.0.0.2\n"))
    node.stop_sshd()
    known = node.text(f"/etc/pve/nodes/{node.me.name}/ssh_known_hosts")
    node.write("/etc/pve/nodes/pve2/ssh_known_hosts", known.replace(node.me.name, "pve2", 1))  # not in the key
    node.write("/root/.ssh/config", f"Host *\n Port {node.port}\n BindAddress {node.peer.address}\n")
    node.write("/bin/systemctl.real", SYSTEMCTL.replace("PIDFILE", str(node.root / "bin/systemctl.pid")))
    node.write("/bin/journalctl", f"#!/bin/sh\nexec tac {node.root}/sshd.log\n")
    for name, program in (("systemctl.real", "systemctl"), ("journalctl", "journalctl")):
        (node.root / "bin" / name).chmod(0o755)
        subprocess.run(["mount", "--bind", str(node.root / "bin" / name), f"/usr/bin/{program}"], check=True)
    # Where the modules of a node leave what they know: of this test alone, beside others.
    os.makedirs("/run/pveguard", exist_ok=True)
    for folder in ("/var/lib", "/run/pveguard"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    subprocess.run(["mount", "--bind", str(node.root / "etc/pve"), "/etc/pve"], check=True)
    options = f"-F none -o BindAddress={node.controller} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    host = {
        "ansible_host": "127.0.0.1",
        "ansible_port": node.port,
        "ansible_ssh_common_args": options,
        "ansible_ssh_private_key_file": str(node.root / "bin/controller"),
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    node.write("/hosts.json", json.dumps({"all": {"hosts": {"pve1": host, "pve2": host}}}))
    play = [{"hosts": "pve1", "gather_facts": False, "roles": [{"role": "node_hardening", "node_hardening_sshd": True}]}]
    node.write("/play.yml", json.dumps(play))
    revert = {"import_role": {"name": "node_hardening", "tasks_from": "revert.yml"}}
    node.write("/revert.yml", json.dumps([{"hosts": "pve1", "gather_facts": False, "tasks": [revert]}]))
    node.start_sshd()
    return node


def play(node: SshdNode, *options: str, name: str = "play.yml") -> tuple[int, str]:
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", node.root / "hosts.json", *options, node.root / name]
    here = environment(HOME=str(node.root / "root"), ANSIBLE_LOCAL_TEMP=str(node.root / "tmp"))
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def state() -> str:
    return str(rollback_timer.status(sshd.TIMER)["state"])


def test_check_run_second_run_and_back(cluster: SshdNode) -> None:
    before = cluster.files()
    code, said = play(cluster, "--check", "--diff")
    assert code == 0 and "changed=1 " in said and "+PermitRootLogin prohibit-password" in said, said
    assert cluster.files() == before and state() == "none"
    code, said = play(cluster)
    assert code == 0 and state() == "confirmed", said
    assert cluster.drop_in.read_text() == sshd.drop_in(True, True) and cluster.methods() == "publickey"
    code, said = play(cluster, "--diff")
    assert code == 0 and "changed=0 " in said, said
    code, said = play(cluster, name="revert.yml")
    assert code == 0 and "changed=1 " in said and cluster.files() == before, said
    assert not managed_file.names(Path("/"), sshd.ROLE) and cluster.methods() == "publickey,password"
    code, said = play(cluster, name="revert.yml")
    assert code == 0 and "changed=0 " in said, said


def test_a_member_that_does_not_get_in_has_it_taken_back_with_the_reason(cluster: SshdNode) -> None:
    before = cluster.files()
    # As after a new installation of the node: what the cluster knows of it is not what it has.
    cluster.write(f"/etc/pve/nodes/{cluster.me.name}/ssh_known_hosts", f"{cluster.me.name} ssh-rsa AAAAB3NzaC1yc2E=\n")
    code, said = play(cluster)
    flat = " ".join(said.split())
    assert code == 2 and "the change of sshd was not proved: pve2: root does not get there as Proxmox VE needs it" in flat, said
    assert "Host key verification failed" in flat and "It was taken back, and sshd is as it was before." in flat
    assert cluster.files() == before and state() == "rolled_back" and os.path.isdir("/var/lib/pveguard")


def test_a_member_that_the_inventory_does_not_have_is_refused(cluster: SshdNode) -> None:
    before = cluster.files()
    hosts = json.loads(cluster.text("/hosts.json"))
    del hosts["all"]["hosts"]["pve2"]
    cluster.write("/hosts.json", json.dumps(hosts))
    code, said = play(cluster)
    assert code == 2 and "pve2 of the cluster cannot prove that a login from there still works" in " ".join(said.split()), said
    assert cluster.files() == before and state() == "none"


def test_a_connection_that_was_kept_open_confirms_nothing(cluster: SshdNode) -> None:
    before = cluster.files()
    # Takes the place of what the task says, so that its login is the one from before the change.
    code, said = play(cluster, "-e", "ansible_ssh_extra_args=''")
    flat = " ".join(said.split())
    assert code == 2 and "the controller's new login: this login is older than the change of sshd" in flat, said
    assert "It was taken back" in flat and cluster.files() == before and state() == "rolled_back"
