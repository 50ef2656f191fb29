# SPDX-License-Identifier: Apache-2.0
"""scripts/ci: what runs beside what, and that no failure is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: In the place of make and python: says what it was called with, and fails where the test wants it.
FAKE = """#!/bin/bash
called="${0##*/} $*"
echo "begin $called" >> "$CALLS"
echo "output of $called"
[[ $called == *"$SLOW"* ]] && for ((i = 0; i < 600; i++)); do
    grep -q "$UNTIL" "$CALLS" && break
    sleep 0.1
done
echo "end $called" >> "$CALLS"
[[ -z $FAIL ]] || ! grep -q "$FAIL" <<< "$called" || exit 7
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
    for name in ("make", "python"):
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


ALONE = "make molecule SCENARIO=default"
BESIDE = "make molecule SCENARIO=corosync ha hardening"


def test_scenarios_run_beside_the_tests_and_default_alone(tmp_path: Path) -> None:
    ran = run(tmp_path, "ci", slow="--profile pve", until="begin make lint")
    assert ran.code == 0, ran.text
    assert {call for call in ran.calls if call.startswith("end make")} == {
        "end make lint", "end make tests", f"end {BESIDE}", f"end {ALONE}",
    }  # fmt: skip
    assert ran.calls[-2:] == [f"begin {ALONE}", f"end {ALONE}"]
    assert ran.calls.index("end python -m lab --name molecule-default down --discard") < ran.calls.index(f"begin {BESIDE}")
    # One output after the other.
    shown = [line.removeprefix("output of ") for line in ran.text.splitlines() if line.startswith("output of make")]
    assert shown == ["make lint", "make tests", BESIDE, ALONE]


def test_the_tests_do_not_wait_for_the_scenarios(tmp_path: Path) -> None:
    ran = run(tmp_path, "ci", slow=BESIDE, until="end make tests")
    assert ran.code == 0 and ran.calls.index("end make tests") < ran.calls.index(f"end {BESIDE}")


@pytest.mark.parametrize(
    ("fail", "said", "alone"),
    [
        ("lint", "lint or tests", False),
        ("tests", "lint or tests", False),
        ("corosync", "scenarios corosync, ha and hardening", False),
        ("default", "scenario default", True),
    ],
)
def test_what_fails_fails_the_run(tmp_path: Path, fail: str, said: str, alone: bool) -> None:
    ran = run(tmp_path, "ci", fail=f"make.*{fail}")
    assert ran.code != 0 and f"ci: failed: {said}" in ran.text
    assert f"output of {BESIDE}" in ran.text
    assert (f"begin {ALONE}" in ran.calls) is alone


def test_a_lab_that_could_not_be_prepared_is_left_to_the_scenario(tmp_path: Path) -> None:
    ran = run(tmp_path, "ci", fail="python")
    assert ran.code == 0 and ran.calls[-1] == f"end {ALONE}"
