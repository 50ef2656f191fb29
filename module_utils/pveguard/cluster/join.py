# SPDX-License-Identifier: Apache-2.0
"""Make this node the first or another member of a cluster, or a node by itself again; or leave it exactly as it was.

    cluster-member run REQUEST RESULT

REQUEST is a JSON file (removed when read: it holds the cluster's key), RESULT the JSON file that is written
at the end. The daemon of the cluster file system is stopped on the way, and with it may go every ssh login,
so this runs as a unit of its own, never under the connection that started it. Whatever fails, and when the
deadline has passed, the database, the files and the units are put back and the node runs as before.

Request: state (``bootstrapped``, ``joined`` or ``left``), node_name, node_id, cluster_name, conf (text), authkey
(base64 or null: made anew), expected_ids (node ids that must be in the membership), deadline_s, tree_sha256
(of the database that was judged before; null skips the comparison), noise (patterns by which it was; null for the
default), run_updatecerts. For ``left`` neither conf,
authkey nor ids are needed: the node gives up the cluster's database, key and corosync.conf, which the store keeps.

Result: changed, generation, cluster_name, node_id, live_member_ids, config_version, waited_s, steps,
warnings; on failure ``error`` and ``restored``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ..base.atomic import fsync_dir, read_or_none, write_atomic
from ..formats.corosync_version import config_version
from ..pmxcfs import tasks
from ..pmxcfs.tree import Noise, own_guests, sha256_of
from .join_node import (
    COROSYNC,
    DAEMON,
    ENDINGS,
    POLL_S,
    PVE_STATE,
    WATCH,
    Failure,
    Node,
    active,
    command,
    dump_sql,
    is_mounted,
    locked_guests,
    missing,
    not_alone,
    patiently,
    prove_writable,
    quorum,
    read_tree,
    remove_database,
    save_generation,
    systemctl,
    write_in_place,
)


class Change:
    """One membership change with its way back."""

    def __init__(self, node: Node, request: dict[str, object]) -> None:
        self.node, self.request = node, request
        self.started = time.monotonic()
        self.deadline = self.started + float(request["deadline_s"])  # type: ignore[arg-type]
        # The list that the tree was judged by.
        given = request.get("noise")
        self.noise = Noise() if given is None else Noise(given)  # type: ignore[arg-type]
        self.steps: list[str] = []
        self.warnings: list[str] = []
        self.generation: str | None = None
        self.replaced = False  # the database is no longer the saved one
        self.files = {name: read_or_none(node.corosync / name) for name in ("authkey", "corosync.conf")}
        self.units = active(DAEMON, COROSYNC, WATCH)
        self.old_keys = _lines(read_or_none(node.root_ssh / "authorized_keys"))
        keys = os.path.realpath(node.root_ssh / "authorized_keys")
        self.keys_on_pve = keys.startswith(os.path.realpath(node.pve) + "/")
        self.added_keys: list[str] = []  # lines that this run wrote to authorized_keys2
        self.stopping = False

    def step(self, text: str) -> None:
        self.steps.append(text)
        print(text, flush=True)
        if time.monotonic() > self.deadline:
            raise Failure(f"the deadline of {self.request['deadline_s']} s passed before: {text}")

    def run(self) -> dict[str, object]:
        request, node = self.request, self.node
        if request["state"] == "left":
            return self.leave()
        joined = request["state"] == "joined"
        name = str(request["node_name"])
        if not node.database.exists():
            raise Failure(
                f"{node.database} does not exist: start the daemon once ('systemctl start {DAEMON}') and run "
                "again"
            )
        self.step("checking that nothing uses the file system")
        self._refuse_busy(name)
        if not joined:
            self.step("checking that the file system takes writes")
            if not is_mounted(node):
                raise Failure(f"{node.pve} is not mounted; start it with 'systemctl start {DAEMON}'")
            prove_writable(node, name, self.deadline)
        self.step("checking the database")
        self._require_judged_tree()
        key = self._key()
        conf = str(request["conf"]).encode()
        if joined:
            self.stop()
            # Nothing can change it any more: this is what is saved, and what must have been judged.
            self._require_judged_tree()
            self.step("saving the database to the store")
            self.generation = save_generation(node, name, "before-join")
            self.step(f"dumping the database to {dump_sql(node)}")
        else:
            self.step("saving the database to the store")
            self.generation = save_generation(node, name, "before-bootstrap")
            self.step("writing corosync.conf to /etc/pve")
            self.replaced = True
            patiently(lambda: write_in_place(node.pve / "corosync.conf", conf), self.deadline)
            self.stop()
        self.step("writing the cluster's key and corosync.conf")
        node.corosync.mkdir(mode=0o755, exist_ok=True)
        write_atomic(node.corosync / "authkey", key, 0o400)
        write_atomic(node.corosync / "corosync.conf", conf, 0o644)
        self._validate()
        if joined:
            self.step("giving up the node's own database")
            self.replaced = True
            remove_database(node)
        self.start()
        self.wait()
        prove_writable(node, name, self.deadline)
        self._updatecerts()
        self._settle_login()
        quorate, live = quorum()
        conf_now = (read_or_none(node.pve / "corosync.conf") or b"").decode("utf-8", "replace")
        return {
            "changed": True,
            "generation": self.generation,
            "cluster_name": request["cluster_name"],
            "node_id": request["node_id"],
            "live_member_ids": live,
            "quorate": quorate,
            "config_version": config_version(conf_now),
            "waited_s": round(time.monotonic() - self.started, 1),
            "steps": self.steps,
            "warnings": self.warnings,
        }

    def leave(self) -> dict[str, object]:
        """The separation that Proxmox VE documents, with an empty database: the cluster's state must never come back
        with this node. The store keeps it as a generation."""
        node, name = self.node, str(self.request["node_name"])
        if not node.database.exists():
            raise Failure(f"{node.database} does not exist: start the daemon once ('systemctl start {DAEMON}') and run again")
        self.step("checking that nothing uses the file system")
        self._refuse_busy(name)
        self._refuse_guests(name)
        self.stop()
        self.step(f"stopping {COROSYNC}")
        systemctl("stop", COROSYNC)
        # Nothing can change it any more: this is what is saved.
        self._refuse_guests(name)
        self.step("saving the database to the store")
        self.generation = save_generation(node, name, "before-leave")
        self.step(f"dumping the database to {dump_sql(node)}")
        self.step("removing the cluster's key and corosync.conf")
        for file in self.files:
            (node.corosync / file).unlink(missing_ok=True)
        if node.corosync.is_dir():
            fsync_dir(node.corosync)
        self.step("giving up the cluster's database")
        self.replaced = True
        remove_database(node)
        self.step(f"starting {DAEMON}")
        # The unit wants corosync, which has nothing to start with: that is no failure of this node.
        systemctl("start", DAEMON)
        systemctl("reset-failed", COROSYNC, must=False)
        if self.units[WATCH]:
            systemctl("start", WATCH)
        self.step("waiting for the file system of a node by itself")
        self._await(lambda: not_alone(node))
        prove_writable(node, name, self.deadline)
        self._updatecerts()
        self._keep_keys()
        self._settle_login()
        for ring in sorted(node.ring_state.glob("ringid_*")):
            ring.unlink(missing_ok=True)
        self._save_replica()
        return {
            "changed": True,
            "generation": self.generation,
            "cluster_name": None,
            "node_id": None,
            "live_member_ids": [],
            "quorate": None,
            "config_version": None,
            "waited_s": round(time.monotonic() - self.started, 1),
            "steps": self.steps,
            "warnings": self.warnings,
        }

    def _refuse_guests(self, node_name: str) -> None:
        guests = own_guests(read_tree(self.node.database)[1], node_name)
        if guests:
            raise Failure(
                f"this node has guests: {', '.join(f'/etc/pve/{path}' for path in guests[:8])}; migrate or remove them first"
            )

    def _save_replica(self) -> None:
        """With the state in RAM a power cut now would bring the cluster's database back from the replica."""
        if not self.units[WATCH]:
            return
        self.step("saving the new state")
        done = command(PVE_STATE, "save", timeout=60)
        if done.rc != 0:
            self.warnings.append(
                f"'pve-state save' failed ({(done.stderr or done.stdout).strip()}): until the watcher has saved the new "
                "state, a power cut brings the former one back; look at 'pve-state status'"
            )

    def _updatecerts(self) -> None:
        if not self.request.get("run_updatecerts") or command("sh", "-c", "command -v pvecm").rc != 0:
            return
        self.step("pvecm updatecerts")
        done = command("pvecm", "updatecerts", timeout=60)
        if done.rc != 0:
            self.warnings.append(f"pvecm updatecerts failed: {(done.stderr or done.stdout).strip()}")
        # They hold the certificate of before; where they do not run this does nothing.
        systemctl("try-reload-or-restart", "pveproxy.service", "pvedaemon.service", must=False)

    def _require_judged_tree(self) -> None:
        wanted = self.request.get("tree_sha256")
        if wanted and sha256_of(read_tree(self.node.database)[1], self.noise) != wanted:
            raise Failure(
                f"{self.node.database} changed while the {self.request['state']} was being prepared; run "
                "again"
            )

    def _refuse_busy(self, node_name: str) -> None:
        """A task under way could not read or write its configuration while the file system is away."""
        busy = tasks.refusal(tasks.running(str(self.node.tasks)))
        if busy:
            raise Failure(busy)
        locked = locked_guests(read_tree(self.node.database)[1], node_name)
        if locked:
            named = ", ".join(f"/etc/pve/{path} ({lock})" for path, lock in locked)
            raise Failure(
                f"guest configurations of this node are locked: {named}; wait for the end of what holds them, "
                "or 'qm unlock' or 'pct unlock' the guest when nothing does"
            )

    def _key(self) -> bytes:
        given = self.request.get("authkey")
        if given:
            return base64.b64decode(str(given), validate=True)
        with tempfile.TemporaryDirectory(dir=self.node.root / "run") as directory:
            target = Path(directory) / "authkey"
            done = command("corosync-keygen", "-l", "-k", str(target))
            if done.rc != 0 or not target.exists():
                raise Failure(f"corosync-keygen failed: {(done.stderr or done.stdout).strip()}")
            return target.read_bytes()

    def _validate(self) -> None:
        done = command("corosync", "-c", str(self.node.corosync / "corosync.conf"), "-t")
        if done.rc != 0:
            raise Failure(f"corosync refuses the configuration: {(done.stderr or done.stdout).strip()}")

    def stop(self) -> None:
        self._keep_login()
        self.stopping = True
        # The watcher first: a handle that stays on an unlinked database breaks the new one.
        if self.units[WATCH]:
            self.step(f"stopping {WATCH}")
            systemctl("stop", WATCH)
        self.step(f"stopping {DAEMON}")
        systemctl("stop", DAEMON)
        if is_mounted(self.node):
            raise Failure(f"{self.node.pve} is still mounted after {DAEMON} was stopped")

    def start(self) -> None:
        self.step(f"starting {COROSYNC} and {DAEMON}")
        # Only where need be: corosync brings a SysV script too, so that enabling it makes systemd reload three times.
        if systemctl("is-enabled", COROSYNC, DAEMON, must=False).split() != ["enabled", "enabled"]:
            systemctl("enable", COROSYNC, DAEMON, must=False)
        systemctl("restart", COROSYNC)
        systemctl("start", DAEMON)
        if self.units[WATCH]:
            systemctl("start", WATCH)

    def wait(self) -> None:
        self.step("waiting for quorum, the members and equal copies of corosync.conf")
        self._await(lambda: missing(self.node, self.request))

    def _await(self, lacking: Callable[[], list[str]]) -> None:
        while True:
            lacks = lacking()
            if not lacks:
                return
            if time.monotonic() > self.deadline:
                raise Failure(f"after {self.request['deadline_s']} s: " + "; ".join(lacks))
            time.sleep(POLL_S)

    def _keep_login(self) -> None:
        """Keys that open this node open it also while /etc/pve is away: they go into a file of this node
        only, before anything is stopped.

        sshd reads ``authorized_keys2`` by default; writing them to /etc/pve would open every member to them.
        """
        if not self.keys_on_pve:
            return
        local = self.node.root_ssh / "authorized_keys2"
        have = _lines(read_or_none(local))
        self.added_keys = [line for line in dict.fromkeys(self.old_keys) if line not in have]
        if self.added_keys:
            self.step(f"keeping {len(self.added_keys)} ssh key(s) valid through {local}")
            write_atomic(local, ("\n".join([*have, *self.added_keys]) + "\n").encode(), 0o600)

    def _settle_login(self) -> None:
        """Of the keys that were added only those stay that /etc/pve, mounted again, does not know."""
        local = self.node.root_ssh / "authorized_keys2"
        if not self.added_keys:
            return
        known: set[str] = set()
        if is_mounted(self.node):
            known = set(_lines(read_or_none(self.node.root_ssh / "authorized_keys")))
        have = _lines(read_or_none(local))
        rest = [line for line in have if line not in known or line not in self.added_keys]
        if rest != have and rest:
            write_atomic(local, ("\n".join(rest) + "\n").encode(), 0o600)
        elif rest != have:
            local.unlink(missing_ok=True)
            fsync_dir(local.parent)
        stay = [line for line in rest if line in self.added_keys]
        if stay:
            self.warnings.append(
                f"{len(stay)} ssh key(s) that the cluster does not know stay valid here through {local}"
                if is_mounted(self.node)
                else f"{len(stay)} ssh key(s) stay valid through {local} because {self.node.pve} is not mounted"
            )

    def _keep_keys(self) -> None:
        """The keys that opened this node go where they were, into its new file system: a separation keeps them."""
        if not self.keys_on_pve:
            return
        target = self.node.pve / "priv/authorized_keys"
        patiently(lambda: target.parent.mkdir(exist_ok=True), self.deadline)
        have = _lines(read_or_none(target))
        new = [line for line in dict.fromkeys(self.old_keys) if line not in have]
        if new:
            text = ("\n".join([*have, *new]) + "\n").encode()
            patiently(lambda: write_in_place(target, text), self.deadline)
        own = f"root@{self.request['node_name']}"
        others = sorted({line.split()[-1] for line in self.old_keys if re.search(r"\sroot@\S+$", line)} - {own})
        if others:
            self.warnings.append(
                f"the ssh keys of {', '.join(others)} still open this node; remove them from /etc/pve/priv/authorized_keys "
                "when nobody needs them"
            )

    def put_back(self) -> list[str]:
        """Undo; returns what could not be undone. Never raises."""
        problems: list[str] = []

        def attempt(what: str, action: object, *arguments: object) -> None:
            try:
                action(*arguments)  # type: ignore[operator]
            except Exception as error:  # every further step must be tried whatever one of them does
                problems.append(f"{what}: {error}")

        node = self.node
        touched = self.replaced or any(
            read_or_none(node.corosync / name) != data for name, data in self.files.items()
        )
        if self.units[WATCH] and (touched or self.stopping):
            attempt(f"stop {WATCH}", systemctl, "stop", WATCH)
        if touched:
            attempt(f"stop {DAEMON}", systemctl, "stop", DAEMON)
            attempt(f"stop {COROSYNC}", systemctl, "stop", COROSYNC)
        for name, data in self.files.items():
            if data is None:
                attempt(f"remove {name}", (node.corosync / name).unlink, True)
            elif read_or_none(node.corosync / name) != data:
                attempt(
                    f"restore {name}",
                    write_atomic,
                    node.corosync / name,
                    data,
                    0o400 if name == "authkey" else 0o644,
                )
        if self.replaced and self.generation:
            attempt("restore the database", self._restore_database)
        if self.units[COROSYNC] and (touched or self.stopping):
            attempt(f"start {COROSYNC}", systemctl, "start", COROSYNC)
        for unit in (DAEMON, WATCH):
            if self.units[unit]:
                attempt(f"start {unit}", systemctl, "start", unit)
        if self.units[DAEMON] and not any(DAEMON in problem for problem in problems):
            end = time.monotonic() + 60
            while not is_mounted(node) and time.monotonic() < end:
                time.sleep(POLL_S)
            if not is_mounted(node):
                problems.append(f"{node.pve} is not mounted")
        attempt("take the added ssh keys back", self._settle_login)
        return problems

    def _restore_database(self) -> None:
        saved = self.node.generations / f"{self.generation}.db"
        manifest = json.loads(saved.with_suffix(".json").read_text())
        data = saved.read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise Failure(f"{saved} does not match its manifest")
        remove_database(self.node)
        write_atomic(self.node.database, data, 0o600)


def _lines(data: bytes | None) -> list[str]:
    return [line for line in (data or b"").decode("utf-8", "replace").splitlines() if line.strip()]


def perform(node: Node, request: dict[str, object]) -> dict[str, object]:
    change = Change(node, request)
    try:
        return change.run()
    except (Failure, OSError, sqlite3.Error, ValueError, KeyError) as error:
        failure = str(error).rstrip(". \n")
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # nothing may interrupt the way back
    print(f"failed: {failure}; putting everything back", flush=True)
    problems = change.put_back()
    result: dict[str, object] = {
        "changed": False,
        "generation": change.generation,
        "steps": change.steps,
        "warnings": change.warnings,
        "restored": not problems,
    }
    if problems:
        former = f". The former database is {node.generations / str(change.generation)}.db" if change.generation else ""
        result["error"] = f"{failure}. NOT everything could be put back: {'; '.join(problems)}{former}"
    else:
        result["error"] = f"{failure}. The node is as it was before"
    return result


def _interrupted(number: int, _frame: object) -> None:
    raise Failure(f"stopped by signal {signal.Signals(number).name}")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 3 or argv[0] != "run":
        print(__doc__, file=sys.stderr)
        return 2
    request_file, result_file = Path(argv[1]), Path(argv[2])
    for number in ENDINGS:
        signal.signal(number, _interrupted)
    try:
        request = json.loads(request_file.read_text())
        request_file.unlink()
        node = Node(Path(os.environ.get("PVEGUARD_ROOT", "/")))
        result = perform(node, request)
    except Exception as error:  # a result must always be left, whoever reads it waits for it
        result = {"changed": False, "error": f"{type(error).__name__}: {error}"}
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # it is done or put back: a signal could only take the result away
    result_file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(result_file, json.dumps(result, indent=1).encode(), 0o600)
    print(result.get("error") or f"done in {result.get('waited_s')} s", flush=True)
    return 1 if "error" in result else 0
