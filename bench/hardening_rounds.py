#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plant bad changes in the hardening of lab nodes, interrupt it, and see that nobody is ever locked out.

Each round, drawn from a seed, on one of the members of a cluster on two rings:

1. Something bad is planted. ``seen``: somebody else's setting, which the role has to refuse. ``blind``: in the role's own
   change, its judgement switched off in a copy of the product, so that only the proofs and the timer are left. Or nothing: a
   good change, which an interruption must take back all the same.
2. The role runs, and is let alone or, after the change and before its confirmation, interrupted: the controller dies (kill -9 of
   the play and its ssh), the node is rebooted, its power is cut.
3. Within the deadline nothing is left that could still change: the controller and every member get in everywhere over new
   connections (as Proxmox VE goes, with a UNIX socket forwarded), every file of /etc is byte for byte what it was, the timers are
   at rest, and the play, or where it died the node's journal, says why. A good change that was let alone is kept, and
   reverted.

It first locks a node out for real, and sees that: the check can fail (``--no-prove`` leaves that out).

    python -m lab --name hardening up --profile cluster
    python bench/hardening_rounds.py --name hardening --rounds 40 --seed 1 --json

Exit status: 0 nothing was violated, 1 violations, 2 the test could not be done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402
from hardening_nodes import AT_WORK, CannotTest, Nodes, differences, environment  # noqa: E402
from totals import show  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

#: A play on an emulated node of a busy machine; what the look at an undo costs.
RUN_SECONDS = 900.0
SLACK_SECONDS = 90.0
SNAPSHOT = "hardening-rounds"
FAULTS = ("none", "kill", "reboot", "power")
OTHER = "/etc/ssh/sshd_config.d/50-other.conf"
SSHD, FIREWALL = "hardening-sshd", "hardening-firewall"
#: Seconds until a node takes the change back, by its timer; not shorter than the role allows.
DEADLINES = {SSHD: 60, FIREWALL: 120}


@dataclass(frozen=True)
class Plant:
    """``seen``: shell script that plants it as somebody else's, ``clear`` takes it out again; ``refused``: what the role says
    then. ``blind``: lines for the role's own file; ``unproved``: what the proofs say then. ``variables`` of the role. The
    ``timer`` says what it is about: sshd of one node, or the firewall of all.
    """

    seen: str = ""
    clear: str = ""
    refused: str = ""
    blind: str = ""
    unproved: str = ""
    timer: str = SSHD
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not self.seen and not self.blind


def firewall(**more: Any) -> dict[str, Any]:
    return {"node_hardening_firewall": "enforce", "node_hardening_firewall_cluster_name": "pvelab", **more}


#: Where QEMU's user network has the controller come from.
CONTROLLER = "10.0.2.2"


def other(line: str) -> tuple[str, str]:
    return f"umask 022; echo {shlex.quote(line)} > {OTHER}", f"rm {OTHER}"


KEY = "/etc/ssh/ssh_host_rsa_key"
PLANTS = {
    "good": Plant(),
    "no_key": Plant(
        *other("AuthorizedKeysFile /etc/ssh/keys/%u"),
        r"root has no key|stands in none of",
        "AuthorizedKeysFile /etc/ssh/keys/%u",
        r"not proved: .*Permission denied",
    ),
    "allow_users": Plant(
        *other("AllowUsers nobody"),
        r"AllowUsers nobody leaves root out",
        "AllowUsers nobody",
        r"not proved: .*Permission denied",
    ),
    "no_rsa": Plant(
        f"mkdir /root/rounds && mv {KEY} {KEY}.pub /root/rounds/",
        "mv /root/rounds/ssh_host_rsa_key* /etc/ssh/ && rmdir /root/rounds",
        r"there is no RSA host key",
        "HostKey /etc/ssh/ssh_host_ed25519_key",
        r"not proved: .*(Host key verification failed|no matching host key)",
    ),
    "no_forwarding": Plant(
        *other("DisableForwarding yes"),
        r"DisableForwarding yes: a migration forwards a UNIX socket",
        "DisableForwarding yes",
        r"not proved: .*a forwarded UNIX socket does not",
    ),
    "no_include": Plant(
        "cp -p /etc/ssh/sshd_config /root/sshd_config.rounds && sed -i '/^Include/d' /etc/ssh/sshd_config",
        "mv /root/sshd_config.rounds /etc/ssh/sshd_config",
        r"so a drop-in does not come first",
    ),
    "firewall_good": Plant(
        timer=FIREWALL, variables=firewall(node_hardening_firewall_management=[CONTROLLER])
    ),
    "firewall_no_controller": Plant(
        "true",
        "true",
        r"the controller \(10\.0\.2\.2\) is not in the management set",
        "[OPTIONS]\n\nenable: 1\npolicy_in: DROP\n",
        r"was not proved: .*(UNREACHABLE|unreachable|Failed to connect|no answer|timed out)",
        FIREWALL,
        firewall(),
    ),
    "firewall_no_ring": Plant(
        "printf '[RULES]\n\nIN DROP -p udp -dport 5406\n' > /etc/pve/local/host.fw",
        "rm /etc/pve/local/host.fw",
        r"corosync link 1 .*would not pass",
        timer=FIREWALL,
        variables=firewall(node_hardening_firewall_management=[CONTROLLER]),
    ),
}
Kind = tuple[str, str, str]


def kinds(plants: Sequence[str], depths: Sequence[str], faults: Sequence[str]) -> list[Kind]:
    """All ``(plant, depth, fault)`` of these. Where the role refuses there is nothing to interrupt."""
    found: list[Kind] = []
    for name in plants:
        plant = PLANTS[name]
        if plant.good:
            found += [(name, "good", fault) for fault in faults]
        if plant.seen and "seen" in depths and "none" in faults:
            found.append((name, "seen", "none"))
        if plant.blind and "blind" in depths:
            found += [(name, "blind", fault) for fault in faults]
    return found


@dataclass
class Totals:
    """The summary."""

    seed: str
    rounds: int = 0
    #: ``plant, depth, fault``: how often.
    kinds: dict[str, int] = field(default_factory=dict)
    #: What became of the changes.
    refused: int = 0
    taken_back: int = 0
    kept_and_reverted: int = 0
    #: The confirmation came before the interruption.
    too_late: int = 0
    lock_outs_for_real: int = 0
    lock_outs: int = 0
    #: From the change to the end of its undo by the node itself, as the console saw it.
    longest_undo_seconds: float = 0.0
    longest_round_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Play:
    """A run of the role with ssh of its own, so that all of it can be killed."""

    def __init__(self, inventory: str, work: Path, name: str) -> None:
        self.inventory, self.work, self.log = inventory, work, work / f"{name}.log"
        # Short, as a socket's path is.
        self.connections = tempfile.mkdtemp(prefix="hr-")
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, hosts: str, variables: Mapping[str, Any], *, utils: str = "", tasks: str = "main.yml"
    ) -> None:
        task = {"import_role": {"name": "node_hardening", "tasks_from": tasks}}
        play = {
            "hosts": hosts,
            "gather_facts": False,
            "serial": 0 if tasks == "together.yml" else 1,
            "tasks": [task],
        }
        book = self.work / "play.yml"
        book.write_text(json.dumps([play]))
        more = {"ANSIBLE_SSH_CONTROL_PATH_DIR": self.connections, "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
        if utils:
            more["ANSIBLE_MODULE_UTILS"] = utils
        argv = [
            ad_hoc.program("ansible-playbook"),
            "-i",
            self.inventory,
            str(book),
            "-e",
            json.dumps(dict(variables)),
        ]
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=environment(**more), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return -1

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def said(self) -> str:
        return " ".join(self.log.read_text(errors="replace").split())

    def kill(self) -> None:
        """The controller dies: the play, and the connections that it has left open."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self.connections.encode() in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue
        shutil.rmtree(self.connections, ignore_errors=True)


class Campaign:
    """Rounds on one lab. ``totals`` grows with each."""

    def __init__(self, nodes: Nodes, seed: str, inventory: str, work: Path, chosen: Sequence[Kind]) -> None:
        self.nodes, self.seed, self.inventory, self.work, self.chosen = (
            nodes,
            seed,
            inventory,
            work,
            list(chosen),
        )
        self.totals = Totals(seed)
        self.before: dict[str, dict[str, Any]] = {}
        work.mkdir(parents=True, exist_ok=True)

    def begin(self, prove: bool) -> None:
        if any(PLANTS[name].timer == FIREWALL for name, _, _ in self.chosen):
            self.nodes.lab.services(["firewall", "pveproxy"], True)
        self.nodes.keys_of_root()
        self.nodes.second_key()
        self.nodes.add_second_ring()
        if wrong := [*self.nodes.not_in_order(links=2), *self.nodes.locked_out()]:
            raise CannotTest(f"the nodes are not in order to begin with: {'; '.join(wrong)}")
        self.before = self.nodes.look()
        if busy := [f"{node}: {each['timers']}" for node, each in self.before.items() if self._at_work(each)]:
            raise CannotTest(f"a timer is at work: {'; '.join(busy)}")
        if prove:
            self.prove()
        self.nodes.lab.snapshot(SNAPSHOT)

    def prove(self) -> None:
        """A node is locked out for real, and the console still gets in: what says "nobody is locked out" can fail."""
        node, *others = random.Random(self.seed).sample(self.nodes.names, len(self.nodes.names))
        plant = PLANTS["allow_users"]
        self.nodes.console(node, f"{plant.seen} && systemctl reload ssh")
        try:
            found = self.nodes.locked_out(patience=0)
        finally:
            self.nodes.console(node, f"{plant.clear} && systemctl reload ssh")
        missing = [
            who
            for who in ("controller", *others)
            if not any(line.startswith(f"{who} to {node}: ") for line in found)
        ]
        if missing or len(found) != len(others) + 1:
            raise CannotTest(f"{node} let nobody in, and what was seen of it is: {found}")
        self.totals.lock_outs_for_real += 1
        if found := self.nodes.locked_out():
            raise CannotTest(f"{node} did not come back: {found}")

    def plan(self, number: int) -> tuple[Kind, str, float]:
        """Of a round, from the seed alone: each kind once, in a random order, and again; the node; when it is interrupted."""
        turn, place = divmod(number - 1, len(self.chosen))
        kind = random.Random(f"{self.seed}/{turn}").sample(self.chosen, len(self.chosen))[place]
        rng = random.Random(f"{self.seed}/{turn}/{place}")
        return kind, rng.choice(self.nodes.names), rng.uniform(0.0, 8.0)

    def round(self, number: int) -> None:
        (name, depth, fault), node, after = self.plan(number)
        began, known = time.monotonic(), len(self.totals.violations)
        plant = PLANTS[name]
        what = f"round {number} ({name}, {depth}, {fault} on {node} after {after:.1f} s)"
        if depth == "seen":
            self.nodes.console(node, plant.seen)
        expected = {**self.before, node: self.nodes.look_at(node)}
        play = Play(self.inventory, self.work, str(number))
        try:
            found = self._interrupted(play, plant, depth, fault, node, after)
            found += self._unlike(expected)
        finally:
            play.kill()
        if depth == "seen":
            self.nodes.console(node, plant.clear)
            found += [f"the plant did not go: {line}" for line in self._unlike({node: self.before[node]})]
        locked = self.nodes.locked_out()
        self.totals.lock_outs += len(locked)
        found += [f"LOCKED OUT: {line}" for line in locked]
        self.totals.violations += [f"{what}: {line}" for line in found]
        self._count(f"{name}, {depth}, {fault}", time.monotonic() - began)
        print(
            f"{what}: {'; '.join(found) or 'good'} ({time.monotonic() - began:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
        if len(self.totals.violations) > known:
            self._again()

    def _again(self) -> None:
        """The next round begins as the first one did."""
        try:
            self.nodes.lab.restore(SNAPSHOT)
        except LabError as error:
            # A busy machine: they run, and are waited for.
            print(f"hardening_rounds: {error}", file=sys.stderr)
        self.nodes.look()

    def _interrupted(
        self, play: Play, plant: Plant, depth: str, fault: str, node: str, after: float
    ) -> list[str]:
        utils = blind(self.work, plant) if depth == "blind" else ""
        seconds = DEADLINES[plant.timer] * (3 if fault == "none" else 1)
        if plant.timer == SSHD:
            variables = {"node_hardening_sshd": True, "node_hardening_sshd_confirm_seconds": seconds}
            play.start(node, variables, utils=utils)
        else:
            variables = {**plant.variables, "node_hardening_firewall_confirm_seconds": seconds}
            play.start("all", variables, utils=utils, tasks="together.yml")
        if fault == "none":
            return self._let_alone(play, plant, depth, node)
        changed = self._changed(play, plant.timer, node)
        if isinstance(changed, str):
            return [changed]
        time.sleep(after)
        if fault == "kill":
            play.kill()
        elif fault == "power":
            self.nodes.lab.power_cut([node])
            play.kill()
            self.nodes.lab.start([node], wait=False)
        else:
            self.nodes.console(node, "systemctl reboot --no-block")
            play.wait(60)
            play.kill()
            self._booted(node)
        taken = [node] if plant.timer == SSHD else self.nodes.names
        seen = self.nodes.everywhere(
            lambda each: self._at_rest(each, changed + seconds + SLACK_SECONDS), taken
        )
        if fault == "kill":
            self.totals.longest_undo_seconds = max(
                self.totals.longest_undo_seconds, round(time.monotonic() - changed, 1)
            )
        states = {each: found["timers"].get(plant.timer, []) for each, found in seen.items()}
        if any("confirmed" in found for found in states.values()):
            # The play was quicker than the interruption; what it has kept is good, or it would not have been.
            self.totals.too_late += 1
            return [*(["a bad change was kept"] if depth == "blind" else []), *self._revert(taken)]
        self.totals.taken_back += 1
        wrong = [
            f"{each}: its timer is {found}" for each, found in states.items() if found != ["rolled_back"]
        ]
        unit = f"pveguard-rollback-{plant.timer}.service"
        for each in taken:
            said = self.nodes.console(each, f"journalctl -q --no-pager -o cat -u {unit} | tail -n 30")
            if "which was not confirmed" not in said:
                wrong.append(f"{each}: the journal does not say why: {said[-300:]!r}")
        return wrong

    def _let_alone(self, play: Play, plant: Plant, depth: str, node: str) -> list[str]:
        code = play.wait()
        said = play.said()
        taken = [node] if plant.timer == SSHD else self.nodes.names
        if depth == "good":
            if code or "changed=0 " in said:
                return [f"the run ended with {code}: {said[-600:]}"]
            locked = self.nodes.locked_out()
            self.totals.lock_outs += len(locked)
            self.totals.kept_and_reverted += 1
            return [*(f"LOCKED OUT once it was kept: {line}" for line in locked), *self._revert(taken)]
        wanted = plant.refused if depth == "seen" else plant.unproved
        self.totals.refused += depth == "seen"
        self.totals.taken_back += depth == "blind"
        deadline = time.monotonic() + 3 * DEADLINES[plant.timer] + SLACK_SECONDS
        self.nodes.everywhere(lambda each: self._at_rest(each, deadline), taken)
        wrong = [] if code == 2 else [f"the run ended with {code}"]
        return wrong + ([] if re.search(wanted, said) else [f"it does not say {wanted!r}: {said[-600:]}"])

    def _changed(self, play: Play, timer: str, node: str) -> float | str:
        """When the change counted and was not yet confirmed; or why it never did."""
        armed, note = f"/var/lib/pveguard/rollback/{timer}/armed.json", f"/run/pveguard/{timer}"
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            if self.nodes.console(node, f"[ -e {armed} ] && [ -e {note} ] && echo yes; true").strip():
                return time.monotonic()
            if play.ended:
                return f"the play ended before its change: {play.said()[-600:]}"
            time.sleep(0.2)
        return "no change came"

    def _booted(self, node: str) -> None:
        before = self.before[node]["boot_id"]
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            try:
                if self.nodes.console(node, "cat /proc/sys/kernel/random/boot_id", 10).strip() != before:
                    return
            except (LabError, CannotTest):
                self.nodes.lab.machine(node).reset_if_stuck()
            time.sleep(0.5)
        raise CannotTest(f"{node} has not rebooted")

    def _at_work(self, seen: Mapping[str, Any]) -> bool:
        return bool(seen["units"]) or any(
            state in AT_WORK for states in seen["timers"].values() for state in states
        )

    def _at_rest(self, node: str, deadline: float) -> dict[str, Any]:
        """What a node is like once nothing there waits to change anything, or the deadline has passed."""
        while True:
            seen = self.nodes.look_at(node)
            if not self._at_work(seen) or time.monotonic() > deadline:
                return seen
            time.sleep(0.5)

    def _revert(self, nodes: Sequence[str]) -> list[str]:
        play = Play(self.inventory, self.work, "revert")
        try:
            play.start(":".join(nodes), {}, tasks="revert.yml")
            code = play.wait()
            return [] if code == 0 else [f"the revert ended with {code}: {play.said()[-600:]}"]
        finally:
            play.kill()

    def _unlike(self, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
        found = []
        seen = self.nodes.everywhere(self.nodes.look_at, list(expected))
        for node, each in seen.items():
            found += [f"{node}: {line}" for line in differences(expected[node]["files"], each["files"])]
            if self._at_work(each):
                found.append(f"{node}: timers are not at rest: {each['timers']}, {each['units']}")
            self.before[node] = {**self.before[node], "boot_id": each["boot_id"]}
        return found

    def _count(self, kind: str, seconds: float) -> None:
        self.totals.rounds += 1
        self.totals.kinds[kind] = self.totals.kinds.get(kind, 0) + 1
        self.totals.longest_round_seconds = max(self.totals.longest_round_seconds, round(seconds, 1))


def blind(work: Path, plant: Plant) -> str:
    """A copy of the product's cores that judges nothing beforehand and writes the plant's lines: into its drop-in of sshd, or as
    cluster.fw.
    """
    folder = work / "blind"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "module_utils", folder, ignore=shutil.ignore_patterns("__pycache__"))
    if plant.timer == SSHD:
        made = "    text = sshd.drop_in(keys_only, algorithms)"
        judged = "    judge(text, keys_only, algorithms, login, facts, root, run)\n"
        swap = {judged: "", f"{made}\n": f"{made} + {plant.blind + chr(10)!r}\n"}
        core = folder / "pveguard/hardening/sshd_change.py"
    else:
        made = "    after = wanted(before, facts, options)\n"
        swap = {
            made: f"    after = {plant.blind!r}\n",
            "    if why:\n        raise": "    if False:\n        raise",
        }
        core = folder / "pveguard/hardening/firewall_change.py"
    text = core.read_text()
    for old, new in swap.items():
        if text.count(old) != 1:
            raise CannotTest(f"{core.name} has no longer one line {old.strip()!r}, which is to be replaced")
        text = text.replace(old, new)
    core.write_text(text)
    return str(folder)


def table(totals: Totals) -> str:
    """What was done and what was violated, a kind a line."""
    rows: list[tuple[str, ...]] = [("plant", "depth", "interruption", "rounds", "violations")]
    for kind, count in sorted(totals.kinds.items()):
        bad = sum(f"({kind} on " in line for line in totals.violations)
        rows.append((*kind.split(", "), str(count), str(bad)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    name = os.environ.get("PVEGUARD_LAB") or "default"
    top.add_argument("--name", default=name, help="the lab, a cluster (default: $PVEGUARD_LAB)")
    top.add_argument("-i", "--inventory", default=str(ROOT / "inventory/lab"))
    top.add_argument("--rounds", type=int, default=10, metavar="N", help="default 10")
    top.add_argument("--plants", default=",".join(PLANTS), help=f"of {','.join(PLANTS)} (default all)")
    top.add_argument("--depths", default="seen,blind", help="seen, blind (default both)")
    top.add_argument("--faults", default=",".join(FAULTS), help=f"of {','.join(FAULTS)} (default all)")
    top.add_argument("--seed", default="1", help="the same seed draws the same rounds")
    top.add_argument("--minutes", type=float, default=0, metavar="M", help="begin no round later than this")
    top.add_argument("--no-prove", action="store_true", help="do not first lock a node out for real")
    top.add_argument(
        "--work", type=Path, default=ROOT / ".cache/hardening_rounds", help="where the runs' output is kept"
    )
    top.add_argument("--json", action="store_true", help="print the summary as JSON, and the table on stderr")
    return top


def main() -> int:
    options = parser().parse_args()
    chosen = {
        each: [word for word in getattr(options, each).split(",") if word]
        for each in ("plants", "depths", "faults")
    }
    for each, known in (("plants", tuple(PLANTS)), ("depths", ("seen", "blind")), ("faults", FAULTS)):
        if wrong := set(chosen[each]) - set(known):
            print(
                f"hardening_rounds: --{each} {','.join(sorted(wrong))}: wanted some of {','.join(known)}",
                file=sys.stderr,
            )
            return 2
    drawn = kinds(chosen["plants"], chosen["depths"], chosen["faults"])
    if not drawn:
        print("hardening_rounds: nothing is left of that to draw from", file=sys.stderr)
        return 2
    begin, totals = time.monotonic(), Totals(options.seed)
    os.environ["PVEGUARD_LAB"] = options.name  # the inventory of the lab asks for it
    try:
        lab = Lab(options.name)
        lab.select(["all"], running=True)
        campaign = Campaign(Nodes(lab), options.seed, options.inventory, options.work, drawn)
        totals = campaign.totals
        campaign.begin(not options.no_prove)
        for number in itertools.count(1):
            if number > options.rounds:
                break
            if options.minutes and time.monotonic() - begin > options.minutes * 60:
                print(f"stopped after {options.minutes:g} minutes", file=sys.stderr)
                break
            campaign.round(number)
    except (CannotTest, LabError) as error:
        print(f"hardening_rounds: {error}", file=sys.stderr)
        if totals.rounds:
            totals.seconds = round(time.monotonic() - begin, 1)
            print(table(totals), file=sys.stderr)
            show(totals, options.json)
        return 2
    totals.seconds = round(time.monotonic() - begin, 1)
    print(table(totals), file=sys.stderr)
    return show(totals, options.json)


if __name__ == "__main__":
    sys.exit(main())
