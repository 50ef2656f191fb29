# SPDX-License-Identifier: Apache-2.0
"""playbooks/restore.yml on nodes in namespaces: a real Ansible run, the double's daemon, real corosync for a cluster."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

harness = pytest.importorskip("lab.tests.doubles.harness")

from .test_double import RamNode, members_in_ram  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Runs a unit at once, as if it had ended before anybody asked; the timer of the rollback timer never fires.
SYSTEMD_RUN = """#!/bin/bash
case "$*" in *--unit=pveguard-restore*) ;; *) exit 0 ;; esac
while [ "$1" != -- ]; do shift; done
shift
"$@" >>/run/restore.log 2>&1
exit 0
"""


class Site:
    """Nodes as an inventory sees them; Ansible enters their namespaces by the name of the interpreter."""

    def __init__(self, folder: Path, nodes: list[Any]) -> None:
        self.folder = folder
        self.nodes = {node.name: RamNode(node) for node in nodes}
        hosts: dict[str, Any] = {}
        for name, ram in self.nodes.items():
            (ram.node.root / "run/bin/systemd-run").write_text(SYSTEMD_RUN)
            interpreter = folder / f"python-{name}"
            enter = " ".join(ram.node.enter(["env", f"PATH=/run/bin:{os.environ['PATH']}:/usr/sbin"]))
            interpreter.write_text(f'#!/bin/sh\nexec {enter} /usr/bin/python3 "$@"\n')
            interpreter.chmod(0o755)
            hosts[name] = {"ansible_connection": "local", "ansible_python_interpreter": str(interpreter)}
        self.hosts = hosts

    def unreachable(self, name: str) -> None:
        self.hosts[name] = {"ansible_host": "127.0.0.1", "ansible_port": 1}

    def play(
        self, *arguments: str, answer: str | None = None, **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        """A run of the playbook; ``answer`` is typed on a terminal, without one there is none."""
        inventory = self.folder / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": self.hosts}}))
        environment = {
            **{key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"},
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            # As over ssh; a node's /root is its own, so a file could not be handed over either.
            "ANSIBLE_PIPELINING": "1",
            "COLUMNS": "200",
        }
        values = {f"ram_state_restore_{key}": value for key, value in variables.items()}
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory)]
        command += ["playbooks/restore.yml", "-e", json.dumps(values), *arguments]
        if answer is None:
            return subprocess.run(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        return on_a_terminal(command, environment, answer)

    def locks(self) -> list[str]:
        places = ("run/pveguard/run.lock", "etc/pve/priv/lock/pveguard")
        return [
            f"{name}: {p}" for name, ram in self.nodes.items() for p in places if (ram.node.root / p).exists()
        ]

    def wait_unlocked(self) -> None:
        """A member sees at its own time what another one removed."""
        harness.wait_for("the locks to be given back", lambda: self.locks() == [])


#: A run that has not ended by then waits for something else than the answer.
ANSWER_SECONDS = 300


def on_a_terminal(
    command: list[str], environment: dict[str, str], answer: str
) -> subprocess.CompletedProcess[str]:
    """Run a command on a terminal of its own and answer its question."""
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        cwd=ROOT,
        # What it says goes through a pipe, where a question would wait for more text to come.
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=other,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    output, asked = b"", False
    deadline = time.monotonic() + ANSWER_SECONDS
    try:
        while True:
            waits = not select.select([process.stdout], [], [], 1.0)[0]
            if not waits:
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    break
                output += part
            # Where its lines are broken depends on the names in it.
            _, question, after = re.sub(rb"\s+", b" ", output).partition(b"anything else changes nothing")
            asked = asked or (waits and bool(question))
            if asked and b"TASK" not in after:
                # Again each second: what is typed before the question is complete is thrown away.
                os.write(terminal, f"{answer}\r".encode())
            assert time.monotonic() < deadline, f"it goes on after {ANSWER_SECONDS} s: {output.decode(errors='replace')}"
        return subprocess.CompletedProcess(command, process.wait(), output.decode(), "")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(other)


def text(done: subprocess.CompletedProcess[str]) -> str:
    """The output with its line breaks taken back."""
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def changed(done: subprocess.CompletedProcess[str]) -> int:
    return sum(int(n) for n in re.findall(r"changed=(\d+)", done.stdout))


def generation(ram: RamNode) -> str:
    return str(ram.ps("save", "--generation")["generation"])


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Site]:
    """A stand-alone node, and two names that nobody reaches."""
    reason = harness.why_not()
    if reason:
        pytest.skip(reason)
    node = harness.Node()
    try:
        site = Site(tmp_path, [node])
        ram = site.nodes["pve1"]
        assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
        node.sh(
            "mkdir -p /etc/pve/nodes/pve1/qemu-server /etc/pve/priv;"
            "echo 'name: a' > /etc/pve/nodes/pve1/qemu-server/100.conf; echo x > /etc/pve/storage.cfg"
        )
        for name in ("pve2", "pve3"):
            site.unreachable(name)
        yield site
    finally:
        node.close()


def test_a_node_by_name_and_only_when_told(alone: Site) -> None:
    ram = alone.nodes["pve1"]
    old, name = ram.tree(), generation(ram)
    ram.node.sh("echo y > /etc/pve/storage.cfg; echo z > /etc/pve/new.cfg")
    new = ram.tree()

    done = alone.play(generation=name)
    assert done.returncode and "here are 3: pve1, pve2, pve3. Name it with --limit NODE" in text(done)
    assert "unreachable=0" in done.stdout and "Take the lock" not in done.stdout, "nobody was asked"

    # Shown, and refused where nobody can be asked.
    done = alone.play("--limit", "pve1", "--check", generation=name)
    for part in ("lost new.cfg (now 2 bytes", "overwritten storage.cfg (now 2 bytes", "Not confirmed"):
        assert part in text(done), part
    assert done.returncode and "-e ram_state_restore_confirm=pve1" in text(done) and changed(done) == 0
    done = alone.play("--limit", "pve1", "--check", "--diff", generation=name, confirm="pve1")
    assert done.returncode == 0 and changed(done) == 1 and "+++ /etc/pve/storage.cfg then" in text(done)
    assert ram.tree() == new and alone.locks() == []

    # By name among others that nobody reaches.
    done = alone.play(generation=name, node="pve1", confirm="pve1")
    assert done.returncode == 0, done.stdout
    assert changed(done) == 1 and ram.tree() == old and alone.locks() == []
    back = re.search(r"-e ram_state_restore_generation=(\S+)", text(done))
    assert back and f"playbooks/restore.yml --limit pve1 {back[0]}" in text(done)
    again = alone.play("--limit", "pve1", generation=name)
    assert again.returncode == 0 and changed(again) == 0 and "Nothing differs." in text(again)


def test_the_answer_is_the_name_of_the_node(alone: Site) -> None:
    ram = alone.nodes["pve1"]
    ram.ps("enable")
    old, name = ram.tree(), generation(ram)
    ram.node.sh("echo y > /etc/pve/storage.cfg")
    new = ram.tree()
    done = alone.play(answer="yes", generation=name, node="pve1")
    assert done.returncode and 'the answer was "yes", wanted "pve1"' in text(done) and ram.tree() == new
    done = alone.play(answer="pve1", generation=name, node="pve1")
    assert done.returncode == 0, done.stdout
    assert ram.tree() == old and ram.ps("status")["state"] == "enabled" and alone.locks() == []


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Site]:
    """Three members with real corosync, all from RAM, with one generation on each and changes since."""
    with members_in_ram() as cluster:
        site = Site(tmp_path, cluster.nodes)
        for ram in site.nodes.values():
            assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
        for node in cluster.nodes:
            harness.wait_for("quorum", node.writable)
        cluster[1].sh(
            "mkdir -p /etc/pve/nodes/pve1/qemu-server /etc/pve/priv; echo x > /etc/pve/storage.cfg;"
            "echo 'name: a' > /etc/pve/nodes/pve1/qemu-server/100.conf; echo u > /etc/pve/user.cfg"
        )
        harness.wait_for("equal members", cluster.equal)
        for ram in site.nodes.values():
            ram.ps("enable", "--allow-offline-members")
            harness.wait_for("quorum", ram.node.writable)
        site.names = {name: generation(ram) for name, ram in site.nodes.items()}  # type: ignore[attr-defined]
        cluster[2].sh("echo y > /etc/pve/storage.cfg; echo z > /etc/pve/new.cfg; rm /etc/pve/user.cfg")
        harness.wait_for("equal members", cluster.equal)
        yield site


def trees(site: Site) -> list[dict[str, Any]]:
    return [ram.tree() for ram in site.nodes.values()]


@pytest.mark.campaign
def test_a_cluster(three: Site) -> None:
    name = three.names["pve1"]  # type: ignore[attr-defined]
    one, two, third = three.nodes.values()
    before = one.tree()
    assert trees(three) == [before] * 3

    # A whole state cannot stick while the others run: said before anything is done, with what works.
    done = three.play("--limit", "pve1", generation=name, confirm="pve1")
    said = text(done)
    assert (
        done.returncode and "the daemon runs on pve2, pve3" in said and "overwritten by them at once" in said
    )
    assert "pve2 daemon runs, quorate, version" in said and "lost new.cfg" in said
    offered = f"--limit pve1 -e ram_state_restore_generation={name} -e ram_state_restore_path="
    for path in ("storage.cfg", "user.cfg", "/"):
        assert offered + path in said, path
    assert trees(three) == [before] * 3
    three.wait_unlocked()

    # By hand it can be done, and does not stick: the old state never rolls back those that run.
    assert one.systemctl("stop", "pve-cluster.service") == 0
    one.ps("restore", "--generation", name)
    harness.wait_for("equal members", lambda: trees(three) == [before] * 3)

    # What may be written, by the command that was offered: on every member, and files that came since stay.
    done = three.play("--limit", "pve1", generation=name, path="/", confirm="pve1")
    assert done.returncode == 0 and "stays new.cfg" in text(done), done.stdout
    assert changed(done) == 1
    three.wait_unlocked()
    assert "rm /etc/pve/user.cfg # on pve1; it was not there" in text(done)
    now = {**before, "storage.cfg": b"x\n", "user.cfg": b"u\n"}
    harness.wait_for("equal members", lambda: trees(three) == [now] * 3)

    # A member fetches everything from the others, and what it had is kept.
    done = three.play("--limit", "pve3", resync=True, confirm="pve3")
    assert done.returncode == 0, done.stdout + third.logs()
    assert changed(done) == 1
    harness.wait_for("equal members", lambda: trees(three) == [now] * 3)
    three.wait_unlocked()
    assert third.ps("status")["state"] == "enabled"

    # All daemons down; pve3 is not reached, and corosync sees it: it may run.
    for ram in three.nodes.values():
        assert ram.systemctl("stop", "pve-cluster.service") == 0
    reached = three.hosts["pve3"]
    three.unreachable("pve3")
    done = three.play("--limit", "pve1", generation=name, confirm="pve1")
    assert done.returncode and "pve3 could not be asked (pve3), but corosync sees it" in text(done)

    # Asked, it turns out to be down: one node is restored, what would win is named, the others are not touched.
    three.hosts["pve3"] = reached
    done = three.play("--limit", "pve1", generation=name, confirm="pve1")
    said = text(done)
    assert done.returncode == 0, done.stdout + one.logs()
    assert "pve2 daemon down, version" in said and "pve2 holds version" in said and "its state wins" in said
    old = {path: data for path, data in now.items() if path != "new.cfg"}
    assert one.tree() == old
    three.wait_unlocked()

    # As was said: a member that was emptied before its start takes this state, one with a higher version wins.
    two.ps("restore", "--resync")
    harness.wait_for("equal members", lambda: one.node.quorate() and one.tree() == two.tree() == old)
    assert third.systemctl("start", "pve-cluster.service") == 0
    harness.wait_for("equal members", lambda: trees(three) == [now] * 3)
