# SPDX-License-Identifier: Apache-2.0
"""How far the clocks of other members are from this one, asked by ICMP timestamp (RFC 792), which the kernel answers by itself.

A look at each node at its own time cannot tell it: the round trips of a play take longer than what matters. A request brings the
other clock in milliseconds since midnight, so what is more than half a day off looks like less. IPv6 has no such request.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path

#: Seconds until all have answered; who has not is asked again at each of these parts of it.
ANSWER_S, TRIES = 2.0, 3
#: The root of the node whose network this is; below another one nobody answers.
NETWORK = Path("/")
_DAY_MS = 86_400_000
_REQUEST, _REPLY = 13, 14
#: Set where the time is not that since midnight UTC (RFC 792).
_NOT_STANDARD = 1 << 31


def packet(identifier: int, sequence: int, sent_ms: int) -> bytes:
    """A request without its IP header."""
    body = struct.pack("!HHIII", identifier, sequence, sent_ms, 0, 0)
    words = struct.unpack("!10H", struct.pack("!BBH", _REQUEST, 0, 0) + body)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    total += total >> 16
    return struct.pack("!BBH", _REQUEST, 0, ~total & 0xFFFF) + body


def offset_of(data: bytes, identifier: int, sent: Mapping[int, float], received: float) -> tuple[int, float, float] | None:
    """``(sequence, offset, uncertainty)`` in seconds of a packet with its IP header, None where it is no answer to ours.

    ``sent``: when, by sequence; ``received``: when, both on this clock. Positive: the other clock is ahead.
    """
    start = (data[0] & 15) * 4 if data else 0
    if len(data) < start + 20 or start < 20 or data[start] != _REPLY:
        return None
    its, sequence, _, theirs, _ = struct.unpack_from("!HHIII", data, start + 4)
    if its != identifier or sequence not in sent or theirs & _NOT_STANDARD:
        return None
    began = sent[sequence]
    ours = (began + received) / 2 * 1000 % _DAY_MS
    # Their clock is told in whole milliseconds: half of one is added.
    apart = (theirs + 0.5 - ours + _DAY_MS / 2) % _DAY_MS - _DAY_MS / 2
    return sequence, round(apart / 1000, 4), round(max(0.0, received - began) / 2 + 0.0005, 4)


def ask(addresses: Collection[str], seconds: float = ANSWER_S) -> dict[str, tuple[float, float]]:
    """``{address: (offset, uncertainty)}`` in seconds of those that answer, of several answers the closest; never raises."""
    try:
        wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except OSError:
        return {}
    with wire:
        wire.setblocking(False)
        return _ask(wire, [each for each in addresses if ":" not in each], seconds)


def _ask(wire: socket.socket, addresses: Collection[str], seconds: float) -> dict[str, tuple[float, float]]:
    identifier = os.getpid() & 0xFFFF
    found: dict[str, tuple[float, float]] = {}
    sent: dict[int, float] = {}
    whom: dict[int, str] = {}
    for _ in range(TRIES):
        for address in addresses:
            if address in found:
                continue
            number = len(sent) & 0xFFFF
            sent[number], whom[number] = time.time(), address
            try:
                wire.sendto(packet(identifier, number, int(sent[number] * 1000) % _DAY_MS), (address, 0))
            except OSError:
                continue
        end = time.monotonic() + seconds / TRIES
        while len(found) < len(addresses) and (left := end - time.monotonic()) > 0:
            if not select.select([wire], [], [], left)[0]:
                break
            try:
                data, source = wire.recvfrom(2048)
            except OSError:
                continue
            told = offset_of(data, identifier, sent, time.time())
            if told is None or whom[told[0]] != source[0]:
                continue
            if source[0] not in found or told[2] < found[source[0]][1]:
                found[source[0]] = told[1:]
    return found


def between(root: Path, members: Mapping[str, str]) -> dict[str, object]:
    """``measured`` ({name: [offset, uncertainty]}) and ``silent`` (names) of the other members, ``{name: address}``."""
    told = ask(list(members.values())) if members and root == NETWORK else {}
    measured = {name: list(told[address]) for name, address in members.items() if address in told}
    return {"measured": measured, "silent": sorted(name for name in members if name not in measured)}
