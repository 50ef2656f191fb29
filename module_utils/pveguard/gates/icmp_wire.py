# SPDX-License-Identifier: Apache-2.0
"""Probes of a link as ICMP echo requests, which need nothing on the other side."""

from __future__ import annotations

import array
import errno
import ipaddress
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..base.errors import PveguardError
from ..base.run import CommandMissing, Run
from ..base.run import run as real_run

_ICMP: dict[int, tuple[int, int, int]] = {
    # request, reply, header bytes before the payload (IP and ICMP)
    socket.AF_INET: (8, 0, 28),
    socket.AF_INET6: (128, 129, 48),
}


@dataclass(frozen=True)
class Event:
    """Something that came back for a packet: an answer (``error`` empty) or an ICMP error.

    ``rtt`` in seconds. ``error``: ``too_big`` (with ``mtu`` or 0), ``prohibited`` or ``unreachable``.
    """

    index: int
    kind: int
    sequence: int
    rtt: float = 0.0
    error: str = ""
    mtu: int = 0


class Wire(Protocol):
    """Sends packets to numbered targets and gives what comes back. Time is monotonic, in seconds."""

    def now(self) -> float: ...

    def send(self, index: int, kind: int, sequence: int, size: int) -> str:
        """Send a packet of ``size`` bytes, IP header included. Empty, or why it could not be sent."""
        ...

    def receive(self, until: float) -> list[Event]:
        """What has come back; waits for the first of it, but no longer than ``until``."""
        ...


def mtu_option(family: int) -> tuple[int, int]:
    # linux/in.h IP_MTU, linux/in6.h IPV6_MTU
    return (socket.IPPROTO_IP, 14) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 24)


#: Family and socket address.
Address = tuple[int, tuple[Any, ...]]


def resolve(names: Sequence[str], timeout: float) -> dict[str, list[Address]]:
    """The addresses of each name; none for one that is unknown or was not answered for in ``timeout`` seconds."""
    found: dict[str, list[Address]] = {name: [] for name in names}

    def look_up(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            return
        found[name] = [(int(answer[0]), answer[4]) for answer in answers if answer[0] in _ICMP]

    threads = []
    for name in found:
        try:
            ipaddress.ip_address(name.split("%")[0])
            look_up(name)
        except ValueError:
            # A name server that does not answer must not hold the measurement.
            thread = threading.Thread(target=look_up, args=(name,), daemon=True)
            thread.start()
            threads.append(thread)
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {name: list(addresses) for name, addresses in found.items()}


def local_addresses(run: Run = real_run) -> dict[str, tuple[str, int]]:
    """``{address: (interface, MTU)}`` of this node, from iproute2; empty when that is missing or fails."""
    found = {}
    for interface in _ip_json(run, "address", "show"):
        for address in interface.get("addr_info", []):
            if "local" in address:
                found[address["local"]] = (interface["ifname"], int(interface["mtu"]))
    return found


def neighbour_reachable(address: str, run: Run = real_run) -> bool:
    """Whether the kernel has just heard from the hardware of an address on a directly attached network.

    An entry from before is asked again 5 s after the first packet (``delay_first_probe_time`` of arp(7)), so a shorter
    measurement may not know it.
    """
    return any(
        "REACHABLE" in entry.get("state", [])
        for entry in _ip_json(run, "neighbour", "show", address.split("%")[0])
        if entry.get("lladdr")
    )


def _ip_json(run: Run, *arguments: str) -> list[dict[str, Any]]:
    try:
        result = run(["ip", "-json", *arguments], timeout=10)
        answer = json.loads(result.stdout) if result.ok and result.stdout.strip() else []
    except (CommandMissing, ValueError):
        return []
    return [entry for entry in answer if isinstance(entry, dict)]


_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; not in the socket module
_TIMESPEC = struct.Struct("@ll")


class IcmpWire:
    """ICMP echo over raw sockets, one for each source address; IPv4 and IPv6."""

    def __init__(self) -> None:
        self._targets: list[tuple[Address, Address]] = []
        self._index: dict[tuple[str, str], int] = {}
        self._sockets: dict[tuple[int, str], socket.socket] = {}
        self._sent: dict[tuple[int, int, int], float] = {}
        # The two low bits of the identifier are the kind; the nonce tells our answers from those of another ping.
        self._identifier = int.from_bytes(os.urandom(2), "big") & 0xFFFC
        self._nonce = os.urandom(8)
        self._knocks: list[socket.socket] = []

    def __enter__(self) -> IcmpWire:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in [*self._sockets.values(), *self._knocks]:
            opened.close()

    def add(self, source: Address, target: Address) -> int:
        """One more target; returns its index."""
        key = (source[0], source[1][0])
        if key not in self._sockets:
            self._sockets[key] = _raw_socket(source)
        self._targets.append((source, target))
        index = len(self._targets) - 1
        self._index[source[1][0], target[1][0]] = index
        return index

    def target(self, index: int) -> str:
        return str(self._targets[index][1][1][0])

    def now(self) -> float:
        return time.monotonic()

    def send(self, index: int, kind: int, sequence: int, size: int) -> str:
        source, target = self._targets[index]
        family = source[0]
        request, _, overhead = _ICMP[family]
        payload = self._nonce + bytes(max(0, size - overhead - len(self._nonce)))
        packet = struct.pack("!BBHHH", request, 0, 0, self._identifier | kind, sequence) + payload
        if family == socket.AF_INET:  # the kernel fills in the checksum of ICMPv6
            packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        try:
            began = time.monotonic()
            self._sockets[family, source[1][0]].sendto(packet, (target[1][0], 0, *target[1][2:]))
        except OSError as error:
            return error.strerror or str(error)
        self._sent[index, kind, sequence] = began
        return ""

    def receive(self, until: float) -> list[Event]:
        events: list[Event] = []
        opened = list(self._sockets.values())
        while not events:
            left = until - time.monotonic()
            ready = select.select(opened, [], [], max(0.0, left))[0]
            for one in ready:
                events += self._drain(one)
            if left <= 0:
                break
        return events

    def _drain(self, opened: socket.socket) -> list[Event]:
        events = []
        source = opened.getsockname()[0]
        # Bounded, so that a flood of other packets cannot hold the sender.
        for _ in range(64):
            try:
                data, control, _, address = opened.recvmsg(65535, 128)
            except OSError:
                break
            event = self._parse(source, str(address[0]), data, _age(control), opened.family)
            if event:
                events.append(event)
        return events

    def _parse(self, source: str, sender: str, data: bytes, age: float, family: int) -> Event | None:
        came = time.monotonic() - age
        if family == socket.AF_INET:
            data = data[(data[0] & 15) * 4 :]
        if len(data) < 8:
            return None
        kind_of_icmp, code = data[0], data[1]
        if kind_of_icmp == _ICMP[family][1]:
            identifier, sequence = struct.unpack("!HH", data[4:8])
            index = self._index.get((source, sender))
            if index is None or identifier & 0xFFFC != self._identifier or data[8:16] != self._nonce:
                return None
            began = self._sent.get((index, identifier & 3, sequence))
            if began is None:
                return None
            return Event(index, identifier & 3, sequence, max(0.0, came - began))
        return self._parse_error(source, family, kind_of_icmp, code, data)

    def _parse_error(self, source: str, family: int, kind: int, code: int, data: bytes) -> Event | None:
        """An ICMP error; what it is about stands behind its header."""
        inner = data[8:]
        if family == socket.AF_INET:
            if len(inner) < 28 or inner[9] != socket.IPPROTO_ICMP:
                return None
            target, header = socket.inet_ntop(family, inner[16:20]), (inner[0] & 15) * 4
            # RFC 792, RFC 1812: type 3, code 4 fragmentation needed; 9, 10, 13 prohibited.
            error = "too_big" if (kind, code) == (3, 4) else "prohibited" if code in (9, 10, 13) else "unreachable"
            mtu = struct.unpack("!H", data[6:8])[0]
        else:
            if len(inner) < 48 or inner[6] != socket.IPPROTO_ICMPV6:
                return None
            target, header = socket.inet_ntop(family, inner[24:40]), 40
            # RFC 4443: type 2 packet too big; type 1, code 1 prohibited, 5 and 6 by policy.
            error = "too_big" if kind == 2 else "prohibited" if kind == 1 and code in (1, 5, 6) else "unreachable"
            mtu = struct.unpack("!I", data[4:8])[0]
        echo = inner[header : header + 8]
        index = self._index.get((source, target))
        if index is None or len(echo) < 8:
            return None
        identifier, sequence = struct.unpack("!HH", echo[4:8])
        if identifier & 0xFFFC != self._identifier:
            return None
        return Event(index, identifier & 3, sequence, error=error, mtu=mtu if error == "too_big" else 0)

    def knock(self, index: int) -> socket.socket | None:
        """Begin a TCP connection to the discard port, which nobody serves: a refusal proves that the peer is there.

        A port in use would prove it too, and leave a line in the peer's log.
        """
        source, target = self._targets[index]
        opened = socket.socket(source[0], socket.SOCK_STREAM)
        self._knocks.append(opened)
        opened.setblocking(False)
        try:
            opened.bind(source[1])
            opened.connect((target[1][0], 9, *target[1][2:]))
        except BlockingIOError:
            return opened
        except ConnectionRefusedError:
            return opened
        except OSError:
            return None
        return opened

    def await_knocks(self, knocks: Mapping[int, socket.socket | None], until: float) -> set[int]:
        """Those of ``knocks`` that were answered, with a connection or a refusal."""
        waiting = {opened: index for index, opened in knocks.items() if opened is not None}
        heard = set()
        while waiting and (left := until - time.monotonic()) > 0:
            for opened in select.select([], list(waiting), [], left)[1]:
                index = waiting.pop(opened)
                if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (0, errno.ECONNREFUSED):
                    heard.add(index)
        return heard


def _raw_socket(source: Address) -> socket.socket:
    family, address = source
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    try:
        opened = socket.socket(family, socket.SOCK_RAW, protocol)
    except PermissionError as error:
        raise PveguardError(
            "ICMP cannot be sent without root (CAP_NET_RAW); log in as root, or set ansible_become: true"
        ) from error
    opened.setblocking(False)
    opened.bind(address)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    # Only answers and errors; set bits of a filter are kept out. PMTUDISC_PROBE: never fragment, and ask the path
    # instead of what the kernel remembers of it (linux/in.h, linux/in6.h, linux/icmp.h).
    if family == socket.AF_INET:
        opened.setsockopt(255, 1, struct.pack("=I", 0xFFFFFFFF & ~(1 << 0 | 1 << 3)))  # SOL_RAW, ICMP_FILTER
        opened.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER
    else:
        words = [0xFFFFFFFF] * 8
        for number in (1, 2, 129):
            words[number >> 5] &= ~(1 << (number & 31))
        opened.setsockopt(socket.IPPROTO_ICMPV6, 1, struct.pack("=8I", *words))  # ICMP6_FILTER
        opened.setsockopt(socket.IPPROTO_IPV6, 23, 3)  # IPV6_MTU_DISCOVER
        opened.setsockopt(socket.IPPROTO_IPV6, 62, 1)  # IPV6_DONTFRAG
    return opened


def _age(control: Sequence[tuple[int, int, bytes]]) -> float:
    """Seconds since the kernel received a packet; 0 when it has no stamp or the clock was set meanwhile."""
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            age = time.time() - (seconds + nanoseconds / 1e9)
            return age if 0 <= age <= 1 else 0.0
    return 0.0


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    words = array.array("H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return socket.htons(~total & 0xFFFF)
