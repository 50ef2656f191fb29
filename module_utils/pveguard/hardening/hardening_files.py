# SPDX-License-Identifier: Apache-2.0
"""A concern of node hardening on a node: look, judge, write its files with the way back, make them count, look again.

Nothing is believed: what is there after the change has to be what was wanted; otherwise files and running values are as they were
before the run, and the reason is told. What others have to prove (``PROVED`` of a concern) waits for :func:`confirm` or
:func:`undo`; what was before it is kept on disk, so a run that died leaves the proof to the next one.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..base import managed_file
from ..base.atomic import link_atomic, read_or_none, write_atomic
from ..base.errors import PveguardError
from ..base.managed_file import Change
from ..base.run import Run
from ..base.run import run as real_run
from . import concerns, pveproxy_change, pveproxy_restart, updates_change, updates_restart
from .change_parts import ROLE, Around, Options, Work
from .concerns import PENDING, REMEMBERED

_ROOT = Path("/")
#: The cores with ``refuse``, ``prepare``, ``proof`` and ``activate`` of a concern, where these are not its own: what only a
#: change needs is not sent with a look.
_CHANGES: dict[str, ModuleType] = {
    pveproxy_change.NAME: pveproxy_restart,
    updates_change.NAME: updates_restart,
}


@dataclass
class Result:
    """``todo``: what was (in check mode would be) done; ``done``: what happened beside files; ``unproved``: it counts, and others
    have to prove it; ``proof``: what they need for that; ``advice``: what an operator should know.
    """

    todo: list[str] = field(default_factory=list)
    files: list[Change] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    unproved: bool = False
    proof: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return bool(self.todo or self.files)


def apply(
    name: str,
    options: Options,
    check: bool = False,
    controller: str = "",
    run: Run = real_run,
    root: Path = _ROOT,
) -> Result:
    """Bring a concern to what is wanted. Raises PveguardError for a refusal, with nothing changed, or for a failure, with
    everything as it was before this run.
    """
    core = concerns.concern(name)
    facts = concerns.collect(name, root, run)
    if not facts["known"]:
        raise PveguardError(
            _said(name, f"the node could not be looked at, and nothing was changed: {facts['error']}")
        )
    result = Result(advice=core.advice(options, facts) if hasattr(core, "advice") else [])
    result.todo = concerns.todo(name, options, facts)
    if not result.todo:
        return result
    around, change = Around(root, run, controller), _CHANGES.get(name, core)
    bare = not facts["installed"]
    try:
        change.refuse(options, facts, around)
        if not facts["installed"]:
            if check:
                return result
            if not getattr(change, "FILES_FIRST", False):
                facts = _install(change, name, options, facts, around)
        specs = core.owned(options, facts, root)
        gone = [path for path in facts["paths"] if path not in {spec.path for spec in specs}]
        result.files = managed_file.plan(specs, _kept_for(name), root)
        if gone:
            result.files += managed_file.plan_revert(_kept_for(name), root, gone, managed_file.OVERWRITE)
    except (PveguardError, OSError) as error:
        said = f"nothing was changed{_but(name, bare, around)}: {error}"
        raise PveguardError(_said(name, said)) from error
    if hasattr(change, "proof"):
        result.proof = change.proof(options, facts, around)
    if check:
        return result
    if result.files or facts["pending"] or core.differs(options, facts):
        _change(core, options, facts, specs, gone, result, around, bare)
    result.unproved = (root / REMEMBERED / f"{name}.former").exists()
    return result


def confirm(name: str, root: Path = _ROOT) -> bool:
    """Keep what others have proved; False where nothing waited for it."""
    former = root / REMEMBERED / f"{concerns.concern(name).NAME}.former"
    if not former.exists():
        return False
    former.unlink()
    return True


def undo(name: str, run: Run = real_run, root: Path = _ROOT) -> bool:
    """Put back what was before the change that waits for its proof; False where none does."""
    core = concerns.concern(name)
    note = read_or_none(root / REMEMBERED / f"{name}.former")
    if note is None:
        return False
    _back(core, json.loads(note), run, root)
    return True


def revert(
    check: bool = False, drift: str = managed_file.REFUSE, run: Run = real_run, root: Path = _ROOT
) -> Result:
    """Put back what was before the first change of every concern; a second time changes nothing. Raises PveguardError, before
    anything is changed, where somebody changed a file since.
    """
    result = Result()
    kept = [name for name, core in concerns.CONCERNS.items() if _is_kept(name, root)]
    for name in kept:
        result.files += managed_file.plan_revert(_kept_for(name), root, drift=drift, instead=_stays(name, root))
        result.todo.append(f"take the concern {name} back")
    for name in [] if check else reversed(kept):
        core = concerns.concern(name)
        was = _remembered(name, root)
        _note(name, root)
        managed_file.revert(_kept_for(name), root, drift=drift, instead=_stays(name, root))
        work = Work(root, run, concerns.collect(name, root, run), None, was)
        try:
            _CHANGES.get(name, core).activate(work)
        except (PveguardError, OSError) as error:
            raise PveguardError(
                _said(
                    name,
                    f"its files are as they were before, and do not count yet: {error}. Mend that and run again",
                )
            ) from error
        result.done += work.done
        _forget(name, root)
    return result


def _change(
    core: ModuleType,
    options: Options,
    facts: dict[str, Any],
    specs: Sequence[managed_file.FileSpec],
    gone: Sequence[str],
    result: Result,
    around: Around,
    bare: bool,
) -> None:
    """``bare``: what it needs was not installed before this run."""
    name, root, run = core.NAME, around.root, around.run
    change = _CHANGES.get(name, core)
    live = core.live(facts) if hasattr(core, "live") else None
    note: dict[str, Any] = {
        "new": not facts["kept"],
        "live": live,
        "files": [_state(each.path, root) for each in result.files],
    }
    former = root / REMEMBERED / f"{name}.former"
    try:
        _note(name, root)
        former.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if live is not None and not (root / REMEMBERED / f"{name}.json").exists():
            _write(root / REMEMBERED / f"{name}.json", live)
        if (waits := read_or_none(former)) is not None:
            # Nobody has proved the change before this one, so it is no place to go back to.
            note = json.loads(waits)
        elif getattr(core, "PROVED", False):
            _write(former, note)
    except OSError as error:
        _forget(name, root, new=note["new"])
        raise PveguardError(_said(name, f"nothing was changed: {error}")) from error
    try:
        managed_file.apply(specs, _kept_for(name), root)
        if gone:
            managed_file.revert(_kept_for(name), root, gone, managed_file.OVERWRITE)
        if not facts["installed"]:
            facts = _install(change, name, options, facts, around)
        work = Work(root, run, facts, options)
        change.activate(work)
        left = core.differs(options, concerns.collect(name, root, run))
        if left:
            raise PveguardError(f"after the change it is still to be done: {'; '.join(left)}")
    except (PveguardError, OSError) as error:
        try:
            _back(core, note, run, root)
        except (PveguardError, OSError) as other:
            raise PveguardError(
                _said(
                    name,
                    f"{error}. It could not be taken back either: {other}. Run again, or playbooks/revert.yml",
                )
            ) from other
        said = f"{error}. It was taken back, the node is as it was before this run{_but(name, bare, around)}"
        raise PveguardError(_said(name, said)) from error
    result.done += work.done
    (root / PENDING / name).unlink(missing_ok=True)


def _install(
    change: ModuleType, name: str, options: Options, facts: dict[str, Any], around: Around
) -> dict[str, Any]:
    """Install what the concern needs, and judge again; returns the facts with it."""
    change.prepare(options, facts, around)
    facts = concerns.collect(name, around.root, around.run)
    if not facts["known"] or not facts["installed"]:
        raise PveguardError(facts["error"] or "what was installed is not there")
    change.refuse(options, facts, around)
    return facts


def _but(name: str, bare: bool, around: Around) -> str:
    """What a run that failed leaves behind."""
    stays = bare and concerns.collect(name, around.root, around.run).get("installed")
    return ", but for what was installed, which goes by its own settings" if stays else ""


def _back(core: ModuleType, note: dict[str, Any], run: Run, root: Path) -> None:
    """Files and running values as ``note`` has them."""
    name = core.NAME
    for each in note["files"]:
        _restore(each, root)
    if note["new"]:
        managed_file.revert(_kept_for(name), root, drift=managed_file.OVERWRITE)
    _CHANGES.get(name, core).activate(Work(root, run, concerns.collect(name, root, run), None, note["live"]))
    _forget(name, root, new=note["new"])


def _state(path: str, root: Path) -> dict[str, Any]:
    place = root / path.lstrip("/")
    if place.is_symlink():
        return {"path": path, "link": os.readlink(place)}
    if not place.exists():
        return {"path": path}
    found = place.stat()
    data = base64.b64encode(place.read_bytes()).decode()
    return {
        "path": path,
        "data": data,
        "mode": found.st_mode & 0o7777,
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _restore(was: dict[str, Any], root: Path) -> None:
    place = root / was["path"].lstrip("/")
    if _state(was["path"], root) == was:
        return
    if "data" in was:
        write_atomic(place, base64.b64decode(was["data"]), was["mode"], was["uid"], was["gid"])
    elif "link" in was:
        link_atomic(place, was["link"])
    else:
        place.unlink(missing_ok=True)


def _is_kept(name: str, root: Path) -> bool:
    return (
        bool(managed_file.paths(_kept_for(name), root))
        or (root / REMEMBERED / f"{name}.json").exists()
        or (root / PENDING / name).exists()
    )


def _stays(name: str, root: Path) -> dict[str, bytes]:
    """Content that a revert leaves in the place of an original, as another has lines of his own in that file."""
    core, kept_for = concerns.concern(name), _kept_for(name)
    found: dict[str, bytes] = {}
    # What is not as it was written is refused, or the operator wants the original.
    changed = managed_file.drifted(kept_for, root)
    for path in managed_file.paths(kept_for, root) if hasattr(core, "stays") else ():
        if path not in changed:
            found.update(core.stays(managed_file.original(kept_for, path, root), root))
    return found


def _said(name: str, what: str) -> str:
    return f"node hardening, {name}: {what}"


def _kept_for(name: str) -> str:
    return f"{ROLE}.{name}"


def _note(name: str, root: Path) -> None:
    folder = root / PENDING
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / name).touch()


def _write(path: Path, value: object) -> None:
    # It may hold a whole file of another's mode.
    write_atomic(path, (json.dumps(value, sort_keys=True) + "\n").encode(), 0o600)


def _remembered(name: str, root: Path) -> Any:
    data = read_or_none(root / REMEMBERED / f"{name}.json")
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def _forget(name: str, root: Path, new: bool = True) -> None:
    """``new``: nothing of the concern is on any more, so what it was before the first change is not needed."""
    (root / PENDING / name).unlink(missing_ok=True)
    try:
        for ending in ("former", *(["json"] if new else [])):
            (root / REMEMBERED / f"{name}.{ending}").unlink(missing_ok=True)
        managed_file.remove_empty(root / REMEMBERED)
    except OSError:
        # A file system that takes no writes: it has taken none before either.
        pass
