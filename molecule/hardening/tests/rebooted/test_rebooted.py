# SPDX-License-Identifier: Apache-2.0
"""All members reboot, after pvecm has had sshd's main file allow root's password again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hardening_nodes import Nodes, Seen

MAIN = "/etc/ssh/sshd_config"
#: What the lab's pvecm does at a join and at the founding of a cluster; without a command it only says how it is used.
JOINS = """/usr/bin/python3 -IS - <<'EOF'
import sys, types
sys.argv = ["pvecm"]
pvecm = types.ModuleType("pvecm")
try:
    exec(compile(open("/usr/bin/pvecm").read(), "/usr/bin/pvecm", "exec"), pvecm.__dict__)
except SystemExit:
    pass
pvecm.permit_root()
EOF"""


@pytest.fixture(scope="module", autouse=True)
def rebooted(nodes: Nodes) -> Iterator[None]:
    node = nodes.names[0]
    nodes.console(node, f"set -e\ncp -p {MAIN} /root/main\n{JOINS}\ngrep -qx 'PermitRootLogin yes' {MAIN}")
    nodes.lab.reboot([])
    yield
    nodes.console(node, f"mv /root/main {MAIN} && systemctl reload ssh")


def test_the_drop_in_still_holds(nodes: Nodes, before: Seen) -> None:
    said = nodes.everywhere(lambda node: nodes.console(node, "sshd -T -C user=root,addr=10.77.0.9,host=any"))
    for node, settings in said.items():
        assert "permitrootlogin without-password" in settings and "passwordauthentication no" in settings, (
            node
        )
        assert nodes.look_at(node)["boot_id"] != before[node]["boot_id"]


def test_both_rings_quorum_and_every_login_work(nodes: Nodes) -> None:
    assert nodes.not_in_order(links=2) == [] and nodes.locked_out() == []
