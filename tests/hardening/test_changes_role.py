# SPDX-License-Identifier: Apache-2.0
"""The role's concerns that write files, as they are run: Ansible in a copy of this machine that is thrown away.

The copy has its own network (port 8006, kernel settings of the network), and doubles of systemctl, auditctl and pveproxy; bash,
apt and sysctl's files are real. Kernel settings that are not the network's are a copy, as they would be the machine's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.ansible_runs import environment

ROOT = Path(__file__).resolve().parents[2]
LISTENER = ROOT / "lab/packages/pve-manager/root/usr/lib/pve-manager-lab/listener"
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("openssl", "bash", "apt-config", "unshare")))
        or not Path("/usr/bin/python3").exists(),
        reason="needs openssl, bash, apt and unshare",
    ),
]
OWN, PEER, CONTROLLER = "127.0.1.1", "127.0.1.2", "127.0.2.1"

SYSTEMCTL = """#!/usr/bin/python3
import os, shlex, signal, socket, subprocess, sys, time
words = [word for word in sys.argv[1:] if not word.startswith("-")]
def start():
    try:
        os.kill(int(open("/run/pveproxy.pid").read()), signal.SIGKILL)
    except (OSError, ValueError):
        pass
    log = open("/run/pveproxy.log", "w")
    child = subprocess.Popen(["LISTENER", "pveproxy"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    open("/run/pveproxy.pid", "w").write(str(child.pid))
if words[0] == "show":
    for unit in [word for word in words[1:] if "." in word and "," not in word]:
        print(f"Id={unit}\\nLoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n")
elif words[0] in ("restart", "stop"):
    open("/run/restarts", "a").write(" ".join(words) + "\\n")
    for unit in words[1:]:
        if unit == "pveproxy.service":
            start()
        try:
            lines = open(f"/etc/systemd/system/{unit}").read().splitlines()
        except OSError:
            continue
        for key in ("ExecStop", "ExecStartPre", "ExecStart") if words[0] == "restart" else ("ExecStop",):
            for line in lines:
                if line.partition("=")[0] == key:
                    subprocess.run(shlex.split(line.partition("=")[2].lstrip("-")))
"""
AUDITCTL = """#!/usr/bin/python3
import os, sys
rules = open("/run/rules").read().splitlines() if os.path.exists("/run/rules") else []
if sys.argv[1] == "-s":
    print("enabled 1")
elif sys.argv[1] == "-l":
    print("\\n".join(rules) or "No rules")
else:
    new = [line for line in rules if "key=pveguard" not in line]
    if sys.argv[1] == "-R":
        new += [line for line in open(sys.argv[2]).read().splitlines() if line.startswith("-a")]
    open("/run/rules", "w").write("".join(f"{line}\\n" for line in new))
"""
#: A whole second root on top of this one. What is mounted elsewhere and needed is bound.
BEGIN = """set -e
cd "$1"; shift
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/tmp; mount -t tmpfs tmpfs root/run; mount -t tmpfs tmpfs root/var/lib
for each in "$CHECKOUT" "$VENV" "$PYTHON"; do
    [ -e "root$each/bin" ] || [ -e "root$each/site.yml" ] || { mkdir -p "root$each"; mount --bind "$each" "root$each"; }
done
for each in kernel fs; do
    mkdir "$each"; cp -r "/proc/sys/$each/." "$each" 2> /dev/null || true
    mount --bind "$each" "root/proc/sys/$each"
done
echo 0 > root/proc/sys/kernel/kptr_restrict
cp -r files/. root/
mkdir -p root/etc/pve; mount -t tmpfs tmpfs root/etc/pve; cp -r pve/. root/etc/pve/
ip link set lo up
touch ready
exec sleep infinity
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def start(self) -> None:
        env = {**os.environ, "CHECKOUT": str(ROOT), "VENV": sys.prefix, "PYTHON": sys.base_prefix}
        command = [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            BEGIN,
            "begin",
            str(self.folder),
        ]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        while not (self.folder / "ready").exists():
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                pytest.skip(f"no second root here: {self.process.stderr.read()}")

    def run(self, *command: str | Path, ok: bool = True) -> str:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inside = [
            "nsenter",
            "-t",
            children[0],
            "-n",
            "-m",
            "-p",
            "chroot",
            str(self.folder / "root"),
            "env",
            "-C",
            str(ROOT),
        ]
        here = environment(
            HOME="/tmp",
            ANSIBLE_LOCAL_TEMP="/tmp/a",
            ANSIBLE_HOME="/tmp/h",
            SSH_CONNECTION=f"{CONTROLLER} 1 {OWN} 22",
        )
        words = [*inside, *(str(word) for word in command)]
        done = subprocess.run(words, env=here, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    def play(self, *options: str, name: str = "play", ok: bool = True) -> str:
        program = Path(sys.executable).with_name("ansible-playbook")
        return self.run(program, "-i", "/test/hosts.json", *options, f"/test/{name}.json", ok=ok)

    def picture(self) -> str:
        """All files, links and folders of /etc, and the settings of the network."""
        listed = "find /etc -xdev -printf '%p %M %u %l\\n' | sort; find /etc -xdev -type f -print0 | sort -z | xargs -0 sha256sum"
        values = "grep -rH . /proc/sys/net/ipv4/conf/all /proc/sys/net/ipv4/conf/default /proc/sys/kernel/kptr_restrict | sort"
        return self.run("sh", "-c", f"{listed}; {values}; cat /run/rules")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.write("files/usr/bin/systemctl", SYSTEMCTL.replace("LISTENER", str(LISTENER)), 0o755)
    machine.write("files/usr/sbin/auditctl", AUDITCTL, 0o755)
    machine.write("files/run/rules", "-w /etc/passwd -p wa -k mine\n")
    machine.write("files/usr/bin/pveproxy", "", 0o755)
    machine.write("files/usr/bin/pmxcfs", "", 0o755)
    machine.write("files/usr/bin/unattended-upgrade", "", 0o755)
    machine.write("files/etc/default/pveproxy", "# of the operator\nMAX_WORKERS=4\n", 0o640)
    machine.write("files/etc/audit/auditd.conf", "disk_full_action = SUSPEND\n")
    for path in ("/etc/apt/sources.list", "/etc/sysctl.conf"):
        if Path(path).exists():
            machine.write(f"files{path}", "")
    for each in Path("/etc/apt/sources.list.d").glob("*"):
        machine.write(f"files{each}", "")
    kind = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pve1"]
    local = tmp_path / "pve/local"
    local.mkdir(parents=True)
    names = ["-keyout", local / "pve-ssl.key", "-out", local / "pve-ssl.pem"]
    subprocess.run([*kind, *names], check=True, capture_output=True)
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    machine.write("files/test/hosts.json", json.dumps({"all": {"hosts": {"pve1": host, "pve2": host}}}))
    values = {f"node_hardening_{name}": True for name in ("sysctl", "auditd", "updates", "pveproxy")}
    values["node_hardening_pveproxy_allow_from"] = ["127.0.1.0/24", CONTROLLER]  # type: ignore[assignment]
    role = {"role": "node_hardening", **values}
    machine.write(
        "files/test/play.json", json.dumps([{"hosts": "pve1", "gather_facts": False, "roles": [role]}])
    )
    revert = {"import_role": {"name": "node_hardening", "tasks_from": "revert.yml"}}
    machine.write(
        "files/test/revert.json", json.dumps([{"hosts": "pve1", "gather_facts": False, "tasks": [revert]}])
    )
    yield machine
    if machine.process is not None:
        machine.process.kill()
        machine.process.communicate()


def started(machine: Machine, own: str = OWN) -> Machine:
    listed = {"pve1": {"id": 1, "online": 1, "ip": own}, "pve2": {"id": 2, "online": 1, "ip": PEER}}
    cluster = {"name": "c", "version": 3, "nodes": 2, "quorate": 1}
    machine.write(
        "pve/.members", json.dumps({"nodename": "pve1", "version": 5, "cluster": cluster, "nodelist": listed})
    )
    machine.start()
    machine.run("systemctl", "restart", "pveproxy.service")
    machine.run("sh", "-c", "until grep -q listens /run/pveproxy.log; do sleep 0.1; done; rm /run/restarts")
    return machine


def test_check_run_second_run_and_back(machine: Machine) -> None:
    started(machine)
    before = machine.picture()
    said = machine.play("--check", "--diff")
    assert (
        "changed=4 " in said and "+net.ipv4.conf.all.send_redirects = 0" in said and "+DENY_FROM=" in said
    ), said
    assert machine.picture() == before
    machine.run("test", "!", "-e", "/run/restarts")
    said = machine.play()
    assert "changed=4 " in said and "failed=0" in said, said
    after = machine.picture()
    assert "send_redirects:0" in after and "kptr_restrict:1" in after and "path=/etc/pve/user.cfg" in after
    assert machine.run(
        "sh", "-c", ". /etc/default/pveproxy; echo $ALLOW_FROM $DENY_FROM $MAX_WORKERS"
    ).endswith("all 4")
    said = machine.play("--diff")
    assert "changed=0 " in said and machine.picture() == after, said
    said = machine.play(name="revert")
    assert "changed=1 " in said and machine.picture() == before, said
    assert (
        machine.run("find", "/var/lib/pveguard/managed", "/var/lib/pveguard/node_hardening", ok=False).count(
            "No such file"
        )
        == 2
    )
    assert "changed=0 " in machine.play(name="revert")


@pytest.mark.campaign
def test_a_member_that_does_not_get_in_has_it_taken_back_with_the_reason(machine: Machine) -> None:
    # pve1 is not where the others look for it.
    started(machine, "127.0.1.99")
    machine.run(
        "sh",
        "-c",
        "echo LISTEN_IP=127.0.0.1 >> /etc/default/pveproxy; systemctl restart pveproxy.service; rm /run/restarts",
    )
    machine.run("sh", "-c", "until grep -q listens /run/pveproxy.log; do sleep 0.1; done")
    before = machine.picture()
    said = machine.play("--tags", "pveproxy", ok=False)
    assert (
        "the change of /etc/default/pveproxy was not proved, and was taken back: pve2: pveproxy of pve1 (127.0.1.99 port 8006)"
        in said
    )
    assert (
        machine.picture() == before
        and machine.run("cat", "/run/restarts").count("pveproxy.service spiceproxy.service") == 2
    )
