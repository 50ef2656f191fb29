# SPDX-License-Identifier: Apache-2.0
"""The doubles of both firewalls: what they make of the files, and what the real netfilter makes of that."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.formats import firewall_config

from lab.packages.build import HERE
from lab.tests.doubles.harness import SECONDS, wait_for

LIBRARY = HERE / "pve-firewall/root/usr/lib/pve-firewall-lab"
if str(LIBRARY) not in sys.path:
    sys.path.insert(0, str(LIBRARY))

from pve_firewall_lab import config, iptables, nftables, node, packet, rules  # noqa: E402

LEGACY_TOOLS = ("iptables-legacy-restore", "ip6tables-legacy-restore", "ipset", "ip", "nsenter", "unshare")
PEERS = [("pve2", 0, "10.99.0.2", "10.99.0.1"), ("pve2", 1, "10.98.0.2", "10.98.0.1")]
ON = "[OPTIONS]\nenable: 1\n"
COROSYNC = """nodelist {
  node {
    name: pve1
    nodeid: 1
    ring0_addr: pve1
    ring1_addr: 10.98.0.1
  }
  node {
    name: pve2
    nodeid: 2
    ring0_addr: 10.99.0.2
    ring1_addr: 10.98.0.2
  }
}
"""


def a_node(cluster: str = ON, host: str = "", guests: tuple[node.Guest, ...] = ()) -> node.Node:
    return node.Node(
        "pve1", "10.99.0.1", "10.99.0.0/24", list(PEERS), config.parse("cluster.fw", cluster),
        config.parse("host.fw", host), list(guests),
    )  # fmt: skip


def verdict(found: node.Node, port: int, source: str, protocol: str = "tcp", dest: str = "") -> str:
    compiled = iptables.compile_rules(found)
    values = {"protocol": protocol, "source": source, "dest": dest, "sport": "", "dport": str(port)}
    return packet.verdict(compiled, "PVEFW-HOST-IN", values)


# --- what is read -------------------------------------------------------------------------------------------


def test_the_documented_format() -> None:
    found = config.parse(
        "cluster.fw",
        "# a comment\n[OPTIONS]\n\nenable: 1 \npolicy_in: reject\n\n[ALIASES]\nAdmin 192.0.2.7 # me\n\n"
        "[IPSET management] # who may\nadmin\n! 10.99.0.66 # not this one\n\n[RULES]\n"
        "IN SSH(ACCEPT) -source +management -log nolog # text | more\n|IN ACCEPT -p tcp -dport 1\nGROUP web -i vmbr0\n"
        "\n[group web] # a group\nIN ACCEPT -p tcp -dport 80,443\n",
    )
    assert found.wrong == [] and found.options == {"enable": "1", "policy_in": "reject"}
    assert found.aliases == {"admin": "192.0.2.7"} and found.sets == {"management": ["admin", "!10.99.0.66"]}
    assert found.rules == [
        config.Line(15, "IN", "ACCEPT", "SSH", {"source": "+management", "log": "nolog"}),
        config.Line(17, "GROUP", "web", "", {"iface": "vmbr0"}),
    ]
    assert found.groups == {"web": [config.Line(20, "IN", "ACCEPT", "", {"proto": "tcp", "dport": "80,443"})]}
    assert found.policy("policy_in", "DROP") == "REJECT"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("IN", "TYPE ACTION"),
        ("INN ACCEPT", "unknown type 'INN'"),
        ("IN ALLOW", "unknown action 'ALLOW'"),
        ("IN SSH(ACCEPT", r"unknown action 'SSH\(ACCEPT'"),
        ("IN Nothing(ACCEPT)", "unknown macro 'Nothing'"),
        ("IN ACCEPT -p", "'-p': a parameter without a value"),
        ("IN ACCEPT --frm 10.0.0.1", "unknown parameter '--frm'"),
        ("[RULE]", "unknown section"),
    ],
)
def test_a_line_that_cannot_be_read_is_said_and_passed_over(line: str, message: str) -> None:
    found = config.parse("cluster.fw", f"[RULES]\n{line}\n[RULES]\nIN DROP\n")
    assert [rule.action for rule in found.rules] == ["DROP"]
    with pytest.raises(AssertionError, match=message):
        assert found.wrong == [], found.wrong
    assert found.wrong[0].startswith("cluster.fw (line 2): ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("IN ACCEPT -p tcp -dport 70000", "'70000' is no port"),
        ("IN ACCEPT -dport 22", "ports without a protocol"),
        ("IN ACCEPT -source +nobody", "no such ipset '\\+nobody'"),
        ("IN ACCEPT -source 10.0.0.300", "'10.0.0.300' is no address"),
        ("IN SSH(ACCEPT) -dport 23", "the macro SSH brings its own"),
        ("GROUP nobody", "no such security group 'nobody'"),
    ],
)
def test_a_rule_that_means_nothing_is_said_and_left_out(line: str, message: str) -> None:
    bare = iptables.compile_rules(a_node(ON))
    found = iptables.compile_rules(a_node(f"{ON}[RULES]\n{line}\n"))
    assert found.chains == bare.chains
    assert len(found.wrong) == 1 and found.wrong[0].startswith("cluster.fw (line 4): ")
    with pytest.raises(AssertionError, match=message):
        assert not found.wrong, found.wrong


def test_the_product_reads_the_files_as_the_double_does() -> None:
    """They share no code, so what both say alike is no mistake of one."""
    lines = ["IN SSH(ACCEPT) -source +management", "|IN DROP", "OUT DROP -p tcp -dport 1:2 # x", "GROUP g -i net0", "IN NO"]
    lines.append("[x]")
    for first, second, third in itertools.permutations(lines, 3):
        text = f"[OPTIONS]\nenable: 1\n[IPSET Two]\n!10.0.0.1\n[RULES]\n{first}\n{second}\n[group g]\n{third}\n"
        ours, theirs = config.parse("cluster.fw", text), firewall_config.parse(text)
        assert ours.options == theirs.options and len(ours.wrong) == len(theirs.strange) - (third == "GROUP g -i net0")
        assert ours.sets == {name: [f"{'!' * each.but}{each.value}" for each in found] for name, found in theirs.sets.items()}
        assert [(each.kind, each.action, each.macro, each.values) for each in ours.rules] == [
            (each.kind, each.action, each.macro, dict(each.params)) for each in theirs.rules if each.enabled
        ]


# --- what is made of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[OPTIONS]\nenable: 0\n", "[OPTIONS]\npolicy_in: DROP\n", "[RULES]\nIN DROP\n"])
def test_the_clusters_switch_is_off_unless_it_is_on(text: str) -> None:
    assert iptables.compile_rules(a_node(text)).chains == {}


def test_a_nodes_own_switch_is_on_unless_it_is_off() -> None:
    assert "PVEFW-HOST-IN" in iptables.compile_rules(a_node()).chains
    off = iptables.compile_rules(a_node(host="[OPTIONS]\nenable: 0\n"))
    assert "PVEFW-INPUT" in off.chains and "PVEFW-HOST-IN" not in off.chains


@pytest.mark.parametrize("port", [22, 8006, 3128, 5900, 5999, 60000, 60050])
def test_only_the_management_set_is_let_in(port: int) -> None:
    text = f"{ON}[IPSET management]\n192.0.2.7\n"
    assert verdict(a_node(text), port, "192.0.2.7") == "ACCEPT"
    assert verdict(a_node(text), port, "10.99.0.200") == "ACCEPT", "the local network is always in it"
    assert verdict(a_node(text), port, "192.0.2.8") == "DROP"
    assert verdict(a_node(ON), port, "10.99.0.200") == "ACCEPT"


def test_the_alias_local_network_takes_the_place_of_the_detected_one() -> None:
    found = a_node(f"{ON}[ALIASES]\nlocal_network 10.97.0.0/16\n")
    assert verdict(found, 22, "10.97.3.4") == "ACCEPT"
    assert verdict(found, 22, "10.99.0.200") == "DROP"


def test_other_ports_meet_the_policy() -> None:
    assert verdict(a_node(), 111, "10.99.0.2") == "DROP"
    assert verdict(a_node("[OPTIONS]\nenable: 1\npolicy_in: REJECT\n"), 111, "10.99.0.2") == "REJECT"
    assert verdict(a_node("[OPTIONS]\nenable: 1\npolicy_in: ACCEPT\n"), 111, "10.99.0.2") == "ACCEPT"


def test_rules_of_the_host_come_before_those_of_the_cluster_and_both_before_management() -> None:
    text = f"{ON}[RULES]\nIN DROP -p tcp -dport 22\n"
    assert verdict(a_node(text), 22, "10.99.0.2") == "DROP"
    assert verdict(a_node(text, "[RULES]\nIN ACCEPT -p tcp -dport 22\n"), 22, "192.0.2.9") == "ACCEPT"


def test_legacy_opens_corosyncs_port_of_link_0_only_and_between_ring_addresses() -> None:
    found = a_node("[OPTIONS]\nenable: 1\n[ALIASES]\nlocal_network 10.97.0.0/16\n")
    assert verdict(found, 5405, "10.99.0.2", "udp", "10.99.0.1") == "ACCEPT"
    assert verdict(found, 5405, "10.99.0.3", "udp", "10.99.0.1") == "DROP"
    assert verdict(found, 5406, "10.98.0.2", "udp", "10.98.0.1") == "DROP"
    mended = a_node(f"{ON}[RULES]\nIN ACCEPT -source 10.98.0.2 -dest 10.98.0.1 -p udp -dport 5405:5412\n")
    assert verdict(mended, 5406, "10.98.0.2", "udp", "10.98.0.1") == "ACCEPT"


def test_nftables_opens_all_links() -> None:
    text = nftables.table_text(nftables.compile_rules(a_node(host="[OPTIONS]\nnftables: 1\n")), nftables.TABLE)
    assert "ip saddr 10.98.0.2 ip daddr 10.98.0.1 udp dport 5405-5412 accept" in text


def test_one_of_both_firewalls_has_rules() -> None:
    legacy, new = a_node(), a_node(host="[OPTIONS]\nnftables: 1\n")
    assert iptables.compile_rules(legacy).chains and not nftables.compile_rules(legacy).chains
    assert nftables.compile_rules(new).chains and not iptables.compile_rules(new).chains


@pytest.mark.parametrize(
    ("cluster", "guest", "awake"), [(1, "enable: 1", True), (1, "enable: 0", False), (0, "enable: 1", False), (1, "", False)]
)
def test_rules_of_guests_sleep_until_both_switches_are_on(cluster: int, guest: str, awake: bool) -> None:
    file = config.parse("100.fw", f"[OPTIONS]\n{guest}\n[RULES]\nIN SSH(ACCEPT) -i net0\n")
    found = a_node(f"[OPTIONS]\nenable: {cluster}\n", guests=(node.Guest(100, [0], file),))
    chains = iptables.compile_rules(found).chains
    assert ("tap100i0-IN" in chains) is awake
    if awake:
        assert rules.Rule("ACCEPT", proto="tcp", dport="22") in chains["tap100i0-IN"]
        assert chains["tap100i0-IN"][-1] == rules.Rule("DROP") and chains["tap100i0-OUT"][-1] == rules.Rule("ACCEPT")


def test_other_peoples_rules_stay() -> None:
    saved = (
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:ufw-x - [0:0]\n:PVEFW-INPUT - [0:0]\n"
        ":PVEFW-old - [0:0]\n-A INPUT -j ufw-x\n-A INPUT -j PVEFW-INPUT\nCOMMIT\n"
    )
    text = iptables.restore_text(iptables.compile_rules(a_node()), 4, saved)
    assert "ufw" not in text and "-A INPUT -j PVEFW-INPUT" not in text
    assert ":PVEFW-old - [0:0]" in text and "-X PVEFW-old" in text and "-A OUTPUT -j PVEFW-OUTPUT" in text
    gone = iptables.restore_text(rules.Ruleset(), 4, saved)
    assert "-D INPUT -j PVEFW-INPUT" in gone and "-X PVEFW-INPUT" in gone


# --- a node's files -----------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Both packages as installed, and a node's files."""
    for name in ("pve-firewall", "proxmox-firewall"):
        shutil.copytree(HERE / name / "root", tmp_path, dirs_exist_ok=True)
    for folder in ("etc/pve/firewall", "etc/pve/local/qemu-server", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n10.99.0.1 pve1.example.org pve1\n")
    (tmp_path / "etc/pve/corosync.conf").write_text(COROSYNC)
    (tmp_path / "etc/pve-firewall-lab.conf").write_text("seconds=0.2\n")
    for name, value in (
        ("net/bridge/bridge-nf-call-iptables", 0),
        ("net/bridge/bridge-nf-call-ip6tables", 0),
        ("net/ipv4/tcp_syncookies", 0),
        ("net/netfilter/nf_conntrack_max", 7),
    ):
        path = tmp_path / "proc/sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    yield tmp_path
    # Also where a test failed amid.
    with contextlib.suppress(OSError, ValueError):
        number = int((tmp_path / "run/pve-firewall.pid").read_text())
        if Path(f"/proc/{number}/comm").read_text().startswith("pve-firewall"):
            os.kill(number, 9)


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PVE_LAB_ROOT": str(root), "PVE_LAB_NODE": "pve1"}


def call(root: Path, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, str(root / "usr/sbin/pve-firewall"), *words]
    return subprocess.run(argv, env=environment(root), capture_output=True, text=True, timeout=SECONDS)


def test_compile_and_localnet_show_what_would_be(root: Path) -> None:
    (root / "etc/pve/firewall/cluster.fw").write_text(f"{ON}[RULES]\nIN What(ACCEPT)\n")
    shown = call(root, "compile")
    assert shown.returncode == 0 and "create PVEFW-HOST-IN" in shown.stdout
    assert "-s 10.98.0.2 -d 10.98.0.1 --dport 5404:5405 -j RETURN" in shown.stdout
    assert "# cluster.fw (line 4): unknown macro 'What'" in shown.stdout
    local = call(root, "localnet").stdout
    assert "local IP address: 10.99.0.1\n" in local and " - pve2: 10.98.0.2 (link: 1)\n" in local
    assert call(root, "status").stdout == "Status: enabled/stopped\n"


def test_a_disabled_firewall_says_so(root: Path) -> None:
    assert call(root, "compile").stdout.endswith("firewall disabled - no rules\n")
    assert call(root, "status").stdout == "Status: disabled/stopped\n"


def test_without_the_clusters_file_system_there_is_no_answer(root: Path) -> None:
    shutil.rmtree(root / "etc/pve")
    done = call(root, "compile")
    assert done.returncode == 255 and "/etc/pve is not there" in done.stderr


def test_files_that_vanish_while_they_are_read_are_no_empty_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ROOT", str(root))
    monkeypatch.setattr(node, "PVE", str(root / "etc/pve"))
    (root / "etc/pve/firewall/cluster.fw").write_text(ON)
    assert node.load([]).enabled

    def unmounted() -> dict[str, str]:
        (root / "etc/pve").rename(root / "etc/away")
        return {}

    monkeypatch.setattr(node, "hosts", unmounted)
    with pytest.raises(node.Unready):
        node.load([])


@pytest.mark.parametrize("words", [(), ("open",), ("stop", "now"), ("simulate", "--from", "vm100")])
def test_other_arguments_are_refused(root: Path, words: tuple[str, ...]) -> None:
    done = call(root, *words)
    assert done.returncode == 255 and "lab double" in done.stderr


def test_simulate_answers_for_one_packet(root: Path) -> None:
    (root / "etc/pve/firewall/cluster.fw").write_text(f"{ON}[IPSET management]\n192.0.2.0/24\n!192.0.2.9\n")
    for source, expected in (("192.0.2.7", "ACCEPT"), ("192.0.2.9", "DROP")):
        done = call(root, "simulate", "--source", source, "--dport", "22")
        assert done.stdout.endswith(f"ACTION: {expected}\n")


# --- the real netfilter -------------------------------------------------------------------------------------


class Network:
    """Two namespaces, joined by a cable for each ring: this node's and its peer's."""

    def __init__(self) -> None:
        self.holders = [
            subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for holder in self.holders:
            assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        here, there = self.holders
        for number, net in enumerate(("10.99.0", "10.98.0")):
            self.on(0, "ip", "link", "add", f"r{number}", "type", "veth", "peer", "name", f"r{number}", "netns", str(there.pid))
            for side in (0, 1):
                self.on(side, "ip", "address", "add", f"{net}.{side + 1}/24", "dev", f"r{number}")
        for side in (0, 1):
            for card in ("lo", "r0", "r1"):
                self.on(side, "ip", "link", "set", card, "up")

    def inside(self, side: int) -> tuple[str, ...]:
        return ("nsenter", "--net", "--target", str(self.holders[side].pid))

    def on(self, side: int, *argv: str) -> str:
        done = subprocess.run([*self.inside(side), *argv], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def send(self, side: int, source: str, dest: str, port: int) -> None:
        program = (
            "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], int(sys.argv[3])));"
            "s.sendto(b'x', (sys.argv[2], int(sys.argv[3])))"
        )
        self.on(side, sys.executable, "-c", program, source, dest, str(port))

    def passed(self, dest: str, port: int) -> bool:
        """Whether a datagram of the peer gets to this node: one to link 0's port, which is open, follows it."""
        program = (
            "import socket, sys\n"
            "got = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)]\n"
            "got[0].bind((sys.argv[1], int(sys.argv[2])))\n"
            "got[1].bind((sys.argv[1], 5405))\n"
            f"got[1].settimeout({SECONDS})\n"
            "print(flush=True)\n"
            "got[1].recv(1)\n"
            "got[0].setblocking(False)\n"
            "try:\n    got[0].recv(1)\n    print('passed')\nexcept BlockingIOError:\n    print('dropped')\n"
        )
        argv = [*self.inside(0), sys.executable, "-c", program, dest, str(port)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None and receiver.stdout.readline() == "\n"
            theirs = dest.rpartition(".")[0] + ".2"
            self.send(1, theirs, dest, port)
            self.send(1, theirs, dest, 5405)
            return receiver.communicate(timeout=SECONDS)[0] == "passed\n"

    def close(self) -> None:
        for holder in self.holders:
            holder.kill()
            holder.communicate(timeout=SECONDS)


@pytest.fixture
def network() -> Iterator[Network]:
    missing = [tool for tool in LEGACY_TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    probe = subprocess.run(["unshare", "--net", "iptables-legacy-save", "-t", "filter"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("the kernel of this machine has no netfilter for iptables-legacy")
    net = Network()
    yield net
    net.close()


def load(network: Network, text: str) -> None:
    compiled = iptables.compile_rules(a_node(text))
    iptables.Kernel(lambda argv, text: in_namespace(network, argv, text)).apply(compiled)


def in_namespace(network: Network, argv: object, text: str) -> str:
    assert isinstance(argv, tuple)
    return iptables.run((*network.inside(0), *argv), text)


@pytest.mark.root
def test_a_second_link_of_corosync_lives_by_the_table_of_connections_alone(network: Network) -> None:
    """Why a rule for UDP 5405+N is wanted: flush the table, and the link is cut until this node has sent again."""
    if shutil.which("conntrack") is None:
        pytest.skip("needs conntrack")
    load(network, ON)
    assert network.passed("10.99.0.1", 5404), "link 0 is open"
    assert not network.passed("10.98.0.1", 5406)
    network.send(0, "10.98.0.1", "10.98.0.2", 5406)
    assert network.passed("10.98.0.1", 5406), "the answer to what this node sent"
    network.on(0, "conntrack", "-F")
    assert not network.passed("10.98.0.1", 5406)
    load(network, f"{ON}[RULES]\nIN ACCEPT -source 10.98.0.2 -dest 10.98.0.1 -p udp -dport 5405:5412\n")
    network.on(0, "conntrack", "-F")
    assert network.passed("10.98.0.1", 5406)


@pytest.mark.root
def test_the_daemon_sets_rules_follows_the_files_and_takes_all_back(network: Network, root: Path) -> None:
    here = network.inside(0)
    file = root / "etc/pve/firewall/cluster.fw"

    def saved() -> str:
        return network.on(0, "iptables-legacy-save", "-t", "filter")

    network.on(0, "iptables-legacy", "-N", "others")
    network.on(0, "iptables-legacy", "-A", "INPUT", "-j", "others")
    process = subprocess.Popen(
        [*here, str(root / "usr/sbin/pve-firewall"), "start", "--debug", "1"],
        env=environment(root),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None and "lab double" in process.stderr.readline()
        file.write_text(ON)
        wait_for("the rules", lambda: "-A INPUT -j PVEFW-INPUT" in saved())
        assert "PVEFW-0-management-v4" in network.on(0, "ipset", "list", "-name")
        assert call(root, "status", prefix=here).stdout == "Status: enabled/running\n"
        assert call(root, "start", prefix=here).returncode == 255, "one at a time"
        sysctls = {path.name: path.read_text().strip() for path in (root / "proc/sys").rglob("*") if path.is_file()}
        assert sysctls == {
            "bridge-nf-call-iptables": "1",
            "bridge-nf-call-ip6tables": "1",
            "tcp_syncookies": "1",
            "nf_conntrack_max": "262144",
        }
        file.write_text(f"{ON}[RULES]\nIN ACCEPT -p tcp -dport 7788\n")
        wait_for("the new rule", lambda: "--dport 7788 -j RETURN" in saved())
        network.on(0, "iptables-legacy", "-F", "PVEFW-HOST-IN")
        wait_for("the flushed rules", lambda: "--dport 7788 -j RETURN" in saved())
        (root / "etc/pve").rename(root / "etc/away")
        assert process.stderr.readline() == "status update error: /etc/pve is not there: the rules stay as they are\n"
        assert "--dport 7788 -j RETURN" in saved()
        (root / "etc/away").rename(root / "etc/pve")
        process.terminate()
        assert process.wait(timeout=SECONDS) == 0
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)
    assert "PVEFW" not in saved() and "-A INPUT -j others" in saved()
    assert network.on(0, "ipset", "list", "-name") == ""


@pytest.mark.root
def test_stop_clears_what_a_killed_daemon_left(network: Network, root: Path) -> None:
    (root / "etc/pve/firewall/cluster.fw").write_text(ON)

    def start() -> None:
        # The daemon keeps its standard error, as under systemd.
        with (root / "log").open("w") as log:
            argv = [*network.inside(0), str(root / "usr/sbin/pve-firewall"), "start"]
            assert subprocess.run(argv, env=environment(root), stdout=log, stderr=log, timeout=SECONDS).returncode == 0

    start()
    assert call(root, "status").stdout == "Status: enabled/running\n"
    wait_for("the rules", lambda: "PVEFW-HOST-IN" in network.on(0, "iptables-legacy-save"))
    os.kill(int((root / "run/pve-firewall.pid").read_text()), 9)
    wait_for("its end", lambda: call(root, "status").stdout == "Status: enabled/stopped\n")
    assert "PVEFW-HOST-IN" in network.on(0, "iptables-legacy-save"), "rules outlive their daemon"
    assert call(root, "stop", prefix=network.inside(0)).returncode == 0
    assert "PVEFW" not in network.on(0, "iptables-legacy-save")
    start()
    wait_for("the rules", lambda: "PVEFW-HOST-IN" in network.on(0, "iptables-legacy-save"))
    assert call(root, "stop", prefix=network.inside(0)).returncode == 0
    assert call(root, "status").stdout == "Status: enabled/stopped\n"
    assert "PVEFW" not in network.on(0, "iptables-legacy-save")


@pytest.mark.root
def test_rules_that_netfilter_refuses_change_nothing(network: Network) -> None:
    load(network, ON)
    before = network.on(0, "iptables-legacy-save")
    with pytest.raises(iptables.Failed, match="iptables-legacy-restore"):
        load(network, f"{ON}[RULES]\nIN ACCEPT -p tcp -dport no-such-service\n")
    after = network.on(0, "iptables-legacy-save")
    assert [line for line in after.splitlines() if line[0] != "#"] == [line for line in before.splitlines() if line[0] != "#"]


@pytest.mark.root
def test_the_nftables_sibling_and_its_emergency_file(network: Network, root: Path) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    (root / "etc/pve/firewall/cluster.fw").write_text(ON)
    (root / "etc/pve/local/host.fw").write_text("[OPTIONS]\nnftables: 1\n")
    program = [*network.inside(0), str(root / "usr/libexec/proxmox/proxmox-firewall"), "start"]
    process = subprocess.Popen(program, env=environment(root), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and "lab double" in process.stderr.readline()
        wait_for("the table", lambda: "chain HOST-IN" in network.on(0, "nft", "list", "ruleset"))
        assert network.passed("10.98.0.1", 5406)
        flag = root / "run/proxmox-nftables-firewall-force-disable"
        flag.touch()
        wait_for("the end of the table", lambda: network.on(0, "nft", "list", "ruleset") == "")
        flag.unlink()
        wait_for("the table", lambda: "chain HOST-IN" in network.on(0, "nft", "list", "ruleset"))
        process.terminate()
        assert process.wait(timeout=SECONDS) == 0
        assert network.on(0, "nft", "list", "ruleset") == ""
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_units_run_only_where_the_lab_asked_for_them() -> None:
    for unit in HERE.glob("p*-firewall/root/usr/lib/systemd/system/*.service"):
        text = unit.read_text()
        assert "ConditionPathExists=/etc/pve-firewall-lab.conf" in text and "lab double" in text
    legacy = (HERE / "pve-firewall/root/usr/lib/systemd/system/pve-firewall.service").read_text()
    for tool in ("iptables", "ip6tables"):
        assert f"ExecStartPre=-/usr/bin/update-alternatives --set {tool} /usr/sbin/{tool}-legacy" in legacy
