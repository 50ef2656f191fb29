#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of a node on the write diet when things go wrong.

Makes the lab NAME anew, one stand-alone node that stores statistics of ``--guests``, and runs playbooks/protect.yml on it:

1. protect: the write diet with a short flush interval (60 to 90 s); a second run changes nothing; every file is flushed.
2. cut: the power is cut, as late after a flush as can be, two seconds after a message of priority crit (by journald's own
   protocol: one by syslog is looked for, and need not be there). Its disk is read as it lies there, before it boots: every RRD
   file is whole, and what it lacks is not more than the interval, what the kernel may hold back, and one record. After the boot
   the message is there, the node is as the run left it, a run changes nothing.
3. reboots: orderly ones, with the interval of an hour, so that nothing but the stop has written: no file lacks more than two
   records.
4. kill: rrdcached is killed while values wait. The next run starts it, and all but the end of its journal is in the files.
5. full: the file systems of /var/lib and of / are filled, root's reserve as well. rrdcached goes on; a run changes nothing or
   says why not; a measure that is switched on then says so, has no file changed and the node as it was; with the space free
   again the same run succeeds.
6. revert: /etc and /usr/local byte for byte as before the first run, rrdcached as its package starts it.

After each, no unit has failed, rrdcached answers and has the options that are wanted, and its journal is on its tmpfs.

    python bench/write_diet_faults.py --name faults [--reboots 10] [--cuts 3] [--json] [--out FILE]

Exit status: 0 nothing was violated, 1 violations, 2 the test could not be done.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402
import disk  # noqa: E402
import write_diet_node  # noqa: E402
from ha_interruptions import end  # noqa: E402
from power_cuts import CannotTest  # noqa: E402
from upgrade import Run  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

STAGES = ("protect", "cut", "reboots", "kill", "full", "revert")
NODE = "pve1"
STORAGES = 2  # of the node, by default of the double of pvestatd
SENDING_SECONDS = 10.0
#: rrdcached's journal goes through a buffer of stdio: what is in it dies with the process.
BUFFER = 4096
STOCK = (300, 0, 3600)
SHORT = (60, 30, 3600)
DEFAULT = (3600, 600, 7200)
MIB = 1 << 20
JOURNAL_BYTES = 128 * MIB
#: Seconds: a run on an emulated node; until it has come to rest after a boot; a whole flush interval on a busy machine.
RUN_SECONDS = 1200.0
REST_SECONDS = 600.0
FLUSH_SECONDS = 900.0
#: Measures that are switched on or off on a full disk, and the one that is on.
SMARTD, JOURNALD, WITHOUT = "write_diet_smartd=true", "write_diet_journald_sync_seconds=600", "write_diet_rrdcached=false"
#: What is logged before a power cut. Of these journald syncs only the first at once.
MESSAGES = {
    "crit": "critical messages by journald's protocol, 2 s before",
    "syslog-crit": "critical messages by syslog, 1 s before",
    "info": "messages of priority info, 1 s before",
}
#: What a run may say for a full disk.
FULL = re.compile(r"no space left|disk is full|not enough space", re.IGNORECASE)
#: A key that is for root alone after a revert: its mode may differ.
KEY = "/etc/corosync/authkey "

Look = dict[str, Any]


# --- arithmetic ---------------------------------------------------------------------------------------------


def options_of(arguments: Sequence[str]) -> dict[str, str]:
    """Of rrdcached's command line, ``{"-w": "60", "-F": ""}``."""
    found, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        if word[:1] == "-":
            alone = word[:2] in ("-B", "-F", "-g", "-L", "-R", "-O")
            found[word[:2]] = "" if alone else word[2:] or (rest.pop(0) if rest else "")
    return found


def wanted_options(times: Sequence[int], found: Mapping[str, str], diet: bool = True) -> list[str]:
    """What of the options of the daemon is not as wanted. ``times``: -w, -z and -f in seconds."""
    keys = dict(zip(("-w", "-z", "-f"), times, strict=True))
    defaults = dict(zip(keys, STOCK, strict=True))
    seen = {key: int(found.get(key) or defaults[key]) for key in keys}
    wrong = [f"{key} {seen[key]}, wanted {want}" for key, want in keys.items() if seen[key] != want]
    if ("-F" in found) != diet:
        wrong.append("does not write its values at a stop" if diet else "has -F, as on the diet")
    return wrong


def journal_size(mount: Sequence[str] | None) -> int | None:
    """Bytes of the tmpfs of rrdcached's journal; None where it is on none."""
    if not mount or mount[0] != "tmpfs":
        return None
    found = re.search(r"\bsize=(\d+)k", mount[1])
    return int(found[1]) * 1024 if found else 0


def node_problems(seen: Look, times: Sequence[int], failed: Sequence[str] = (), diet: bool = True) -> list[str]:
    """What is not in order on a node. ``failed``: units that had failed before everything."""
    found = [f"{unit} has failed" for unit in seen["failed"] if unit not in failed]
    rrdcached = seen["rrdcached"]
    if rrdcached["pid"] is None:
        return [*found, "rrdcached does not run"]
    if rrdcached["stats"] is None:
        found.append("rrdcached does not answer")
    found += [f"rrdcached: {each}" for each in wanted_options(times, options_of(rrdcached["arguments"]), diet)]
    size = journal_size(seen["journal"])
    if size != (JOURNAL_BYTES if diet else None):
        found.append(f"rrdcached's journal is on {seen['journal'] or 'no file system of its own'}")
    return found


def file_problems(before: Mapping[str, Look], after: Mapping[str, Look]) -> list[str]:
    """RRD files that are gone, not whole, or of another size than before."""
    found = [f"{name} is gone" for name in before if name not in after]
    for name, each in after.items():
        if each["whole"] is None or each["size"] != each["whole"]:
            found.append(f"{name} is not whole: {each['size']} bytes, {each['whole']} by its header")
        elif name in before and each["size"] != before[name]["size"]:
            found.append(f"{name} has {each['size']} bytes, before {before[name]['size']}")
    return found


def loss(files: Mapping[str, Look], at: float) -> float:
    """Seconds before ``at`` of the oldest last value of all files; infinite where one has none."""
    return max((math.inf if each["last"] is None else at - each["last"] for each in files.values()), default=math.inf)


def cut_bound(times: Sequence[int], writeback: Sequence[float]) -> float:
    """The greatest loss of a power cut, in seconds: the interval with its jitter, looked at when a record comes; then what the
    kernel waits before it writes a page, and how often it looks.
    """
    return times[0] + times[1] + SENDING_SECONDS + sum(writeback)


def kill_bound(stats: Mapping[str, int], files: int) -> float:
    """The greatest loss of a killed rrdcached, in seconds: the rounds of records that its buffer holds, and one not yet sent.

    ``stats`` are of a daemon that replayed nothing at its start.
    """
    each = stats["JournalBytes"] / stats["UpdatesReceived"] if stats.get("UpdatesReceived") else 0
    rounds = math.ceil(BUFFER / (each * files)) if each and files else 1
    return (rounds + 1) * SENDING_SECONDS


def said(output: str) -> str:
    """What a run of Ansible says of its failures."""
    found, inside = [], False
    for line in output.splitlines():
        if re.match(r"(TASK|PLAY|RUNNING HANDLER|NO MORE)\b", line):
            inside = False
        if re.match(r"(fatal|failed): \[", line) or line.startswith("[ERROR]"):
            inside = True
        if inside:
            found.append(line)
    return "\n".join(found)


def full_verdict(run: Run, may_change: bool = False) -> tuple[str, list[str]]:
    """What a run on a full disk has come to, in words, and what is wrong with that."""
    if not run.code:
        wrong = [] if may_change else run.problems("a run on a full disk", changes=False)
        return "changed nothing" if not run.problems("", changes=False) else "succeeded", wrong
    why = said(run.output)
    short = " ".join(why.rpartition(" msg: ")[2].split())[-400:].strip("'")
    if "Traceback" in run.output or "MODULE FAILURE" in run.output or not FULL.search(why):
        return "failed", [f"a run on a full disk ended with {run.code} and no clear error: {short or run.output[-800:]}"]
    return f"said: {short}", []


def tree_problems(before: Sequence[str], after: Sequence[str], most: int = 20) -> list[str]:
    """Lines of :func:`write_diet_node.tree` that differ, - (gone) and + (new)."""
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    lines = [*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)]
    return [line for line in lines if not line[2:].startswith(KEY)][:most]


def text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"{'':10}{'what':62}{'seen':>14}{'at most':>10}"]
    for row in report["rows"]:
        most = "" if row["most"] is None else f"{row['most']:g}"
        value = f"{row['seen']:.1f}" if isinstance(row["seen"], float) else str(row["seen"])
        lines.append(f"{row['stage']:10}{row['what']:62}{value:>14}{most:>10}")
    lines += [f"{stage}: {seconds:.0f} s" for stage, seconds in report["stages"].items()]
    return "\n".join([*lines, *(f"violated: {what}" for what in report["violations"])])


# --- the lab ------------------------------------------------------------------------------------------------


def command(*words: str) -> str:
    """Shell command that runs bench/write_diet_node.py on a node."""
    program = base64.b64encode(zlib.compress(Path(write_diet_node.__file__).read_bytes(), 9)).decode()
    code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{program}')))"
    return f'/usr/bin/python3 -c "{code}" {" ".join(words)}'


class Faults:
    """The stages on one lab. What the first one noted is kept in ``work``, so that a stage can be run again."""

    def __init__(self, lab: Lab, options: argparse.Namespace) -> None:
        self.lab, self.options, self.work = lab, options, options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.report: dict[str, Any] = {"stages": {}, "guests": options.guests, "rows": [], "violations": []}
        self.stage = ""
        self.times: Sequence[int] = SHORT
        self.kept: dict[str, Any] = {}
        self.runs = len(list(self.work.glob("*.log")))

    # --- tools

    def row(self, what: str, seen: Any, most: float | None = None) -> None:
        self.report["rows"].append({"stage": self.stage, "what": what, "seen": seen, "most": most})
        print(f"{self.stage}: {what}: {seen}" + ("" if most is None else f" (at most {most:g})"), file=sys.stderr, flush=True)

    def violated(self, problems: Sequence[str], when: str = "") -> None:
        """Told at once."""
        for line in problems:
            whole = ": ".join(filter(None, [self.stage, when, line]))
            print(f"violated: {whole}", file=sys.stderr, flush=True)
            self.report["violations"].append(whole)

    def bounded(self, what: str, seen: float, most: float, when: str = "") -> None:
        if seen > most:
            self.violated([f"{what}: {seen:.1f}, at most {most:g}"], when)

    def shell(self, script: str, seconds: float = 300, good: Sequence[int] = (0,)) -> str:
        status, output = self.lab.machine(NODE).console.run(script, seconds)
        if status not in good:
            raise CannotTest(f"{NODE}: {script[:80]!r} ended with {status}: {output[-1000:]}")
        return output

    def ask(self, *words: str) -> Any:
        return json.loads(self.shell(command(*words)).strip().splitlines()[-1])

    def until(self, what: str, good: Callable[[Look], bool], seconds: float, pause: float = 3.0) -> Look:
        """Look at the node until something is so."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                seen: Look = self.ask("look")
                if good(seen):
                    return seen
            except LabError:
                # It is booting.
                self.lab.machine(NODE).reset_if_stuck()
            if time.monotonic() > deadline:
                raise CannotTest(f"not within {seconds:g} s: {what}")
            time.sleep(pause)

    def rest(self) -> Look:
        """After a boot or a run: nothing is being started any more, and rrdcached answers."""
        wanted = "no job of systemd waits, and rrdcached answers"
        return self.until(wanted, lambda seen: not seen["jobs"] and seen["rrdcached"]["stats"] is not None, REST_SECONDS)

    def check(self, when: str, diet: bool = True, times: Sequence[int] = ()) -> Look:
        """The node is as it has to be."""
        seen = self.rest()
        problems = node_problems(seen, times or self.times, self.kept["failed"], diet)
        self.violated([*problems, *file_problems(self.kept["files"], seen["files"])], when)
        return seen

    def run(self, *more: str, playbook: str = "playbooks/protect.yml") -> Run:
        """A playbook with the times of now."""
        self.runs += 1
        log = self.work / f"{self.runs:02}-{self.stage}-{Path(playbook).stem}.log"
        keys = ("write_seconds", "jitter_seconds") if self.times else ()
        times = [f"write_diet_rrdcached_{key}={value}" for key, value in zip(keys, self.times[:2], strict=True)]
        values = ["write_report_measure=never", *times, *more]
        argv = [ad_hoc.program("ansible-playbook"), "-i", "inventory/lab", playbook, *(w for v in values for w in ("-e", v))]
        settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "PVEGUARD_LAB": self.options.name}
        begun = time.monotonic()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                argv, cwd=ROOT, env={**os.environ, **settings}, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(RUN_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                end(process)
        return Run(code, log.read_text(errors="replace"), time.monotonic() - begun)

    def again(self, when: str, *more: str) -> None:
        """One more run has nothing to do."""
        self.violated(self.run(*more).problems("a further run", changes=False), when)

    def waiting(self, seconds: float, most: float = FLUSH_SECONDS) -> Look:
        """Until the oldest last value of all files is so old: newer ones wait in rrdcached."""
        what = f"values of {seconds:g} s wait to be written"
        return self.until(what, lambda seen: loss(seen["files"], seen["time"]) >= seconds, most, pause=2.0)

    # --- stages

    def protect(self) -> None:
        """A node that nothing was done to."""
        self.lab.up(profile="pve", nodes=1, fresh=True, statistics_of=self.options.guests)
        wanted = self.options.guests + 1 + STORAGES
        seen = self.until(f"{wanted} RRD files", lambda now: len(now["files"]) == wanted and not now["jobs"], FLUSH_SECONDS)
        self.kept = {key: seen[key] for key in ("files", "failed")}
        self.kept |= {"tree": self.ask("tree"), "stock": seen["rrdcached"]["arguments"]}
        (self.work / "kept.json").write_text(json.dumps(self.kept))
        first = self.run()
        if first.code:
            raise CannotTest(f"protect.yml ended with {first.code}: {first.output[-1500:]}")
        self.violated(first.problems("the first run", changes=True))
        seen = self.check("after the first run")
        self.again("after the first run")
        self.row("RRD files, MiB", f"{len(seen['files'])}, {sum(f['size'] for f in seen['files'].values()) / MIB:.1f}")

        def flushed(now: Look) -> bool:
            return all(now["files"][name]["last"] > each["last"] for name, each in seen["files"].items())

        self.until("rrdcached has written every file", flushed, FLUSH_SECONDS)

    def cut(self) -> None:
        """The power goes when most is lost."""
        greatest, there = 0.0, dict.fromkeys(MESSAGES, 0)
        bound = math.inf
        for number in range(1, self.options.cuts + 1):
            when = f"cut {number}"
            before = self.waiting(self.times[0])
            bound = cut_bound(self.times, before["writeback"])
            tag = f"write-diet-cut-{number}-{os.urandom(3).hex()}"
            # The others come a second later: a sync takes along what is there already, and what comes at once may end one.
            native = f"printf 'MESSAGE=crit\\nPRIORITY=2\\nSYSLOG_IDENTIFIER={tag}\\n' | logger --journald"
            syslog = f"logger -t {tag} -p user.crit syslog-crit && logger -t {tag} -p user.info info"
            asked = time.time()
            clock = float(self.shell(f"date +%s.%N && {native} && sleep 1 && {syslog}").split()[0])
            # A critical message is synced at once, not within the sync interval.
            time.sleep(1)
            self.lab.power_cut([NODE])
            # The node's clock was read after `asked`, so this is never earlier than the cut by its clock.
            cut = clock + time.time() - asked
            files = self.disk_files()
            self.violated(file_problems(before["files"], files), when)
            lost = loss(files, cut)
            self.bounded("seconds of statistics lost", lost, bound, when)
            greatest = max(greatest, lost)
            self.lab.start([NODE])
            self.check(f"{when}, after the boot")
            found = self.shell(f"journalctl --no-pager -o cat -t {tag}").split()
            for message in MESSAGES:
                there[message] += message in found
            if "crit" not in found:
                self.violated(["the critical message of two seconds before is lost"], when)
            self.again(f"{when}, after the boot")
        self.row("power cuts", self.options.cuts)
        self.row("greatest loss of statistics, seconds", greatest, bound)
        for message, words in MESSAGES.items():
            self.row(f"{words}, that are there", f"{there[message]} of {self.options.cuts}")

    def disk_files(self) -> dict[str, Look]:
        """RRD files on the disk of a node without power."""
        image, store = self.work / "var.raw", self.work / "db"
        try:
            disk.raw_copy(self.lab.machine(NODE).var_disk, image)
            disk.take_out(image, "/rrdcached/db", store)
            return write_diet_node.files(str(store))
        except disk.DiskError as error:
            raise CannotTest(f"the disk could not be read: {error}") from error
        finally:
            image.unlink(missing_ok=True)
            shutil.rmtree(store, ignore_errors=True)

    def hourly(self) -> None:
        """Nothing is written for an hour from now on, but by a stop."""
        if self.times != DEFAULT:
            self.times = DEFAULT
            self.violated(self.run().problems("a run with another interval"))
            self.check("with an interval of an hour")

    def reboots(self) -> None:
        """Orderly ones."""
        self.hourly()
        greatest, waited, most = -math.inf, math.inf, 2 * SENDING_SECONDS
        for number in range(1, self.options.reboots + 1):
            when = f"reboot {number}"
            before = self.waiting(3 * SENDING_SECONDS)
            # In good order, as a reboot does it; a new QEMU is there sooner than an emulated one that resets itself.
            self.lab.power_off([NODE])
            self.lab.start([NODE])
            seen = self.check(when)
            stops = self.ask("stops")
            if set(stops) != set(write_diet_node.UNITS):
                raise CannotTest(f"{when}: the journal does not say when they stopped: {stops}")
            # Whichever stopped first: from then on nothing was taken in any more.
            stopped = min(stops.values())
            lost = loss(seen["files"], stopped)
            waited = min(waited, loss(before["files"], stopped))
            greatest = max(greatest, lost)
            self.bounded("seconds of statistics lost", lost, most, when)
        self.row("orderly reboots with an interval of an hour", self.options.reboots)
        self.row("greatest loss of statistics, seconds", greatest, most)
        self.row("... least age of what was in the files before a stop, seconds", waited)
        self.again("after the last reboot")

    def kill(self) -> None:
        """SIGKILL, while nobody sends anything any more, so that nothing newer hides a loss."""
        self.hourly()
        before = self.waiting(6 * SENDING_SECONDS)
        stats, count = before["rrdcached"]["stats"], len(before["files"])
        pid = before["rrdcached"]["pid"]
        killed = float(self.shell(f"systemctl stop pvestatd && date +%s.%N && kill -KILL {pid}").split()[0])
        gone = self.until("rrdcached is gone", lambda seen: seen["rrdcached"]["pid"] is None, 60)
        waited = loss(gone["files"], killed)
        run = self.run()
        self.violated(run.problems("the run after the kill", changes=True))
        if "Write RRD files late" not in str(run_changes(run)):
            self.violated([f"the run after the kill has not started rrdcached, but changed {run_changes(run)}"])
        self.check("after the run")
        seen = self.ask("flush")
        self.violated(file_problems(self.kept["files"], seen["files"]))
        lost, bound = loss(seen["files"], killed), kill_bound(stats, count)
        self.bounded("seconds of statistics lost", lost, bound)
        self.row("rrdcached killed: age of what was in the files, seconds", waited)
        self.row("... loss once the next run had started it, seconds", lost, bound)
        self.shell("systemctl start pvestatd")
        self.again("after the kill")

    def full(self) -> None:
        """No block is left, on one file system after the other."""
        self.hourly()
        for folder in ("/var/lib", "/"):
            when = f"{folder} full"
            self.fill(folder)
            before = self.rest()
            received = before["rrdcached"]["stats"]["UpdatesReceived"] + 2 * len(before["files"])

            def goes_on(seen: Look, received: int = received) -> bool:
                return bool((seen["rrdcached"]["stats"] or {}).get("UpdatesReceived", 0) >= received)

            seen = self.until("rrdcached takes in two more rounds", goes_on, REST_SECONDS)
            if seen["rrdcached"]["pid"] != before["rrdcached"]["pid"]:
                self.violated(["rrdcached is another process"], when)
            words, wrong = full_verdict(self.run())
            self.row(f"{when}: a run", words)
            self.violated(wrong, when)
            self.check(when)
            self.switch_on(folder, "smartd", SMARTD)
            self.switch_on(folder, "journald", JOURNALD)
            self.free(folder)
            self.again(f"{folder} free again")
            self.check(f"{folder} free again")
            self.violated(self.run(WITHOUT).problems("a run without the measure of rrdcached", changes=True))
            self.check("without the measure of rrdcached", diet=False, times=STOCK)
            self.fill(folder)
            self.switch_on(folder, "rrdcached")
            self.free(folder)
            when = f"{folder} free again, all of them on"
            self.violated(self.run(SMARTD, JOURNALD).problems("a run", changes=True), when)
            self.check(when)
            self.violated(self.run().problems("a run", changes=True), f"{folder} free again, as before")
        self.check("as before")
        self.again("as before")

    def switch_on(self, folder: str, what: str, *values: str) -> None:
        """A measure that is switched on while there is no space."""
        when = f"{folder} full, {what} switched on"
        before, was = self.ask("tree"), self.rest()
        run = self.run(*values)
        words, wrong = full_verdict(run, may_change=True)
        self.row(when, words)
        self.violated(wrong, when)
        seen = self.rest()
        if run.code:
            self.violated(tree_problems(before, self.ask("tree")), when)
            if seen["rrdcached"]["pid"] != was["rrdcached"]["pid"]:
                self.violated(["rrdcached was restarted"], when)
            if seen["journal"] != was["journal"]:
                self.violated([f"rrdcached's journal is on {seen['journal']}, before on {was['journal']}"], when)
        self.violated([f"{unit} has failed" for unit in seen["failed"] if unit not in self.kept["failed"]], when)
        self.violated(file_problems(self.kept["files"], seen["files"]), when)

    def fill(self, folder: str) -> None:
        shell = command("fill", folder)
        self.shell(f"systemd-run --quiet --collect --unit write-diet-fill sh -c {shlex.quote('exec ' + shell)}")
        self.until(f"{folder} is full", lambda seen: folder in seen["full"], REST_SECONDS)

    def free(self, folder: str) -> None:
        path = os.path.join(folder, write_diet_node.FILL)
        self.shell(f"systemctl stop write-diet-fill; rm -f {path} && sync {folder}")
        self.until(f"{folder} is free", lambda seen: folder not in seen["full"], REST_SECONDS)

    def revert(self) -> None:
        """Back to stock."""
        run = self.run(playbook="playbooks/revert.yml")
        self.violated(run.problems("revert.yml", changes=True))
        self.times = STOCK
        seen = self.check("after the revert", diet=False)
        if seen["rrdcached"]["arguments"] != self.kept["stock"]:
            self.violated([f"rrdcached runs with {seen['rrdcached']['arguments']}, before with {self.kept['stock']}"])
        tree = self.ask("tree")
        self.violated(tree_problems(self.kept["tree"], tree))
        # An empty folder of files as they were is no file of anybody's.
        kept = "find /var/lib/pveguard/managed /var/lib/pveguard/write_diet /run/pveguard/write_diet -mindepth 1"
        found = self.shell(f"{kept} 2>/dev/null; ls -d /var/lib/rrdcached/.[!.]* 2>/dev/null; true").split()
        self.violated([f"{path} is left" for path in found])
        self.row("files and folders of /etc and /usr/local that were compared", len(tree))
        self.violated(self.run(playbook="playbooks/revert.yml").problems("a second revert.yml", changes=False))


def run_changes(run: Run) -> list[str]:
    """The tasks that changed something."""
    found = []
    task = ""
    for line in run.output.splitlines():
        if match := re.match(r"TASK \[(.*)\] \**$", line):
            task = match[1]
        if line.startswith("changed: "):
            found.append(task)
    return found


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="the lab, which is made anew")
    parser.add_argument("--guests", type=int, default=20, help="whose statistics the node stores (default 20)")
    parser.add_argument("--cuts", type=int, default=3, metavar="N", help="power cuts (default 3)")
    parser.add_argument("--reboots", type=int, default=10, metavar="N", help="orderly reboots (default 10)")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, in order, on a lab where those before were run")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/write-diet-faults", help="where output and notes are kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args(argv)
    options.stages = options.stages.split(",")
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"--stages: {', '.join(sorted(unknown))}: wanted some of {','.join(STAGES)}")
    return options


def main() -> int:
    options = arguments()
    faults = Faults(Lab(options.name), options)
    code = 0
    try:
        if "protect" not in options.stages:
            try:
                faults.kept = json.loads((options.work / "kept.json").read_text())
            except OSError as error:
                raise CannotTest(f"no stage 'protect' has been run: {error}") from error
            faults.times = SHORT if "cut" in options.stages else ()
        for stage in [stage for stage in STAGES if stage in options.stages]:
            faults.stage, begun = stage, time.monotonic()
            getattr(faults, stage)()
            faults.report["stages"][stage] = round(time.monotonic() - begun, 1)
    except (CannotTest, LabError, OSError, subprocess.SubprocessError) as error:
        print(f"write_diet_faults: {faults.stage}: {error}", file=sys.stderr)
        code = 2
    report = faults.report
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if options.json else text(report))
    return code or (1 if report["violations"] else 0)


if __name__ == "__main__":
    sys.exit(main())
