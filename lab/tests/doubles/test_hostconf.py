# SPDX-License-Identifier: Apache-2.0
"""corosync.conf: parsing and the rules of the copy to the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.tests.doubles import conftest  # noqa: F401  (makes pmxcfs_lab importable)
from lab.tests.doubles.test_memdb import Quiet
from pmxcfs_lab import hostconf

TEXT = """# config_version: 99
totem {
  version: 2
  config_version: 7
  cluster_name: pvelab
  interface {
    linknumber: 0
    config_version: 12
  }
}
nodelist {
  node {
    name: pve1
    nodeid: 1
    ring0_addr: 10.77.0.1
  }
  node {
    nodeid: 2
    ring0_addr: pve2
  }
  node {
    name: without-id
  }
}
"""


def test_parse() -> None:
    config = hostconf.parse(TEXT)
    assert (config.version, config.cluster) == (7, "pvelab")
    assert config.nodes == [hostconf.Node("pve1", 1, "10.77.0.1"), hostconf.Node("pve2", 2, "pve2")]


@pytest.mark.parametrize(
    "text", ["", "}", "}}{{", "totem {\nconfig_version: x\n}", "config_version: 3", "\0\n: :\n{"]
)
def test_parse_never_fails(text: str) -> None:
    assert hostconf.parse(text).version == 0


def copy(
    cluster: str, host: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str | None, str]:
    path = tmp_path / "corosync/corosync.conf"
    path.parent.mkdir(exist_ok=True)
    if host is not None:
        path.write_text(host)
    monkeypatch.setattr(hostconf, "HOST_FILE", str(path))
    log = Quiet()
    written = hostconf.copy_to_host(cluster.encode(), log)
    result = path.read_text() if path.exists() else None
    assert written == (result != host)
    assert [entry.name for entry in path.parent.iterdir()] == (
        ["corosync.conf"] if result is not None else []
    )
    return result, "\n".join(log.lines)


def version(number: int) -> str:
    return TEXT.replace("config_version: 7", f"config_version: {number}")


def test_newer_and_first_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert copy(version(2), None, tmp_path, monkeypatch)[0] == version(2)
    assert copy(version(3), version(2), tmp_path, monkeypatch)[0] == version(3)
    assert copy(version(3), "no version", tmp_path, monkeypatch)[0] == version(3)


def test_equal_version_with_other_text_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copy(version(3), version(3) + "# x\n", tmp_path, monkeypatch)[0] == version(3)


def test_older_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, log = copy(version(3), version(4), tmp_path, monkeypatch)
    assert result == version(4)
    assert "local corosync.conf is newer" in log


def test_without_version_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", version(0), TEXT.replace("config_version: 7", "x: 1")):
        assert copy(text, None, tmp_path, monkeypatch)[0] is None
