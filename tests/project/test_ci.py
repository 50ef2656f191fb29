# SPDX-License-Identifier: Apache-2.0
"""scripts/ci and scripts/molecule: what runs beside what, and that no failure is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: In the place of make, python and molecule: says what it was called with, and fails where the test wants it.
FAKE = """#!/bin/bash
called="${0##*/} $*"
echo "begin $called" >> "$CALLS"
echo "output of $called"
[[ $called == *"$SLOW"* ]] && for ((i = 0; i < 600; i++)); do
    grep -q "$UNTIL" "$CALLS" && break
    sleep 0.1
done
echo "end $called" >> "$CALLS"
for word in $FAIL; do [[ $called != *"$word"* ]] || exit 7; done
exit 0
"""


class Ran:
    def __init__(self, code: int, text: str, calls: list[str]) -> None:
        self.code, self.text, self.calls = code, text, calls


def run(folder: Path, script: str, *arguments: str, fail: str = "", slow: str = "no one", until: str = "") -> Ran:
    """A copy of the script in a folder of its own, with FAKE for what it calls."""
    (folder / "scripts").mkdir()
    (folder / "bin").mkdir()
    shutil.copy(ROOT / "scripts" / script, folder / "scripts")
    for name in ("make", "python", "molecule"):
        (folder / "bin" / name).write_text(FAKE)
        (folder / "bin" / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environment = {
        **os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "CALLS": str(calls), "FAIL": fail, "SLOW": slow,
        "UNTIL": until,
    }  # fmt: skip
    done = subprocess.run(
        [folder / "scripts" / script, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, calls.read_text().splitlines())


def memory_for_six_nodes() -> bool:
    words = (Path("/proc/meminfo").read_text().partition("MemAvailable:")[2]).split()
    return int(words[0]) > 13 * 1024 * 1024


def test_everything_is_run_and_the_labs_are_prepared_before_molecule_begins(tmp_path: Path) -> None:
    ran = run(tmp_path, "ci", slow="--profile cluster", until="end make tests")
    assert ran.code == 0, ran.text
    assert [call for call in ran.calls if call.startswith("begin make")] == [
        "begin make lint", "begin make tests", "begin make molecule",
    ]  # fmt: skip
    first = ran.calls.index("begin make molecule")
    assert [call.split()[6] for call in ran.calls[:first] if call.startswith("end python -m lab")] == ["up", "down"] * 2
    assert "labs: output of python -m lab --name molecule-cluster down --discard" in ran.text


@pytest.mark.parametrize(("fail", "molecule"), [("lint", False), ("tests", False), ("molecule", True)])
def test_what_fails_fails_the_run(tmp_path: Path, fail: str, molecule: bool) -> None:
    ran = run(tmp_path, "ci", fail=fail)
    assert ran.code != 0
    assert any(call == "begin make molecule" for call in ran.calls) is molecule


def test_labs_that_could_not_be_prepared_are_said_and_left_to_molecule(tmp_path: Path) -> None:
    ran = run(tmp_path, "ci", fail="cluster")
    assert ran.code == 0 and "labs were not prepared" in ran.text
    assert ran.calls[-1] == "end make molecule"


def test_scenarios_of_one_lab_follow_each_other_beside_the_others(tmp_path: Path) -> None:
    if not memory_for_six_nodes():
        pytest.skip("not enough memory for six nodes")
    ran = run(tmp_path, "molecule", "default", "corosync", "ha", "--", "--debug", slow="default", until="end molecule test -s ha")
    assert ran.code == 0, ran.text
    assert ran.calls.index("end molecule test -s corosync --debug") < ran.calls.index("begin molecule test -s ha --debug")
    assert ran.calls[-1] == "end molecule test -s default --debug"
    # One output after the other.
    order = [line for line in ran.text.splitlines() if line.startswith("output of")]
    assert [line.split()[5] for line in order] == ["default", "corosync", "ha"]


@pytest.mark.parametrize(
    ("fail", "begun"),
    [("default", {"default", "corosync", "ha"}), ("corosync", {"default", "corosync"}), ("ha", {"default", "corosync", "ha"})],
)
def test_a_scenario_that_fails_fails_the_run(tmp_path: Path, fail: str, begun: set[str]) -> None:
    if not memory_for_six_nodes():
        pytest.skip("not enough memory for six nodes")
    ran = run(tmp_path, "molecule", "default", "corosync", "ha", fail=fail)
    assert ran.code != 0 and f"molecule: scenario {fail} failed" in ran.text
    assert {call.split()[4] for call in ran.calls} == begun


def test_one_scenario_runs_alone(tmp_path: Path) -> None:
    ran = run(tmp_path, "molecule", "ha")
    assert ran.code == 0 and [call.strip() for call in ran.calls] == ["begin molecule test -s ha", "end molecule test -s ha"]
