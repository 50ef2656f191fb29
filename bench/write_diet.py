#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What every writer of an idle cluster puts on the drives: stock, with RAM state, and with RAM state and the write diet.

    python bench/write_diet.py --name diet [--guests 20] [--seconds 3600] [--set KEY=VALUE]... [--json] [--out FILE]

Needs virtual machines, and makes the lab NAME anew: three nodes clustered by hand, statistics of so many guests on each. Every
member writes the same configuration and stores the same statistics, so each gets a state of its own, by one run of
``playbooks/protect.yml``, and one window on all of them at once compares the three. HA stays on, as on a stock cluster.

Bytes are what the counters of the drives that carry the system rose by, all of them, told apart by class of writer
(pveguard's own table of writers). At both ends of a window rrdcached writes what it holds and all file systems are synced, so
that a window owes nothing and leaves nothing: what was written late is counted. A window holds whole flush intervals of a
stock rrdcached (300 s). Where it is shorter than the interval of the diet, the flush at its end comes before its time, so the
figure of the diet is an upper bound, and the table says so.

Exits 1 when an aim is missed (10 times less in all; nothing above 1 MiB an hour on a node that nobody is known for), 2 when
nothing could be measured.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

HOUR = 3600
MIB = 1 << 20
STORAGES = 2  # of each node, by default of the double of pvestatd
STOCK_FLUSH_SECONDS = 300
#: The aims: how many times less than stock, and bytes an hour that may be nobody's.
FACTOR = 10
UNNAMED = MIB
#: Rows of which nobody knows whose they are.
NOBODYS = ("rest", "ended")
REST_LABEL = "the rest: file-system metadata, the kernel, nobody known"
GUESTS_LABEL = "guests"
#: State -> the variables of the node that is in it. HA is left on: what it writes is part of a stock cluster.
STATES: dict[str, dict[str, Any]] = {
    "stock": {"ram_state_enabled": False, "write_diet_enabled": False},
    "ram_state": {"ram_state_enabled": True, "write_diet_enabled": False},
    "diet": {"ram_state_enabled": True, "write_diet_enabled": True},
}
NODES = len(STATES)
EVERYWHERE = {"ha_state": "keep"}
DEADLINE = 1800.0  # seconds, for the first statistics of every node

#: Runs on a node for the whole window. What it needs comes with it, in memory.
PROGRAM = r'''
import base64, json, os, socket, sys, time

ZIP = "/run/pveguard-write-diet.zip"
SOCKET = "/run/rrdcached.sock"


def options_of(words):
    """Of a command line, such as -w 300 and -w300."""
    pairs = zip(words[1:], [*words[2:], ""])
    return {word[:2]: word[2:] or after for word, after in pairs if word[:1] == "-"}


def rrdcached():
    """The options of the running daemon, None without one."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if open(f"/proc/{pid}/comm").read().strip() == "rrdcached":
                return options_of(open(f"/proc/{pid}/cmdline").read().split("\0"))
        except OSError:
            continue
    return None


def files(base):
    return [os.path.relpath(os.path.join(top, name), base) for top, _, names in os.walk(base) for name in names]


def flush():
    """Everything that waits to be written is written: the answer to FLUSH comes once the file is. Returns rrdcached's STATS."""
    options, stats = rrdcached(), {}
    if options is not None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(300)
            connection.connect(SOCKET)
            stream = connection.makefile("rw")

            def ask(command):
                stream.write(command + "\n")
                stream.flush()
                first = stream.readline()
                return [stream.readline() for _ in range(max(0, int(first.split()[0])))]

            ask("FLUSHALL")
            for name in files(options.get("-b", "/tmp")):
                ask("FLUSH " + name)
            stats = {key: int(value) for key, _, value in (line.partition(": ") for line in ask("STATS"))}
    os.sync()
    return stats


def main(seconds):
    sys.path.insert(0, ZIP)
    from pveguard.writes import writers

    options = rrdcached() or {}
    stats = flush()
    before = writers.reading("/")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)
    os.sync()
    middle = writers.reading("/")
    after_stats = flush()
    after = writers.reading("/")
    base = options.get("-b")
    print(json.dumps({
        "before": before, "middle": middle, "after": after,
        "rrd": None if base is None else {
            "files": len(files(base)),
            "bytes": sum(os.stat(os.path.join(base, name)).st_size for name in files(base)),
            "write_seconds": float(options.get("-w", 300)),
            "jitter_seconds": float(options.get("-z", 0)),
            **{key: after_stats.get(key, 0) - stats.get(key, 0) for key in ("UpdatesWritten", "JournalBytes")},
        },
        "database_in_memory": any(
            line.split()[1:3] == ["/var/lib/pve-cluster", "tmpfs"] for line in open("/proc/mounts")
        ),
    }))
'''


class NotMeasuredError(Exception):
    """Nothing could be measured, and why."""


# --- arithmetic ---------------------------------------------------------------------------------------------


def of_table(table: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by row, the rest and the guests among them, of a table of writers: ``{"class|label": bytes}``.

    Raises NotMeasuredError where they are not what the drives' counters say, or there is no figure.
    """
    if table.get("total_bytes") is None:
        raise NotMeasuredError("; ".join(table.get("notes") or ["the drives were not counted"]))
    found: dict[str, int] = {}
    rows = [(row["class"], row["label"], row["bytes"]) for row in table["rows"]]
    for kind, label, count in [*rows, ("rest", REST_LABEL, table["rest_bytes"]), ("guests", GUESTS_LABEL, table["guests_bytes"])]:
        key = f"{kind}|{label}"
        found[key] = found.get(key, 0) + count
    if sum(found.values()) != table["total_bytes"]:
        raise NotMeasuredError(f"the rows make {sum(found.values())} bytes and the drives say {table['total_bytes']}")
    return found


def window(answer: Mapping[str, Any], table: Callable[..., Mapping[str, Any] | None]) -> dict[str, Any]:
    """One node's window: ``seconds``, ``bytes`` by row, ``total_bytes``, ``flush_bytes`` (of the flush at its end, which are in
    it), ``rrd`` and ``notes``. ``table``: writers.table.
    """
    whole, last = table(answer["before"], answer["after"]), table(answer["middle"], answer["after"])
    if whole is None or last is None:
        raise NotMeasuredError("a reading is empty")
    if not whole["seconds"] or whole["seconds"] <= 0:
        raise NotMeasuredError("the window has no length")
    return {
        "seconds": whole["seconds"],
        "bytes": of_table(whole),
        "total_bytes": whole["total_bytes"],
        "flush_bytes": sum(of_table(last).values()),
        "disks": {device["disk"]: device["bytes"] for device in whole["devices"]},
        "source": whole.get("source_label") or whole.get("source"),
        "rrd": answer["rrd"],
        "database_in_memory": answer["database_in_memory"],
        "notes": list(whole["notes"]),
    }


def hourly(found: Mapping[str, Any]) -> dict[str, Any]:
    """A node's window with what that makes in an hour: ``bytes_per_hour`` by row, ``total_bytes_per_hour``; ``upper_bound``:
    the flush at the end came before its time.
    """
    rrd = found["rrd"]
    return {
        **found,
        "bytes_per_hour": {key: count * HOUR / found["seconds"] for key, count in found["bytes"].items()},
        "total_bytes_per_hour": found["total_bytes"] * HOUR / found["seconds"],
        "upper_bound": rrd is not None and rrd["write_seconds"] + rrd["jitter_seconds"] > found["seconds"],
    }


def factor(before: float, after: float) -> float | None:
    """How many times less; None where nothing is left."""
    return before / after if after > 0 else None


def compare(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of all states side by side, most of the first one first, and what of the aims was missed by the last."""
    names = list(states)
    first, last = states[names[0]], states[names[-1]]
    keys = {key for each in states.values() for key in each["bytes_per_hour"]}
    rows = []
    for key in sorted(keys, key=lambda key: (-first["bytes_per_hour"].get(key, 0), key)):
        kind, _, label = key.partition("|")
        rates = {name: each["bytes_per_hour"].get(key, 0.0) for name, each in states.items()}
        if any(rates.values()):
            rows.append({"class": kind, "label": label, "bytes_per_hour": rates,
                         "factor": factor(rates[names[0]], rates[names[-1]])})  # fmt: skip
    times = factor(first["total_bytes_per_hour"], last["total_bytes_per_hour"])
    unnamed = [
        {"label": row["label"], "bytes_per_hour": row["bytes_per_hour"][names[-1]]}
        for row in rows
        if row["class"] in NOBODYS and row["bytes_per_hour"][names[-1]] > UNNAMED
    ]
    missed = [f"{row['label']}: {mib(row['bytes_per_hour'])} MiB an hour" for row in unnamed]
    if times is not None and times < FACTOR:
        missed.insert(0, f"{times:.1f} times less than {names[0]}, wanted {FACTOR}")
    return {"rows": rows, "factor": times, "unnamed": unnamed, "missed": missed}


def mistakes(name: str, found: Mapping[str, Any]) -> list[str]:
    """What shows that a node was not in the state that its window is of."""
    wrong = []
    if found["database_in_memory"] != (name != "stock"):
        wrong.append(f"{name}: the database is {'in memory' if found['database_in_memory'] else 'on the disk'}")
    rrd = found["rrd"]
    if rrd is None:
        wrong.append(f"{name}: no rrdcached")
    elif (rrd["write_seconds"] > STOCK_FLUSH_SECONDS) != (name == "diet"):
        wrong.append(f"{name}: rrdcached writes after {rrd['write_seconds']:g} s")
    return wrong


def mib(count: float) -> str:
    return f"{count / MIB:.2f}"


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    states = report["states"]
    lines = [
        f"MiB an hour on a node of {len(states)}, statistics of {report['guests']} guests, a window of {report['seconds']:g} s",
        f"{'':46}" + "".join(f"{name:>12}" for name in states) + f"{'times less':>12}",
    ]

    def line(label: str, rates: Mapping[str, float], times: float | None) -> str:
        less = "-" if times is None else f"{times:.1f}"
        return f"{label[:45]:46}" + "".join(f"{mib(rates[name]):>12}" for name in states) + f"{less:>12}"

    lines += [line(row["label"], row["bytes_per_hour"], row["factor"]) for row in report["rows"]]
    totals = {name: each["total_bytes_per_hour"] for name, each in states.items()}
    lines.append(line("all", totals, report["factor"]))
    for name, each in states.items():
        rrd = each["rrd"]
        lines.append(
            f"{name}: rrdcached writes after {rrd['write_seconds']:g} s (+ up to {rrd['jitter_seconds']:g}), {rrd['files']} "
            f"files of {mib(rrd['bytes'])} MiB; the flush at the end: {mib(each['flush_bytes'])} MiB"
            + ("; before its time, so its column is an upper bound" if each["upper_bound"] else "")
        )
    notes = {note for each in states.values() for note in each["notes"]}
    lines += [f"note: {note}" for note in sorted(notes)]
    return "\n".join([*lines, *(f"missed: {what}" for what in report["missed"])])


# --- the lab ------------------------------------------------------------------------------------------------


def program(seconds: float) -> bytes:
    """PROGRAM with the cores, for the standard input of Python."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((ROOT / "module_utils/pveguard").rglob("*.py")):
            archive.write(path, path.relative_to(ROOT / "module_utils"))
    data = base64.b64encode(packed.getvalue()).decode()
    unpack = f"open(ZIP, 'wb').write(base64.b64decode('{data}'))\n"
    return f"{PROGRAM}\n{unpack}try:\n    main({seconds!r})\nfinally:\n    os.unlink(ZIP)\n".encode()


def measure(lab: Lab, seconds: float) -> dict[str, dict[str, Any]]:
    """Answers of PROGRAM by node, of all nodes at once. Raises NotMeasuredError."""
    given = program(seconds)

    def one(node: str) -> dict[str, Any]:
        done = subprocess.run(
            lab.ssh_argv(node, ["exec /usr/bin/python3 -"]), input=given, capture_output=True, timeout=seconds + 1200, check=False
        )
        if done.returncode:
            raise NotMeasuredError(f"{node}: {done.stderr.decode(errors='replace').strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    names = list(lab.state.nodes)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def wait_for_statistics(lab: Lab, guests: int) -> None:
    """Until each node has all files of statistics. Raises NotMeasuredError."""
    wanted = guests + NODES + NODES * STORAGES
    deadline = time.monotonic() + DEADLINE
    for node in lab.state.nodes:
        while True:
            found = int(lab.ssh(node, "find /var/lib/rrdcached/db -type f | wc -l"))
            if found >= wanted:
                break
            if time.monotonic() > deadline:
                raise NotMeasuredError(f"{node} has {found} files of statistics after {DEADLINE:g} s, wanted {wanted}")
            time.sleep(5)


def protect(name: str, variables: Mapping[str, Mapping[str, Any]]) -> None:
    """Run protect.yml on the lab, each node with variables of its own. Raises NotMeasuredError."""
    with tempfile.TemporaryDirectory() as folder:
        more = Path(folder) / "states.json"
        more.write_text(json.dumps({"all": {"hosts": variables}}))
        done = subprocess.run(
            [ad_hoc.program("ansible-playbook"), "-i", "inventory/lab", "-i", str(more), "playbooks/protect.yml"],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PVEGUARD_LAB": name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise NotMeasuredError(f"protect.yml exited {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")


def value(words: str) -> tuple[str, Any]:
    """``KEY=VALUE`` of --set; VALUE as JSON, else as text."""
    key, equals, said = words.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{words!r} is not KEY=VALUE")
    try:
        return key, json.loads(said)
    except ValueError:
        return key, said


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole bench. Raises NotMeasuredError and LabError."""
    sys.path.insert(0, str(ROOT / "module_utils"))
    try:
        table = importlib.import_module("pveguard.writes.writers").table
    except ImportError as error:
        raise NotMeasuredError(f"this checkout has no table of writers: {error}") from None

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    lab = Lab(options.name)
    lab.up(profile="cluster", nodes=NODES, fresh=True, statistics_of=options.guests)
    for node in lab.state.nodes:
        # As on a node in use.
        lab.ssh(node, "systemctl --quiet unmask logrotate.timer fstrim.timer; systemctl start logrotate.timer fstrim.timer")
        # So that bytes are told apart as the drives got them, not as processes asked. What the kernel has cached before that
        # stays nobody's.
        lab.ssh(node, "systemctl set-property --runtime systemd-journald.service IOAccounting=yes")
    wait_for_statistics(lab, options.guests)
    nodes = dict(zip(lab.state.nodes, STATES, strict=True))
    say("protect.yml: " + ", ".join(f"{node} {name}" for node, name in nodes.items()))
    given = {"diet": dict(options.set)}
    protect(options.name, {node: {**EVERYWHERE, **STATES[name], **given.get(name, {})} for node, name in nodes.items()})
    for node in nodes:
        lab.ssh(node, "sync; echo 3 > /proc/sys/vm/drop_caches")
    say(f"a window of {options.seconds:g} s")
    answers = measure(lab, options.seconds)
    states = {name: hourly(window(answers[node], table)) for node, name in nodes.items()}
    if wrong := [what for name, each in states.items() for what in mistakes(name, each)]:
        raise NotMeasuredError("; ".join(wrong))
    return {"seconds": options.seconds, "guests": options.guests, "states": states, **compare(states)}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="the lab, which is made anew")
    parser.add_argument("--guests", type=int, default=20, help="whose statistics each node stores (default 20)")
    parser.add_argument("--seconds", type=float, default=HOUR, help="of the window (default 3600)")
    parser.add_argument("--set", type=value, action="append", default=[], metavar="KEY=VALUE", help="variable of the diet")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or options.seconds % STOCK_FLUSH_SECONDS:
        parser.error(f"--seconds: whole flush intervals of a stock rrdcached, {STOCK_FLUSH_SECONDS} s each")
    return options


def main() -> int:
    options = arguments()
    try:
        report = run(options)
    except (NotMeasuredError, LabError, subprocess.SubprocessError) as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if options.json else text(report))
    return 1 if report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
