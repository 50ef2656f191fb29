# SPDX-License-Identifier: Apache-2.0
"""A measure of the write diet on a node: look, write its files with the way back, make them count, look again.

Nothing is believed: what runs after the change has to be what was wanted, otherwise the files come back as they were, count
again, and the reason is told.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..base import managed_file, sysctl_files
from ..base.atomic import link_atomic, read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.managed_file import Change, FileSpec
from ..base.run import Run
from ..base.run import run as real_run
from . import measures, parts, rrdcached, rrdcached_restart, swap, swap_change
from .measures import PENDING, REMEMBERED, ROLE
from .parts import Link, Work, data

_ROOT = Path("/")
_PASSWORD = re.compile(r"\b(pass(?:word|wd)?2?=)[^,\s]+")
#: Bytes that have to be free on each file system that a measure writes to: its files are a few KiB each.
SPACE = 1 << 20
#: The cores with ``refuse`` and ``activate`` of a measure, where that is not its own: what only a change needs is sent with it.
_CHANGES: dict[str, ModuleType] = {rrdcached.NAME: rrdcached_restart, swap.NAME: swap_change}


@dataclass(frozen=True)
class _State:
    """A file before it was written: content, or where it leads to; neither of a file that was not there."""

    path: Path
    data: bytes | None = None
    mode: int = 0
    uid: int = 0
    gid: int = 0
    link: str | None = None


@dataclass
class Result:
    """``todo``: what was (in check mode would be) done, in sentences; ``files``: what of files changed; ``done``: what happened
    beside them; ``facts``: of the measures afterwards.
    """

    todo: list[str] = field(default_factory=list)
    files: list[Change] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(self.todo or self.files)


def apply(
    wanted: Mapping[str, Mapping[str, Any]], check: bool = False, run: Run = real_run, root: Path = _ROOT
) -> Result:
    """Bring measures to what is wanted, ``{measure: {enabled, ...options}}``, one after the other; one that is not enabled is
    taken back. Raises PveguardError for a refusal or a failure; the measure that failed is taken back, those before it stay.
    """
    for name in wanted:
        measures.measure(name)
    result = Result()
    for name, options in wanted.items():
        core, facts = measures.measure(name), measures.collect(run, root)[name]
        if not measures.todo(name, options, facts):
            continue
        if not options.get("enabled"):
            if not check:
                _require_space(core, managed_file.paths(_kept_for(core), root), root)
            _take_back(core, facts, result, check, run, root, managed_file.REFUSE)
            continue
        if facts.get("error"):
            raise PveguardError(f"write diet, {name}: the node could not be looked at, and nothing was changed: {facts['error']}")
        result.todo += measures.todo(name, options, facts)
        _enable(core, options, facts, result, check, run, root)
    result.facts = measures.collect(run, root)
    return result


def revert(
    check: bool = False, drift: str = managed_file.REFUSE, run: Run = real_run, root: Path = _ROOT
) -> Result:
    """Take every measure back that is on; a second time changes nothing. Raises PveguardError, before anything is changed, where
    somebody changed a file since; ``drift="overwrite"`` keeps that content as ``.changed``.
    """
    result = Result()
    facts = measures.collect(run, root)
    kept = [core for name, core in measures.MEASURES.items() if facts[name]["kept"] or facts[name]["pending"]]
    for core in kept:
        managed_file.plan_revert(_kept_for(core), root, drift=drift)
        if not check:
            _require_space(core, managed_file.paths(_kept_for(core), root), root)
    for core in reversed(kept):
        _take_back(core, facts[core.NAME], result, check, run, root, drift)
    result.facts = measures.collect(run, root)
    return result


def diff(changes: list[Change]) -> list[dict[str, str]]:
    """Ansible's diff of file changes, without the passwords of network file systems in fstab."""
    return [
        {
            "before": _PASSWORD.sub(r"\1***", change.before),
            "after": _PASSWORD.sub(r"\1***", change.after),
            "before_header": change.path,
            "after_header": f"{change.path} ({change.what})",
        }
        for change in changes
    ]


def _enable(
    core: ModuleType, options: Mapping[str, Any], facts: Mapping[str, Any], result: Result, check: bool, run: Run, root: Path
) -> None:
    change = _CHANGES.get(core.NAME, core)
    if hasattr(change, "refuse"):
        change.refuse(options, facts, root)
    specs = _specs(core, options, facts, root)
    texts = {spec.path: spec.data.decode(errors="replace") for spec in specs if not spec.link}
    sysctl_files.refuse(f"write diet, {core.NAME}", f"{ROLE}_{core.NAME}", texts, root)
    gone = _former(core, specs, root)
    changes = managed_file.plan(specs, _kept_for(core), root) + [
        change for change in managed_file.plan_revert(_kept_for(core), root, gone, managed_file.OVERWRITE) if gone
    ]
    result.files += changes
    if check:
        return
    _require_space(core, [change.path for change in changes], root)
    theirs = [_as_it_is(change.path, None, root) for change in changes if change.drift and _is_edited(core, change.path, root)]
    new = not facts.get("kept")
    if hasattr(core, "live") and not (root / REMEMBERED / f"{core.NAME}.json").exists():
        _remember(core, facts, root)
    _note(core, root)
    former = [_state(root / change.path.lstrip("/")) for change in changes]
    try:
        managed_file.apply(specs, _kept_for(core), root)
        if gone:
            managed_file.revert(_kept_for(core), root, gone, managed_file.OVERWRITE)
    except OSError as error:
        _undo(core, former, new and not facts.get("pending"), root, str(error))
    work = Work(root, run, facts, options, _remembered(core, root), [change.path for change in changes])
    try:
        change.activate(work)
        left = core.differs(options, measures.collect(run, root)[core.NAME])
        if left:
            raise PveguardError(f"after the change it is still to be done: {'; '.join(left)}")
    except (PveguardError, OSError) as error:
        _give_up(core, run, root, str(error), theirs)
    result.done += work.done
    _forget_note(core, root)


def _require_space(core: ModuleType, paths: Sequence[str], root: Path) -> None:
    """Raises PveguardError, before anything is changed, where files could not be written: half of them is worse than none."""
    asked: set[int] = set()
    for path in paths and [f"/{managed_file.STORE}/x", *paths]:
        folder = (root / path.lstrip("/")).parent
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        if device not in asked and not parts.has_space(folder, SPACE):
            shown = "/" if folder == root else f"/{folder.relative_to(root)}"
            raise PveguardError(
                f"write diet, {core.NAME}: no space left on the file system of {shown}: {SPACE >> 10} KiB have to be free. "
                "Nothing was changed; free some and run again"
            )
        asked.add(device)


def _state(path: Path) -> _State:
    if path.is_symlink():
        return _State(path, link=os.readlink(path))
    if not path.exists():
        return _State(path)
    found = path.stat()
    return _State(path, path.read_bytes(), found.st_mode & 0o7777, found.st_uid, found.st_gid)


def _undo(core: ModuleType, former: Sequence[_State], new: bool, root: Path, why: str) -> None:
    """Files that could not all be written are as they were before this run, and nothing counts yet."""
    said = f"write diet, {core.NAME}: {why}"
    try:
        for each in former:
            if _state(each.path) == each:
                continue
            if each.data is not None:
                write_atomic(each.path, each.data, each.mode, each.uid, each.gid)
            elif each.link is not None:
                link_atomic(each.path, each.link)
            else:
                each.path.unlink(missing_ok=True)
        if new:
            managed_file.revert(_kept_for(core), root, drift=managed_file.OVERWRITE)
            (root / REMEMBERED / f"{core.NAME}.json").unlink(missing_ok=True)
            managed_file.remove_empty(root / REMEMBERED)
    except (PveguardError, OSError) as error:
        raise PveguardError(
            f"{said}. What was written could not be taken back either: {error}. Run again, or playbooks/revert.yml"
        ) from error
    _forget_note(core, root)
    raise PveguardError(f"{said}. The node is as it was before")


def _give_up(core: ModuleType, run: Run, root: Path, why: str, theirs: Sequence[FileSpec]) -> None:
    """A measure that does not count is worse than none: the node as it was, and the reason.

    ``theirs``: files of others that somebody has changed since the measure was on, as they were before this run: what they had
    before the measure would lose that change.
    """
    said = f"write diet, {core.NAME}: {why}"
    try:
        _take_back(core, measures.collect(run, root)[core.NAME], Result(), False, run, root, managed_file.OVERWRITE, theirs)
    except (PveguardError, OSError) as error:
        raise PveguardError(
            f"{said}. It could not be taken back either: {error}. Run again, or playbooks/revert.yml"
        ) from error
    if theirs:
        changed = ", ".join(spec.path for spec in theirs)
        raise PveguardError(
            f"{said}. The measure was taken back, but {changed}, which somebody has changed since it was on, is as it was before "
            "this run"
        )
    raise PveguardError(f"{said}. The measure was taken back, the node is as it was before it")


def _take_back(
    core: ModuleType,
    facts: Mapping[str, Any],
    result: Result,
    check: bool,
    run: Run,
    root: Path,
    drift: str,
    theirs: Sequence[FileSpec] = (),
) -> None:
    """``theirs``: files that are written as given, in place of what they were before the measure."""
    name = _kept_for(core)
    changes = managed_file.plan_revert(name, root, drift=drift)
    result.todo.append(f"take the measure {core.NAME} back")
    result.files += changes
    if check:
        return
    _note(core, root)
    was = _remembered(core, root)
    spared = [spec.path for spec in theirs]
    try:
        managed_file.revert(name, root, [path for path in managed_file.paths(name, root) if path not in spared], drift)
        for spec in theirs:
            write_atomic(root / spec.path.lstrip("/"), spec.data, int(spec.mode, 8), spec.uid, spec.gid)
        work = Work(root, run, facts, None, was, [change.path for change in changes])
        _CHANGES.get(core.NAME, core).activate(work)
    except OSError as error:
        raise PveguardError(f"write diet, {core.NAME}: {error}. It is not yet taken back; mend that and run again") from error
    result.done += work.done
    (root / REMEMBERED / f"{core.NAME}.json").unlink(missing_ok=True)
    managed_file.remove_empty(root / REMEMBERED)
    _forget_note(core, root)


def _specs(core: ModuleType, options: Mapping[str, Any], facts: Mapping[str, Any], root: Path) -> list[FileSpec]:
    texts: dict[str, str] = dict(core.owned(options, facts))
    specs = [FileSpec(path, link=str(it)) if isinstance(it, Link) else FileSpec(path, it) for path, it in texts.items()]
    if hasattr(core, "edited"):
        for path, whole in core.edited(options, facts, root).items():
            specs.append(_as_it_is(path, whole, root))
    return specs


def _is_edited(core: ModuleType, path: str, root: Path) -> bool:
    """Whether it is a file of others that is there."""
    return path in getattr(core, "EDITED", ()) and (root / path.lstrip("/")).is_file()


def _as_it_is(path: str, whole: str | None, root: Path) -> FileSpec:
    """Another's file keeps its mode and owner, and without ``whole`` its content."""
    place = root / path.lstrip("/")
    content = (read_or_none(place) or b"") if whole is None else data(whole)
    try:
        found = place.stat()
    except FileNotFoundError:
        return FileSpec(path, content)
    return FileSpec(path, content, f"{found.st_mode & 0o7777:04o}", uid=found.st_uid, gid=found.st_gid)


def _former(core: ModuleType, specs: list[FileSpec], root: Path) -> list[str]:
    """Files that an earlier run wrote and that are not wanted any more."""
    wanted = {spec.path for spec in specs}
    return [path for path in managed_file.paths(_kept_for(core), root) if path not in wanted]


def _kept_for(core: ModuleType) -> str:
    return f"{ROLE}.{core.NAME}"


def _note(core: ModuleType, root: Path) -> None:
    folder = root / PENDING
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / core.NAME).touch()


def _forget_note(core: ModuleType, root: Path) -> None:
    (root / PENDING / core.NAME).unlink(missing_ok=True)


def _remember(core: ModuleType, facts: Mapping[str, Any], root: Path) -> None:
    folder = root / REMEMBERED
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(folder / f"{core.NAME}.json", (json.dumps(core.live(facts), sort_keys=True) + "\n").encode())


def _remembered(core: ModuleType, root: Path) -> Any:
    data = read_or_none(root / REMEMBERED / f"{core.NAME}.json")
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None
