# SPDX-License-Identifier: Apache-2.0
"""The command line: one JSON object whatever happens, exit codes that are documented, help that fits a console."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import PROGRAM, ROOT, Node, load_program

COMMANDS = load_program().COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(
    ps: ModuleType, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        ps.main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    _, line, _, codes = COMMANDS[name]
    assert re.sub(r"\s+", " ", text).find(f"{line[0].upper()}{line[1:]}. ") > 0
    assert [row for row in text.splitlines() if len(row) > 80] == []
    assert "--json" in text and "--result FILE" in text
    told = text.split("exit status:\n")[1]
    assert {int(code) for code in re.findall(r"^  (\d)  \S", told, re.MULTILINE)} == {0, 1, 2, *codes}
    # What an operator types has an example, and each example can be parsed.
    examples = re.findall(r"^  pve-state (.*?)(?: && .*)?$", text, re.MULTILINE)
    assert bool(examples) is (COMMANDS[name][0] != "unit")
    import shlex

    for example in examples:
        ps.parser().parse_args(shlex.split(example))


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "--json"],
        ["--root", "/x", "restore-file", "latest", "jobs.cfg", "--yes"],
        ["--root=/x", "disable", "--force", "--connection", ""],
        ["--root", "status", "list", "--verify"],
    ],
)
def test_a_start_learns_the_options_of_one_command_only(ps: ModuleType, argv: list[str]) -> None:
    name = ps._named(argv)
    assert name in argv and len(ps.parser(name)._subparsers._group_actions[0]._name_parser_map) in (1, 2)
    assert vars(ps.parser(name).parse_args(argv)) == vars(ps.parser().parse_args(argv))


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h", "status"], ["statsu"], ["--root"], ["retire"], ["--version"]])
def test_all_commands_are_known_where_none_is_named_for_sure(ps: ModuleType, argv: list[str]) -> None:
    assert ps._named(argv) is None


def test_help_of_the_program(
    ps: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        ps.main(["--help"])
    text = capsys.readouterr().out
    assert [row for row in text.splitlines() if len(row) > 80] == []
    known = {name for action in ps.parser()._actions if action.choices for name in action.choices}
    assert set(COMMANDS) == known - {"retire"}
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    codes = {value for key, value in ps.names().items() if key.startswith("EXIT_") and isinstance(value, int)}
    assert {int(code) for code in re.findall(r"^  (\d)  \S", text, re.MULTILINE)} == codes == set(range(9))
    for path in re.findall(r"^  (/\S+)", text, re.MULTILINE):
        assert path.rstrip("/") in {str(value) for value in vars(ps.Paths()).values()}
    examples = re.findall(r"^  pve-state (.*)# ", text, re.MULTILINE)
    assert len(examples) == 4
    for example in examples:
        ps.parser().parse_args(example.split())


def test_every_failure_has_its_exit_code_in_the_help_and_the_documentation(ps: ModuleType) -> None:
    errors = [
        value for value in ps.names().values() if isinstance(value, type) and issubclass(value, ps.StateError)
    ]
    assert {error.code for error in errors} == set(ps.EXIT_TEXTS) - {0}
    sentence = (ROOT / "docs/ram-state.md").read_text().split("Exit codes:")[1].split("\n\n")[0]
    assert {int(code) for code in re.findall(r"(\d)\s+[a-z]", sentence)} == set(ps.EXIT_TEXTS)


@pytest.mark.parametrize("state", ["stock", "ram", "cut", "bad settings", "empty"])
def test_one_json_object_and_an_exit_code_that_the_help_knows(
    ps: ModuleType, ram_node: Node, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = ram_node
    if state == "stock":
        assert node.command("disable", "--json", "--connection", "") == 0
    elif state == "cut":
        node.power_cut()
    elif state == "bad settings":
        Path(node.paths.config).write_text("{")
    elif state == "empty":
        node.power_cut()
        for file in Path(node.paths.generations).iterdir():
            file.unlink()
        Path(node.paths.replica).unlink()
    options = {
        "show": ["latest"],
        "restore-file": ["latest", "storage.cfg", "--yes"],
        "restore": ["--generation", "latest", "--no-start"],
        "enable": ["--connection", ""],
        "disable": ["--connection", ""],
        "preflight": ["--connection", ""],
        "check-login": ["--connection", ""],
    }
    result = node.root / "run/result.json"
    codes = {}
    for name in COMMANDS:
        if name == "watch":
            continue
        capsys.readouterr()
        code = codes[name] = node.command(name, "--json", "--result", str(result), *options.get(name, []))
        # The last one: what a command runs in place of systemd prints in this process as well.
        answer = json.loads([row for row in capsys.readouterr().out.splitlines() if row.startswith("{")][-1])
        assert json.loads(result.read_text()) == answer
        assert code in {0, 1, 2, *COMMANDS[name][3]}, f"{name}: {answer}"
        if "error" in answer:
            assert answer["exit_code"] == code != 0
        if code == ps.EXIT_USAGE:
            assert state == "bad settings" and "state.json" in answer["error"]
    if state == "bad settings":
        lenient = {"status", "list", "verify", "disable", "rollback"}
        assert {name for name, code in codes.items() if code != ps.EXIT_USAGE} == lenient


@pytest.mark.parametrize("argv", [["show"], ["nonsense"], ["save", "--bogus"], []])
def test_wrong_usage_is_json_where_that_was_asked_for(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), *argv, "--json"], capture_output=True, text=True)
    assert done.returncode == 2 and json.loads(done.stdout)["exit_code"] == 2 and "usage:" in done.stderr
    done = subprocess.run([sys.executable, str(PROGRAM), *argv], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""


def test_a_save_says_what_it_did(ram_node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*argv: str) -> str:
        capsys.readouterr()
        assert ram_node.command("save", *argv) == 0
        return capsys.readouterr().out

    ram_node.w.write("datacenter.cfg", b"x")
    ram_node.w.delete("user.cfg")
    assert said() == f"saved up to root version {ram_node.w.version}: 1 row(s) changed, 1 deleted\n"
    assert said() == f"saved up to root version {ram_node.w.version}: no real change\n"
    assert re.fullmatch(
        r"saved .*: no real change; generation \S+-wish-of-the-operator\n", said("--generation")
    )


def test_names_that_no_terminal_can_show_do_not_stop_a_command(ram_node: Node) -> None:
    v = ram_node.w.version + 1
    ram_node.w._commit(("INSERT INTO tree VALUES(?,0,?,1,1,8,CAST(? AS TEXT),'')", (v, v, b"caf\xe9")))
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-X", "utf8=0", str(PROGRAM), "--root", str(ram_node.root), "show", "latest"]
    done = subprocess.run(argv, capture_output=True, env=environment)
    assert done.returncode == 0 and b"caf\\udce9" in done.stdout, done.stderr
