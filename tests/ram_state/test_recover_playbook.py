# SPDX-License-Identifier: Apache-2.0
"""playbooks/recover.yml on nodes in namespaces: a member whose database is lost, and one that would roll the others back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

harness = pytest.importorskip("lab.tests.doubles.harness")

from .test_double import members_in_ram  # noqa: E402
from .test_restore_playbook import ROOT, Site, changed, text, trees  # noqa: E402

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Site]:
    """Three members from disk with real corosync and some files."""
    with members_in_ram() as cluster:
        site = Site(tmp_path, cluster.nodes)
        for ram in site.nodes.values():
            # The packages of this machine are not those of a node.
            dpkg = ram.node.root / "run/bin/dpkg-query"
            dpkg.write_text("#!/bin/sh\necho pve-cluster installed 9.1.6; echo corosync installed 3.1.9\n")
            dpkg.chmod(0o755)
            assert ram.systemctl("start", "pve-cluster.service") == 0, ram.logs()
        for node in cluster.nodes:
            harness.wait_for("quorum", node.writable)
        cluster[1].sh("mkdir -p /etc/pve/priv; echo x > /etc/pve/storage.cfg; echo u > /etc/pve/user.cfg")
        harness.wait_for("equal members", cluster.equal)
        yield site


def recover(site: Site, *arguments: str, confirm: str | None = None) -> subprocess.CompletedProcess[str]:
    inventory = site.folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": site.hosts}}))
    values = {"pveguard_reports_dir": str(site.folder / "reports")} | ({"recover_confirm": confirm} if confirm else {})
    environment = {
        **{key: value for key, value in os.environ.items() if key != "SSH_CONNECTION"},
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "COLUMNS": "200",
    }
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), "playbooks/recover.yml"]
    command += ["-e", json.dumps(values), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.campaign
def test_a_member_that_would_roll_the_others_back_fetches_their_state(three: Site) -> None:
    one, _, third = three.nodes.values()
    done = recover(three)
    assert done.returncode == 0 and changed(done) == 0 and "nothing to recover" in text(done), done.stdout
    before = one.tree()

    # Edited by itself until its version is higher, as somebody does who started it with -l.
    assert third.systemctl("stop", "pve-cluster.service") == 0
    third.node.sh(
        "sqlite3 /var/lib/pve-cluster/config.db \"UPDATE tree SET version = version + 5000 WHERE inode = 0\""
        " || python3 -c \"import sqlite3; c = sqlite3.connect('/var/lib/pve-cluster/config.db');"
        " c.execute('UPDATE tree SET version = version + 5000 WHERE inode = 0'); c.commit()\""
    )
    done = recover(three, "--check")
    assert done.returncode and 'wanted "resync:pve3"' in text(done) and changed(done) == 3, done.stdout
    assert one.tree() == before and not (third.node.pve / ".version").exists()
    done = recover(three, confirm="resync:pve3")
    assert done.returncode == 0, done.stdout + third.logs()
    harness.wait_for("equal members", lambda: trees(three) == [before] * 3)
    three.wait_unlocked()
    (kept,) = (third.node.root / "var/lib/pveguard/recover").glob("*/manifest.json")
    assert json.loads(kept.read_text())["root_version"] > 5000
    done = recover(three)
    assert done.returncode == 0 and changed(done) == 0 and "nothing to recover" in text(done), done.stdout

    # And one whose database is gone.
    assert third.systemctl("stop", "pve-cluster.service") == 0
    third.node.sh("rm -f /var/lib/pve-cluster/config.db*")
    done = recover(three, confirm="resync:pve3")
    assert done.returncode == 0 and "its database is lost" in text(done), done.stdout + third.logs()
    harness.wait_for("equal members", lambda: trees(three) == [before] * 3)
