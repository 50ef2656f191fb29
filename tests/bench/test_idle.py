# SPDX-License-Identifier: Apache-2.0
"""bench/idle.py: what runs on a node needs nothing that is only here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.loading import load_file


def test_the_program_brings_the_core_that_it_imports(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(load_file("bench/idle.py").one_program().replace("/var/lib/pve-cluster", str(tmp_path)))
    done = subprocess.run([sys.executable, "-I", program], capture_output=True, text=True, cwd="/")
    # There is no database here.
    assert f"{tmp_path}/config.db" in done.stderr and "ModuleNotFoundError" not in done.stderr
