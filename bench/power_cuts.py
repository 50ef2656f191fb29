#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cut the power of protected lab nodes at random moments of a busy time, and check what comes back.

Each round: a reproducible sequence of changes (bench/changes.py) runs on some nodes: small writes, bursts of 512
bytes, renames over, deletes, restarts of pve-cluster, ``pve-state save --generation``. The controller writes a change
into its ledger only after the node has acknowledged it. Then QEMU is killed, on one node or on all at once.

1. Before the node boots, its disk is read as it lies there: the replica must verify, and must hold the state after
   one moment of the node's own sequence, at most the RPO before the cut. This is what a node without peers has.
2. The node boots. Without a hand it must become quorate, ready and healthy; the cluster must hold the state after one
   moment of every sequence, with every change that was acknowledged more than the RPO before the cut; on nodes that
   were not cut, every acknowledged change. All members must hold the same, everything else in /etc/pve must be as
   before, ``pve-state verify`` must pass and systemd must not have met an ordering cycle.

Times. A change's age at the cut is counted from the node's own clock at the acknowledgement, carried over to this
machine's monotonic clock by the smallest delay that any line of that connection showed, so it is never older than it
really was; the cut is the moment before the first QEMU is killed. A change near the RPO thus counts as younger. Losses
are reported the other way round, up to the moment when the last QEMU was gone.

    python -m lab --name cuts up --profile cluster && PVEGUARD_LAB=cuts ansible-playbook -i inventory/lab playbooks/protect.yml
    python bench/power_cuts.py --name cuts --cuts 100 --mode mixed --seed 1

Exit status: 0 nothing was violated, 1 violations (printed with their ledger lines), 2 the test could not be done.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import changes  # noqa: E402
import disk  # noqa: E402
from totals import show  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

#: Changes that a node may have made without an acknowledgement having arrived here.
UNSEEN = 300
#: Seconds: a login on an emulated node and the clearing of its folder; a node until it is in order; a busy last change.
START_SECONDS = 120.0
ORDER_SECONDS = 420.0
END_SECONDS = 300.0


class CannotTest(Exception):
    """The test could not be done; nothing is said about the state."""


def node_command(*arguments: str) -> str:
    """Shell command that runs bench/changes.py on a node, stdin left free."""
    program = base64.b64encode(zlib.compress((ROOT / "bench/changes.py").read_bytes(), 9)).decode()
    code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{program}')))"
    return f'/usr/bin/python3 -c "{code}" {" ".join(arguments)}'


# --- the ledger ---------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What one node acknowledged in one round: ``acknowledged[i]`` is (CLOCK_MONOTONIC of the node, of this machine)
    of change i + 1, in seconds."""

    seed: str
    node: str
    acknowledged: list[tuple[float, float]] = field(default_factory=list)
    started: tuple[float, float] | None = None
    events: list[str] = field(default_factory=list)
    tries: int = 0  # changes that needed more than one try
    error: str = ""
    ended: bool = False

    def read(self, line: str, now: float) -> None:
        """Take in one line of the writer, received at ``now`` (this machine's monotonic clock).

        A line that the cut broke off is none.
        """
        if not line.endswith("\n"):
            return
        words = line.split()
        if words[:1] == ["ack"] and len(words) == 4:
            if int(words[1]) != len(self.acknowledged) + 1:
                self.error = self.error or f"acknowledgement {words[1]} after {len(self.acknowledged)}"
                return
            self.acknowledged.append((int(words[2]) / 1e9, now))
            self.tries += int(words[3]) > 1
        elif words[:1] == ["start"]:
            self.started = (int(words[1]) / 1e9, now)
        elif words[:1] == ["event"]:
            self.events.append(words[1])
        elif words[:1] == ["end"]:
            self.ended = True
        elif words:
            self.error = (self.error + " " + line.strip())[-500:].strip()

    def times(self) -> list[float]:
        """When each change was acknowledged, on this machine's clock: not earlier than it really was."""
        pairs = [*([self.started] if self.started else []), *self.acknowledged]
        offset = min((here - there for there, here in pairs), default=0.0)
        return [there + offset for there, _ in self.acknowledged]

    def required(self, cut: float, rpo: float) -> int:
        """How many changes were acknowledged more than ``rpo`` seconds before ``cut``."""
        return sum(1 for at in self.times() if cut - at > rpo)


def matches(found: changes.Digests, seed: str, node: str, most: int) -> list[int]:
    """Numbers of complete changes after which the sequence's state is ``found``, up to ``most``, ascending.

    In the middle of change n, between two transactions of the daemon, n - 1 changes are complete.
    """
    state: changes.State = {}
    good: list[int] = []

    def same() -> bool:
        if state.keys() != found.keys():
            return False
        if any((-1 if c is None else len(c)) != found[path][0] for path, c in state.items()):
            return False
        return all(changes.digest(content) == tuple(found[path]) for path, content in state.items())

    equal = same()
    if equal:
        good.append(0)
    for number, change in enumerate(changes.changes(seed, node), 1):
        if number > most:
            break
        for _ in changes.steps(change, state):
            equal = same()
            if equal:
                good.append(number - 1)
        if equal:
            good.append(number)
    return sorted(set(good))


@dataclass
class Verdict:
    """What a state is worth: ``kept`` complete changes, seconds before the cut of the oldest acknowledged one that is
    lost (0: none), and a violation or an empty text."""

    kept: int | None
    lost: int = 0
    loss_seconds: float = 0.0
    violation: str = ""


def judge(
    ledger: Ledger, found: changes.Digests, cut: tuple[float, float] | None, rpo: float, what: str
) -> Verdict:
    """Compare a state with a node's sequence. ``cut``: (before the first kill, after the last); None: nobody cut
    this node, so every acknowledged change must be there."""
    acknowledged = len(ledger.acknowledged)
    required = ledger.required(cut[0], rpo) if cut else acknowledged
    good = matches(found, ledger.seed, ledger.node, acknowledged + UNSEEN)
    if not good:
        return Verdict(
            None,
            violation=f"{what}: the files of {ledger.node} are in no state they ever were in: {short(found)}",
        )
    kept = max(good)
    lost = max(0, acknowledged - kept)
    loss = max(0.0, cut[1] - ledger.times()[kept]) if lost and cut else 0.0
    verdict = Verdict(kept, lost, loss)
    if kept < required:
        verdict.violation = f"{what}: of {ledger.node}'s changes {required} had to be there, {kept} are" + (
            f"; the oldest one lost was acknowledged {loss:.2f} s before the power was gone" if cut else ""
        )
    return verdict


def short(found: changes.Digests) -> str:
    return (
        ", ".join(f"{path} {size} bytes {sha[:8]}" for path, (size, sha) in sorted(found.items()))
        or "no file"
    )


def ledger_lines(ledger: Ledger, kept: int, cut: float | None, context: int = 12) -> list[str]:
    """The ledger around the first change that is missing."""
    times = ledger.times()
    sequence = changes.changes(ledger.seed, ledger.node)
    lines = []
    for number, change in enumerate(sequence, 1):
        if number > min(len(times), kept + context):
            break
        if number > kept - 3:
            age = f"{cut - times[number - 1]:8.3f} s before the cut" if cut else "acknowledged"
            lines.append(f"  {ledger.node} {number:5} {age}  {describe(change)}")
    return lines


def describe(change: changes.Change) -> str:
    words = [change.kind, change.path, change.target and f"-> {change.target}"]
    if change.data:
        words.append(
            f"{len(change.data)} bytes at {int(change.offset)} sha256 {changes.digest(change.data)[1][:8]}"
        )
    return " ".join(filter(None, words))


# --- nodes ---------------------------------------------------------------------------------------------------------


class Writer:
    """The sequence running on a node, and its ledger."""

    def __init__(self, lab: Lab, node: str, seed: str, *arguments: str) -> None:
        self.ledger = Ledger(seed, node)
        self.started = threading.Event()
        argv = lab.ssh_argv(node, [node_command("write", seed, node, *arguments)])
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.ledger.read(line, time.monotonic())
            if self.ledger.started:
                self.started.set()
        self.started.set()

    def finish(self, seconds: float = END_SECONDS) -> None:
        """End the sequence in good order: the running change is finished and acknowledged."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CannotTest(
                f"{self.ledger.node}: the last change has not ended within {seconds:.0f} s"
            ) from None
        self.thread.join(10)
        if not self.ledger.ended:
            raise CannotTest(
                f"{self.ledger.node}: the changes ended early: {self.ledger.error or 'no reason given'}"
            )

    def gone(self) -> None:
        """After the cut: take in what still arrives, then let go."""
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.thread.join(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def look(lab: Lab, node: str, members: int, seconds: float = ORDER_SECONDS) -> dict[str, Any]:
    """What bench/changes.py sees on a node, by the serial console: no login, no network, no /etc/pve needed."""
    console = lab.machine(node).console
    deadline = time.monotonic() + seconds
    while True:
        # A machine that is booting has no agent yet, and what is sent to it then is lost: ask something short first.
        try:
            console.run("true", 5)
            break
        except LabError as error:
            if time.monotonic() > deadline:
                raise CannotTest(f"{node}: {error}") from error
            lab.machine(node).reset_if_stuck()
            time.sleep(0.5)
    left = max(1.0, deadline - time.monotonic())
    command = node_command("look", "--wait", f"{left:.0f}", "--members", str(members))
    status, text = console.run(command, left + 120)
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise CannotTest(f"{node}: the look ended with {status}: {text[-500:]}") from None
    assert isinstance(found, dict)
    return found


def health(node: str, seen: dict[str, Any]) -> list[str]:
    """What is not as it must be on a node that came back, or never was away."""
    found = []
    if seen["lacks"]:
        found.append(f"{node} is not in order after {seen['waited_seconds']:.0f} s: {seen['lacks']}")
    if seen["verify"]["code"] != 0:
        found.append(f"{node}: pve-state verify: {seen['verify']}")
    status = seen["status"]
    if status["code"] != 0 or status["state"] != "enabled":
        found.append(f"{node}: pve-state status: {status['state']}: {status['reason']}")
    if seen["damaged"]:
        found.append(f"{node}: files were set aside as damaged: {', '.join(seen['damaged'])}")
    if seen["ordering_cycle"]:
        found.append(f"{node}: {seen['ordering_cycle'][0]}")
    return found


# --- a round -------------------------------------------------------------------------------------------------------


@dataclass
class Totals:
    """The summary that is printed in the end."""

    seed: str
    rpo_seconds: float
    cuts: int = 0
    node_cuts: int = 0
    cuts_of_all_nodes: int = 0
    cuts_of_one_node: int = 0
    changes_acknowledged: int = 0
    changes_older_than_rpo: int = 0
    younger_changes_lost: int = 0
    max_loss_seconds: float = 0.0
    disks_checked: int = 0
    disk_younger_changes_lost: int = 0
    disk_max_loss_seconds: float = 0.0
    restarts: int = 0
    generations: int = 0
    slowest_in_order_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Campaign:
    """Rounds on one lab. ``totals`` grows with each."""

    def __init__(self, lab: Lab, seed: str, rpo: float, work: Path, busy: tuple[float, float]) -> None:
        self.lab, self.seed, self.rpo, self.work, self.busy = lab, seed, rpo, work, busy
        self.nodes = [machine.name for machine in lab.machines()]
        self.totals = Totals(seed, rpo)
        self.rest = ""
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self.ledger_file: TextIO = (work / "ledger.jsonl").open("w")

    def prepare(self) -> None:
        """Refuse nodes that are not protected and in order; note what else is in /etc/pve."""
        seen = self._look_at(self.nodes)
        problems = [problem for node in self.nodes for problem in health(node, seen[node])]
        if problems:
            raise CannotTest("the nodes are not in order before the first cut: " + "; ".join(problems))
        rests = {seen[node]["rest_sha256"] for node in self.nodes}
        if len(rests) != 1:
            raise CannotTest("the nodes do not hold the same configuration before the first cut")
        self.rest = rests.pop()

    def _look_at(self, nodes: list[str]) -> dict[str, dict[str, Any]]:
        with ThreadPoolExecutor(len(nodes)) as pool:
            return dict(
                zip(nodes, pool.map(lambda n: look(self.lab, n, len(self.nodes)), nodes), strict=True)
            )

    def round(self, number: int, mode: str) -> None:
        """One power cut, from the first change to the verdict."""
        rng = random.Random(f"{self.seed}/{number}")
        # One of each first, so that a run that time cuts short has both.
        mixed = {1: "all", 2: "single"}.get(number) or rng.choice(["single", "all"])
        chosen = mode if mode != "mixed" else mixed
        victims = list(self.nodes) if chosen == "all" else [rng.choice(self.nodes)]
        others = [node for node in self.nodes if node not in victims]
        writing = victims + [node for node in others if rng.random() < 0.5]
        busy = rng.uniform(*self.busy)
        writers = {node: Writer(self.lab, node, f"{self.seed}-{number}") for node in writing}
        try:
            self._round(number, chosen, victims, writers, busy)
        finally:
            for writer in writers.values():
                if writer.process.poll() is None:
                    writer.kill()

    def _round(
        self, number: int, mode: str, victims: list[str], writers: dict[str, Writer], busy: float
    ) -> None:
        for node, writer in writers.items():
            if not writer.started.wait(START_SECONDS) or writer.ledger.started is None:
                raise CannotTest(f"{node}: the changes did not begin: {writer.ledger.error or 'no answer'}")
        time.sleep(busy)
        early = [f"{n}: {w.ledger.error}" for n, w in writers.items() if w.process.poll() is not None]
        if early:
            raise CannotTest(f"the changes ended before the cut: {'; '.join(early)}")

        before = time.monotonic()
        self.lab.power_cut(victims)
        cut = (before, time.monotonic())
        for node in victims:
            writers[node].gone()
        violations: list[str] = []
        with ThreadPoolExecutor(len(victims)) as pool:
            for lines in pool.map(lambda node: self._check_disk(node, writers[node].ledger, cut), victims):
                violations += lines

        self.lab.start(victims, wait=False)
        back = self._look_at(victims)
        for node, writer in writers.items():
            if node not in victims:
                writer.finish()
        seen = self._look_at(self.nodes)
        violations += self._check_cluster(victims, writers, cut, back, seen)
        self._count(mode, victims, writers, cut, back)
        self._note(number, mode, victims, writers, cut, violations)
        self.totals.violations += [
            f"cut {number} ({mode} {','.join(victims)}): {line}" for line in violations
        ]

    def _check_disk(self, node: str, ledger: Ledger, cut: tuple[float, float]) -> list[str]:
        """The node's disk as the power cut left it, before anything boots from it."""
        image, store = self.work / f"{node}.raw", self.work / f"{node}.store"
        try:
            disk.raw_copy(self.lab.machine(node).var_disk, image)
            disk.take_out(image, "/pveguard/state", store)
        except disk.DiskError as error:
            raise CannotTest(f"{node}: its disk could not be read: {error}") from error
        finally:
            image.unlink(missing_ok=True)
        found = [f"disk of {node}: {problem}" for problem in disk.problems(store)]
        if any("generation" not in line for line in found):
            return found
        held = disk.digests(store / "config.db")
        verdict = judge(ledger, held.get(node, {}), cut, self.rpo, f"disk of {node}")
        self.totals.disks_checked += 1
        if verdict.violation:
            found.append(verdict.violation)
            found += ledger_lines(ledger, verdict.kept or 0, cut[0])
        else:
            self.totals.disk_younger_changes_lost += verdict.lost
            self.totals.disk_max_loss_seconds = max(self.totals.disk_max_loss_seconds, verdict.loss_seconds)
            shutil.rmtree(store)
        return found

    def _check_cluster(
        self, victims: list[str], writers: dict[str, Writer], cut: tuple[float, float],
        back: dict[str, dict[str, Any]], seen: dict[str, dict[str, Any]],
    ) -> list[str]:  # fmt: skip
        found = [problem for node in self.nodes for problem in health(node, seen[node])]
        for node in victims:
            restored = back[node]["status"]["restore"] or {}
            if restored.get("source") != "replica" or restored.get("clean"):
                found.append(f"{node} did not come back from its replica after an unclean stop: {restored}")
        first = self.nodes[0]
        for node in self.nodes:
            if seen[node]["rest_sha256"] != self.rest:
                found.append(f"{node}: something else in /etc/pve is not what it was")
            if seen[node]["files"] != seen[first]["files"]:
                found.append(f"{node} and {first} do not hold the same files")
        for node, writer in writers.items():
            held = seen[first]["files"].get(node, {})
            was_cut = cut if node in victims else None
            verdict = judge(writer.ledger, held, was_cut, self.rpo, "cluster")
            if verdict.violation:
                found.append(verdict.violation)
                found += ledger_lines(writer.ledger, verdict.kept or 0, was_cut[0] if was_cut else None)
            else:
                self.totals.younger_changes_lost += verdict.lost
                self.totals.max_loss_seconds = max(self.totals.max_loss_seconds, verdict.loss_seconds)
        return found

    def _count(
        self, mode: str, victims: list[str], writers: dict[str, Writer], cut: tuple[float, float],
        back: dict[str, dict[str, Any]],
    ) -> None:  # fmt: skip
        totals = self.totals
        totals.cuts += 1
        totals.node_cuts += len(victims)
        totals.cuts_of_all_nodes += mode == "all"
        totals.cuts_of_one_node += mode == "single"
        for node, writer in writers.items():
            ledger = writer.ledger
            totals.changes_acknowledged += len(ledger.acknowledged)
            if node in victims:
                totals.changes_older_than_rpo += ledger.required(cut[0], self.rpo)
            totals.restarts += ledger.events.count("restart")
            totals.generations += ledger.events.count("generation")
        slowest = max(seen["waited_seconds"] for seen in back.values())
        totals.slowest_in_order_seconds = max(totals.slowest_in_order_seconds, slowest)

    def _note(
        self, number: int, mode: str, victims: list[str], writers: dict[str, Writer], cut: tuple[float, float],
        violations: list[str],
    ) -> None:  # fmt: skip
        """One line of the ledger file per round."""
        entry = {
            "round": number, "mode": mode, "victims": victims, "cut": cut, "violations": violations,
            "nodes": {
                node: {"seed": w.ledger.seed, "acknowledged": [round(at, 4) for at in w.ledger.times()],
                       "events": w.ledger.events, "retried": w.ledger.tries}
                for node, w in writers.items()
            },
        }  # fmt: skip
        self.ledger_file.write(json.dumps(entry) + "\n")
        self.ledger_file.flush()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    top.add_argument(
        "--name", default=os.environ.get("PVEGUARD_LAB") or "default", help="the lab (default: $PVEGUARD_LAB)"
    )
    top.add_argument("--cuts", type=int, default=12, metavar="N",
                     help="how often a node loses its power, all at once being one for each (default 12)")  # fmt: skip
    top.add_argument("--mode", choices=["single", "all", "mixed"], default="mixed",
                     help="one node, all at once, or both at random (default)")  # fmt: skip
    top.add_argument(
        "--seed", default="1", help="the same seed makes the same changes and chooses the same nodes"
    )
    top.add_argument(
        "--rpo", type=float, default=2.0, metavar="SECONDS", help="ram_state_rpo_seconds (default 2)"
    )
    top.add_argument("--busy", type=float, nargs=2, default=[3.5, 14.0], metavar=("FROM", "TO"),
                     help="seconds of changes before a cut (default 3.5 14)")  # fmt: skip
    top.add_argument("--minutes", type=float, default=0, metavar="M", help="begin no cut later than this")
    top.add_argument(
        "--work", type=Path, default=ROOT / ".cache/power_cuts", help="where ledger and disks are kept"
    )
    top.add_argument("--json", action="store_true", help="print the summary as JSON")
    return top


def main() -> int:
    options = parser().parse_args()
    begin = time.monotonic()
    try:
        lab = Lab(options.name)
        lab.select(["all"], running=True)
        campaign = Campaign(lab, options.seed, options.rpo, options.work, tuple(options.busy))
        totals = campaign.totals
        campaign.prepare()
        for number in itertools.count(1):
            if totals.node_cuts >= options.cuts:
                break
            if options.minutes and time.monotonic() - begin > options.minutes * 60:
                print(f"stopped after {options.minutes:g} minutes", file=sys.stderr)
                break
            started, known = time.monotonic(), len(totals.violations)
            campaign.round(number, options.mode)
            new = totals.violations[known:]
            print(
                f"cut {number}: {'; '.join(new) or 'good'} ({time.monotonic() - started:.0f} s)",
                file=sys.stderr,
            )
            if any("is not in order" in line for line in new):
                print("stopped: a node does not come back by itself", file=sys.stderr)
                break
    except (CannotTest, LabError) as error:
        print(f"power_cuts: {error}", file=sys.stderr)
        return 2
    totals.seconds = round(time.monotonic() - begin, 1)
    return show(totals, options.json)


if __name__ == "__main__":
    sys.exit(main())
