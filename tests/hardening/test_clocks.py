# SPDX-License-Identifier: Apache-2.0
"""Clocks of members against each other."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.findings import PROBLEM, UNKNOWN, WARNING
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import clocks

from tests.findings import finding
from tests.hardening.node import Node, clean

DAY = 86_400_000


@pytest.mark.root
def test_the_kernel_of_this_machine_answers_with_its_own_clock() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    except PermissionError:
        pytest.skip("needs raw sockets")
    found = clocks.ask(["127.0.0.1", "127.0.0.2", "::1"], 60.0)
    assert found.keys() == {"127.0.0.1", "127.0.0.2"}, "IPv6 has no such request"
    # However long it took: the true difference, none, is within what is told.
    assert all(abs(offset) <= give for offset, give in found.values()), found


def answer(identifier: int, sequence: int, theirs: int, kind: int = 14, header: int = 20) -> bytes:
    body = struct.pack("!BBHHHIII", kind, 0, 0, identifier, sequence, 0, theirs, theirs)
    return bytes([0x40 | header // 4]) + bytes(header - 1) + body


@pytest.mark.parametrize("ahead", [0, 2.5, -2.5, 30, -40000, 40000])
@pytest.mark.parametrize("began", [1_764_547_199.9, 1_764_547_200.0, 1_764_500_000.123])
def test_an_answer_says_how_far_ahead_the_other_clock_is(began: float, ahead: float) -> None:
    """Also around midnight UTC."""
    middle = began + 0.1
    said = clocks.offset_of(answer(7, 3, int((middle + ahead) * 1000) % DAY), 7, {3: began}, began + 0.2)
    assert said is not None and said[0] == 3
    assert said[1] == pytest.approx(ahead, abs=0.001) and said[2] == pytest.approx(0.1005)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45",
        bytes(64),
        b"\x4f" + bytes(40),
        answer(8, 3, 0),
        answer(7, 4, 0),
        answer(7, 3, 0, kind=13),
        answer(7, 3, 0, kind=3),
        answer(7, 3, 1 << 31),
        answer(7, 3, 0)[:39],
    ],
)
def test_what_is_no_answer_to_us(data: bytes) -> None:
    assert clocks.offset_of(data, 7, {3: 0.0}, 0.1) is None
    assert clocks.offset_of(answer(7, 3, 50, header=24), 7, {3: 0.0}, 0.1) == (3, 0.0005, 0.0505)


def test_a_request_has_the_checksum_that_makes_the_sum_of_its_words_full() -> None:
    for sent in (0, 1, DAY - 1, int(time.time() * 1000) % DAY):
        words = sum(struct.unpack("!10H", clocks.packet(0xFFFF, 0x1234, sent)))
        while words >> 16:
            words = (words & 0xFFFF) + (words >> 16)
        assert words == 0xFFFF


class Wire:
    """A socket that brings what ``answer`` makes of each request, as (data, address)."""

    def __init__(self, answer: Callable[[int, int, str], list[tuple[bytes, str]]]) -> None:
        self.answer, self.asked = answer, []  # type: ignore[var-annotated]
        self.waiting: list[tuple[bytes, str]] = []
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        return self.reader

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        identifier, sequence, _, _, _ = struct.unpack("!HHIII", data[4:])
        self.asked.append(address[0])
        for each in self.answer(identifier, sequence, address[0]):
            self.waiting.append(each)
            os.write(self.writer, b".")

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        os.read(self.reader, 1)
        data, address = self.waiting.pop(0)
        return data, (address, 0)


def now_plus(seconds: float) -> int:
    return int((time.time() + seconds) * 1000) % DAY


def test_only_who_was_asked_answers() -> None:
    """Of somebody else's answer nothing is taken, even with the right numbers."""
    wire = Wire(lambda identifier, sequence, address: [(answer(identifier, sequence, now_plus(99)), "10.0.0.66")])
    assert clocks._ask(wire, ["10.0.0.12"], 0.03) == {}  # type: ignore[arg-type]
    assert wire.asked == ["10.0.0.12"] * clocks.TRIES, "who is silent is asked again"


def test_who_has_answered_is_not_asked_again() -> None:
    wire = Wire(lambda identifier, sequence, address: [(answer(identifier, sequence, now_plus(5)), address)])
    found = clocks._ask(wire, ["10.0.0.12", "10.0.0.13"], 60.0)  # type: ignore[arg-type]
    assert found.keys() == {"10.0.0.12", "10.0.0.13"} and wire.asked == ["10.0.0.12", "10.0.0.13"]
    assert all(abs(offset - 5) <= give + 0.01 for offset, give in found.values())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(clocks, "NETWORK", tmp_path)
    return clean(tmp_path)


def answers(monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[list[str]]:
    """Offsets of members by their number."""
    asked: list[list[str]] = []

    def ask(addresses: list[str]) -> dict[str, tuple[float, float]]:
        asked.append(addresses)
        return {f"10.0.0.1{name[-1]}": said for name, said in more.items()}

    monkeypatch.setattr(clocks, "ask", ask)
    return asked


def apart(node: Node) -> dict[str, str]:
    return {each.id: each.severity for each in node.found() if "clocks" in each.id}


def test_members_whose_clocks_differ(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, pve2=(0.4, 0.001), pve3=(-0.501, 0.002))
    assert apart(node) == {} and asked == [["10.0.0.12", "10.0.0.13"]], "not this one, and -0.501 s is not certain"
    answers(monkeypatch, pve2=(0.6, 0.001), pve3=(-2.5, 0.002))
    each = finding(node.found(), "hardening-others-clocks-apart")
    assert each.severity == WARNING and "pve3 by -2.500 s (give or take 0.002 s), pve2 by +0.600 s" in each.text
    answers(monkeypatch, pve2=(0.6, 0.001), pve3=(-31.0, 0.5))
    assert apart(node) == {"hardening-others-clocks-apart": PROBLEM}
    answers(monkeypatch, pve2=(90.0, 89.0), pve3=(0.0, 0.001))
    assert apart(node) == {"hardening-others-clocks-apart": WARNING}, "a slow answer proves little"


def test_ceph_allows_less(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, pve2=(0.07, 0.001), pve3=(0.0, 0.001))
    assert apart(node) == {}
    node.write("/etc/pve/ceph.conf", "[global]\n")
    assert apart(node) == {"hardening-others-clocks-apart": WARNING}


def test_who_does_not_answer_is_unknown_where_chrony_does_not_vouch_for_this_clock(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, pve2=(0.0, 0.001))
    assert apart(node) == {}
    node.answers["chronyc"] = lambda argv: Result(0, ",,0,0.0,0.0,0,0,0,0,1,1,0.0,Not synchronised\n")
    each = finding(node.found(), "hardening-others-clocks-unknown")
    assert each.severity == UNKNOWN and each.text.endswith("with pve3")
    node.active = []
    assert apart(node) == {"hardening-others-clocks-unknown": UNKNOWN}
    answers(monkeypatch, pve2=(0.0, 0.001), pve3=(0.0, 0.001))
    assert apart(node) == {}


def test_a_node_of_no_cluster_asks_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch)
    node.remove("/etc/pve/corosync.conf")
    assert apart(node) == {} and asked == []
