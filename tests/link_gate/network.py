# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces, joined by a veth pair or by a relay that delays, drops, reorders and filters frames.

The relay stands for tc netem, which not every kernel has: two TAP devices and a thread between them.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEAR, FAR = "10.99.7.1", "10.99.7.2"
NEAR6, FAR6 = "fd99:7::1", "fd99:7::2"


@dataclass
class Faults:
    """What the relay does to frames; milliseconds, bytes of IP."""

    delay_ms: float = 0
    #: Every n-th echo request is lost, or held back until the next two have passed. 0: none.
    lose_every: int = 0
    hold_every: int = 0
    mtu: int = 65535
    drop_icmp: bool = False
    drop_tcp: bool = False


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """The namespaces ``near`` and ``far``; the address of each on device ``ring``."""

    def __init__(self, name: str) -> None:
        self.near, self.far = f"{name}a", f"{name}b"

    def bench(self, *pairs: tuple[str, str], duration: float = 2, **options: Any) -> dict[str, Any]:
        """link_bench.bench in the near namespace. ``options``: load (bool), thresholds, host, prefix."""
        given = [{"peer": f"far{n}", "link": n, "source": s, "target": t} for n, (s, t) in enumerate(pairs)]
        code = (
            f"import json, sys; sys.path.insert(0, {str(ROOT / 'module_utils')!r})\n"
            "from pveguard.gates import link_bench\n"
            "given = json.load(sys.stdin)\n"
            "options = given['options']\n"
            "if 'thresholds' in options: options['thresholds'] = link_bench.Thresholds(**options['thresholds'])\n"
            "options['load'] = link_bench.Load() if options.get('load') else None\n"
            "pairs = [link_bench.Pair(**pair) for pair in given['pairs']]\n"
            "print(json.dumps(link_bench.bench(pairs, given['duration'], **options)))\n"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", self.near, sys.executable, "-c", code],
            input=json.dumps({"pairs": given, "duration": duration, "options": options}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert isinstance(result, dict)
        return result

    def sysctl(self, namespace: str, path: str, value: str) -> None:
        command = ["ip", "netns", "exec", namespace, "sh", "-c", f"echo {value} > /proc/sys/net/{path}"]
        subprocess.run(command, check=True)


@contextmanager
def veth(name: str) -> Iterator[Network]:
    """A clean link."""
    with _namespaces(name) as network:
        ip("-n", network.near, "link", "add", "ring", "type", "veth", "peer", "name", "ring", "netns", network.far)
        _addresses(network)
        yield network


@contextmanager
def relayed(name: str, faults: Faults) -> Iterator[Network]:
    """A link with ``faults``, which may be changed meanwhile."""
    with _namespaces(name) as network:
        ends = [_tap(namespace) for namespace in (network.near, network.far)]
        _addresses(network)
        stop = threading.Event()
        thread = threading.Thread(target=_relay, args=(ends, faults, stop), daemon=True)
        thread.start()
        try:
            yield network
        finally:
            stop.set()
            thread.join(10)
            for end in ends:
                os.close(end)


@contextmanager
def _namespaces(name: str) -> Iterator[Network]:
    network = Network(f"{name}{os.getpid()}")
    made = []
    try:
        for namespace in (network.near, network.far):
            ip("netns", "add", namespace)
            made.append(namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        yield network
    finally:
        for namespace in made:
            ip("netns", "delete", namespace)


def _addresses(network: Network) -> None:
    for namespace, four, six in ((network.near, NEAR, NEAR6), (network.far, FAR, FAR6)):
        ip("-n", namespace, "address", "add", f"{four}/24", "dev", "ring")
        ip("-n", namespace, "address", "add", f"{six}/64", "dev", "ring", "nodad")
        ip("-n", namespace, "link", "set", "ring", "up")
    _settle(network.near, network.far)


def _settle(*namespaces: str) -> None:
    for namespace in namespaces:
        # Duplicate address detection of the link-local addresses delays neighbour discovery by a second.
        end = time.monotonic() + 30
        command = ["ip", "-n", namespace, "-6", "address", "show", "tentative"]
        while subprocess.run(command, capture_output=True, check=True).stdout:
            assert time.monotonic() < end, "IPv6 addresses stay tentative"
            time.sleep(0.05)


def _tap(namespace: str) -> int:
    """A TAP device ``ring`` in the namespace; its descriptor."""
    opened: list[int] = []

    def enter_and_open() -> None:
        # setns moves this thread only, and the thread ends with it.
        libc = ctypes.CDLL(None, use_errno=True)
        handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        if libc.setns(handle, 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
        os.close(handle)
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        # linux/if_tun.h: TUNSETIFF, IFF_TAP | IFF_NO_PI
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"ring", 0x0002 | 0x1000))
        opened.append(descriptor)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    return opened[0]


def _is_tcp(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[23] == 6 or frame[12:14] == b"\x86\xdd" and frame[20] == 6


def _is_icmp(frame: bytes) -> bool:
    """Echo requests and replies, not the neighbour discovery of IPv6."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return frame[23] == 1
    return kind == b"\x86\xdd" and frame[20] == 58 and frame[54] in (128, 129)


def _relay(ends: list[int], faults: Faults, stop: threading.Event) -> None:
    waiting: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    icmp = 0
    held: list[tuple[int, int, bytes]] = []  # packets still to pass before it, end, frame
    while not stop.is_set():
        pause = min(0.1, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.1
        for end in select.select(ends, [], [], pause)[0]:
            frame = os.read(end, 65535)
            other = ends[1 - ends.index(end)]
            if len(frame) - 14 > faults.mtu:
                continue
            release: list[bytes] = []
            if (faults.drop_icmp and _is_icmp(frame)) or (faults.drop_tcp and _is_tcp(frame)):
                continue
            if _is_icmp(frame) and end == ends[0]:
                icmp += 1
                if faults.lose_every and icmp % faults.lose_every == 0:
                    continue
                if faults.hold_every:
                    if icmp % faults.hold_every == 0 and not held:
                        held.append((2, other, frame))
                        continue
                    held = [(left - 1, to, kept) for left, to, kept in held]
                    release = [kept for left, _, kept in held if left <= 0]
                    held = [entry for entry in held if entry[0] > 0]
            at = time.monotonic() + faults.delay_ms / 1000
            for one in [frame, *release]:
                heapq.heappush(waiting, (at, next(order), other, one))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(waiting)
            try:
                os.write(other, frame)
            except OSError:
                pass  # the device is still down


@contextmanager
def routed(name: str, mtu: int) -> Iterator[Network]:
    """A router between the two, whose link to the far one has a smaller MTU."""
    with _namespaces(name) as network:
        router = f"{network.near}r"
        ip("netns", "add", router)
        try:
            for namespace, device, four, six in (
                (network.near, "near", (NEAR, "10.99.7.254"), (NEAR6, "fd99:7::fe")),
                (network.far, "far", ("10.99.9.2", "10.99.9.254"), ("fd99:9::2", "fd99:9::fe")),
            ):
                ip("-n", namespace, "link", "add", "ring", "type", "veth", "peer", "name", device, "netns", router)
                for space, link, place in ((namespace, "ring", 0), (router, device, 1)):
                    ip("-n", space, "address", "add", f"{four[place]}/24", "dev", link)
                    ip("-n", space, "address", "add", f"{six[place]}/64", "dev", link, "nodad")
                    ip("-n", space, "link", "set", link, "up")
                ip("-n", namespace, "route", "add", "default", "via", four[1])
                ip("-n", namespace, "-6", "route", "add", "default", "via", six[1])
            ip("-n", router, "link", "set", "far", "mtu", str(mtu))
            network.sysctl(router, "ipv4/ip_forward", "1")
            network.sysctl(router, "ipv6/conf/all/forwarding", "1")
            _settle(network.near, network.far, router)
            yield network
        finally:
            ip("netns", "delete", router)


@contextmanager
def ring(name: str, hosts: dict[str, str], faults: dict[str, Faults]) -> Iterator[dict[str, str]]:
    """Namespaces on one bridge: host -> address; those in ``faults`` behind a relay. Gives host -> namespace."""
    bridge = f"{name}{os.getpid()}"
    spaces = {host: f"{bridge}{host}" for host in hosts}
    stop = threading.Event()
    threads, opened = [], []
    made = []
    try:
        for namespace in (bridge, *spaces.values()):
            ip("netns", "add", namespace)
            made.append(namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", bridge, "link", "add", "switch", "type", "bridge")
        ip("-n", bridge, "link", "set", "switch", "up")
        for host, address in hosts.items():
            if host in faults:
                ends = [_tap(spaces[host]), _tap(bridge)]
                ip("-n", bridge, "link", "set", "ring", "name", host)
                opened += ends
                threads.append(threading.Thread(target=_relay, args=(ends, faults[host], stop), daemon=True))
                threads[-1].start()
            else:
                near = ("-n", spaces[host], "link", "add", "ring", "type", "veth")
                ip(*near, "peer", "name", host, "netns", bridge)
            ip("-n", bridge, "link", "set", host, "master", "switch", "up")
            ip("-n", spaces[host], "address", "add", f"{address}/24", "dev", "ring")
            ip("-n", spaces[host], "link", "set", "ring", "up")
        yield spaces
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        for descriptor in opened:
            os.close(descriptor)
        for namespace in made:
            ip("netns", "delete", namespace)
