# SPDX-License-Identifier: Apache-2.0
"""Every reader of ours beside a daemon that writes: it lives, and nothing wrong is read.

The daemon is the double (or the one named by PMXCFS), started as its unit starts it: it opens its database before it forks,
so that an ordinary opener kills it (lab/tests/doubles/test_start.py shows that). 2,000 reads and 20 restarts of the watcher in
CI, 100,000 and 200 in `make campaign`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

harness = pytest.importorskip("lab.tests.doubles.harness")

from .test_double import RamNode  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
CAMPAIGN = "PVEGUARD_CAMPAIGN" in os.environ
READS, RESTARTS = (100_000, 200) if CAMPAIGN else (2_000, 20)
pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Writes as fast as the daemon takes it: a file that holds the number of its write twice, one of many transactions, a
#: rename. Until it is killed.
WRITER = r"""
import os, sys
folder = sys.argv[1]
number = 0
while True:
    number += 1
    with open(f"{folder}/pair.tmp", "wb", buffering=0) as handle:
        handle.write(b"%d\n%s\n%d\n" % (number, b"x" * 3000, number))
    os.rename(f"{folder}/pair.tmp", f"{folder}/pair")
    if number % 20 == 0:
        with open(f"{folder}/large", "wb", buffering=0) as handle:
            for _ in range(16):
                handle.write(b"%d" % (number % 10) * 65536)
"""

#: Reads in every way that pveguard has, by its own code, and judges what it reads.
READER = r"""
import json, os, sqlite3, sys, types
root, reads, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
# The cores by their import name; they need nothing of Ansible.
for name, path in (("ansible", []), ("ansible.module_utils", [f"{root}/module_utils"])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from ansible.module_utils.pveguard.cluster import corosync_recover
from ansible.module_utils.pveguard.pmxcfs import live_database, pmxcfs
from ansible.module_utils.pveguard.writes import pmxcfs_writes
import pathlib, random, tempfile
from ansible.module_utils.pveguard.cluster import join_node as member
from ansible.module_utils.pveguard.pmxcfs import tree
from ansible.module_utils.pveguard.state import live, paths, rows, settings
modules = (settings, paths, tree, rows, live)
state = types.SimpleNamespace(**{name: value for each in modules for name, value in vars(each).items()})
paths, config = state.Paths("/"), state.Config()
database = pathlib.Path(paths.live_db)
sampler = pmxcfs_writes.Sampler(str(database))
wrong, last, kinds = [], 0, {}

def judge(what, version, data):
    global last
    if data:
        lines = data.split(b"\n")
        if lines[0] != lines[2] or len(lines[1]) != 3000:
            wrong.append(f"{what}: a mixture: {lines[0]} {lines[2]} {len(lines[1])}")
    if version < last:
        wrong.append(f"{what}: version {version} after {last}")
    last = max(last, version)

def rows(connection):
    return state.read_rows(connection), state.content_of(connection, "load/pair")

def judged(what, found):
    # Not within the look: a torn one is taken again.
    table, data = found
    problems = state.check_rows(table)
    if problems:
        wrong.append(f"{what}: {problems[0]}")
    judge(what, state.root_version(table), data)

def light():
    judged("look", state.read_live(paths, rows))
def whole():
    connection = state.open_live(paths)
    judged("snapshot", rows(connection))
    if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        wrong.append("snapshot: not whole")
    connection.close()
def copied():
    judged("copy", live_database._copied(live_database._Files(paths.live_db), rows))
def facts():
    version, tree = pmxcfs.read_tree(database)
    judge("node_info", version, tree.get("load/pair", (8, b""))[1])
def joining():
    version, tree = member.read_tree(database)
    judge("cluster-member", version, tree.get("load/pair", (8, b""))[1])
def sampled():
    sampler.sample()
    judge("sampler", sampler.last, b"")
def repair():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        said = corosync_recover._copy_database(database, pathlib.Path(folder) / "config.db")
        if said != "whole":
            wrong.append(f"repair: {said}")
def verified():
    problems, found = state.verify_database(paths.live_db)
    if problems:
        wrong.append(f"verify: {problems[0]}")
def moved():
    live_database.position(paths.live_db)
WAYS = [light] * 30 + [moved, sampled] * 10 + [facts] * 5 + [joining, whole] * 3 + [copied] * 2 + [verified, repair]
random.seed(seed)
log = 0
done = 0
while done < reads:
    way = random.choice(WAYS)
    try:
        way()
    except live_database._Torn:
        continue
    done += 1
    kinds[way.__name__] = kinds.get(way.__name__, 0) + 1
    log = max(log, os.stat(f"{paths.live_db}-wal").st_size)
    if wrong:
        break
print(json.dumps({"wrong": wrong, "kinds": kinds, "version": last, "log": log}))
"""


@pytest.fixture
def node() -> Iterator[Any]:
    made = harness.Node()
    try:
        yield made
    finally:
        made.close()


def begin(node: Any) -> tuple[Any, Any]:
    """A daemon that is written to; (its writer, length of its log after some checkpoints without any reader)."""
    (node.pve / "load").mkdir()
    writer = node.spawn(PYTHON, "-c", WRITER, "/etc/pve/load")
    log = Path(f"{node.database}-wal")
    longest = 0

    def rounds() -> bool:
        nonlocal longest
        longest = max(longest, log.stat().st_size if log.exists() else 0)
        return node.database.stat().st_size > (1 << 20) and longest > 0

    harness.wait_for("checkpoints", rounds, 120)
    return writer, longest


def reader(node: Any, reads: int, seed: int = 1) -> subprocess.Popen[str]:
    command = node.enter([PYTHON, "-c", READER, str(ROOT), str(reads), str(seed)])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_reads_of_every_kind_beside_a_writer(node: Any) -> None:
    node.start()
    pid = node.pid_of_daemon
    writer, _ = begin(node)
    before = node.version()
    readers = [reader(node, READS // 2, seed) for seed in (1, 2)]
    found = [result_of(process) for process in readers]
    assert node.alive() and node.pid_of_daemon == pid, "the daemon died"
    assert [one["wrong"] for one in found] == [[], []]
    assert sum(sum(one["kinds"].values()) for one in found) == READS
    assert all(len(one["kinds"]) == 9 for one in found)
    assert min(one["version"] for one in found) > before
    # Nobody kept a checkpoint from its end: the log is begun anew at 1000 pages, and one transaction of a file of 1 MiB.
    assert max(one["log"] for one in found) < (1000 + 2 * 260) * 4120
    os.kill(writer.pid, signal.SIGKILL)
    # The daemon still writes where others read.
    (node.pve / "load/last").write_text("said at the end\n")
    assert node.tree()["load/last"] == b"said at the end\n"


def test_restarts_of_the_watcher_and_commands_under_writes(node: Any) -> None:
    ram = RamNode(node)
    node.start()
    (node.pve / "storage.cfg").write_text("dir: local\n")
    ram.ps("enable")
    node.pid_of_daemon = pid = int((node.root / "run/pve-cluster.pid").read_text())
    begin(node)
    watcher = node.root / "run/watch.pid"
    for turn in range(RESTARTS):
        saved = int(ram.ps("status", rc=None)["saved_root_version"] or 0)
        os.kill(int(watcher.read_text()), signal.SIGKILL if turn % 2 else signal.SIGTERM)
        harness.wait_for("the watcher's end", lambda: not harness.alive(int(watcher.read_text())))
        program = f"setsid {PYTHON} -IS {ROOT}/scripts/pve-state watch"
        node.sh(f"{program} >>/run/ps.log 2>&1 </dev/null & echo $! >/run/watch.pid")

        def goes_on(saved: int = saved) -> bool:
            return int(ram.ps("status", rc=None)["saved_root_version"] or 0) > saved

        harness.wait_for("a save", goes_on)
        if turn % 5 == 0:
            ram.ps("preflight", "--connection", "", rc=None)
            ram.ps("show", "latest")
            ram.ps("verify", "--file", "/var/lib/pve-cluster/config.db")
            ram.ps("save", "--generation")
        assert node.alive(), f"the daemon died in turn {turn}: {ram.logs()}"
    assert int((node.root / "run/pve-cluster.pid").read_text()) == pid
    assert ram.ps("status", rc=None)["rescue"] is None
