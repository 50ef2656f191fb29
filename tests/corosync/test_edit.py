# SPDX-License-Identifier: Apache-2.0
"""Edits of corosync.conf: only their own lines change, what is wanted is read back, twice is once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.formats import corosync_check, corosync_conf, corosync_edit
from ansible.module_utils.pveguard.formats.corosync_conf import CorosyncConfError, Document
from hypothesis import given, settings
from hypothesis import strategies as st

FILES = sorted((Path(__file__).parent / "configurations").glob("*.conf"))
#: Nodes in two nodelists cannot be edited.
NAMES = [path.name for path in FILES if path.name != "nodelist_twice.conf"]
#: A node without a name gets the one that its address stood for.
NAMED = "name: pve[12]"
TEXTS = {path.name: path.read_text() for path in FILES}
SHAPES: dict[str, Callable[[str], str]] = {
    "lf": str,
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "no final newline": lambda text: text.rstrip("\n"),
}


def shaped(name: str, shape: str = "lf") -> Document:
    return corosync_conf.parse(SHAPES[shape](TEXTS[name]), name)


def delta(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that are gone and lines that are new, stripped. The order of all others is unchanged."""
    old, new = before.split("\n"), after.split("\n")
    gone: list[str] = []
    come: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            gone += [line.strip() for line in old[a:b]]
            come += [line.strip() for line in new[c:d]]
    return gone, come


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_real_files_round_trip_and_are_read(name: str, shape: str) -> None:
    document = shaped(name, shape)
    assert document.text() == SHAPES[shape](TEXTS[name])
    assert document.cluster_name and document.config_version and len(document.nodes()) >= 2
    assert all(node.name and node.node_id and node.addresses for node in document.nodes())
    assert document.get("quorum", "provider") == "corosync_votequorum"


KEY = st.from_regex(r"[a-z][a-z_]{0,10}", fullmatch=True)
#: What a value may be: no line break, brace or NUL, no blanks around it.
VALUE = st.text(
    st.characters(blacklist_characters="{}\r\n\0", blacklist_categories=["Cs"]), min_size=1, max_size=20
).map(lambda value: value.strip(" \t\r\f\v") or "x")
SECTION = st.sampled_from(["totem", "quorum", "logging", "brand_new"])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(list(SHAPES)), SECTION, KEY, VALUE)
def test_an_option_changes_its_own_line_only(name: str, shape: str, section: str, key: str, value: str) -> None:
    document = shaped(name, shape)
    before = document.text()
    had = document.get(section, key)
    known = document.section(section) is not None
    assert document.set(section, key, value) is (had != value)
    after = document.text()
    read = corosync_conf.parse(after)
    assert read.get(section, key) == value
    gone, new = delta(before, after)
    if had is not None:
        assert len(gone) == len(new) == (had != value)
    elif known:
        assert (gone, new) == ([], [f"{key}: {value}".strip()])
    # Every line of a file that ends them with CRLF still does.
    if shape == "crlf":
        assert re.search(r"(?<!\r)\n", after) is None
    assert read.set(section, key, value) is False and read.text() == after


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(list(SHAPES)), SECTION, KEY, VALUE)
def test_an_option_set_and_unset_leaves_the_text(name: str, shape: str, section: str, key: str, value: str) -> None:
    document = shaped(name, shape)
    if document.get(section, key) is not None or document.section(section) is None:
        return
    before = document.text()
    document.set(section, key, value)
    assert document.unset(section, key) is True
    assert document.text() == before
    assert document.unset(section, key) is False


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(list(SHAPES)),
    st.integers(0, 7),
    st.integers(0, 255),
    st.sampled_from(["udp", "sctp"]),
)
def test_a_link_is_set_read_back_and_removed(name: str, shape: str, number: int, priority: int, transport: str) -> None:
    document = shaped(name, shape)
    nodes = [node.name or "" for node in document.nodes()]
    others = {link: nodes for link, nodes in corosync_edit.addresses_of(document).items() if link != number}
    addresses = {node: f"172.20.{number}.{index}" for index, node in enumerate(nodes, 1)}
    options: dict[str, object] = {"priority": priority, "transport": transport}
    before = document.text()
    corosync_edit.set_link(document, number, addresses, options)
    after = document.text()
    read = corosync_conf.parse(after)
    assert corosync_edit.addresses_of(read) == {**others, number: addresses}
    found = corosync_edit.link_options(read, number)
    assert (found["priority"], found["transport"]) == (str(priority), transport)
    gone, new = delta(before, after)
    allowed = re.compile(rf"ring{number}_addr|knet_link_priority|knet_transport|interface|linknumber: {number}|\}}|{NAMED}")
    assert name == "without_names.conf" or not any(line.startswith("name:") for line in new)
    assert all(allowed.match(line) for line in [*gone, *new])
    assert corosync_edit.set_link(read, number, addresses, options) is False and read.text() == after
    assert corosync_edit.remove_link(read, number) is True
    without = corosync_conf.parse(read.text())
    assert corosync_edit.addresses_of(without) == others
    assert corosync_edit.link_options(without, number) == {}
    assert corosync_edit.remove_link(without, number) is False


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(list(SHAPES)), st.data())
def test_a_node_gets_the_addresses_and_votes_it_should_have(name: str, shape: str, data: st.DataObject) -> None:
    document = shaped(name, shape)
    node = data.draw(st.sampled_from([node.name or "" for node in document.nodes()]))
    links = data.draw(st.sets(st.integers(0, 7), min_size=1, max_size=3))
    addresses = {link: f"172.20.{link}.9" for link in links}
    votes = data.draw(st.integers(0, 9))
    others = [other for other in document.nodes() if other.name != node]
    before = document.text()
    corosync_edit.update_node(document, node, addresses, votes)
    after = document.text()
    read = corosync_conf.parse(after)
    seen = read.node(node)
    assert seen is not None and (seen.addresses, seen.votes) == (addresses, votes)
    assert [(n.name, n.node_id, n.addresses, n.votes) for n in read.nodes() if n.name != node] == [
        (n.name, n.node_id, n.addresses, n.votes) for n in others
    ]
    gone, new = delta(before, after)
    assert all(re.match(rf"ring[0-7]_addr|quorum_votes|{NAMED}", line) for line in [*gone, *new])
    assert name == "without_names.conf" or not any(line.startswith("name:") for line in new)
    assert corosync_edit.update_node(read, node, addresses, votes) is False and read.text() == after


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_file_parses_or_names_line_and_column(name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    junk = data.draw(st.text(alphabet="{}:# \t\r\n\0aä", max_size=6))
    text = text[:start] + junk + text[end:]
    try:
        document = corosync_conf.parse(text)
    except CorosyncConfError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines)
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1
        assert f"line {error.line}, column {error.column}: " in str(error)
        return
    assert document.text() == text
    corosync_check.problems(document)
    corosync_edit.steps(document, document)
    document.bump()
    assert corosync_conf.parse(document.text()).config_version == document.config_version


def test_the_version_is_raised_where_corosync_reads_it() -> None:
    document = shaped("sections_twice.conf")
    assert document.bump() == 10
    assert document.text() == TEXTS["sections_twice.conf"].replace("config_version: 9", "config_version: 10")
    assert document.set_token(6000)
    assert (document.config_version, document.token_ms) == (10, 6000)
    assert document.text().count("token:") == 1


def test_a_new_address_stands_beside_the_others() -> None:
    document = shaped("by_hand.conf")
    corosync_edit.set_link(document, 2, {"west1": "10.2.0.1", "west2": "10.2.0.2"})
    assert document.text() == TEXTS["by_hand.conf"].replace(
        "        ring1_addr: fd00::1\n", "        ring1_addr: fd00::1\n        ring2_addr: 10.2.0.1\n"
    ).replace(
        "        ring1_addr:\tfd00::2\n", "        ring1_addr:\tfd00::2\n        ring2_addr: 10.2.0.2\n"
    ).replace(
        "\t\tlinknumber: 1\n\t}\n", "\t\tlinknumber: 1\n\t}\n\tinterface {\n\t\tlinknumber: 2\n\t}\n"
    )


def test_a_link_without_sections_gets_one_only_for_its_options() -> None:
    document = shaped("sections_twice.conf")
    corosync_edit.set_link(document, 1, {"t1": "10.6.0.1", "t2": "10.6.0.2", "t3": "10.6.0.3"})
    assert document.interface_sections() == []
    corosync_edit.set_link(document, 1, options={"priority": 5})
    assert "  config_version: 8\n  interface {\n    linknumber: 1\n    knet_link_priority: 5\n  }\n}" in document.text()
    corosync_edit.set_link(document, 1, options={"priority": None})
    assert "knet_link_priority" not in document.text()


@pytest.mark.parametrize(
    ("section", "options", "lines"),
    [
        ("quorum", {"wait_for_all": True, "last_man_standing": False}, ["wait_for_all: 1", "last_man_standing: 0"]),
        ("logging", {"debug": True, "to_logfile": False}, ["debug: on", "to_logfile: no"]),
        ("logging", {"debug": "trace"}, ["debug: trace"]),
        ("totem", {"block_unlisted_ips": True, "join": 60}, ["block_unlisted_ips: yes", "join: 60"]),
    ],
)
def test_words_of_corosync(section: str, options: dict[str, object], lines: list[str]) -> None:
    document = shaped("pvecm.conf")
    assert corosync_edit.set_options(document, section, options)
    _, new = delta(TEXTS["pvecm.conf"], document.text())
    assert new == lines


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("totem", "cluster_name", "a live cluster keeps its name"),
        ("totem", "transport", "stopped at once"),
        ("totem", "token", "use the option token"),
        ("totem", "crypto_hash", "use the option crypto"),
        ("totem", "keyfile", "/etc/corosync/authkey"),
        ("quorum", "provider", "always corosync_votequorum"),
        ("quorum", "device", "pvecm qdevice"),
    ],
)
def test_keys_with_a_meaning_of_their_own_are_refused(section: str, key: str, message: str) -> None:
    document = shaped("pvecm.conf")
    for value in ("x", None):
        with pytest.raises(PveguardError, match=re.escape(message)):
            corosync_edit.set_options(document, section, {key: value})
    assert document.text() == TEXTS["pvecm.conf"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("join", "5\n}", "line break"),
        ("join", " 5", "blanks around it"),
        ("join", "", "empty"),
        ("jo in", "5", "cannot be a key"),
        ("#join", "5", "cannot be a key"),
        ("a:b", "5", "cannot be a key"),
        ("join", "5" * 520, "510 bytes of a line"),
    ],
)
def test_what_cannot_be_read_back_is_refused(key: str, value: str, message: str) -> None:
    document = shaped("pvecm.conf")
    with pytest.raises(PveguardError, match=re.escape(message)):
        corosync_edit.set_options(document, "totem", {key: value})
    assert document.text() == TEXTS["pvecm.conf"]


@pytest.mark.parametrize(
    ("before", "wanted", "crypto", "secauth"),
    [
        ("secauth: on", ("aes256", "sha256"), None, "on"),
        ("secauth: on", ("aes128", None), ("aes128", "sha256"), "on"),
        ("secauth: on", ("none", "none"), ("none", "none"), "off"),
        ("secauth: off", ("aes256", "sha256"), ("aes256", "sha256"), "on"),
        ("secauth: off", ("aes192", "sha512"), ("aes192", "sha512"), "on"),
        ("crypto_hash: sha1", ("aes256", None), ("aes256", "sha1"), None),
        ("secauth: off\n  crypto_cipher: aes256\n  crypto_hash: sha256", ("aes256", "sha256"), None, "off"),
    ],
)
def test_crypto(
    before: str, wanted: tuple[str, str | None], crypto: tuple[str, str] | None, secauth: str | None
) -> None:
    document = corosync_conf.parse(TEXTS["pvecm.conf"].replace("secauth: on", before))
    text = document.text()
    assert corosync_edit.set_crypto(document, *wanted) is (crypto is not None)
    assert document.crypto == (crypto or wanted)
    assert document.get("totem", "secauth") == secauth
    assert corosync_edit.set_crypto(document, *wanted) is False
    if crypto is None:
        assert document.text() == text
    assert not [p for p in corosync_check.problems(document) if p.severity == "error"]


def edited(name: str, *changes: tuple[str, str]) -> Document:
    text = TEXTS[name]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return corosync_conf.parse(text)


def links_of(texts: list[str]) -> list[dict[int, str]]:
    """The first node's addresses in each text."""
    return [corosync_conf.parse(text).nodes()[0].addresses for text in texts]


def test_a_change_without_links_is_one_step() -> None:
    target = edited("pvecm.conf", ("version: 2\n", "version: 2\n  token: 5000\n"), ("linknumber: 1", "linknumber: 1\n  x: y"))
    assert corosync_edit.steps(shaped("pvecm.conf"), target) == [target.text()]


def test_new_addresses_replace_one_link_after_the_other() -> None:
    target = edited("pvecm.conf", ("10.0.0.", "10.8.0."), ("10.1.0.", "10.9.0."), ("linknumber: 1", "linknumber: 1\n    x: y"))
    before = shaped("pvecm.conf")
    texts = corosync_edit.steps(before, target)
    assert links_of(texts) == [
        {1: "10.1.0.1"},
        {0: "10.8.0.1", 1: "10.1.0.1"},
        {0: "10.8.0.1"},
        {0: "10.8.0.1", 1: "10.9.0.1"},
    ]
    assert texts[-1] == target.text()
    # At every step a link stays as it is.
    for old, new in zip([before.text(), *texts], texts, strict=False):
        assert corosync_edit.unchanged_links(corosync_conf.parse(old), corosync_conf.parse(new))


def test_another_transport_needs_a_new_link() -> None:
    target = shaped("pvecm.conf")
    corosync_edit.set_link(target, 1, options={"transport": "sctp"})
    texts = corosync_edit.steps(shaped("pvecm.conf"), target)
    assert links_of(texts) == [{0: "10.0.0.1"}, {0: "10.0.0.1", 1: "10.1.0.1"}]
    assert "knet_transport" not in texts[0] and texts[1] == target.text()


def test_the_new_link_comes_before_the_old_one_goes() -> None:
    target = shaped("sections_twice.conf")
    corosync_edit.set_link(target, 3, {"t1": "10.6.0.1", "t2": "10.6.0.2", "t3": "10.6.0.3"}, {"priority": 7})
    corosync_edit.remove_link(target, 0)
    texts = corosync_edit.steps(shaped("sections_twice.conf"), target)
    assert links_of(texts) == [{0: "10.5.0.1", 3: "10.6.0.1"}, {3: "10.6.0.1"}]
    assert texts[-1] == target.text()


def test_the_only_link_cannot_be_replaced_in_place() -> None:
    target = edited("sections_twice.conf", ("10.5.0.", "10.7.0."))
    texts = corosync_edit.steps(shaped("sections_twice.conf"), target)
    parsed = [corosync_conf.parse(text) for text in texts]
    assert not corosync_edit.unchanged_links(shaped("sections_twice.conf"), parsed[0])


@pytest.mark.parametrize(
    ("section", "options", "wanted"),
    [
        ("totem", {"token_retransmits_before_loss_const": 10, "knet_mtu": 1400}, []),
        ("totem", {"link_mode": "active"}, ["totem.link_mode"]),
        ("totem", {"link_mode": None}, []),  # passive is what it is without
        ("totem", {"ip_version": "ipv4", "netmtu": 1400}, ["totem.ip_version", "totem.netmtu"]),
        ("totem", {"window_size": 300, "made_up": 1}, ["totem.made_up"]),
        ("logging", {"debug": "on", "timestamp": "hires"}, []),
        ("quorum", {"expected_votes": 3}, []),
        ("quorum", {"wait_for_all": 1}, ["quorum.wait_for_all"]),
        ("system", {"sched_rr": "no"}, ["system.sched_rr"]),
    ],
)
def test_what_needs_a_restart(section: str, options: dict[str, object], wanted: list[str]) -> None:
    document = shaped("pvecm.conf")
    corosync_edit.set_options(document, section, options)
    document.bump()
    assert corosync_edit.restart_keys(shaped("pvecm.conf"), document) == wanted


def test_what_needs_a_restart_beside_options() -> None:
    before = shaped("udpu.conf")
    after = edited("udpu.conf", ("mcastport: 5405", "mcastport: 5407"), ("debug: off\n\t}", "debug: on\n\t}"))
    assert corosync_edit.restart_keys(before, after) == ["totem.interface.0.mcastport"]
    assert corosync_edit.changed_keys(before, after) == ["logging.logger_subsys.QUORUM.debug"]
    before = shaped("pvecm.conf")
    corosync_edit.set_link(before, 1, options={"priority": 3, "transport": "sctp", "pong_count": 5})
    corosync_edit.update_node(before, "pve1", votes=3)
    assert corosync_edit.restart_keys(shaped("pvecm.conf"), before) == []


def test_unknown_nodes_links_and_options_are_refused() -> None:
    document = shaped("pvecm.conf")
    with pytest.raises(PveguardError, match="lists no node 'pve9', it lists pve1, pve2, pve3"):
        corosync_edit.set_link(document, 0, {"pve9": "10.0.0.9"})
    with pytest.raises(PveguardError, match="links 0 to 7"):
        corosync_edit.set_link(document, 8, {"pve1": "10.0.0.9"})
    with pytest.raises(PveguardError, match="unknown option 'prio'"):
        corosync_edit.set_link(document, 0, options={"prio": 3})
    with pytest.raises(PveguardError, match="needs an address on a link"):
        corosync_edit.update_node(document, "pve1", {})
    assert document.text() == TEXTS["pvecm.conf"]


NAMELESS = (Path(__file__).parent / "configurations/without_names.conf").read_text()


def test_a_node_without_a_name_keeps_the_one_of_its_address() -> None:
    document = corosync_conf.parse(NAMELESS)
    assert [(node.name, node.named) for node in document.nodes()] == [("pve1", False), ("pve2", False)]
    assert corosync_edit.update_node(document, "pve1", votes=3) and " name:" not in document.text()
    assert corosync_edit.update_node(document, "pve1", {0: "10.0.0.1"})
    assert [(node.name, node.named) for node in document.nodes()] == [("pve1", True), ("pve2", False)]
    # With a second link corosync wants a name of all.
    document = corosync_conf.parse(NAMELESS)
    corosync_edit.set_link(document, 1, {"pve1": "10.1.0.1", "pve2": "10.1.0.2"})
    assert all(node.named for node in document.nodes())
    assert corosync_edit.remove_link(document, 0) and [node.name for node in document.nodes()] == ["pve1", "pve2"]
    document = corosync_conf.parse(NAMELESS)
    assert corosync_edit.remove_node(document, "pve2") and [node.name for node in document.nodes()] == ["pve1"]


def test_the_same_address_in_another_form_is_no_change() -> None:
    text = corosync_edit.render_new("c", [{"name": "a", "node_id": 1, "links": ["2001:DB8:0:0::1", "Host.Example.org"]}])
    for links in (["2001:db8::1", "host.example.org."], ["2001:0db8::0001", "HOST.example.ORG"]):
        document = corosync_conf.parse(text)
        assert not corosync_edit.update_node(document, "a", dict(enumerate(links)))
        assert not corosync_edit.add_node(document, "a", 1, links)
        assert not corosync_edit.set_link(document, 0, {"a": links[0]})
        other = corosync_conf.parse(text.replace("2001:DB8:0:0::1", links[0]))
        assert corosync_edit.unchanged_links(document, other) == {0, 1}
    assert corosync_edit.update_node(corosync_conf.parse(text), "a", {0: "2001:db8::2", 1: "host.example.org"})


def test_nodes_of_two_nodelists_are_not_edited() -> None:
    text = TEXTS["nodelist_twice.conf"]
    document = corosync_conf.parse(text)
    # As corosync has them: the second list begins with the first node again.
    assert [(node.name, node.node_id, node.addresses) for node in document.nodes()] == [
        ("t2", 2, {0: "10.5.0.2"}),
        ("t3", 3, {0: "10.5.0.3"}),
    ]
    for edit in (
        lambda: corosync_edit.update_node(document, "t2", votes=2),
        lambda: corosync_edit.set_link(document, 1, {"t2": "10.6.0.2"}),
        lambda: corosync_edit.remove_link(document, 0),
        lambda: corosync_edit.add_node(document, "t4", 4, ["10.5.0.4"]),
        lambda: corosync_edit.remove_node(document, "t3"),
    ):
        with pytest.raises(PveguardError, match="2 nodelist sections.*write all nodes into one nodelist"):
            edit()
        assert document.text() == text
    assert document.set_token(7000)


def test_a_key_with_an_option_of_its_own_may_be_said_as_it_is() -> None:
    document = corosync_conf.parse(TEXTS["udpu.conf"])
    assert corosync_edit.set_options(document, "totem", {"transport": "udpu"}) is False
    with pytest.raises(PveguardError, match="transport is not set this way"):
        corosync_edit.set_options(document, "totem", {"transport": "knet"})
