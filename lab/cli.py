"""Command line of the lab."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from . import image, progress, services
from .errors import LabError
from .labs import Lab, all_labs
from .system import in_parallel, require_tools

EPILOG = """A lab is a set of Debian virtual machines under QEMU; everything it makes is below .lab/. See docs/lab.md."""


def number_or_off(text: str) -> int | None:
    if text == "off":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor 'off'") from None


def guests_or_off(text: str) -> int | Literal["off"]:
    number = number_or_off(text)
    return "off" if number is None else number


def float_or_off(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'off'") from None


Add = Callable[[str, str], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """One line for a mistake, exit status 2."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: {message} (--help shows the usage)\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="lab", description="Virtual machines to try pveguard on.", epilog=EPILOG)
    top.add_argument(
        "--name",
        default=os.environ.get("PVEGUARD_LAB") or "default",
        help="which lab (default: $PVEGUARD_LAB, else 'default'); several run side by side",
    )
    top.add_argument("--quiet", action="store_true", help="no progress lines")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    _whole_labs(add)
    _access(add)
    _faults(add)
    return top


def _whole_labs(add: Add) -> None:
    """up, down, status, snapshot, restore"""
    up = add("up", "start the lab: resume, restore, boot or build it, whichever is needed and quickest")
    up.add_argument(
        "--profile", choices=image.PROFILES, help="what is installed (default: as it was, else pve)"
    )
    up.add_argument("--nodes", type=int, metavar="N", help="how many nodes (default: as it was, else 3)")
    up.add_argument(
        "--release", choices=image.RELEASES, help="Debian release (default: as it was, else trixie)"
    )
    up.add_argument(
        "--fresh", action="store_true", help="forget what happened: begin at the profile's snapshot"
    )
    up.add_argument(
        "--nvme",
        action="append",
        default=[],
        metavar="NODE",
        help="this node's /var/lib is on an emulated NVMe (the lab then has no snapshots); repeatable",
    )
    up.add_argument(
        "--plain",
        action="append",
        default=[],
        metavar="NODE",
        help="this node is a plain Debian machine beside nodes of another profile, for a probe; repeatable",
    )
    up.add_argument(
        "--guests",
        type=guests_or_off,
        metavar="N|off",
        help="made-up statistics of N guests in all (0: of nodes and storages only), stored by every node, and the other "
        "writers of a node in use (default: as it was, else off)",
    )
    up.add_argument("--memory", type=int, metavar="MIB", help="memory of a node (default 768)")
    up.add_argument(
        "--port-base", type=int, metavar="PORT", help="ssh ports PORT+1, PORT+2, ... instead of free ones"
    )
    up.add_argument("--json", action="store_true", help="then print the status as JSON")

    down = add("down", "stop the lab; the next 'up' goes on where it was")
    how = down.add_mutually_exclusive_group()
    how.add_argument(
        "--off", action="store_true", help="power the nodes off in good order instead of saving them"
    )
    how.add_argument(
        "--discard", action="store_true", help="save nothing; the next 'up' begins at the profile's snapshot"
    )
    how.add_argument("--remove", action="store_true", help="delete the lab's disks and keys")
    down.add_argument("--all", action="store_true", help="all labs of this folder")

    status = add("status", "show the nodes")
    status.add_argument("--json", action="store_true", help="as JSON")

    snapshot = add("snapshot", "save memory and disks of all nodes")
    snapshot.add_argument("snapshot", metavar="NAME")
    restore = add("restore", "go back to a snapshot ('base' is the profile's)")
    restore.add_argument("snapshot", metavar="NAME")


def _access(add: Add) -> None:
    """ssh, exec, logs"""
    ssh = add("ssh", "log in to a node, or run a command there")
    ssh.add_argument("node")
    ssh.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")

    execute = add("exec", "run a shell command on nodes, by ssh or on the serial console")
    execute.add_argument(
        "--console", action="store_true", help="without ssh and network, by the second serial port"
    )
    execute.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    execute.add_argument("nodes", help="a node, several with commas, or 'all'")
    execute.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")

    logs = add("logs", "show a node's log")
    logs.add_argument("node")
    kind = logs.add_mutually_exclusive_group()
    kind.add_argument(
        "--console", action="store_true", help="kernel and boot messages of the serial port (default)"
    )
    kind.add_argument("--qemu", action="store_true", help="messages of QEMU")
    kind.add_argument(
        "--journal", nargs="?", const="", metavar="UNIT", help="the guest's journal of this boot"
    )
    logs.add_argument("--lines", type=int, default=200, metavar="N", help="the last N lines (default 200)")


def _faults(add: Add) -> None:
    """Power, ring, slow disk."""
    cut_power = add("power-cut", "take the power from nodes")
    cut_power.add_argument("nodes", nargs="+", metavar="NODE")
    power_off = add("power-off", "power nodes off in good order")
    power_off.add_argument("nodes", nargs="+", metavar="NODE")
    start = add("start", "boot stopped nodes (default: all of them)")
    start.add_argument("nodes", nargs="*", metavar="NODE")
    start.add_argument("--no-wait", action="store_true", help="do not wait for ssh")
    reboot = add("reboot", "reboot nodes (default: all of them at once)")
    reboot.add_argument("nodes", nargs="*", metavar="NODE")
    reboot.add_argument("--no-wait", action="store_true", help="do not wait for ssh")

    for name, text in (("cut", "unplug nodes from the ring network"), ("heal", "plug them in again")):
        add(name, text).add_argument("nodes", nargs="+", metavar="NODE")
    throttle = add("throttle", "limit the write operations per second of a node's /var/lib disk")
    throttle.add_argument("node")
    throttle.add_argument("iops", type=number_or_off, metavar="IOPS|off")
    services_ = add("services", "switch services on or off that an idle lab is spared")
    services_.add_argument("switch", choices=("on", "off"))
    services_.add_argument("services", help=f"some of {', '.join(services.SERVICES)}, with commas, or 'all'")
    services_.add_argument("nodes", nargs="*", metavar="NODE", help="default: all that run")
    delay = add("delay", "delay what a node sends on the ring network")
    delay.add_argument("node")
    delay.add_argument("milliseconds", type=float_or_off, metavar="MS|off")
    delay.add_argument("--loss", type=float, default=0, metavar="PERCENT", help="lose so much of it besides")


def show(lab: Lab) -> str:
    about = lab.describe()
    if not about["nodes"]:
        return f"lab {lab.name}: does not exist"
    rows = [("node", "state", "ssh port", "ring", "address", "faults")]
    for node in about["nodes"]:
        faults = [f"throttled to {node['throttle_write_iops']}/s"] if node["throttle_write_iops"] else []
        faults += [f"delayed {node['delay_ms']:g} ms"] if node["delay_ms"] else []
        state = "running" if node["running"] else "saved" if node["suspended"] else "off"
        kind = (" (NVMe)" if node["nvme"] else "") + (" (plain)" if node["plain"] else "")
        rows.append((node["name"] + kind, state, str(node["port"] or "-"), node["ring"],
                     node["ring_address"], ", ".join(faults) or "-"))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    snapshots = ", ".join(sorted(set(about["snapshots"]))) or "none"
    guests = "" if about["guests"] is None else f", statistics of {about['guests']} guests"
    return (f"lab {lab.name}: profile {about['profile']}, Debian {about['release']}, {about['accel']}, "
            f"{about['memory_mib']} MiB a node{guests}; snapshots: {snapshots}\n{table}")  # fmt: skip


def _exec(lab: Lab, args: argparse.Namespace) -> int:
    if not args.arguments:
        raise LabError("exec: no command given")
    machines = lab.select(args.nodes.split(","), running=True)
    command = args.arguments[0] if len(args.arguments) == 1 else " ".join(map(_quoted, args.arguments))

    def one(node: Any) -> tuple[int, str, str]:
        if args.console:
            status, output = node.console.run(command, args.timeout)
            return status, output, ""
        try:
            done = subprocess.run(
                lab.ssh_argv(node.name, [command]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=args.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return 124, "", f"no end after {args.timeout:g} s\n"
        return done.returncode, done.stdout, done.stderr

    results = in_parallel(one, machines)
    for machine, (_, output, errors) in zip(machines, results, strict=True):
        prefix = f"{machine.name}: " if len(machines) > 1 else ""
        for text, stream in ((output, sys.stdout), (errors, sys.stderr)):
            for line in text.splitlines():
                print(prefix + line, file=stream)
    return max(status for status, _, _ in results)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _logs(lab: Lab, args: argparse.Namespace) -> int:
    machine = lab.select([args.node])[0]
    if args.journal is not None:
        unit = f" -u {_quoted(args.journal)}" if args.journal else ""
        lab.select([args.node], running=True)
        status, output = machine.console.run(f"journalctl -b --no-pager -n {args.lines}{unit}", 120)
        print(output, end="")
        return status
    path = machine.qemu_log if args.qemu else machine.console_log
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        raise LabError(f"{args.node}: {path} is not there yet") from None
    print("\n".join(lines[-args.lines :]))
    return 0


def run(args: argparse.Namespace) -> int:
    progress.silence(args.quiet)
    if args.command == "down" and args.all:
        for each in all_labs():
            each.down(off=args.off, discard=args.discard, remove=args.remove)
        return 0
    lab = Lab(args.name)
    match args.command:
        case "up":
            lab.up(
                profile=args.profile,
                nodes=args.nodes,
                release=args.release,
                fresh=args.fresh,
                nvme=args.nvme,
                plain=args.plain,
                memory=args.memory,
                port_base=args.port_base,
                source=os.environ.get("PVE_PACKAGES") or None,
                statistics_of=args.guests,
            )
            print(json.dumps(lab.describe(), indent=2) if args.json else show(lab))
        case "down":
            lab.down(off=args.off, discard=args.discard, remove=args.remove)
        case "status":
            print(json.dumps(lab.describe(), indent=2) if args.json else show(lab))
        case "ssh":
            require_tools(["ssh"])
            sys.stdout.flush()
            return subprocess.run(lab.ssh_argv(args.node, args.arguments), check=False).returncode
        case "exec":
            return _exec(lab, args)
        case "snapshot":
            lab.snapshot(args.snapshot)
        case "restore":
            lab.restore(args.snapshot)
        case "power-cut":
            lab.power_cut(args.nodes)
        case "power-off":
            lab.power_off(args.nodes)
        case "start":
            lab.start(args.nodes, wait=not args.no_wait)
        case "reboot":
            lab.reboot(args.nodes, wait=not args.no_wait)
        case "cut" | "heal":
            lab.set_ring(args.nodes, args.command == "heal")
        case "throttle":
            lab.throttle(args.node, args.iops)
        case "services":
            names = list(services.SERVICES) if args.services == "all" else args.services.split(",")
            lab.services(names, args.switch == "on", args.nodes)
        case "delay":
            lab.delay(args.node, args.milliseconds, args.loss)
        case "logs":
            return _logs(lab, args)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(parser().parse_args(argv))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
