"""What a module call leaves in the node's log."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils import basic
from ansible.module_utils.pveguard.base import node_module

ROOT = Path(__file__).resolve().parents[2]


def logged(monkeypatch: pytest.MonkeyPatch, parameters: dict[str, object], **spec: dict[str, object]) -> str:
    lines: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "log", lambda _self, msg, **_rest: lines.append(msg))
    from ansible.module_utils.testing import patch_module_args

    with patch_module_args(parameters):
        module = node_module.NodeModule(argument_spec=spec)
    assert {key: module.params[key] for key in parameters} == parameters
    (line,) = lines
    return line


def test_a_program_is_logged_by_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    line = logged(
        monkeypatch,
        {"program": "x" * 200_000, "files": [{"path": "/p", "content": "y" * 5000}], "state": "enabled"},
        program={"type": "str"},
        files={"type": "list", "elements": "dict"},
        state={"type": "str"},
    )
    assert "program=(200000 characters)" in line
    assert "(5000 characters)" in line and "/p" in line and "state=enabled" in line
    assert len(line) < 300


def test_what_is_no_secret_and_short_is_logged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "totem {\n" + "x" * 1500
    assert text in logged(monkeypatch, {"conf": text}, conf={"type": "str"})


def test_each_module_that_takes_a_program_or_a_file_logs_it_by_its_length() -> None:
    for path in sorted((ROOT / "library").glob("*.py")):
        text = path.read_text()
        if any(f'"{name}": {{"type": "str"' in text for name in ("program", "content")):
            assert "NodeModule(" in text, path.name
