"""The lab's guests keep the bytecode of modules that come as zip files."""

from __future__ import annotations

import marshal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

GUEST = Path(__file__).resolve().parents[2] / "lab/guest/usr/lib/python3/dist-packages"
PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
import lab_zip_bytecode
lab_zip_bytecode.FOLDER = sys.argv[3]
import told
print(told.VALUE)
"""


def value(folder: Path) -> str:
    argv = [sys.executable, "-c", PROGRAM, str(GUEST), str(folder / "told.zip"), str(folder / "kept")]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def source(folder: Path, text: str) -> None:
    with zipfile.ZipFile(folder / "told.zip", "w") as archive:
        archive.writestr("told.py", text)


@pytest.mark.root
def test_compiled_once_and_never_for_another_source(tmp_path: Path) -> None:
    source(tmp_path, "VALUE = 'one'")
    assert value(tmp_path) == "one"
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_bytes(marshal.dumps(compile("VALUE = 'what was kept'", "told.py", "exec")))
    assert value(tmp_path) == "what was kept"
    source(tmp_path, "VALUE = 'two'")
    assert value(tmp_path) == "two"
    kept.write_bytes(b"")
    source(tmp_path, "VALUE = 'one'")
    assert value(tmp_path) == "one"
