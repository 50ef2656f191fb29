# SPDX-License-Identifier: Apache-2.0
"""Who writes what, measured on a real FUSE daemon in private namespaces.

systemd and journald do not run there. A stand-in of systemd-run starts the very command of the unit, and its
ExecStopPost when that ends; a stand-in of journald collects what the daemon sends to /dev/log.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

harness = pytest.importorskip("lab.tests.doubles.harness")
from lab.tests.doubles.test_cluster import made  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.root

SYSTEMD_RUN = r"""#!/bin/bash
[ ! -e /run/no-systemd ] || { echo "Failed to connect to bus" >&2; exit 1; }
for argument in "$@"; do
    case $argument in --property=ExecStopPost=*) post=${argument#--property=ExecStopPost=} ;; esac
done
while [ "$1" != -- ]; do shift; done; shift
setsid sh -c '"$@"; $0' "$post" "$@" </dev/null >>/run/guard.log 2>&1 &
echo $! > /run/guard.pid
# 'sh -c' gets the text of ExecStopPost as $0, which it splits into words as systemd does.
exit 0
"""

JOURNALCTL = """#!/bin/sh
case "$*" in *--sync*) /usr/bin/python3 -c "
import socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('/dev/log'); mark = f'sync {time.monotonic_ns()}'
s.send(mark.encode())
while mark not in open('/run/journal.json').read(): time.sleep(0.02)
" ;; *) cat /run/journal.json ;; esac
"""

JOURNALD = """
import json, os, re, socket, time
os.unlink("/dev/log")
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
os.chmod("/dev/log", 0o666)
with open("/run/journal.json", "a") as journal:
    while True:
        text = log.recv(65536).decode(errors="replace").rstrip("\\0")
        found = re.match(r"<\\d+>.*? (pmxcfs)\\[\\d+\\]: (.*)", text, re.DOTALL)
        name, message = found.groups() if found else ("other", text)
        entry = {"SYSLOG_IDENTIFIER": name, "MESSAGE": message,
                 "__MONOTONIC_TIMESTAMP": str(time.monotonic_ns() // 1000)}
        journal.write(json.dumps(entry) + "\\n")
        journal.flush()
"""

#: Runs inside the node. The operations take the place of waiting, so the window holds exactly them.
OBSERVE = """
import importlib, json, subprocess, sys, types
sys.path.insert(0, sys.argv[1])
writes = importlib.import_module("pveguard.writes.pmxcfs_writes")
options = json.loads(sys.argv[2])
scripts = options.pop("scripts")
clock = [0.0]
def sleep(seconds):
    clock[0] += seconds
    if scripts:
        subprocess.run(["bash", "-c", "cd /etc/pve; " + scripts.pop(0)], check=True)
window = max(1, len(scripts))
after, found = writes.observe(window, clock=lambda: clock[0], sleep=sleep, store="/run", **options)
print(json.dumps(found))
"""

MEASURE = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module("pveguard.writes.pmxcfs_writes").observe(600, method="journal", store="/run")
"""


class Observed:
    def __init__(self, node: Any) -> None:
        self.node = node
        folder = node.root / "run/bin"
        folder.mkdir()
        programs = {"systemd-run": SYSTEMD_RUN, "journalctl": JOURNALCTL, "systemctl": "#!/bin/sh\nexit 0\n"}
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (node.root / "run/journal.json").touch()
        node.sh("rm -f /run/log-ready")
        before = (node.root / "dev/log").stat().st_ino
        self.journald = node.spawn("/usr/bin/python3", "-c", JOURNALD, log="/run/journald.log")

        def listens() -> bool:
            try:
                return bool((node.root / "dev/log").stat().st_ino != before)
            except FileNotFoundError:
                return False

        harness.wait_for("the stand-in of journald", listens)
        node.start()

    def command(self, program: str, *arguments: str) -> list[str]:
        path = f"PATH=/run/bin:{os.environ['PATH']}"
        return ["env", path, "/usr/bin/python3", "-B", "-c", program, str(ROOT / "module_utils"), *arguments]

    def observe(self, *scripts: str, **options: Any) -> dict[str, Any]:
        done = self.node.run(
            *self.command(OBSERVE, json.dumps({"scripts": list(scripts), **options})), timeout=120
        )
        assert done.returncode == 0, done.stderr + self.log("guard.log")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def log(self, name: str) -> str:
        path = self.node.root / "run" / name
        return str(path.read_text()) if path.exists() else ""

    def debug(self) -> str:
        return str((self.node.pve / ".debug").read_text())

    def notes_of_state(self) -> list[str]:
        return [path.name for path in (self.node.root / "run/pveguard").glob("*.before")]

    def measure(self) -> subprocess.Popen[bytes]:
        """A measurement of ten minutes, with the debug log on."""
        process: subprocess.Popen[bytes] = self.node.spawn(*self.command(MEASURE), log="/run/measure.log")
        harness.wait_for(
            f"the debug log {self.log('measure.log')}",
            lambda: self.debug() == "1\n" and self.notes_of_state(),
        )
        return process


@pytest.fixture
def new_observed() -> Iterator[Callable[[], Observed]]:
    reason = harness.why_not()
    if reason:
        pytest.skip(reason)
    nodes = []

    def make() -> Observed:
        nodes.append(harness.Node())
        return Observed(nodes[-1])

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def observed(new_observed: Callable[[], Observed]) -> Observed:
    return new_observed()


def per_file(found: dict[str, Any]) -> dict[str, int]:
    """Path -> transactions."""
    counts: dict[str, int] = {}
    for file in found["files"]:
        counts[file["path"]] = counts.get(file["path"], 0) + file["transactions_at_least"]
    return counts


# Of the table of small operations: preparation, operation, transactions by file. All files lie in a folder tN.
OPERATIONS = (
    ("", "touch new", {"new": 2}),
    ("touch x", "touch x", {"x": 1}),
    ("echo s > x", "echo t > x", {"x": 2}),
    ("echo s > x", "echo t >> x", {"x": 1}),
    ("touch x", "mv x y", {"y": 1}),
    ("touch x y", "mv x y", {"y": 1}),
    ("touch x", "rm x", {"x": 1}),
    ("mkdir d", "rmdir d", {"d": 1}),
    ("", "mkdir d", {"d": 1}),
    ("touch x", "chmod 640 x; cat x; ls", {}),
    ("touch x", "mv x x.tmp.12; mv x.tmp.12 x", {"x": 2}),
)
HEARTBEAT = "head -c 83 /dev/zero > {0}/lrm_status.tmp.7; mv {0}/lrm_status.tmp.7 {0}/lrm_status"


def test_journal_counts_every_small_operation_by_file(observed: Observed) -> None:
    wanted: dict[str, int] = {}
    operate = []
    for number, (prepare, operation, counts) in enumerate(OPERATIONS):
        observed.node.sh(f"mkdir /etc/pve/t{number}; cd /etc/pve/t{number}; {prepare}")
        operate.append(f"cd t{number}; {operation}")
        wanted.update({f"t{number}/{name}": count for name, count in counts.items()})
    found = observed.observe(*operate, method="journal")
    assert found["notes"] == [] and found["attribution"] == "journal"
    assert per_file(found) == wanted
    assert found["transactions"] == sum(wanted.values()) and found["unattributed_transactions"] == 0
    assert all(file["exact"] for file in found["files"])
    lines = 2 * found["transactions"]
    assert found["journal"]["lines"] >= lines and found["journal"]["bytes"] > 60 * lines
    assert (found["journal"]["debug_before"], found["journal"]["debug_after"]) == (False, False)
    assert observed.debug() == "0\n" and observed.notes_of_state() == []


def test_heartbeats_and_locks_that_no_sample_sees(observed: Observed) -> None:
    observed.node.sh("cd /etc/pve; mkdir -p nodes/pve1 nodes/pve2 priv/lock; echo s > nodes/pve1/lrm_status")
    lock = "mkdir priv/lock/file-jobs_cfg; rmdir priv/lock/file-jobs_cfg"
    beats = "; ".join(HEARTBEAT.format(f"nodes/{node}") for node in ("pve1", "pve2"))
    scripts = [f"{beats}; {lock}"] * 4
    counted = observed.observe(*scripts, method="journal")
    assert per_file(counted) == {
        "nodes/pve1/lrm_status": 12,
        "nodes/pve2/lrm_status": 12,
        "priv/lock/file-jobs_cfg": 8,
    }
    assert counted["notes"] == []
    assert [(c["class"], c["label"], c["transactions"], c["exact"]) for c in counted["classes"]] == [
        ("ha", "HA heartbeat (lrm_status)", 24, True),
        ("locks", "locks of the scheduler (pvescheduler)", 8, True),
    ]
    sampled = observed.observe(*scripts)
    assert sampled["attribution"] == "database" and sampled["journal"] is None
    assert sampled["transactions"] == 32, "exact by either method"
    assert per_file(sampled) == {"nodes/pve1/lrm_status": 12, "nodes/pve2/lrm_status": 12}
    assert [(c["class"], c["transactions"], c["exact"]) for c in sampled["classes"]] == [
        ("ha", 24, False),
        ("unattributed", 8, False),
    ]
    assert not any(file["exact"] for file in sampled["files"])
    # Stand-alone, so whoever wrote was this node, also what no row explains.
    (writer,) = sampled["writers"]
    assert (writer["node"], writer["transactions"], writer["exact"]) == ("pve1", 32, True)


@pytest.mark.slow
def test_the_writing_node_of_a_cluster_is_named() -> None:
    """pve2 beats, pve1 observes."""
    with made() as cluster:
        cluster.reset()
        cluster.start()
        observer, writer = cluster[1], cluster[2]
        observer.sh(
            "mkdir -p /etc/pve/nodes/pve1 /etc/pve/nodes/pve2; echo s > /etc/pve/nodes/pve2/lrm_status"
        )
        harness.wait_for("equal members", cluster.equal)
        step = "touch /run/go{0}; while [ ! -e /run/done{0} ]; do sleep 0.05; done"
        options = {"scripts": [step.format(number) for number in range(3)]}
        argv = ["/usr/bin/python3", "-B", "-c", OBSERVE, str(ROOT / "module_utils"), json.dumps(options)]
        process = observer.spawn(*argv, log="/run/observed.json")
        log = observer.root / "run/observed.json"
        for number in range(3):
            go = observer.root / f"run/go{number}"
            harness.wait_for(f"the window {log.read_text()}", go.exists)
            writer.sh("cd /etc/pve; " + HEARTBEAT.format("nodes/pve2"))
            harness.wait_for("equal members", cluster.equal)
            (observer.root / f"run/done{number}").touch()
        assert process.wait(60) == 0, log.read_text()
        found = json.loads(log.read_text().splitlines()[-1])
    (file,) = found["files"]
    assert (file["path"], file["node"], file["writer"]) == ("nodes/pve2/lrm_status", "pve2", 2)
    assert file["transactions_at_least"] == found["transactions"] == 9 and file["exact"]
    assert [(w["node"], w["transactions"], w["exact"]) for w in found["writers"]] == [("pve2", 9, True)]
    assert found["classes"][0]["label"] == "HA heartbeat (lrm_status)"


def test_a_killed_measurement_leaves_the_switch_as_it_was(observed: Observed) -> None:
    for state in ("0\n", "1\n"):
        (observed.node.pve / ".debug").write_text(state)
        if state == "0\n":
            process = observed.measure()
        else:
            process = observed.node.spawn(*observed.command(MEASURE), log="/run/measure.log")
            harness.wait_for("the note of the former state", observed.notes_of_state)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        harness.wait_for("the guard", lambda: not observed.notes_of_state())
        assert observed.debug() == state, observed.log("guard.log")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_measurement_that_is_told_to_end_restores_first(observed: Observed, number: int) -> None:
    # A run of the tests under nohup ignores SIGHUP, and so would the measurement.
    inherited = signal.signal(number, signal.SIG_DFL)
    try:
        process = observed.measure()
    finally:
        signal.signal(number, inherited)
    process.send_signal(number)
    assert process.wait(60) == 128 + number, "it unwinds; the default action would end it by the signal"
    assert observed.debug() == "0\n" and observed.notes_of_state() == []


def test_a_leftover_is_not_taken_for_the_operators_state(observed: Observed) -> None:
    """Process and guard killed at once, as by the kernel when memory runs out."""
    process = observed.measure()
    guard = int(observed.log("guard.pid"))
    harness.wait_for("the guard's process group", lambda: os.getpgid(guard) == guard)
    os.killpg(guard, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert observed.debug() == "1\n" and observed.notes_of_state(), "nobody restored it"
    found = observed.observe("echo t >> x", method="journal")
    assert found["attribution"] == "journal" and found["journal"]["debug_before"] is False
    assert observed.debug() == "0\n" and observed.notes_of_state() == []


def test_two_measurements_do_not_disturb_each_other(observed: Observed) -> None:
    process = observed.measure()
    found = observed.observe("touch x", method="journal")
    assert found["attribution"] == "database" and "another measurement" in found["notes"][0]
    assert observed.debug() == "1\n", "the first still counts"
    process.terminate()
    process.wait(60)
    assert observed.debug() == "0\n"


def test_an_exception_in_the_window_restores(observed: Observed) -> None:
    program = MEASURE.replace('store="/run")', 'store="/run", sleep=lambda seconds: 1 / 0)')
    done = observed.node.run(*observed.command(program))
    assert "ZeroDivisionError" in done.stderr
    assert observed.debug() == "0\n" and observed.notes_of_state() == []


def test_nothing_is_switched_without_a_guard_or_in_check_mode(observed: Observed) -> None:
    lines = observed.log("journal.json").count("[database] debug")
    found = observed.observe("touch x", method="journal", check_mode=True)
    assert found["attribution"] == "database" and "check mode" in found["notes"][0]
    (observed.node.root / "run/no-systemd").touch()
    found = observed.observe("touch x", method="journal")
    assert found["attribution"] == "database" and "Failed to connect to bus" in found["notes"][0]
    assert per_file(found) == {"x": 1} and found["transactions"] == 1
    assert observed.log("journal.json").count("[database] debug") == lines == 0
    assert observed.notes_of_state() == []


def test_without_the_file_system_nothing_is_written_beneath_it(observed: Observed) -> None:
    observed.node.stop()
    observed.node.sh("umount -l /etc/pve || true")
    found = observed.observe(method="journal")
    assert found["attribution"] == "database" and not found["transactions"]
    assert os.listdir(observed.node.pve) == []


#: The last six that tell of a row: a daemon logs other things as well, and after them.
DROP_SIX = "/usr/bin/tac /run/journal.json | awk '/backend_write_inode/ && ++n <= 6 { next } { print }' | /usr/bin/tac"


def test_lines_that_journald_dropped_make_lower_bounds(observed: Observed) -> None:
    journalctl = observed.node.root / "run/bin/journalctl"
    said = json.dumps(
        {
            "SYSLOG_IDENTIFIER": "systemd-journald",
            "MESSAGE": "Suppressed 6 messages from pve-cluster.service",
            "__MONOTONIC_TIMESTAMP": str(2**62),
        }
    )
    journalctl.write_text(
        JOURNALCTL.replace("cat /run/journal.json", f"{DROP_SIX}; echo '{said}'")
    )
    found = observed.observe("for n in 1 2 3 4 5 6 7 8; do touch f$n; done", method="journal")
    assert found["transactions"] == 16, "by the version of the database"
    assert "of 16 transactions" in found["notes"][0] and "dropped 6 lines" in found["notes"][0]
    assert found["unattributed_transactions"] > 0 and not any(file["exact"] for file in found["files"])
    assert found["classes"][-1]["class"] == "unattributed" or found["classes"][0]["class"] == "unattributed"


#: What a daemon may log that is written anew: the same figures in other words.
OTHER_WORDS = "sed 's/enter backend_write_inode/writing inode/; s/__version__/root/' /run/journal.json"
TWICE = "cat /run/journal.json /run/journal.json"


@pytest.mark.parametrize(
    ("programme", "told"), [(OTHER_WORDS, "in a form that is known"), (TWICE, "seems to hold 16 transactions, and there were 8")]
)
def test_a_log_that_cannot_be_counted_is_told_and_the_database_sampled(
    observed: Observed, programme: str, told: str
) -> None:
    journalctl = observed.node.root / "run/bin/journalctl"
    journalctl.write_text(JOURNALCTL.replace("cat /run/journal.json", programme))
    found = observed.observe("for n in 1 2 3 4; do touch f$n; done", method="journal")
    assert found["attribution"] == "database" and found["transactions"] == 8
    assert told in found["notes"][0] and len(found["notes"]) == 1
    assert sum(per_file(found).values()) + found["unattributed_transactions"] == 8


def test_a_name_that_looks_like_the_log_is_counted_once(observed: Observed) -> None:
    begin, end = "[database] debug: enter backend_write_inode 0000000000000000 '__version__", "', size 0 (database.c:150:x)"
    for name in (f"a\n{begin}{end}\nb", "c\nd", f"e{end}\n{begin}"):
        found = observed.observe(f"touch {shlex.quote(name)}", method="journal")
        assert found["transactions"] == 2, found["notes"]
        assert sum(file["transactions_at_least"] for file in found["files"]) <= 2
