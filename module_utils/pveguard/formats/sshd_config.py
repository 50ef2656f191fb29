# SPDX-License-Identifier: Apache-2.0
"""The lines of sshd's configuration, with what it includes, as sshd_config(5) says.

Only who sets what is found here; what counts in the end is asked of ``sshd -T``.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import PveguardError

FOLDER = "/etc/ssh"
MAIN = f"{FOLDER}/sshd_config"
INCLUDE, MATCH = "include", "match"
#: As in sshd.
DEPTH = 16


@dataclass(frozen=True)
class Line:
    """One directive. ``keyword`` in small letters; ``match``: the criteria of the block that it stands in, empty outside."""

    file: str
    number: int
    keyword: str
    arguments: tuple[str, ...]
    match: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"

    @property
    def text(self) -> str:
        return " ".join((self.keyword, *self.arguments))


def read(root: Path = Path("/"), path: str = MAIN) -> list[Line]:
    """All lines in the order in which sshd reads them; those of an included file follow their Include.

    Raises PveguardError for a file that cannot be read or understood.
    """
    return list(_lines(root, path, (), 0))


def split(text: str) -> tuple[str, ...]:
    """The words of a line, the keyword first as it stands; empty for a comment and an empty line. Raises ValueError."""
    text = text.strip()
    if not text or text.startswith("#"):
        return ()
    end = next((place for place, letter in enumerate(text) if letter in " \t=\""), len(text))
    rest = text[end:].lstrip()
    if rest.startswith("="):
        rest = rest[1:]
    return (text[:end], *shlex.split(rest, comments=True))


def matches(patterns: Sequence[str], value: str) -> bool:
    """Whether a list of patterns, in one word with commas or several, takes a value: ``!`` excludes."""
    taken = False
    for pattern in (each for word in patterns for each in word.split(",")):
        if pattern.startswith("!"):
            if _fits(pattern[1:], value):
                return False
        elif _fits(pattern, value):
            taken = True
    return taken


def covers(include: Line, path: str) -> bool:
    """Whether an Include reads this file."""
    return any(fnmatch.fnmatchcase(path, _absolute(pattern)) for pattern in include.arguments)


def _fits(pattern: str, value: str) -> bool:
    # Only * and ? are special.
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _absolute(pattern: str) -> str:
    return pattern if pattern.startswith(("/", "~")) else f"{FOLDER}/{pattern}"


def _lines(root: Path, path: str, match: tuple[str, ...], depth: int) -> Iterator[Line]:
    if depth > DEPTH:
        raise PveguardError(f"{path}: more than {DEPTH} files include each other")
    try:
        text = (root / path.lstrip("/")).read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise PveguardError(f"{path}: {error.strerror}") from error
    for number, raw in enumerate(text.splitlines(), 1):
        try:
            words = split(raw)
        except ValueError as error:
            raise PveguardError(f"{path}:{number}: {error}") from error
        if not words:
            continue
        keyword, arguments = words[0].lower(), words[1:]
        if keyword == MATCH:
            match = () if [each.lower() for each in arguments] == ["all"] else arguments
        yield Line(path, number, keyword, arguments, match)
        if keyword == INCLUDE:
            for included in _included(root, arguments):
                yield from _lines(root, included, match, depth + 1)


def _included(root: Path, patterns: Sequence[str]) -> Iterator[str]:
    base = "" if str(root) == "/" else str(root)
    for pattern in patterns:
        for found in sorted(glob.glob(glob.escape(base) + _absolute(pattern))):
            if os.path.isfile(found):
                yield found.removeprefix(base)
