# SPDX-License-Identifier: Apache-2.0
"""bench/startup.py: it measures the program of this checkout beside a former one, and says what it found."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.loading import ROOT, load_file

bench = load_file("bench/startup.py")
# Takes memory and time that no program of this checkout does.
LARGE = "import sys\nheld = bytearray(200_000_000)\nfor number in range(20_000_000):\n    pass\nprint('{}')\n"


def test_both_programs_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former = tmp_path / "former"
    former.write_text(LARGE)
    assert bench.main(["--json", "--runs", "1", "--former", str(former)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"former", "python", "runs", "cpu_ms", "memory_kib", "ratios", "aims", "met"}
    assert result["met"] is True and result["runs"] == 1
    for figures in (result["cpu_ms"], result["memory_kib"]):
        assert set(figures) == {"former", "present"} and min(figures.values()) > 0
    assert set(result["ratios"]) == set(result["aims"]) == {"cpu", "memory"}
    # The peak is that of the program, not of the process that starts it.
    assert result["memory_kib"]["former"] > 190_000 > result["memory_kib"]["present"]


def test_a_ratio_above_its_aim_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former = tmp_path / "former"
    former.write_text("print('{}')\n")
    assert bench.main(["--runs", "1", "--former", str(former)]) == 1
    assert "peak memory" in capsys.readouterr().out


def test_a_program_that_fails_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    former = tmp_path / "former"
    former.write_text("raise SystemExit(3)\n")
    assert bench.main(["--runs", "1", "--former", str(former)]) == 2
    assert "exit code 3" in capsys.readouterr().err
    assert bench.main(["--runs", "1", "--revision", "no-such-revision"]) == 2
    assert "no-such-revision" in capsys.readouterr().err


def test_the_former_program_is_the_last_single_file(tmp_path: Path) -> None:
    known = subprocess.run(["git", "cat-file", "-e", f"{bench.REVISION}^{{commit}}"], cwd=ROOT, capture_output=True)
    if known.returncode:
        pytest.skip("a shallow clone")
    assert b"def main(" in bench.former_program(bench.REVISION, tmp_path / "former").read_bytes()
