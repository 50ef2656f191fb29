# SPDX-License-Identifier: Apache-2.0
"""What pveguard reads in a corosync.conf is what a running Corosync has in its cmap, and what one refuses the other does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.corosync import corosync_info
from ansible.module_utils.pveguard.formats import corosync_check, corosync_conf, corosync_edit, corosync_tools
from ansible.module_utils.pveguard.formats.corosync_conf import CorosyncConfError, Document

from . import running

CONFIGURATIONS = Path(__file__).parent / "configurations"

TOTEM = "totem {\n  version: 2\n  cluster_name: t\n  config_version: 3\n  crypto_cipher: none\n  crypto_hash: none\n"
NODES = (
    "nodelist {\n  node {\n    name: pve1\n    nodeid: 1\n    ring0_addr: 10.0.0.1\n  }\n"
    "  node {\n    name: pve2\n    nodeid: 2\n    ring0_addr: 10.0.0.2\n  }\n}\n"
)
QUORUM = "quorum {\n  provider: corosync_votequorum\n}\n"


def conf(totem: str = "", nodes: str = NODES, quorum: str = QUORUM, more: str = "", head: str = TOTEM) -> str:
    return f"{head}{totem}}}\n{nodes}{quorum}{more}"


def nodes(*wanted: tuple[str, str]) -> str:
    """The two nodes with lines replaced."""
    text = NODES
    for old, new in wanted:
        assert old in text
        text = text.replace(old, new)
    return text


def interface(*lines: str) -> str:
    return "  interface {\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def quorum(*lines: str) -> str:
    return QUORUM.replace("}\n", "".join(f"  {line}\n" for line in lines) + "}\n")


#: Links of both nodes beside the first.
SEVEN = "".join(f"\n    ring{link}_addr: 10.{link}.0.%s" for link in range(1, 8))

#: Texts that Corosync takes, each with as many oddities as go together.
TAKEN = {
    "blanks": conf(
        '\ttoken:\t4000\t\n  join : 60\n  merge:200   \n  one: a # no comment\n  two: "a b"\n  three: a:b: c\n  four:\n'
        "  five: a}b\n  TOKEN: 1\n  six: é\n  seven: \udce9\n  eight: a\rb\n  # a } comment {\n  : lone\n",
        more="my-sec {\n  a: 1\n  deep: x\n  in {\n    b: 2\n  }\n}\n1st {\n  c: d\n}\nafter: {\n  e: f\n}\nouter: key\n"
        "no name {\n}\n",
    ),
    "crlf": conf("  token: 4000\n").replace("\n", "\r\n"),
    "no end, no indent": "\n".join(line.strip() for line in conf("  token: 4000\n").splitlines()),
    "numbers": conf(
        "  token: +04000\n  token_coefficient: 00\n  knet_compression_level: -1\n"
        + interface("linknumber: 00", "knet_link_priority: +7"),
        nodes(
            ("nodeid: 2\n", "nodeid: +02\n    quorum_votes: 03\n"),
            ("nodeid: 1\n", "nodeid: \v1\n    quorum_votes: 0\n"),
        ),
        quorum("expected_votes: +5"),
        head=TOTEM.replace("version: 2", "version: 02", 1).replace(
            "config_version: 3", "config_version: +007"
        ),
    ),
    "twice": conf(
        "  token: 4000\n  token: 5000\n"
        + interface("knet_link_priority: 3")
        + interface("mcastport: 5500", "knet_link_priority: 4"),
        nodes(("name: pve1", "name: x\n    name: pve1")),
        quorum("wait_for_all: 1"),
        "totem {\n  token: 6000\n  cluster_name: u\n}\nquorum {\n  wait_for_all: 0\n  expected_votes: 3\n}\n"
        "logging {\n  debug: off\n  logger_subsys {\n    debug: off\n    subsys: QUORUM\n  }\n}\n",
    ),
    "ringnumber is not looked at": conf(
        interface("ringnumber: 1", "knet_link_priority: 7") + interface("linknumber: 0", "ringnumber: 3")
    ),
    "the number of a link at the end": conf(
        interface("knet_link_priority: 7", "linknumber: 1"),
        nodes(
            ("10.0.0.1", "10.0.0.1\n    ring1_addr: 10.1.0.1"),
            ("10.0.0.2", "10.0.0.2\n    ring1_addr: 10.1.0.2"),
        ),
    ),
    "eight links": conf(
        nodes=nodes(
            ("10.0.0.1", "10.0.0.1" + SEVEN.replace("%s", "1")),
            ("10.0.0.2", "10.0.0.2" + SEVEN.replace("%s", "2")),
        )
    ),
    "link 1 alone": conf(
        nodes=nodes(
            ("ring0_addr: 10.0.0.1", "ring1_addr: 10.1.0.1"), ("ring0_addr: 10.0.0.2", "ring1_addr: 10.1.0.2")
        )
    ),
    "defaults by 0": conf(
        "  token: 0\n  consensus: 0\n",
        NODES[:-2] + "  node {\n    name: pve3\n    nodeid: 3\n    ring0_addr: 10.0.0.3\n  }\n"
        "  node {\n    name: pve4\n    nodeid: 4\n    ring0_addr: 10.0.0.4\n  }\n}\n",
        quorum("expected_votes: 0"),
    ),
    "two_node is any number": conf(quorum=quorum("two_node: 2")),
    "the highest id of knet": conf(nodes=nodes(("nodeid: 1", "nodeid: 65535"))),
    "the highest id of udpu": conf("  transport: udpu\n", nodes(("nodeid: 1", "nodeid: 4294967295"))),
    "ids of addresses": conf(
        "  transport: udpu\n",
        nodes(("    nodeid: 1\n", ""), ("nodeid: 2", "nodeid: 0"), ("10.0.0.2", "192.0.2.2")),
    ),
    "ids of addresses, without their high bit": conf(
        "  transport: udpu\n  clear_node_high_bit: yes\n",
        nodes(("    nodeid: 2\n", ""), ("10.0.0.2", "192.0.2.2")),
    ),
    "udp": conf(
        "  transport: udp\n"
        + interface("bindnetaddr: 10.0.0.0", "mcastaddr: 239.1.1.1", "mcastport: 5405", "ringnumber: 0")
    ),
    "ipv6 in two forms": conf(nodes=nodes(("10.0.0.1", "2001:DB8:0:0::1"), ("10.0.0.2", "2001:db8::2"))),
    "mapped": conf(nodes=nodes(("10.0.0.1", "::ffff:10.0.0.1"), ("10.0.0.2", "::ffff:10.0.0.2"))),
    "old forms of ipv4": conf(nodes=nodes(("10.0.0.1", "10.0.0.01"), ("10.0.0.2", "0xa000002"))),
    "names": conf(
        nodes=nodes(
            ("    name: pve1\n", ""),
            ("    name: pve2\n", ""),
            ("10.0.0.1", "PVE1.Example.org"),
            ("10.0.0.2", "pve2"),
        )
    ),
    "no config_version": conf(head=TOTEM.replace("  config_version: 3\n", "")),
    "the highest config_version": conf(
        head=TOTEM.replace("config_version: 3", "config_version: 18446744073709551615")
    ),
    "a config_version below 0": conf(head=TOTEM.replace("config_version: 3", "config_version: -1")),
    "the longest line and key": conf(f"  foo: {'x' * 503}\n  {'k' * 248}: 1\n"),
    "keys with dots": conf("  token: 4000\n  sub.key: 1\n"),
}

#: Texts that Corosync does not start with.
REFUSED = {
    "a comment after a number": conf("  token: 4000 # c\n"),
    "text after {": conf().replace("totem {\n", "totem { version: 2\n"),
    "a line of its own for }": conf(more="foo {\n  bar: b }\n"),
    "a comment after }": conf(more="foo {\n  bar: b\n} # c\n"),
    "{ in a value": conf("  foo: a{b\n"),
    "two {": conf(more="foo {{\n  bar: b\n}\n"),
    "no name": conf(more=" {\n  bar: b\n}\n"),
    "no }": conf()[:-2],
    "upper case": conf().replace("totem {", "TOTEM {"),
    "a carriage return too many": conf("  token: 4000\r\r\n"),
    "a form feed": conf("\f\n"),
    "a NUL in a comment": conf("  # a\0b\n"),
    "a line too long": conf(f"  foo: {'x' * 504}\n"),
    "a comment too long": conf("#" + "x" * 510 + "\n"),
    "a key too long": conf(f"  {'k' * 249}: 1\n"),
    "a key too short": "ab: 1\n" + conf(),
    "a blank in a key": conf("  a b: 1\n"),
    "quotes around a key": conf('  "a": 1\n'),
    "a key that is not ASCII": conf("  fé: 1\n"),
    "a byte order mark": "\ufeff" + conf(),
    "a section's name with a blank": conf(more="a b {\n  c: d\n}\n"),
    "a second nodelist": conf(
        more="nodelist {\n  node {\n    name: pve3\n    nodeid: 3\n    ring0_addr: 10.0.0.3\n  }\n}\n"
    ),
    "a section in a node": conf(nodes=nodes(("name: pve1", "in {\n      a: 1\n    }\n    name: pve1"))),
    "no id": conf(nodes=nodes(("    nodeid: 2\n", ""))),
    "id 0": conf(nodes=nodes(("nodeid: 2", "nodeid: 0"))),
    "an id above knet's": conf(nodes=nodes(("nodeid: 2", "nodeid: 65536"))),
    "an id above all": conf("  transport: udpu\n", nodes(("nodeid: 2", "nodeid: 4294967296"))),
    "a negative id": conf(nodes=nodes(("nodeid: 2", "nodeid: -2"))),
    "a hexadecimal id": conf(nodes=nodes(("nodeid: 2", "nodeid: 0x2"))),
    "the same id": conf(nodes=nodes(("nodeid: 2", "nodeid: 01"))),
    "no votes": conf(nodes=nodes(("nodeid: 2\n", "nodeid: 2\n    quorum_votes:\n"))),
    "votes above all": conf(nodes=nodes(("nodeid: 2\n", "nodeid: 2\n    quorum_votes: 4294967296\n"))),
    "an empty address": conf(nodes=nodes(("10.0.0.2", "10.0.0.2\n    ring1_addr:"))),
    "a link with leading zeros": conf(nodes=nodes(("10.0.0.1", "10.0.0.1\n    ring01_addr: 10.1.0.1"))),
    "link 8": conf(
        nodes=nodes(
            ("10.0.0.1", "10.0.0.1\n    ring8_addr: 10.2.0.1"),
            ("10.0.0.2", "10.0.0.2\n    ring8_addr: 10.2.0.2"),
        )
    ),
    "link 8 of an interface": conf(interface("linknumber: 8", "knet_link_priority: 1")),
    "a link of one node only": conf(nodes=nodes(("10.0.0.2", "10.0.0.2\n    ring1_addr: 10.1.0.2"))),
    "no name with two links": conf(
        nodes=nodes(
            ("    name: pve1\n", ""),
            ("10.0.0.1", "10.0.0.1\n    ring1_addr: 10.1.0.1"),
            ("10.0.0.2", "10.0.0.2\n    ring1_addr: 10.1.0.2"),
        )
    ),
    "two families": conf(nodes=nodes(("10.0.0.2", "::ffff:10.0.0.2"))),
    "an address in brackets": conf(nodes=nodes(("10.0.0.1", "[2001:db8::1]"), ("10.0.0.2", "[2001:db8::2]"))),
    "a token too short": conf("  token: 29\n"),
    "a negative token": conf("  token: -1\n"),
    "a token above all": conf("  token: 4294967296\n"),
    "no number": conf("  window_size: x\n"),
    "a port above all": conf(interface("mcastport: 65536")),
    "a priority above all": conf(interface("knet_link_priority: 256")),
    "two_node as a word": conf(quorum=quorum("two_node: yes")),
    "wait_for_all above all": conf(quorum=quorum("wait_for_all: 256")),
    "a config_version above all": conf(
        head=TOTEM.replace("config_version: 3", "config_version: 18446744073709551616")
    ),
    "a hexadecimal config_version": conf(head=TOTEM.replace("config_version: 3", "config_version: 0x3")),
    "no version": conf(head=TOTEM.replace("  version: 2\n", "")),
    "another transport": conf("  transport: Knet\n"),
    "another link_mode": conf("  link_mode: any\n"),
    "another ip_version": conf("  ip_version: IPv4\n"),
    "another knet_transport": conf(interface("knet_transport: UDP")),
    "crypto without knet": conf(
        "  transport: udpu\n",
        head=TOTEM.replace("cipher: none", "cipher: aes256").replace("hash: none", "hash: sha256"),
    ),
    "two links without knet": conf(
        "  transport: udpu\n",
        nodes(
            ("10.0.0.1", "10.0.0.1\n    ring1_addr: 10.1.0.1"),
            ("10.0.0.2", "10.0.0.2\n    ring1_addr: 10.1.0.2"),
        ),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _here() -> None:
    if reason := running.why_not():
        pytest.skip(reason)


pytestmark = [pytest.mark.slow, pytest.mark.root]


def errors(document: Document) -> list[str]:
    return [
        each.message
        for each in corosync_check.problems(document, with_pmxcfs=False)
        if each.severity == "error"
    ]


def same_as_cmap(document: Document, cmap: dict[str, str]) -> None:
    """Every value that pveguard asks a document for."""
    for section in ("totem", "quorum", "logging"):
        keys = {line.key for part in document.root.sections(section) for line in part.pairs()}
        for key in keys:
            value = document.get(section, key or "")
            assert value is not None
            highest = corosync_check.NUMBERS.get(section, {}).get(key or "")
            if key == "config_version":
                value = str(document.config_version)
            elif highest is not None or key == "knet_compression_level":
                value = str(corosync_conf.number(value, highest or 2**31 - 1, 0 if highest else -(2**31)))
            # What has no letters to be printed is escaped by the tool.
            assert cmap.get(f"{section}.{key}") == value, f"{section}.{key}"
    places = {int(match.group(1)) for key in cmap if (match := re.match(r"nodelist\.node\.([0-9]+)\.", key))}
    listed = document.nodes()
    assert places == set(range(len(listed)))
    for place, node in enumerate(listed):
        said = {
            key.rpartition(".")[2]: value
            for key, value in cmap.items()
            if key.startswith(f"nodelist.node.{place}.")
        }
        assert str(node.node_id) == said["nodeid"]
        assert str(node.votes) == said.get("quorum_votes", "1")
        assert node.named == ("name" in said) and (
            not said.get("name") or corosync_conf.short_name(said["name"]) == node.name
        )
        assert {f"ring{link}_addr": text for link, text in node.addresses.items()} == {
            key: value for key, value in said.items() if key.startswith("ring")
        }
    for link in range(8):
        for option, text in corosync_edit.link_options(document, link).items():
            key = corosync_edit.LINK_KEYS[option]
            wanted = text if option == "transport" else str(corosync_conf.number(text))
            assert cmap.get(f"totem.interface.{link}.{key}") == wanted, (link, option)
        if f"totem.interface.{link}.knet_link_priority" in cmap:
            assert "priority" in corosync_edit.link_options(document, link)
    assert int(cmap["runtime.config.totem.token"]) == document.effective_token_ms


@pytest.mark.parametrize("name", TAKEN)
def test_what_corosync_reads_pveguard_reads_too(name: str) -> None:
    text = TAKEN[name]
    answer = running.ask(text)
    assert answer.cmap is not None, answer.refusal
    document = corosync_conf.parse(text)
    assert document.text() == text
    same_as_cmap(document, answer.cmap)
    assert errors(document) == []

    # What the tools print of it, whatever the width of their columns.
    said = corosync_tools.parse_quorum(answer.said["quorum"])
    own = document.nodes()[0]
    assert said["node_id"] == own.node_id and said["live_member_ids"] == [own.node_id]
    links = corosync_info.parse_links(answer.said["links"])
    # Corosync shows no link of IPv4 addresses in IPv6.
    assert {link["link"] for link in links} == (set() if name == "mapped" else set(own.addresses))
    assert all(set(link["peers"]) == {str(node.node_id) for node in document.nodes()} for link in links)
    assert document.two_node == ("2Node" in answer.said["quorum"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_corosync_refuses_pveguard_refuses_too(name: str) -> None:
    text = REFUSED[name]
    answer = running.ask(text)
    assert answer.cmap is None
    try:
        document = corosync_conf.parse(text)
    except CorosyncConfError:
        return
    assert errors(document), f"pveguard finds nothing; corosync: {answer.refusal}"


def test_what_pveguard_makes_is_taken() -> None:
    listed = [
        {"name": f"pve{number}", "node_id": number, "links": [f"10.0.0.{number}", f"10.1.0.{number}"]}
        for number in (1, 2)
    ]
    text = corosync_edit.render_new("made", listed, token_ms=3500)
    answer = running.ask(text)
    assert answer.cmap is not None, answer.refusal
    same_as_cmap(corosync_conf.parse(text), answer.cmap)
