"""The gate before a disk: measure it, or take the last result where it still holds, and say how it has drifted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..base.atomic import write_atomic
from ..base.run import Run, run
from . import fsync_bench, suspicion

SCHEMA = "pveguard-fsync-gate"
#: Raised when a key changes its meaning or goes away; a result of another version is measured anew. 1 had a loop of
#: pveperf that wrote before it synced.
SCHEMA_VERSION = 2
DAY_S = 86400.0

#: What is shown when the rate or the p99 of pveperf's loop moved by at least so much, in percent of the last result.
#: Two measurements of one healthy disk differ by less than half; see docs/figures.md.
DRIFT_PERCENT = 50.0


def gate(
    path: str,
    duration: float = fsync_bench.DEFAULT_DURATION_S,
    *,
    methods: Sequence[str] = ("pveperf",),
    min_fsyncs_per_second: float = 0,
    warn_p99_ms: float = 0,
    threshold_name: str = "min_fsyncs_per_second",
    p99_threshold_name: str = "warn_p99_ms",
    power_cut: Mapping[str, Any] | None = None,
    nearest_parent: bool = False,
    cache_file: str = "",
    cache_days: float = 0,
    store: bool = False,
    stored_only: bool = False,
    previous: Mapping[str, Any] | None = None,
    run: Run = run,
) -> dict[str, Any]:
    """:func:`fsync_bench.bench`, or its stored result, judged by the thresholds and the drive of now.

    ``cache_file``: where the last result lies; it is read where it exists, and written when ``store``. It holds for
    ``cache_days`` (0: never), for the same drive, kernel, file system and methods. ``previous``: a result known from
    elsewhere, for the drift only. ``stored_only``: measure nothing; without a result that holds there are ``cached``
    (False) and ``cache`` (why it does not) and no other key.

    More keys: ``cached`` (bool), ``cache`` (``used``, or why it was measured), ``age_days`` (of a result that was
    used, else 0.0), ``drift`` (:func:`drift`, None without an earlier result). Never raises for what the disk does;
    a result that cannot be stored is measured again next time, and ``cache`` says why.
    """
    limits: dict[str, Any] = {
        "min_fsyncs_per_second": min_fsyncs_per_second,
        "warn_p99_ms": warn_p99_ms,
        "threshold_name": threshold_name,
        "p99_threshold_name": p99_threshold_name,
        "power_cut": power_cut,
    }
    saved, why = load(cache_file) if cache_file else (None, "no file for results was given")
    if saved is not None:
        now = fsync_bench.look(path, nearest_parent=nearest_parent, run=run)
        why = void(saved, now, methods, cache_days)
        if not why:
            # The figures are of then, the drive is that of now: it may have lost its power-loss protection since.
            result = {**saved, **{key: now[key] for key in (*fsync_bench.DEVICE_KEYS, "block_device")}}
            result["suspect"] = suspicion.suspects(result["block_device"], result["methods"])
            fsync_bench.judge(result, **limits)
            age = round((time.time() - _seconds(saved["time"])) / DAY_S, 2)
            result.update(cached=True, cache="used", age_days=age, path=path)
            result["message"] += f"; measured {age:g} days ago"
            return result
    if stored_only:
        return {"cached": False, "cache": why}
    result = fsync_bench.bench(
        path, duration, methods=methods, nearest_parent=nearest_parent, run=run, **limits
    )
    result.update(cached=False, cache=why, age_days=0.0, drift=drift(saved or previous, result))
    if result["drift"] and result["drift"]["notable"]:
        result["message"] += f"; {result['drift']['message']}"
    # What could not be measured is to be measured again.
    if store and cache_file and result["methods"]:
        try:
            _store(cache_file, result)
        except OSError as error:
            result["cache"] = f"{why}; {cache_file} cannot be written: {error.strerror or error}"
    return result


def load(path: str) -> tuple[dict[str, Any] | None, str]:
    """The stored result, or None and why there is none."""
    try:
        value = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None, "never measured"
    except (OSError, ValueError) as error:
        return None, f"{path} cannot be read: {error}"
    if not isinstance(value, dict) or (value.get("schema"), value.get("schema_version")) != (
        SCHEMA,
        SCHEMA_VERSION,
    ):
        return None, f"{path} is of another version"
    result = value.get("result")
    wanted = {"time", "kernel", "drive_identity", "device", "filesystem", "methods", "measured_path"}
    if not isinstance(result, dict) or not wanted <= set(result) or not result["methods"]:
        return None, f"{path} is not complete"
    return result, ""


def void(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    methods: Sequence[str],
    days: float,
    clock: float | None = None,
) -> str:
    """Why a stored result does not hold for what :func:`fsync_bench.look` sees ``now``; empty when it does."""
    age = ((time.time() if clock is None else clock) - _seconds(saved["time"])) / DAY_S
    for key, name in (
        ("drive_identity", "drive"),
        ("kernel", "kernel"),
        ("device", "device"),
        ("filesystem", "file system"),
    ):
        if saved[key] != now[key]:
            return f"another {name}: {saved[key]}, now {now[key]}"
    missing = [name for name in methods if name not in saved["methods"]]
    if missing:
        return f"not measured by {', '.join(missing)}"
    if age < 0:
        return "the last result is of the future: was the clock set back?"
    return "" if age < days else f"{age:.1f} days old"


def drift(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """How ``now`` differs from the result ``before``, None where one of them has no figures or they are not of the same.

    ``since`` (time of the former), ``fsyncs_per_second_before``, ``fsyncs_per_second_change_percent``,
    ``p99_ms_before``, ``p99_ms_change_percent``, ``changed`` (those of drive, kernel and filesystem that are not the
    same), ``notable`` (the intervals of the rate do not overlap and it changed by :data:`DRIFT_PERCENT`, or the p99
    rose by as much again), ``message``.
    """
    keys = ("fsyncs_per_second", "p99_ms", "time", "method")
    if not before or any(before.get(key) is None or now.get(key) is None for key in keys):
        return None
    if before["method"] != now["method"] or before.get("measures") != now.get("measures"):
        return None
    rate = _percent(before["fsyncs_per_second"], now["fsyncs_per_second"])
    p99 = _percent(before["p99_ms"], now["p99_ms"])
    old, new = before.get("fsyncs_per_second_interval"), now.get("fsyncs_per_second_interval")
    apart = not old or not new or old[1] < new[0] or new[1] < old[0]
    named = (("drive_identity", "drive"), ("kernel", "kernel"), ("filesystem", "filesystem"))
    changed = [name for key, name in named if before.get(key) != now.get(key)]
    notable = (rate is not None and abs(rate) >= DRIFT_PERCENT and apart) or (
        p99 is not None and p99 >= 2 * DRIFT_PERCENT
    )
    return {
        "since": before["time"],
        "fsyncs_per_second_before": before["fsyncs_per_second"],
        "fsyncs_per_second_change_percent": rate,
        "p99_ms_before": before["p99_ms"],
        "p99_ms_change_percent": p99,
        "changed": changed,
        "notable": notable,
        "message": f"since {before['time']}: {before['fsyncs_per_second']:g} to {now['fsyncs_per_second']:g} a second, "
        f"p99 {before['p99_ms']:g} to {now['p99_ms']:g} ms"
        + (f", with another {' and '.join(changed)}" if changed else ""),
    }


def _percent(before: float, now: float) -> float | None:
    return round(100 * (now - before) / before, 1) if before else None


def _store(path: str, result: Mapping[str, Any]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    value = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "result": result}
    write_atomic(path, (json.dumps(value, sort_keys=True) + "\n").encode(), 0o600)


def _seconds(text: Any) -> float:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
