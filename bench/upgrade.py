#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Upgrade lab nodes that a former release protected, from nothing to stock, and check that what it left goes on working.

The former release is taken from git (``--from``); its own site.yml protects three clustered nodes that nothing was done
to. Then, with this checkout:

1. interrupted: site.yml, and a node's power is cut at a random moment after the first change to it. It must come back in
   order by itself, and a second run must complete the upgrade. All nodes go back to a snapshot between two of these.
2. upgrade: ``--check`` changes nothing; site.yml replaces program and watcher and leaves the daemon alone; all
   generations verify; a second run changes nothing.
3. boots: each node is powered off and boots, right after a change to the configuration, which must be there afterwards.
4. cuts: power cuts in a busy time, of all nodes at once and of one (bench/power_cuts.py has the rules).
5. restores: a generation that the former release saved, by playbooks/restore.yml: one file of it on a running cluster, the
   whole of it on a node whose peers' daemons are down, each with the way back that the run prints.
6. rescue: a node's replica is damaged while its daemon and RAM are gone: the start must fail closed, and ``pve-state
   restore`` brings back a generation of the former release, its peers the present state. site.yml then changes nothing.
7. revert: playbooks/revert.yml, after which files, units and packages of each node are what they were before the former
   release came, but for what docs/operator-guide.md names; a second run changes nothing.

After each, every node is quorate, ready and healthy, its state is in RAM, pve-state verify passes, the generations of the
former release are there, and the configuration is what it was.

    python -m lab --name upgrade up --profile cluster
    python bench/upgrade.py --name upgrade --from eb651e7 --seed 1

Exit status: 0 nothing was violated, 1 violations, 2 the test could not be done.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import ad_hoc  # noqa: E402
import check_mode  # noqa: E402
import power_cuts  # noqa: E402
from ha_interruptions import end  # noqa: E402
from power_cuts import CannotTest  # noqa: E402
from totals import show  # noqa: E402

from lab.errors import LabError  # noqa: E402
from lab.labs import Lab  # noqa: E402

STAGES = ("former", "interrupted", "upgrade", "boots", "cuts", "restores", "rescue", "revert")
#: The last release that kept its programs in single files.
FORMER = "eb651e7"
#: Seconds: a run on three emulated nodes; what one makes of a node that is gone; from the first change to a node to the last.
RUN_SECONDS = 1800.0
GONE_SECONDS = 120.0
CHANGE_SECONDS = 12.0
#: The windows of the report only take time here.
QUICK = ("-e", "write_report_measure=never")
STORE = "/var/lib/pveguard/state"
RAM = r"var-lib-pve\x2dcluster.mount"
#: What a revert leaves (docs/operator-guide.md), whole and as folders that hold it; /etc/pve is compared by its content.
LEFT = ("/etc/pve", f"{STORE}/generations", f"{STORE}/damaged", "/var/lib/pveguard/backup", "/var/lib/pveguard/fsync_gate.json")
HOLDERS = ("/var/lib/pveguard", STORE)

#: What a node is like, as JSON; ``changes`` is bench/changes.py.
LOOK = r"""
import glob, hashlib, json, os, subprocess
def sha(path):
    try:
        return hashlib.sha256(open(path, "rb").read()).hexdigest()[:12]
    except OSError:
        return ""
def unit(name):
    shown = subprocess.run(["systemctl", "show", "-p", "MainPID,ActiveState,ActiveEnterTimestampMonotonic", name],
                           capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
program = os.path.realpath("/usr/local/sbin/pve-state")
mounts = [line.split() for line in open("/proc/mounts")]
print(json.dumps({
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "program": f"{program} {sha(program)}",
    "watch_unit": sha("/etc/systemd/system/pveguard-state-watch.service"),
    "daemon": unit("pve-cluster.service"),
    "watcher": unit("pveguard-state-watch.service"),
    "state_on": next((words[2] for words in reversed(mounts) if words[1] == "/var/lib/pve-cluster"), "disk"),
    "generations": sorted(os.path.basename(path)[:-5] for path in glob.glob("/var/lib/pveguard/state/generations/*.json")),
    "rest_sha256": changes.files("/etc/pve")[1],
}))
"""
#: Ends with 0 once a run has begun to change the node, with 1 when argv[1] seconds went by. What there was when it was
#: asked first is kept in /run, so that nothing between two calls is missed.
BEGUN = r"""
import glob, json, os, sys, time
WATCHED = "/usr/local/sbin /usr/local/lib/pveguard /etc/pveguard /etc/pveguard/state.json /etc/systemd/system".split()
KEPT = "/run/upgrade-bench.json"
def seen():
    found = {}
    for path in WATCHED + glob.glob("/etc/systemd/system/*pve*"):
        try:
            found[path] = os.lstat(path).st_mtime_ns
        except OSError:
            pass
    return found
if not os.path.exists(KEPT):
    with open(KEPT, "w") as handle:
        json.dump(seen(), handle)
with open(KEPT) as handle:
    before = json.load(handle)
end = time.monotonic() + float(sys.argv[1])
while seen() == before:
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(0.05)
"""


def look_command() -> str:
    """Shell command that prints what LOOK says."""
    source = (
        "import sys,types\nchanges=types.ModuleType('changes');sys.modules['changes']=changes\n"
        f"exec({(ROOT / 'bench/changes.py').read_text()!r},changes.__dict__)\n{LOOK}"
    )
    packed = base64.b64encode(zlib.compress(source.encode(), 9)).decode()
    return f"/usr/bin/python3 -c \"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))\""


def begun(seconds: float) -> str:
    """Shell command that waits for the first change to a node, see BEGUN."""
    return f"/usr/bin/python3 -c {shlex.quote(BEGUN)} {seconds:.0f}"


# --- what must hold ------------------------------------------------------------------------------------------------


def upgraded(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What an upgrade has not done, or should not have, on one node; both as LOOK has them."""
    found = []
    if after["program"] == before["program"]:
        found.append(f"its program is still {before['program']}")
    if after["daemon"] != before["daemon"]:
        found.append(f"the daemon was touched: {before['daemon']}, now {after['daemon']}")
    if after["watcher"].get("MainPID") == before["watcher"].get("MainPID"):
        found.append("the watcher is the former one")
    return found


def served(seen: Mapping[str, Any], former: Sequence[str], rest: str) -> list[str]:
    """What is not as it must be on a protected node, beside what power_cuts.health sees."""
    found = []
    if seen["state_on"] != "tmpfs":
        found.append(f"its state is on {seen['state_on']}, not in RAM")
    for unit in ("daemon", "watcher"):
        if seen[unit].get("ActiveState") != "active":
            found.append(f"its {unit} is {seen[unit].get('ActiveState')}")
    if gone := sorted(set(former) - set(seen["generations"])):
        found.append(f"generations of the former release are gone: {', '.join(gone)}")
    if seen["rest_sha256"] != rest:
        found.append("the configuration is not what it was")
    return found


def unlike_before(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Lines of check_mode's fingerprints that a revert should have brought back, with - (gone) and + (new)."""

    def may_differ(line: str) -> bool:
        path = line[line.rfind(" /") + 1 :].strip()
        # The cluster's key is for root alone and stays so; its line of mode and size, not the one of its hash.
        if path == "/etc/corosync/authkey":
            return line.endswith(" ")
        return path in HOLDERS or any(path == left or path.startswith(f"{left}/") for left in LEFT)

    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    return [*(f"- {line}" for line in gone if not may_differ(line)), *(f"+ {line}" for line in new if not may_differ(line))]


def way_back(output: str) -> list[str]:
    """Arguments of ansible-playbook of the first way back that a restore has shown; raises ValueError when there is none."""
    _, there, after = output.partition("The way back:")
    for line in after.splitlines() if there else []:
        # Ansible may print a message as one JSON string, in which lines end in \n.
        for part in line.split("\\n"):
            if (words := part.strip().rstrip('",').strip()).startswith("ansible-playbook "):
                return shlex.split(words)[1:]
    raise ValueError("the restore has shown no way back")


# --- the lab -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One ansible-playbook that has ended."""

    code: int
    output: str
    seconds: float

    def problems(self, what: str, changes: bool | None = None) -> list[str]:
        """``changes``: whether it has to change something; None: it may."""
        if self.code:
            return [f"{what} ended with {self.code}: {self.output[-1500:]}"]
        changed = sorted(check_mode.changed_tasks(self.output))
        if changes is False and changed:
            return [f"{what} changed {changed}"]
        return [f"{what} changed nothing"] if changes and not changed else []


@dataclass
class Totals:
    """The summary."""

    former: str
    seed: str
    stages: list[str] = field(default_factory=list)
    former_generations: int = 0
    interruptions: int = 0
    #: Seconds after the first change to the node, and what the cut left: program and watcher's unit.
    interrupted_at: list[str] = field(default_factory=list)
    foreseen_changes: int = 0
    upgrade_seconds: float = 0.0
    second_run_seconds: float = 0.0
    clean_boots: int = 0
    node_cuts: int = 0
    changes_older_than_rpo: int = 0
    max_loss_seconds: float = 0.0
    restores: int = 0
    revert_seconds: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Upgrade:
    """The stages on one lab. What the former release left is kept in ``work``, so that a stage can be run again."""

    def __init__(self, lab: Lab, options: argparse.Namespace) -> None:
        self.lab, self.work = lab, options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.inventory = str(ROOT / "inventory/lab")
        self.former_root = self.work / "former"
        self.options = options
        self.nodes = [machine.name for machine in lab.machines()]
        self.totals = Totals(options.revision, options.seed)
        self.before: dict[str, list[str]] = {}
        #: {node: what LOOK said once the former release had protected it}
        self.protected: dict[str, dict[str, Any]] = {}
        self.runs = len(list(self.work.glob("*.log")))

    # --- tools

    def console(self, node: str, script: str, seconds: float = 300, good: Sequence[int] = (0,)) -> str:
        status, output = self.lab.machine(node).console.run(script, seconds)
        if status not in good:
            raise CannotTest(f"{node}: {script[:80]!r} ended with {status}: {output[-1000:]}")
        return output

    def look_at(self, node: str) -> dict[str, Any]:
        seen = json.loads(self.console(node, look_command()).strip().splitlines()[-1])
        assert isinstance(seen, dict)
        return seen

    def everywhere(self, ask: Any) -> dict[str, Any]:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            return dict(zip(self.nodes, pool.map(ask, self.nodes), strict=True))

    def start(self, *arguments: str, root: Path = ROOT) -> tuple[subprocess.Popen[bytes], Path]:
        """A run of ansible-playbook, of the former release where ``root`` is its; and where its output goes."""
        self.runs += 1
        playbook = next(word for word in arguments if word.endswith(".yml"))
        log = self.work / f"{self.runs:02}-{Path(playbook).stem}.log"
        settings = {"ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_RETRIES": "2"}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [ad_hoc.program("ansible-playbook"), *arguments], cwd=root, env={**os.environ, **settings},
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return process, log

    def run(self, *arguments: str, root: Path = ROOT) -> Run:
        """``arguments``: the playbook and more; the inventory of the lab unless they name one."""
        begun = time.monotonic()
        if "-i" not in arguments:
            arguments = (*arguments, "-i", self.inventory)
        process, log = self.start(*arguments, root=root)
        try:
            code = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            end(process)
        return Run(code, log.read_text(errors="replace"), time.monotonic() - begun)

    def wait_for_change(self, node: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until the run begins to change ``node``."""
        while self.lab.machine(node).console.run(begun(20), 60)[0]:
            if process.poll() is not None:
                raise CannotTest(f"the run ended with {process.returncode} and had not changed {node}")

    def problems(self, damaged: bool = False) -> list[str]:
        """What is not in order on the protected nodes; ``damaged``: files may have been set aside."""
        seen = self.everywhere(lambda node: power_cuts.look(self.lab, node, len(self.nodes)))
        found = [line for node in self.nodes for line in power_cuts.health(node, seen[node])]
        if damaged:
            found = [line for line in found if "set aside as damaged" not in line]
        for node, each in self.everywhere(self.look_at).items():
            former = self.protected[node]
            found += [f"{node}: {line}" for line in served(each, former["generations"], former["rest_sha256"])]
        return found

    def violated(self, stage: str, problems: Sequence[str]) -> None:
        self.totals.violations += [f"{stage}: {line}" for line in problems]

    # --- stages

    def former(self) -> None:
        """Nodes that nothing was done to, protected by the former release."""
        seen = self.everywhere(self.look_at)
        touched = [node for node, each in seen.items() if each["state_on"] != "disk" or each["generations"]]
        if touched:
            raise CannotTest(f"{', '.join(touched)}: pveguard has been here; begin with lab up --fresh --profile cluster")
        self.before = check_mode.fingerprints(self.inventory)
        shutil.rmtree(self.former_root, ignore_errors=True)
        self.former_root.mkdir()
        archive = subprocess.run(
            ["git", "archive", self.options.revision], cwd=ROOT, stdout=subprocess.PIPE, check=False
        )
        if archive.returncode:
            raise CannotTest(f"git archive {self.options.revision} ended with {archive.returncode}")
        subprocess.run(["tar", "-x", "-C", str(self.former_root)], input=archive.stdout, check=True)
        run = self.run("site.yml", *QUICK, root=self.former_root)
        if run.code:
            raise CannotTest(f"site.yml of {self.options.revision} ended with {run.code}: {run.output[-1500:]}")
        # Notes its configuration after the run: what a run of that release adds to it is part of what must stay.
        self.protected = self.everywhere(self.look_at)
        problems = self.problems()
        if problems:
            raise CannotTest(f"the former release does not work here: {'; '.join(problems)}")
        self.lab.snapshot("former")
        self.keep()

    def keep(self) -> None:
        kept = {"before": self.before, "protected": self.protected}
        (self.work / "former.json").write_text(json.dumps(kept))

    def recall(self) -> None:
        """What a former run of this program has noted."""
        try:
            kept = json.loads((self.work / "former.json").read_text())
        except OSError as error:
            raise CannotTest(f"no stage 'former' has been run: {error}") from error
        self.before, self.protected = kept["before"], kept["protected"]

    def interrupted(self) -> None:
        """The power of a node is cut while it is upgraded."""
        for number in range(1, self.options.interruptions + 1):
            rng = random.Random(f"{self.options.seed}/{number}")
            victim, delay = rng.choice(self.nodes), rng.uniform(0, CHANGE_SECONDS)
            self.console(victim, begun(0), good=(1,))
            process, _ = self.start("site.yml", *QUICK, "-i", self.inventory)
            try:
                self.wait_for_change(victim, process)
                time.sleep(delay)
                self.lab.power_cut([victim])
                self.lab.start([victim], wait=False)
                # What the run makes of it is its own: it ends by itself, or it is ended.
                try:
                    process.wait(GONE_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
            finally:
                end(process)
            found = [f"after the cut: {line}" for line in self.problems()]
            seen, was = self.look_at(victim), self.protected[victim]
            left = [f"{name} {'former' if seen[name] == was[name] else 'new'}" for name in ("program", "watch_unit")]
            self.totals.interrupted_at.append(f"{victim} after {delay:.1f} s: {', '.join(left)}")
            found += self.run("site.yml", *QUICK).problems("the second run", changes=True)
            found += self.problems()
            after = self.everywhere(self.look_at)
            if len({each["program"] for each in after.values()} | {was["program"]}) != 2:
                found.append(f"not all have the new program: { {n: e['program'] for n, e in after.items()} }")
            self.violated(f"interruption {number} ({victim}, {delay:.1f} s)", found)
            self.totals.interruptions += 1
            self.lab.restore("former")

    def upgrade(self) -> None:
        """The whole of it."""
        stage = "upgrade"
        before = check_mode.fingerprints(self.inventory)
        run = self.run("site.yml", "--check", "--diff", *QUICK)
        self.violated(stage, run.problems("--check", changes=True))
        foreseen = check_mode.changed_tasks(run.output)
        self.totals.foreseen_changes = len(foreseen)
        for node, lines in check_mode.fingerprints(self.inventory).items():
            self.violated(stage, [f"--check changed {node}: {x}" for x in unlike_before(before[node], lines)])
        seen = self.everywhere(self.look_at)
        run = self.run("site.yml", *QUICK)
        self.totals.upgrade_seconds = round(run.seconds, 1)
        self.violated(stage, run.problems("site.yml", changes=True))
        done = check_mode.changed_tasks(run.output)
        if done != foreseen:
            self.violated(stage, [f"--check foresaw {sorted(foreseen)}, the run changed {sorted(done)}"])
        for node, each in self.everywhere(self.look_at).items():
            self.violated(stage, [f"{node}: {line}" for line in upgraded(seen[node], each)])
        self.violated(stage, self.problems())
        self.again(stage)

    def again(self, stage: str) -> None:
        """One more site.yml has nothing to do."""
        run = self.run("site.yml")
        self.totals.second_run_seconds = round(run.seconds, 1)
        self.violated(stage, run.problems("a further site.yml", changes=False))

    def boots(self) -> None:
        """Each node in good order off and on."""
        for node in self.nodes:
            path = f"/etc/pve/nodes/{node}/changes/boot.cfg"
            self.console(node, f"mkdir -p {os.path.dirname(path)} && echo {self.options.seed} > {path}")
            self.lab.power_off([node])
            self.lab.start([node], wait=False)
            self.violated(f"boot of {node}", self.problems())
            restore = power_cuts.look(self.lab, node, len(self.nodes))["status"]["restore"] or {}
            if restore.get("source") != "replica" or not restore.get("clean"):
                self.violated(f"boot of {node}", [f"not from the replica after a clean stop: {restore}"])
            if self.console(node, f"cat {path}", good=(0, 1)).strip() != self.options.seed:
                self.violated(f"boot of {node}", ["the change right before it is lost"])
            self.totals.clean_boots += 1

    def cuts(self) -> None:
        """Power cuts in a busy time."""
        campaign = power_cuts.Campaign(self.lab, self.options.seed, 2.0, self.work / "cuts", (3.5, 10.0))
        campaign.prepare()
        number = 0
        while campaign.totals.node_cuts < self.options.cuts:
            campaign.round(number := number + 1, "mixed")
        totals = campaign.totals
        self.totals.node_cuts = totals.node_cuts
        self.totals.changes_older_than_rpo = totals.changes_older_than_rpo
        self.totals.max_loss_seconds = round(max(totals.max_loss_seconds, totals.disk_max_loss_seconds), 2)
        self.violated("cuts", totals.violations)
        self.violated("cuts", self.problems())

    def generation(self, node: str) -> str:
        """The newest generation of the former release that can be a state of the node."""
        listed = json.loads(self.console(node, "pve-state list --json"))
        known = self.protected[node]["generations"]
        for generation in listed["generations"]:
            if generation["name"] in known and generation["restorable"]:
                return str(generation["name"])
        raise CannotTest(f"{node}: none of {', '.join(known)} is restorable")

    def restore(self, stage: str, node: str, *variables: str, changed: str) -> None:
        """One restore and its way back. ``changed``: a file that is different now, and as it was then after the restore."""
        confirm = ("-e", f"ram_state_restore_confirm={node}")
        read = f"sha256sum {changed} 2>&1"
        now = self.console(node, read, good=(0, 1))
        run = self.run("playbooks/restore.yml", "--limit", node, *variables, *confirm)
        self.violated(stage, run.problems("restore.yml", changes=True))
        if self.console(node, read, good=(0, 1)) == now:
            self.violated(stage, [f"{changed} was not brought back"])
        try:
            back = way_back(run.output)
        except ValueError as error:
            self.violated(stage, [str(error)])
            return
        self.violated(stage, self.run(*back, *confirm).problems("the way back", changes=True))
        if self.console(node, read, good=(0, 1)) != now:
            self.violated(stage, [f"the way back did not bring {changed} back"])
        self.totals.restores += 1

    def restores(self) -> None:
        """A generation of the former release, by playbook."""
        node, *peers = self.nodes
        generation = ("-e", f"ram_state_restore_generation={self.generation(node)}")
        path, marker = "storage.cfg", "/etc/pve/upgrade-test.cfg"
        self.console(node, f"cp /etc/pve/{path} /root/{path} && printf '\\ndir: upgrade\\n\\tpath /srv\\n' >> /etc/pve/{path}")
        self.restore("restore of a file", node, *generation, "-e", f"ram_state_restore_path={path}", changed=f"/etc/pve/{path}")
        self.console(node, f"cp /root/{path} /etc/pve/{path} && rm /root/{path} && echo here > {marker} && sleep 3")
        for peer in peers:
            self.console(peer, "systemctl stop pve-cluster")
        self.restore("restore of the whole", node, *generation, changed=marker)
        for peer in peers:
            self.console(peer, "systemctl start pve-cluster")
        self.everywhere(lambda each: power_cuts.look(self.lab, each, len(self.nodes)))
        self.console(node, f"rm {marker}")
        self.violated("restores", self.problems())

    def rescue(self) -> None:
        """By hand, on the console: the replica is damaged while the daemon is down."""
        node = self.nodes[-1]
        generation = self.generation(node)
        # As after a power cut: RAM is empty, the store is all there is.
        self.console(node, f"systemctl stop pve-cluster pveguard-state-watch pveguard-state '{RAM}'")
        replica = f"{STORE}/config.db"
        self.console(node, f"rm -f {replica}-wal && dd if=/dev/urandom of={replica} bs=4096 count=3 conv=notrunc,fsync")
        self.console(node, "systemctl reset-failed; systemctl start pve-cluster", good=(0, 1))
        seen = json.loads(self.console(node, "pve-state status --json", good=(0, 1)))
        if seen["state"] != "failed" or seen["daemon_running"]:
            self.violated("rescue", [f"a damaged replica was started from: {seen['state']}: {seen['reason']}"])
        self.console(node, f"systemctl reset-failed; pve-state restore --generation {generation}")
        self.violated("rescue", self.problems(damaged=True))
        self.totals.restores += 1
        self.again("rescue")

    def revert(self) -> None:
        """Back to stock."""
        run = self.run("playbooks/revert.yml")
        self.totals.revert_seconds = round(run.seconds, 1)
        self.violated("revert", run.problems("revert.yml", changes=True))
        for node, each in self.everywhere(self.look_at).items():
            if each["state_on"] != "disk" or each["daemon"].get("ActiveState") != "active":
                self.violated("revert", [f"{node}: state on {each['state_on']}, daemon {each['daemon']}"])
            if each["rest_sha256"] != self.protected[node]["rest_sha256"]:
                self.violated("revert", [f"{node}: the configuration is not what it was"])
            if set(self.protected[node]["generations"]) - set(each["generations"]):
                self.violated("revert", [f"{node}: generations of the former release are gone"])
        for node, lines in check_mode.fingerprints(self.inventory).items():
            self.violated("revert", [f"{node}: {line}" for line in unlike_before(self.before[node], lines)])
        self.violated("revert", self.run("playbooks/revert.yml").problems("a second revert.yml", changes=False))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    name = os.environ.get("PVEGUARD_LAB") or "default"
    top.add_argument("--name", default=name, help="the lab (default: $PVEGUARD_LAB)")
    top.add_argument("--from", dest="revision", default=FORMER, metavar="REV", help=f"former release (default {FORMER})")
    top.add_argument("--stages", default=",".join(STAGES), help="some of them, in order, on a lab where those before were run")
    top.add_argument("--interruptions", type=int, default=2, metavar="N", help="power cuts amid an upgrade (default 2)")
    top.add_argument("--cuts", type=int, default=4, metavar="N", help="power cuts of a node afterwards (default 4)")
    top.add_argument("--seed", default="1", help="the same seed draws the same moments and nodes")
    top.add_argument("--work", type=Path, default=ROOT / ".cache/upgrade", help="where runs' output and notes are kept")
    top.add_argument("--json", action="store_true", help="print the summary as JSON")
    return top


def main() -> int:
    options = parser().parse_args()
    stages = options.stages.split(",")
    if set(stages) - set(STAGES):
        print(f"upgrade: --stages {options.stages}: wanted some of {','.join(STAGES)}", file=sys.stderr)
        return 2
    os.environ["PVEGUARD_LAB"] = options.name  # the inventory of the lab asks for it
    begin = time.monotonic()
    totals = None
    try:
        lab = Lab(options.name)
        lab.select(["all"], running=True)
        upgrade = Upgrade(lab, options)
        totals = upgrade.totals
        if "former" not in stages:
            upgrade.recall()
        for stage in [stage for stage in STAGES if stage in stages]:
            started, known = time.monotonic(), len(totals.violations)
            getattr(upgrade, stage)()
            totals.stages.append(f"{stage} {time.monotonic() - started:.0f} s")
            totals.former_generations = sum(len(each["generations"]) for each in upgrade.protected.values())
            print(f"{stage}: {'; '.join(totals.violations[known:]) or 'good'}", file=sys.stderr)
    except (CannotTest, LabError) as error:
        print(f"upgrade: {error}", file=sys.stderr)
        if totals and totals.stages:
            show(totals, options.json)
        return 2
    totals.seconds = round(time.monotonic() - begin, 1)
    return show(totals, options.json)


if __name__ == "__main__":
    sys.exit(main())
