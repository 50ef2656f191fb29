# SPDX-License-Identifier: Apache-2.0
"""corosync.conf as a document: nothing is lost, mistakes are found, edits touch only their own lines."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.formats import corosync_check, corosync_conf, corosync_edit
from ansible.module_utils.pveguard.formats.corosync_conf import CorosyncConfError
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = [
    {"name": "pve1", "node_id": 1, "links": ["10.77.0.1"]},
    {"name": "pve2", "node_id": 2, "links": ["10.77.0.2"]},
    {"name": "pve3", "node_id": 3, "links": ["10.77.0.3"]},
]

#: Shaped like what an administrator's years of edits leave behind.
WORN = """\
# managed by hand, see the wiki
totem{
\tversion: 2
\tcluster_name:   prod-west
\tconfig_version: 41   \n\
\tsecauth: on
\ttoken : 3000

\tinterface {
\t\tlinknumber: 0
\t\tknet_link_priority: 10
\t}
\tinterface {
\t\tlinknumber: 1
\t}
}

nodelist {
    node {
        name: west1
        nodeid: 1
        quorum_votes: 1
        ring0_addr: 10.0.0.1
        ring1_addr: fd00::1
    }

    node {
        name: west2
        nodeid: 2
        quorum_votes: 1
        ring0_addr: 10.0.0.2
        ring1_addr: fd00::2
        my_own_key: kept
    }
}
future {
  nested {
    key:
  }
}
quorum {
  provider: corosync_votequorum
}
logging { \n\
  to_syslog: yes
  # done
}"""


def document(**changes: str) -> corosync_conf.Document:
    text = corosync_edit.render_new("lab", NODES)
    for old, new in changes.items():
        text = text.replace(old, new)
    return corosync_conf.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# only a comment",
        WORN,
        WORN.replace("\n", "\r\n"),
        corosync_edit.render_new("lab", NODES),
        "a {\n}\n",
        "\ta\t{\t\n}\n",
        "key: value: with colons\n",
        "logfile: /var/log/ünïcode.log\n",
    ],
)
def test_round_trip_is_byte_for_byte(text: str) -> None:
    assert corosync_conf.parse(text).text() == text


KEY = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
BLANK = st.sampled_from(["", " ", "  ", "\t", " \t "])
VALUE = st.text(
    st.characters(blacklist_characters="{}\r\n\0", blacklist_categories=["Cs"]), max_size=12
).filter(lambda value: not value.startswith("#"))
STATEMENT = st.one_of(
    st.builds(lambda b, k, c, v: f"{b}{k}{c}:{v}", BLANK, KEY, BLANK, VALUE),
    st.builds(lambda b, v: f"{b}#{v}", BLANK, VALUE),
    BLANK,
)


def _block(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def build(indent: str, name: str, lines: list[str], tail: str) -> str:
        return "\n".join([f"{indent}{name}{tail}{{{tail}", *lines, f"{indent}}}{tail}"])

    return st.builds(build, BLANK, KEY, st.lists(children, max_size=5), BLANK)


DOCUMENT = st.lists(st.recursive(STATEMENT, _block, max_leaves=12), max_size=8).map("\n".join)


@settings(max_examples=40, deadline=None)
@given(DOCUMENT, st.sampled_from(["\n", "\r\n"]))
def test_generated_documents_round_trip(text: str, newline: str) -> None:
    text = text.replace("\n", newline)
    assert corosync_conf.parse(text).text() == text


@settings(deadline=None)
@given(st.text(alphabet="ab{}: #\n\t", max_size=60))
def test_any_text_parses_or_names_the_line(text: str) -> None:
    try:
        assert corosync_conf.parse(text).text() == text
    except CorosyncConfError as error:
        assert 1 <= error.line <= text.count("\n") + 1
        assert 1 <= error.column <= 61
        assert f"line {error.line}, column {error.column}" in str(error)


@settings(max_examples=40, deadline=None)
@given(DOCUMENT, KEY, st.integers(1, 10**6))
def test_an_edit_changes_one_line(text: str, key: str, value: int) -> None:
    parsed = corosync_conf.parse(text + "\ntotem {\n  version: 2\n}\n")
    before = parsed.text().split("\n")
    parsed.ensure("totem").set(key, value)
    after = corosync_conf.parse(parsed.text())
    assert after.ensure("totem").get(key) == str(value)
    assert len(set(parsed.text().split("\n")) - set(before)) <= 1


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ("totem {\n  version 2\n}\n", 2, 3, "expected 'key: value'"),
        ("totem {\n  version: 2\n", 1, 1, "never closed"),
        ("}\n", 1, 1, "without an open section"),
        ("a {\n  } }\n", 2, 3, "expected"),
        ("totem { version: 2\n}\n", 1, 9, "end of the line after '{'"),
        (" {\n}\n", 1, 2, "name of a section"),
        ("a {\n # \0\n}\n", 2, 4, "a NUL byte"),
        ("a {\n b {\n }\n", 1, 1, "never closed"),
    ],
)
def test_errors_carry_line_and_column(text: str, line: int, column: int, expected: str) -> None:
    with pytest.raises(CorosyncConfError, match=re.escape(expected)) as caught:
        corosync_conf.parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("totem {\r\n  version: 2\r\n}\r", "totem {\r\n  version: 2\r\n}\r\n\r\nlogging {\r\n  debug: on\r\n}\r\n"),
        ("key: value\r", "key: value\r\n\nlogging {\n  debug: on\n}\n"),
        ("# only a comment", "# only a comment\n\nlogging {\n  debug: on\n}\n"),
    ],
)
def test_a_new_section_after_a_line_without_its_end(text: str, wanted: str) -> None:
    document = corosync_conf.parse(text)
    document.set("logging", "debug", "on")
    assert document.text() == wanted and corosync_conf.parse(wanted).text() == wanted


def test_only_blanks_and_tabs_are_blanks_as_in_corosync() -> None:
    assert corosync_conf.parse("totem {\n\ttoken:\t 5\x0c \n}\n").get("totem", "token") == "5\x0c"
    for text in ("totem {\r\r\n}\n", "totem {\x0c\n}\n", "\x0c# no comment\n"):
        with pytest.raises(CorosyncConfError):
            corosync_conf.parse(text)


def test_queries() -> None:
    worn = corosync_conf.parse(WORN)
    assert worn.cluster_name == "prod-west"
    assert worn.config_version == 41
    assert worn.token_ms == 3000
    assert worn.token_coefficient_ms is None
    assert not worn.two_node
    assert not worn.qdevice
    assert [(node.name, node.node_id, node.addresses) for node in worn.nodes()] == [
        ("west1", 1, {0: "10.0.0.1", 1: "fd00::1"}),
        ("west2", 2, {0: "10.0.0.2", 1: "fd00::2"}),
    ]


def test_new_cluster_has_the_settings_of_pvecm_create() -> None:
    new = document()
    expected = {
        "cluster_name": "lab",
        "config_version": "1",
        "ip_version": "ipv4-6",
        "link_mode": "passive",
        "secauth": "on",
        "token": "3000",
        "token_coefficient": "125",
        "transport": "knet",
        "version": "2",
    }
    assert {key: new.get("totem", key) for key in expected} == expected
    assert new.get("logging", "to_syslog") == "yes"
    assert new.get("quorum", "provider") == "corosync_votequorum"
    assert [p for p in corosync_check.problems(new) if p.severity == "error"] == []


def test_add_node_inserts_after_the_last_in_its_layout() -> None:
    worn = corosync_conf.parse(WORN)
    assert corosync_edit.add_node(worn, "west3", 3, ["10.0.0.3", "fd00::3"])
    added = """
    node {
        name: west3
        nodeid: 3
        quorum_votes: 1
        ring0_addr: 10.0.0.3
        ring1_addr: fd00::3
    }
}
future {"""
    assert worn.text() == WORN.replace("config_version: 41", "config_version: 42").replace(
        "        my_own_key: kept\n    }\n}\nfuture {", "        my_own_key: kept\n    }\n" + added
    )


def test_add_then_remove_gives_the_former_text_with_a_higher_version() -> None:
    worn = corosync_conf.parse(WORN)
    corosync_edit.add_node(worn, "west3", 3, ["10.0.0.3", "fd00::3"])
    assert corosync_edit.remove_node(worn, "west3")
    assert worn.text() == WORN.replace("config_version: 41", "config_version: 43")


def test_adding_a_node_that_is_there_changes_nothing() -> None:
    new = document()
    assert not corosync_edit.add_node(new, "pve2", 2, ["10.77.0.2"])
    assert new.text() == corosync_edit.render_new("lab", NODES)


@pytest.mark.parametrize(
    ("name", "node_id", "links", "message"),
    [
        ("pve2", 2, ["10.77.0.9"], "already has node pve2"),
        ("pve4", 2, ["10.77.0.4"], "already has node pve2 with id 2"),
        ("pve2", 4, ["10.77.0.4"], "already has node pve2"),
        ("pve4", 4, ["10.77.0.3"], "address 10.77.0.3 belongs to both pve3 and pve4"),
        ("pve4", 4, [], "has no ring0_addr"),
        ("pve4", 4, ["10.77.0.4", "10.78.0.4"], "pve1 has no ring1_addr"),
        ("pve4", 4, ["127.0.1.1"], "loopback"),
        ("pve4", 0, ["10.77.0.4"], "nodeid above 0"),
        ("pve 4\n}", 4, ["10.77.0.4"], "cannot stand in corosync.conf"),
    ],
)
def test_a_node_that_would_break_the_cluster_is_refused_and_nothing_kept(
    name: str, node_id: int, links: list[str], message: str
) -> None:
    new = document()
    with pytest.raises(PveguardError, match=re.escape(message)):
        corosync_edit.add_node(new, name, node_id, links)


def test_refused_addition_leaves_the_document_as_it_was() -> None:
    new = document()
    before = new.text()
    with pytest.raises(PveguardError):
        corosync_edit.add_node(new, "pve4", 4, ["10.77.0.3"])
    assert new.text() == before


def test_qdevice_refuses_a_change_of_the_nodes() -> None:
    new = document()
    new.root.sections("quorum")[0].items.extend(corosync_conf.parse("device {\n  model: net\n}\n").root.items)
    assert new.qdevice
    with pytest.raises(PveguardError, match="pvecm qdevice remove"):
        corosync_edit.add_node(new, "pve4", 4, ["10.77.0.4"])
    with pytest.raises(PveguardError, match="pvecm qdevice remove"):
        corosync_edit.remove_node(new, "pve3")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nodeid: 3", "nodeid: 2", "nodeid 2 belongs to both pve2 and pve3"),
        ("name: pve3", "name: pve2", "name pve2 belongs to both"),
        ("10.77.0.3", "10.77.0.2", "address 10.77.0.2 belongs to both"),
        ("  version: 2", "  version: 1", "totem.version is 1"),
        ("config_version: 1", "config_version: 0", "config_version is missing or 0"),
        ("    name: pve1\n", "", "has no name"),
        (
            "provider: corosync_votequorum",
            "provider: corosync_votequorum\n  two_node: 1",
            "two_node is 1 with 3",
        ),
        ("provider: corosync_votequorum", "provider: other", "provider is not"),
        ("  cluster_name: lab\n", "", "cluster_name is missing"),
    ],
)
def test_semantic_errors(old: str, new: str, message: str) -> None:
    found = corosync_check.problems(document(**{old: new}))
    assert any(message in problem.message for problem in found if problem.severity == "error"), found


def test_two_node_is_refused_where_pmxcfs_runs_and_accepted_elsewhere() -> None:
    text = corosync_edit.render_new("lab", NODES[:2]).replace("quorum {\n", "quorum {\n  two_node: 1\n")
    two = corosync_conf.parse(text)
    with pytest.raises(PveguardError, match="QDevice"):
        corosync_check.refuse_problems(two)
    corosync_check.refuse_problems(two, with_pmxcfs=False)


def test_warnings() -> None:
    text = corosync_edit.render_new("lab", NODES[:2]).replace("secauth: on", "secauth: off")
    found = [p.message for p in corosync_check.problems(corosync_conf.parse(text)) if p.severity == "warning"]
    assert any("secauth is off" in message for message in found)
    assert any("even number of votes (2)" in message for message in found)


def messages(text: str, severity: str, **more: Any) -> list[str]:
    found = corosync_check.problems(corosync_conf.parse(text), **more)
    return [problem.message for problem in found if problem.severity == severity]


@pytest.mark.parametrize(
    ("old", "new", "severity", "message"),
    [
        ("transport: knet", "transport: udpx", "error", "transport is 'udpx', wanted knet, udp or udpu"),
        ("transport: knet", "transport: udpu", "warning", "transport is udpu: no second link and no encryption"),
        ("transport: knet", "transport: udpu", "error", "crypto is on with totem.transport udpu"),
        ("transport: knet", "transport: knet\n  transport: udp", "warning", "given more than once (knet, udp)"),
        ("link_mode: passive", "link_mode: both", "error", "wanted passive, active or rr"),
        ("ip_version: ipv4-6", "ip_version: 4", "error", "ip_version is '4'"),
        ("ip_version: ipv4-6", "ip_version: ipv6", "error", "10.77.0.1, which totem.ip_version ipv6 does not allow"),
        ("10.77.0.2", "fd00::2", "error", "link 0 has addresses of both families (10.77.0.1 and fd00::2)"),
        ("10.77.0.2", "10.77.0.300", "error", "'10.77.0.300', neither an address nor a host name"),
        ("10.77.0.2", "10.77.0.2/24", "error", "'10.77.0.2/24', neither an address"),
        ("10.77.0.2", "0.0.0.0", "error", "not the address of one host"),
        ("10.77.0.2", "224.0.0.9", "error", "not the address of one host"),
        ("10.77.0.2", "localhost", "error", "loopback address localhost"),
        ("secauth: on", "secauth: yes", "warning", "secauth is 'yes', which corosync takes for off"),
        ("secauth: on", "secauth: on\n  crypto_cipher: none\n  crypto_hash: none", "error", "which switches it off"),
        ("secauth: on", "secauth: off\n  crypto_cipher: aes256", "error", "corosync wants a hash with every cipher"),
        (
            "secauth: on",
            "secauth: off\n  crypto_cipher: aes256\n  crypto_hash: sha1",
            "warning",
            "secauth is off, but crypto_cipher and crypto_hash are aes256 and sha1: crypto is on",
        ),
        ("secauth: on", "crypto_hash: sha256", "warning", "authenticated (sha256) and not encrypted"),
        ("secauth: on", "secauth: on\n  crypto_cipher: des", "error", "crypto_cipher is 'des'"),
        ("secauth: on", "secauth: on\n  key: hush", "warning", "keep it in /etc/corosync/authkey"),
        ("linknumber: 0", "linknumber: 3", "warning", "totem.interface 3 describes a link that no node has"),
        ("linknumber: 0", "linknumber: x", "error", "has the linknumber 'x'"),
        ("linknumber: 0", "knet_transport: tcp", "error", "knet_transport of link 0 is 'tcp', wanted udp or sctp"),
        ("linknumber: 0", "knet_link_priority: 256", "error", "knet_link_priority of link 0 is '256', wanted a number from 0"),
        ("linknumber: 0", "knet_ping_timeout: 900", "warning", "knet_ping_timeout without its pair"),
        ("nodeid: 3", "nodeid: 4294967296", "error", "pve3 has no nodeid above 0"),
        ("quorum_votes: 1", "quorum_votes: one", "error", "quorum_votes of pve1 is 'one'"),
        ("nodeid: 1\n    quorum_votes: 1", "nodeid: 1\n    quorum_votes: 0", "warning", "pve1 has no vote"),
        ("nodeid: 1\n    quorum_votes: 1", "nodeid: 1\n    quorum_votes: 3", "warning", "pve1 has 3 of 5 votes: without it"),
        ("token: 3000", "token: 3s", "error", "totem.token is '3s'"),
        ("token: 3000", "token: 3000\n  consensus: 3600", "warning", "below 1.2 times the token of 3125 ms"),
        (
            "provider: corosync_votequorum",
            "provider: corosync_votequorum\n  expected_votes: 2",
            "warning",
            "expected_votes is 2 and the nodes have 3 votes",
        ),
        ("cluster_name: lab", "cluster_name: lab\n  # " + "x" * 600, "error", "has 604 bytes; corosync reads 510"),
    ],
)
def test_more_mistakes(old: str, new: str, severity: str, message: str) -> None:
    text = corosync_edit.render_new("lab", NODES)
    assert old in text and not any(message in found for found in messages(text, severity))
    assert any(message in found for found in messages(text.replace(old, new), severity)), messages(
        text.replace(old, new), severity
    )


def test_addresses_that_are_written_in_two_ways_are_one() -> None:
    text = corosync_edit.render_new("lab", NODES)
    for number, address in ((1, "fd00::1"), (2, "fd00:0::1"), (3, "fd00::3")):
        text = text.replace(f"10.77.0.{number}", address)
    assert any("belongs to both pve1 and pve2" in found for found in messages(text, "error"))


def test_names_are_looked_up_only_where_asked() -> None:
    text = corosync_edit.render_new("lab", NODES).replace("10.77.0.2", "two.lab").replace("10.77.0.3", "three.lab")
    assert messages(text, "error") == []
    known = {"two.lab": ["10.77.0.2"], "three.lab": ["10.77.0.3", "fd00::3"]}
    assert messages(text, "error", resolve=lambda name: known.get(name, [])) == []
    known["three.lab"] = []
    (message,) = messages(text, "error", resolve=lambda name: known.get(name, []))
    assert message == "ring0_addr of pve3 is the host name three.lab, which does not resolve here"
    known["three.lab"] = ["10.77.0.1"]
    (message,) = messages(text, "error", resolve=lambda name: known.get(name, []))
    assert message.startswith("10.77.0.1 is both ring0_addr of pve1 and ring0_addr of pve3 (three.lab)")
    known["three.lab"] = ["fd00::3"]
    ipv4 = text.replace("ip_version: ipv4-6", "ip_version: ipv4")
    (message,) = messages(ipv4, "error", resolve=lambda name: known.get(name, []))
    assert "three.lab has no address that totem.ip_version ipv4 allows" in message
    known["three.lab"] = ["127.0.1.1"]
    (message,) = messages(text, "error", resolve=lambda name: known.get(name, []))
    assert "loopback address three.lab" in message


def test_errors_that_were_there_before_are_not_held_against_a_change() -> None:
    text = corosync_edit.render_new("lab", NODES[:2]).replace("quorum {\n", "quorum {\n  two_node: 1\n")
    old = corosync_conf.parse(text)
    corosync_check.refuse_problems(old, known=corosync_check.problems(old))
    new = corosync_conf.parse(text.replace("link_mode: passive", "link_mode: x"))
    with pytest.raises(PveguardError, match="be wrong: totem.link_mode"):
        corosync_check.refuse_problems(new, known=corosync_check.problems(old))


def test_the_token_that_corosync_works_with() -> None:
    text = corosync_edit.render_new("lab", NODES)
    assert corosync_conf.parse(text).effective_token_ms == 3125
    text = text.replace("  token: 3000\n", "").replace("  token_coefficient: 125\n", "")
    assert corosync_conf.parse(text).effective_token_ms == 3650


@pytest.mark.parametrize(
    ("totem", "nodes", "effective"),
    [
        ("", 1, 3000), ("", 4, 4300), ("  token: 0\n", 4, 4300), ("  token: +05000\n", 2, 5000),
        ("  token: 4000\n  token_coefficient: 0\n", 6, 4000), ("  token: 0\n  token_coefficient: 125\n", 3, 3125),
    ],
)  # fmt: skip
def test_the_token_in_force(totem: str, nodes: int, effective: int) -> None:
    """As runtime.config.totem.token of corosync 3.1.7."""
    listed = [{"name": f"pve{n}", "node_id": n, "links": [f"10.0.0.{n}"]} for n in range(1, nodes + 1)]
    text = corosync_edit.render_new("c", listed).replace("  token: 3000\n  token_coefficient: 125\n", totem)
    assert corosync_conf.parse(text).effective_token_ms == effective


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("7", 7), ("+7", 7), ("007", 7), ("\v7", 7), ("0", 0), ("-0", 0), (str(2**63), 2**63), (str(2**64 - 1), 2**64 - 1),
        ("-1", 2**64 - 1), (str(2**64), None), ("9" * 400, None), ("0" * 400 + "7", 7), ("0x7", None), ("7.0", None),
        ("7 8", None), ("", None), ("\u0667", None), ("--7", None),
    ],
)  # fmt: skip
def test_a_config_version_is_what_corosync_makes_of_it(value: str, version: int | None) -> None:
    text = corosync_edit.render_new("c", [{"name": "a", "node_id": 1, "links": ["10.0.0.1"]}])
    document = corosync_conf.parse(text.replace("config_version: 1", f"config_version: {value}"))
    assert document.config_version == version
    errors = [each.message for each in corosync_check.problems(document) if "config_version" in each.message]
    assert bool(errors) is (not version)


def test_the_highest_config_version_is_not_raised() -> None:
    text = corosync_edit.render_new("c", [{"name": "a", "node_id": 1, "links": ["10.0.0.1"]}], config_version=2**64 - 1)
    document = corosync_conf.parse(text)
    with pytest.raises(PveguardError, match="18446744073709551615, the highest that corosync takes.*set it to 1 on all nodes"):
        document.bump()
    with pytest.raises(PveguardError, match="the highest"):
        corosync_edit.add_node(document, "b", 2, ["10.0.0.2"])
    assert document.text() == text


@pytest.mark.parametrize("transport", ["knet", "udp", "udpu"])
@pytest.mark.parametrize("node_id", [0, 1, 65535, 65536, 2**31, 2**32 - 1, 2**32])
def test_ids_that_the_transport_cannot_carry_are_refused(transport: str, node_id: int) -> None:
    text = corosync_edit.render_new("c", [{"name": "a", "node_id": 1, "links": ["10.0.0.1"]}])
    text = text.replace("secauth: on", "secauth: off").replace("nodeid: 1", f"nodeid: {node_id}")
    text = text.replace("transport: knet", f"transport: {transport}")
    errors = [each.message for each in corosync_check.problems(corosync_conf.parse(text)) if "nodeid" in each.message]
    right = 1 <= node_id <= corosync_conf.MAX_NODE_ID[transport] or (node_id == 0 and transport != "knet")
    assert bool(errors) is not right
    with pytest.raises(PveguardError, match="nodeid 65536; knet takes 1 to 65535"):
        corosync_edit.render_new("c", [{"name": "a", "node_id": 65536, "links": ["10.0.0.1"]}])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:DB8:0:0::1"), ("10.0.0.1", "::ffff:10.0.0.1"), ("10.0.0.1", "::FFFF:a00:1"),
        ("10.0.0.8", "10.0.0.010"),
        ("10.0.0.1", "10.1"), ("10.0.0.1", "0xa000001"), ("10.0.0.1", "167772161"), ("pve1.example.org", "PVE1.Example.ORG."),
        ("fe80::1%e0", "FE80:0::1%e0"),
    ],
)  # fmt: skip
def test_one_address_in_two_forms(one: str, other: str) -> None:
    assert corosync_conf.address_key(one) == corosync_conf.address_key(other)
    listed = [{"name": name, "node_id": number, "links": [f"192.0.2.{number}"]} for number, name in enumerate("ab", 1)]
    text = corosync_edit.render_new("c", listed)
    document = corosync_conf.parse(text.replace("192.0.2.1", one).replace("192.0.2.2", other))
    assert any("belongs to both a and b" in each.message for each in corosync_check.problems(document))


@pytest.mark.parametrize(
    ("one", "other"), [("10.0.0.1", "10.0.0.2"), ("pve1", "pve1.example.org"), ("fe80::1%e0", "fe80::1%e1"), ("10", "a")]
)
def test_two_addresses(one: str, other: str) -> None:
    assert corosync_conf.address_key(one) != corosync_conf.address_key(other)


@pytest.mark.parametrize(
    ("name", "short"),
    [("pve1", "pve1"), ("pve1.example.org", "pve1"), *((each, each) for each in ("192.0.2.1", "2001:db8::1", "10.1"))],
)
def test_a_name_is_cut_at_its_first_dot_and_an_address_is_not(name: str, short: str) -> None:
    assert corosync_conf.short_name(name) == short


def test_a_full_host_name_in_the_nodelist_is_the_node_of_its_first_part() -> None:
    listed = [{"name": f"{name}.example.org", "node_id": n, "links": [f"10.0.0.{n}"]} for n, name in enumerate("ab", 1)]
    text = corosync_edit.render_new("c", listed)
    document = corosync_conf.parse(text)
    assert [node.name for node in document.nodes()] == ["a", "b"] and document.node("b") is not None
    assert not corosync_edit.add_node(document, "a", 1, ["10.0.0.1"])
    assert corosync_edit.remove_node(document, "b") and "b.example.org" not in document.text()


def test_a_node_whose_host_is_not_known_is_said() -> None:
    text = corosync_edit.render_new("c", [{"name": "a", "node_id": 1, "links": ["10.0.0.1"]}]).replace("    name: a\n", "")
    (node,) = corosync_conf.parse(text).nodes()
    assert (node.name, node.label) == (None, "node id 1")
    (error,) = [each.message for each in corosync_check.problems(corosync_conf.parse(text)) if "has no name" in each.message]
    assert "its ring0_addr is an address" in error and "add 'name: HOSTNAME'" in error
