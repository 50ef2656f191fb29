# SPDX-License-Identifier: Apache-2.0
"""The program ``pve-firewall``: the loop of ten seconds and the commands around it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from . import iptables, packet
from .node import ROOT, Unready, load, log
from .rules import Ruleset

SETTINGS = f"{ROOT}/etc/pve-firewall-lab.conf"
PID_FILE = f"{ROOT}/run/pve-firewall.pid"
SECONDS = 10.0
STOP_SECONDS = 120.0
NAME = "pve-firewall-double"[:15]
USAGE = """usage: pve-firewall start [--debug 1]
       pve-firewall stop|restart|status|compile|localnet
       pve-firewall simulate [--from outside|host] [--to host|outside] [--protocol tcp|udp]
                             [--source IP] [--dest IP] [--sport N] [--dport N]
This is a lab double for tests.
"""
SYSCTLS = (
    ("net/bridge/bridge-nf-call-iptables", 1),
    ("net/bridge/bridge-nf-call-ip6tables", 1),
    ("net/ipv4/tcp_syncookies", 1),
)
CONNTRACK_MAX = ("net/netfilter/nf_conntrack_max", 262144)
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def seconds() -> float:
    """``seconds=N`` in the lab's file."""
    with contextlib.suppress(OSError, ValueError), open(SETTINGS) as stream:
        for line in stream:
            key, _, value = line.strip().partition("=")
            if key == "seconds":
                return max(0.1, float(value))
    return SECONDS


def set_kernel(wanted: int) -> None:
    """What the service sets, whatever sysctl.d says; a table of connections is made greater and not smaller."""
    for name, value in (*SYSCTLS, (CONNTRACK_MAX[0], max(CONNTRACK_MAX[1], wanted))):
        path = f"{ROOT}/proc/sys/{name}"
        try:
            with open(path) as stream:
                now = int(stream.read())
            if now < value if name == CONNTRACK_MAX[0] else now != value:
                with open(path, "w") as stream:
                    stream.write(f"{value}\n")
        except (OSError, ValueError) as error:
            log(f"{path}: {error}")


def load_modules() -> None:
    for module in ("br_netfilter", "nf_conntrack"):
        with contextlib.suppress(OSError):
            subprocess.run(["modprobe", "-q", module], check=False)


class Loop:
    def __init__(self) -> None:
        self.kernel = iptables.Kernel()
        self.said = ""

    def say(self, text: str) -> None:
        """Once, until it changes."""
        if text != self.said:
            self.said = text
            if text:
                log(text)

    def round(self) -> None:
        try:
            found = load()
            rules = iptables.compile_rules(found)
            if found.enabled:
                set_kernel(found.host.number("nf_conntrack_max", 0))
            self.kernel.apply(rules)
        except (Unready, iptables.Failed) as error:
            self.say(f"status update error: {error}")
        else:
            self.say("; ".join(rules.wrong))


def serve() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    log("starting pve-firewall: lab double for tests")
    load_modules()
    loop, every = Loop(), seconds()
    while True:
        due = time.monotonic() + every
        loop.round()
        if signal.sigtimedwait(STOP_SIGNALS, max(0.0, due - time.monotonic())) is not None:
            break
    remove()
    log("pve-firewall stopped: its rules are gone")
    return 0


def remove() -> None:
    iptables.Kernel().apply(Ruleset())


def running() -> int:
    """The number of the daemon's process, 0 for none."""
    with contextlib.suppress(OSError, ValueError):
        with open(PID_FILE) as stream:
            number = int(stream.read())
        with open(f"/proc/{number}/comm") as stream:
            if stream.read().strip() == NAME:
                return number
    return 0


def start(debug: bool) -> int:
    if running():
        log("pve-firewall is running already")
        return 255
    # Before the fork, so that the child is known from its first moment.
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(NAME)
    if debug:
        write_pid(os.getpid())
        return serve()
    child = os.fork()
    if child:
        write_pid(child)
        return 0
    os.setsid()
    with open("/dev/null") as null:
        os.dup2(null.fileno(), 0)
    status = 1
    try:
        status = serve()
    finally:
        os._exit(status)


def write_pid(number: int) -> None:
    os.makedirs(os.path.dirname(PID_FILE), exist_ok=True)
    with open(PID_FILE, "w") as stream:
        stream.write(f"{number}\n")


def stop() -> int:
    """Its rules are gone afterwards, also those that a killed daemon left."""
    number = running()
    if number:
        # Not by its number alone: that may be another process's by the time it is looked at.
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(number)
            try:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                wait_for_end(handle)
            finally:
                os.close(handle)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(PID_FILE)
    try:
        remove()
    except iptables.Failed as error:
        log(str(error))
        return 255
    return 0


def wait_for_end(handle: int) -> None:
    if not select.select([handle], [], [], STOP_SECONDS)[0]:
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def status() -> int:
    found = load()
    print(f"Status: {'enabled' if found.enabled else 'disabled'}/{'running' if running() else 'stopped'}")
    return 0


def compile_() -> int:
    rules = iptables.compile_rules(load())
    print(iptables.describe(rules), end="")
    if not rules.chains:
        print("firewall disabled - no rules")
    return 0


def localnet() -> int:
    found = load()
    print(f"local hostname: {found.name}")
    print(f"local IP address: {found.address}")
    print(f"network auto detect: {found.network}")
    if "local_network" in found.cluster.aliases:
        print(f"using user defined local_network: {found.local_network}")
    else:
        print(f"using detected local_network: {found.local_network}")
    if found.peers:
        print("\naccepting corosync traffic from/to:")
        for name, link, address, _own in found.peers:
            print(f" - {name}: {address} (link: {link})")
    return 0


def simulate(arguments: list[str]) -> int:
    values = {"from": "outside", "to": "host", "protocol": "tcp", "source": "", "dest": "", "sport": "", "dport": ""}
    if len(arguments) % 2:
        raise ValueError
    for key, value in zip(arguments[::2], arguments[1::2], strict=True):
        if key.lstrip("-") not in values or not key.startswith("-"):
            raise ValueError
        values[key.lstrip("-")] = value
    if {values["from"], values["to"]} != {"outside", "host"}:
        raise ValueError
    found = load()
    rules = iptables.compile_rules(found)
    direction = "IN" if values["to"] == "host" else "OUT"
    verdict = packet.verdict(rules, f"{iptables.PREFIX}HOST-{direction}", values)
    print("Test packet:")
    for key, value in values.items():
        if value:
            print(f"  {key:8} : {value}")
    print(f"ACTION: {verdict}")
    return 0


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "start" and rest in ([], ["--debug"], ["--debug", "1"], ["--debug", "0"]):
            return start(bool(rest) and rest[-1] != "0")
        if command == "simulate":
            return simulate(rest)
        commands = {"stop": stop, "status": status, "compile": compile_, "localnet": localnet}
        if command in commands and not rest:
            return commands[command]()
        if command == "restart" and not rest:
            return stop() or start(False)
    except Unready as error:
        log(str(error))
        return 255
    except ValueError:
        pass
    sys.stderr.write(USAGE)
    return 255
