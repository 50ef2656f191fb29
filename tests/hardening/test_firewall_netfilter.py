# SPDX-License-Identifier: Apache-2.0
"""The rules in the real netfilter: two namespaces with a cable for each link. The double makes iptables of cluster.fw, as the
facts say that Proxmox does, and nft loads the own table of a host without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import run as real_run
from ansible.module_utils.pveguard.hardening import firewall_others, firewall_verdict
from ansible.module_utils.pveguard.hardening import firewall_rules as fw
from ansible.module_utils.pveguard.hardening.looking import Looking

from lab.tests.doubles.harness import SECONDS, wait_for
from lab.tests.packages import test_firewall as double
from tests.hardening.firewall_facts import facts

pytestmark = pytest.mark.root
Network = double.Network

LINK0, LINK1 = ("10.99.0.1", 5405), ("10.98.0.1", 5406)
CLOSED = "[OPTIONS]\nenable: 1\npolicy_in: DROP\npolicy_out: DROP\n"


@pytest.fixture
def network() -> Iterator[Network]:
    missing = [tool for tool in (*double.LEGACY_TOOLS, "conntrack", "nft") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    probe = subprocess.run(["unshare", "--net", "iptables-legacy-save", "-t", "filter"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("the kernel of this machine has no netfilter for iptables-legacy")
    net = Network()
    yield net
    net.close()


def of_network(**more: Any) -> dict[str, Any]:
    members = [
        {
            "name": f"pve{number}",
            "own": number == 1,
            "address": f"10.99.0.{number}",
            "links": {"0": f"10.99.0.{number}", "1": f"10.98.0.{number}"},
            "written": {},
        }
        for number in (1, 2)
    ]
    at = {
        "address": "10.99.0.1",
        "local_network": "10.99.0.0/24",
        "cards": {"10.99.0.1": "r0", "10.98.0.1": "r1"},
    }
    return facts("", members=members, controller="10.99.0.2", **at, **more)


def with_rules(text: str) -> str:
    return fw.merged(text, fw.wanted(of_network(), fw.Options(fw.RULES)))


RECEIVE = """import socket, sys
tcp, wait = sys.argv[3] == 'tcp', float(sys.argv[4])
s = socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
tcp and s.listen()
print(flush=True)
# A line says that what was to come has been sent.
sys.stdin.readline()
s.settimeout(wait)
try:
    s.accept() if tcp else s.recv(1)
    print('arrived')
except (BlockingIOError, TimeoutError):
    print('dropped')
"""
#: The second connection goes the same way and is let in always: after it the first packet has met its fate.
SEND = """import socket, sys
source, dest, port, tcp = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == 'tcp'
s = socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
s.bind((source, 0 if tcp else port))
s.setblocking(False)
s.connect_ex((dest, port)) if tcp else s.sendto(b'x', (dest, port))
after = socket.socket()
after.settimeout(float(sys.argv[5]))
assert after.connect_ex((dest, 22)) in (0, 111)
"""


def _reaches(net: Network, dest: tuple[str, int], kind: str, wait: float) -> bool:
    argv = [*net.inside(0), sys.executable, "-c", RECEIVE, dest[0], str(dest[1]), kind, str(wait)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None and receiver.stdout.readline() == "\n"
        theirs = dest[0].rpartition(".")[0] + ".2"
        net.on(1, sys.executable, "-c", SEND, theirs, dest[0], str(dest[1]), kind, str(SECONDS))
        return receiver.communicate("\n", timeout=2 * SECONDS)[0] == "arrived\n"


def arrives(net: Network, dest: tuple[str, int], kind: str = "udp") -> bool:
    """Whether the peer reaches a port of this node that somebody listens on, as the first packet of a connection."""
    return _reaches(net, dest, kind, SECONDS)


def dropped(net: Network, dest: tuple[str, int], kind: str = "udp") -> bool:
    return not _reaches(net, dest, kind, 0)


def sends(net: Network, source: str, dest: str, port: int) -> bool:
    try:
        net.send(0, source, dest, port)
    except AssertionError as error:
        assert "PermissionError" in str(error), "what netfilter says to the sender"
        return False
    return True


def test_both_links_live_without_tracked_connections(network: Network) -> None:
    """Without the own rules link 1 is cut once the table is flushed, and so the look says; with them it is not."""
    bare = "[OPTIONS]\nenable: 1\n"
    double.load(network, bare)
    network.send(0, "10.98.0.1", "10.98.0.2", 5406)
    assert network.passed(*LINK1), "the answer to what this node has sent"
    network.on(0, "conntrack", "-F")
    assert not network.passed(*LINK1)
    said = {
        packet.what
        for packet, _ in fw.unmet({**of_network(), "cluster": facts(bare)["cluster"]})
        if packet.proto == "udp"
    }
    assert said == {"corosync link 1 from pve2"}

    double.load(network, with_rules(bare))
    network.on(0, "conntrack", "-F")
    assert network.passed(*LINK1) and network.passed("10.99.0.1", 5404)
    assert not network.passed("10.98.0.1", 5407), "the port of no link stays closed"
    ours = {**of_network(), "cluster": facts(with_rules(bare))["cluster"]}
    assert fw.unmet(ours) == []

    double.load(network, fw.reverted(with_rules(bare)))
    network.on(0, "conntrack", "-F")
    assert not network.passed(*LINK1), "what was taken back is back"


def test_a_ring_gets_out_where_nothing_else_does(network: Network) -> None:
    double.load(network, CLOSED)
    assert sends(network, "10.99.0.1", "10.99.0.2", 5405) and not sends(
        network, "10.98.0.1", "10.98.0.2", 5406
    )
    double.load(network, with_rules(CLOSED))
    network.on(0, "conntrack", "-F")
    assert sends(network, "10.99.0.1", "10.99.0.2", 5405) and sends(network, "10.98.0.1", "10.98.0.2", 5406)
    assert not sends(network, "10.98.0.1", "10.98.0.2", 5407)
    network.on(0, "conntrack", "-F")
    assert network.passed(*LINK1)


@pytest.mark.parametrize(
    "planted",
    ["IN DROP -p udp", "IN DROP -p udp -i r1", "IN DROP -p udp -i r0", "IN DROP -source 10.98.0.0/24"],
)
def test_what_is_refused_is_what_netfilter_drops(network: Network, planted: str) -> None:
    """A rule of the node's own file, which comes before those of the cluster."""
    text = with_rules("[OPTIONS]\nenable: 1\n")
    found = {
        **of_network(),
        "cluster": facts(text)["cluster"],
        "host": facts(host=f"[RULES]\n{planted}\n")["host"],
    }
    node = double.a_node(text, f"[RULES]\n{planted}\n")
    compiled = double.iptables.compile_rules(node)
    double.iptables.Kernel(lambda argv, text: double.in_namespace(network, argv, text)).apply(compiled)
    said = {packet.what for packet, _ in fw.unmet(found)}
    for what, dest in (("corosync link 0 from pve2", LINK0), ("corosync link 1 from pve2", LINK1)):
        network.on(0, "conntrack", "-F")
        assert gets_in(network, dest) is (what not in said), (what, planted)


def gets_in(net: Network, dest: tuple[str, int]) -> bool:
    """Whether a datagram of the peer gets to this node, by the kernel's counters: it is taken in, or a rule drops it."""

    def taken() -> int:
        rows = net.on(0, "cat", "/proc/net/snmp").splitlines()
        names, values = (row.split() for row in rows if row.startswith("Udp:"))
        return sum(
            int(value)
            for name, value in zip(names, values, strict=True)
            if name in ("InDatagrams", "NoPorts")
        )

    def lost() -> int:
        rows = net.on(0, "iptables-legacy", "-nvxL", "PVEFW-HOST-IN").splitlines()
        return sum(int(row.split()[0]) for row in rows if " DROP " in row)

    before, before_lost = taken(), lost()
    net.send(1, dest[0].rpartition(".")[0] + ".2", *dest)
    wait_for("the datagram's fate", lambda: taken() > before or lost() > before_lost)
    return taken() > before


# --- nftables ---------------------------------------------------------------------------------------------------


def load_table(net: Network, text: str) -> None:
    for check in (["-c"], []):
        done = subprocess.run(
            [*net.inside(0), "nft", *check, "-f", "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr


def test_the_own_table_drops_what_nobody_needs_and_leaves_others_alone(network: Network) -> None:
    network.on(
        0, "nft", "add table inet others; add chain inet others in { type filter hook input priority 5; }"
    )
    others = network.on(0, "nft", "list", "table", "inet", "others")
    found = of_network(implementation="none", qnetd=True)
    options = fw.Options(fw.ENFORCE, ("10.99.0.0/24", "2001:db8::/32"))
    rules = fw.nftables(found, fw.Options(fw.RULES, options.management))
    load_table(network, rules)
    assert arrives(network, ("10.98.0.1", 7)), "rules alone drop nothing"

    load_table(network, fw.nftables(found, options))
    before = network.on(0, "nft", "list", "ruleset")
    load_table(network, fw.nftables(found, options))
    assert network.on(0, "nft", "list", "ruleset") == before, "twice is once"
    network.on(0, "conntrack", "-F")
    assert arrives(network, LINK0) and arrives(network, LINK1)
    assert dropped(network, ("10.98.0.1", 5405)), "link 1 has its own port"
    assert arrives(network, ("10.99.0.1", 22), "tcp") and arrives(network, ("10.99.0.1", 5403), "tcp")
    assert dropped(network, ("10.99.0.1", 111), "tcp")
    network.on(
        0, sys.executable, "-c", SEND, "10.98.0.1", "10.98.0.2", "7", "tcp", str(SECONDS)
    )  # answers come back

    load_table(network, rules)
    assert arrives(network, ("10.99.0.1", 111), "tcp")
    assert network.on(0, "nft", "list", "table", "inet", "others") == others
    network.on(0, "nft", "delete", "table", *fw.TABLE.split())
    assert network.on(0, "nft", "list", "ruleset") == others


def test_a_large_cluster_is_a_table_that_nft_takes(network: Network) -> None:
    found = of_network(implementation="none")
    found["members"] = [
        {
            **found["members"][0],
            "links": {"0": f"10.97.{number // 200}.{number % 200}", "1": f"fd00::{number:x}"},
            "address": "",
        }
        for number in range(300)
    ]
    drbd = [
        {"resource": "x", "path": "", "port": port, "addresses": ["10.97.0.1", "10.97.0.2"]}
        for port in range(7000, 7100, 3)
    ]
    load_table(
        network,
        fw.nftables({**found, "drbd": drbd}, fw.Options(fw.ENFORCE, ("10.0.0.0/8", "10.97.0.0/24", "::/0"))),
    )


def test_rules_of_others_are_seen_as_nft_and_iptables_tell_them(network: Network, tmp_path: Any) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/modules").write_text("nf_tables 1 0 - Live 0x0\n")
    (tmp_path / "proc/net/ip_tables_names").write_text("filter\n")

    def seen() -> list[tuple[str, str, int, int]]:
        looking = Looking(tmp_path, lambda argv, **more: real_run([*network.inside(0), *argv], **more))
        found = firewall_others.rules(looking)
        assert looking.unread == []
        return [(each["where"], each["policy"], each["rules"], each["drops"]) for each in found]

    double.load(network, with_rules("[OPTIONS]\nenable: 1\n"))
    load_table(network, fw.nftables(of_network(implementation="none"), fw.Options(fw.ENFORCE)))
    assert seen() == [], "Proxmox's and own rules are nobody else's"
    network.on(
        0,
        "nft",
        "add table inet ufw; add chain inet ufw in { type filter hook input priority 0; policy drop; }",
    )
    network.on(
        0, "nft", "add rule inet ufw in tcp dport 22 accept; add rule inet ufw in ip saddr 1.2.3.4 reject"
    )
    network.on(0, "iptables-legacy", "-A", "INPUT", "-s", "1.2.3.4", "-j", "DROP")
    assert seen() == [("nftables inet ufw", "drop", 2, 1), ("iptables-legacy ip filter", "accept", 1, 1)]


def test_the_management_set_is_proxmoxs(network: Network) -> None:
    """The product and the double share no code."""
    text = "[OPTIONS]\nenable: 1\n[ALIASES]\nadmin 192.0.2.7\n[IPSET management]\nadmin\n198.51.100.0/24\n!198.51.100.9\n"
    found = {**of_network(), "cluster": facts(text)["cluster"]}
    double.load(network, text)
    listed = network.on(0, "ipset", "save", "PVEFW-0-management-v4")
    for each in firewall_verdict.management_of(found):
        assert f" {each.removeprefix('!')}{' nomatch' if each.startswith('!') else ''}\n" in listed
