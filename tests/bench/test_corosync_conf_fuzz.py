# SPDX-License-Identifier: Apache-2.0
"""The fuzz run of corosync.conf: it finds what is broken, and its cases can be run again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import corosync_conf_fuzz as fuzz
import pytest

from pveguard.formats import corosync_check, corosync_conf, corosync_edit


def test_a_run_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seconds", "1", "--seed", "7", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["cases"] > 0 and result["broken"] == [] and result["corosync"] is None
    assert result["done"]["parsed"] + result["done"].get("refused", 0) == result["cases"]


def test_a_seed_gives_the_same_damage() -> None:
    text = (fuzz.CONFIGURATIONS / "pvecm.conf").read_text()
    made = [fuzz.damage(text, random.Random(f"3-{number}")) for number in range(20)]
    assert made == [fuzz.damage(text, random.Random(f"3-{number}")) for number in range(20)]
    assert len(set(made)) == 20


def lost_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        corosync_conf.Section, "text", lambda self: self.opening + "".join(x.raw for x in self.pairs()) + self.closing
    )


def crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corosync_check, "problems", lambda *_a, **_k: {}["missing"])


def restless_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = corosync_conf.Section.set

    def again(self: corosync_conf.Section, *arguments: Any, **more: Any) -> bool:
        real(self, *arguments, **more)
        return True

    monkeypatch.setattr(corosync_conf.Section, "set", again)


def wrong_link(monkeypatch: pytest.MonkeyPatch) -> None:
    real = corosync_edit.remove_link
    monkeypatch.setattr(corosync_edit, "remove_link", lambda doc, number: real(doc, number) and real(doc, number ^ 1))


@pytest.mark.parametrize("breakage", [lost_comment, crash, restless_edit, wrong_link])
def test_what_is_broken_is_found_and_shown(
    breakage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breakage(monkeypatch)
    assert fuzz.main(["--seconds", "60", "--max-broken", "1"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN: case " in said and "1 broken" in said


def test_files_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main([str(tmp_path / "missing.conf")]) == 2
    assert "missing.conf: No such file" in capsys.readouterr().err
    (tmp_path / "mine.conf").write_bytes(b"# \xff\ntotem {\n}\n")
    assert fuzz.main(["--seconds", "0.3", str(tmp_path / "mine.conf")]) == 0


@pytest.mark.parametrize(
    ("parsed", "said", "kind"),
    [
        (True, "", None),
        (False, "parser error: x:1: Line is not opening or closing section or key value", None),
        (False, "", "corosync accepts what pveguard refuses"),
        (True, "parser error: x:3: Missing closing brace", "corosync refuses what pveguard reads"),
        (True, "No nodelist defined or our node is not in the nodelist", None),
    ],
)
def test_how_corosync_is_compared(parsed: bool, said: str, kind: str | None) -> None:
    assert fuzz.compare("", parsed, said) == kind
