# SPDX-License-Identifier: Apache-2.0
"""A fake of the one seam through which commands are run, and databases as the daemon makes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible.module_utils.pveguard.base.run import Result

Answer = Result | Callable[[list[str]], Result]


class FakeRun:
    """Answers by the first words of a command; anything unexpected fails the test. ``calls`` keeps each argv."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.calls: list[list[str]] = []
        self.envs: list[Mapping[str, str] | None] = []

    def __call__(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        self.calls.append(list(argv))
        self.envs.append(env)
        text = " ".join(argv)
        for start in sorted(self.answers, key=len, reverse=True):
            if text.startswith(start):
                answer = self.answers[start]
                return answer(list(argv)) if callable(answer) else answer
        raise AssertionError(f"unexpected command: {text}")


def ok(stdout: str = "") -> Result:
    return Result(0, stdout, "")


def make_database(path: Path, files: Mapping[str, str]) -> None:
    """A database with the daemon's schema that holds these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, parent INTEGER NOT NULL, version INTEGER NOT "
        "NULL, "
        "writer INTEGER NOT NULL, mtime INTEGER NOT NULL, type INTEGER NOT NULL, name TEXT NOT NULL, data "
        "BLOB)"
    )
    inodes = {"": 0}
    connection.execute("INSERT INTO tree VALUES (0, 0, 99, 0, 0, 8, '__version__', NULL)")
    for name, text in files.items():
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            current = "/".join(parts[:depth])
            if current in inodes:
                continue
            inodes[current] = len(inodes)
            leaf = depth == len(parts)
            connection.execute(
                "INSERT INTO tree VALUES (?, ?, 1, 0, 0, ?, ?, ?)",
                (
                    inodes[current],
                    inodes["/".join(parts[: depth - 1])],
                    8 if leaf else 4,
                    parts[depth - 1],
                    text.encode() if leaf else None,
                ),
            )
    connection.commit()
    connection.close()


def snapshot(root: Path) -> dict[str, bytes | None]:
    """Every path below ``root`` with its content, to see that nothing was written."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }
