# SPDX-License-Identifier: Apache-2.0
"""The one home of files that a power cut leaves old or new: what is flushed before what, and what others may see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import atomic

from tests.loading import ROOT


def noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is flushed and renamed from now on, in order; the temporary file as ``new``."""
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def flush(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        said = "folder" if path == folder else "new"
        seen.append(f"fsync {said} {path.read_bytes().decode() if said == 'new' else ''}".strip())
        fsync(fd)

    def name(source: str, target: str | Path) -> None:
        seen.append(f"rename {os.path.basename(target)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", name)
    return seen


def test_content_is_flushed_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = noted(tmp_path, monkeypatch)
    atomic.write_atomic(tmp_path / "a", b"text")
    assert seen == ["fsync new text", "rename a", "fsync folder"]
    seen.clear()
    atomic.link_atomic(str(tmp_path / "b"), "a")
    assert seen == ["rename b", "fsync folder"] and (tmp_path / "b").read_bytes() == b"text"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_the_mode_is_as_asked_for_and_nobody_reads_it_before(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    fchmod = os.fchmod

    def note(fd: int, mode: int) -> None:
        modes.append(os.fstat(fd).st_mode & 0o7777)
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", note)
    former = os.umask(0o077)
    try:
        atomic.write_atomic(tmp_path / "a", b"secret", mode)
    finally:
        os.umask(former)
    assert modes == [0o600] and (tmp_path / "a").stat().st_mode & 0o7777 == mode


def test_a_failure_leaves_the_former_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_atomic(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a login are written to a directory that its user may write to."""
    (tmp_path / "precious").write_bytes(b"old")
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / f".a.{'0' * 12}").symlink_to("precious")
    with pytest.raises(FileExistsError):
        atomic.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_bytes() == b"old"


def test_a_name_alone_is_below_the_present_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    atomic.write_atomic("a", b"text")
    atomic.link_atomic("b", "a")
    assert atomic.read_or_none("b") == b"text" and atomic.read_or_none("c") is None and atomic.read_or_none("a/b") is None


def test_programs_start_without_what_is_large() -> None:
    """pve-state imports it at every boot and stop."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'module_utils')!r}); import pveguard.base.atomic; "
        "print(sorted({'pathlib', 'tempfile', 'random', 'typing'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
