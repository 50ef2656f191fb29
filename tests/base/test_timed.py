# SPDX-License-Identifier: Apache-2.0
"""A timed program leaves its result, one line and its metrics, however it ends."""

from __future__ import annotations

import calendar
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import metrics_text, timed
from ansible.module_utils.pveguard.base.errors import PveguardError

NAME = "drbd-verify"
PROGRAM = timed.Program(
    NAME, "verify", ["/usr/local/sbin/x", "verify", "50%"], "Sun 03:00", spread_s=600, after=("drbd.service",),
    service={"Nice": "5", "CapabilityBoundingSet": "CAP_SYS_ADMIN"},
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("first\n")
    return tmp_path


def prom(root: Path) -> dict[str, str]:
    lines = (root / timed.FOLDER / f"{NAME}.prom").read_text().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def value(root: Path, name: str) -> str | None:
    return prom(root).get(f'pveguard_{name}{{program="{NAME}"}}')


def test_a_run_leaves_result_line_and_metrics(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([1_000_000_000.0, 1_000_000_012.5])
    code = timed.record(
        NAME,
        lambda: ("3 blocks\nverified", {"blocks": 3}),
        metrics={"drbd_blocks": ("Blocks that differ", "gauge")},
        samples=lambda found: {"drbd_blocks": [({"resource": 'r"0'}, found["blocks"])]},
        root=root,
        clock=lambda: next(times),
    )
    state = timed.last(NAME, root)
    assert code == 0 and (state["state"], state["found"], state["seconds"]) == ("ok", {"blocks": 3}, 12.5)
    assert state["started"] == state["last_ok"] == "2001-09-09T01:46:40Z"
    assert capsys.readouterr().err == f"{NAME}: info: 3 blocks; verified\n"
    assert value(root, "timed_success") == "1" and value(root, "timed_duration_seconds") == "12.5"
    assert value(root, "timed_last_success_timestamp_seconds") == "1000000000"
    assert prom(root)['pveguard_drbd_blocks{resource="r\\"0"}'] == "3"
    assert os.stat(root / timed.FOLDER / f"{NAME}.prom").st_mode & 0o777 == 0o644
    assert os.stat(root / timed.FOLDER / f"{NAME}.json").st_mode & 0o777 == 0o600


def fails() -> tuple[str, dict[str, Any]]:
    raise PveguardError("the link was lost")


def test_a_failure_has_its_reason_and_does_not_hide_the_last_success(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed.record(NAME, lambda: ("fine", {}), root=root, clock=lambda: 1000.0)
    assert timed.record(NAME, fails, root=root, clock=lambda: 2000.0) == 1
    state = timed.last(NAME, root)
    assert (state["state"], state["message"], state["last_ok"]) == ("failed", "the link was lost", "1970-01-01T00:16:40Z")
    assert value(root, "timed_success") == "0" and value(root, "timed_last_success_timestamp_seconds") == "1000"
    assert capsys.readouterr().err.endswith("error: the link was lost\n")


def test_what_nobody_foresaw_is_a_failure_and_still_raised(root: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        timed.record(NAME, lambda: ("x", {"y": 1 // 0}), root=root)
    assert timed.last(NAME, root)["message"].startswith("ZeroDivisionError")


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pveguard.base import timed
def work():
    print("begun", flush=True)
    sys.stdin.read()
    return "done", {}
sys.exit(timed.record("drbd-verify", work, root=Path(sys.argv[2])))
"""


def begun(root: Path) -> subprocess.Popen[str]:
    cores = Path(__file__).resolve().parents[2] / "module_utils"
    program = subprocess.Popen(
        [sys.executable, "-c", RUN, cores, root],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None and program.stdout.readline() == "begun\n"
    return program


def test_a_second_one_does_nothing_while_one_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with begun(root) as program:
        assert timed.last(NAME, root)["state"] == "running"
        assert timed.record(NAME, fails, root=root) == 75
        assert "it runs already" in capsys.readouterr().err
        program.communicate("")
    assert program.returncode == 0 and timed.last(NAME, root)["state"] == "ok"


def test_a_run_that_was_killed_is_told(root: Path) -> None:
    with begun(root) as program:
        program.kill()
    assert timed.last(NAME, root)["state"] == "aborted"
    assert timed.record(NAME, lambda: ("fine", {}), root=root) == 0
    assert timed.last(NAME, root)["state"] == "ok"


def test_a_run_that_was_lost_with_the_power_is_told(root: Path) -> None:
    with begun(root) as program:
        (root / "proc/sys/kernel/random/boot_id").write_text("second\n")
        assert timed.last(NAME, root)["state"] == "aborted"
        program.communicate("")


def test_a_run_that_is_asked_to_end_says_so(root: Path) -> None:
    with begun(root) as program:
        program.send_signal(signal.SIGTERM)
        _, error = program.communicate()
    state = timed.last(NAME, root)
    assert program.returncode == 1 and (state["state"], state["message"]) == ("failed", "ended by signal 15"), error


def test_what_is_not_there_and_what_is_damaged(root: Path) -> None:
    assert timed.last(NAME, root) == {"name": NAME, "state": "never"}
    (root / timed.FOLDER).mkdir(parents=True)
    (root / timed.FOLDER / f"{NAME}.json").write_text("{")
    with pytest.raises(PveguardError, match=f"{NAME}.json: is damaged"):
        timed.last(NAME, root)
    with pytest.raises(PveguardError, match="no name of a program"):
        timed.last("../x", root)


def test_the_journal_gets_a_priority(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    timed.log(NAME, "error", "two\nlines")
    assert capsys.readouterr().err == "<3>two; lines\n"


@pytest.mark.parametrize("seconds", [0, 951_782_399, 951_782_400, 951_868_800, 1_709_164_800, 4_102_444_800])
def test_times_are_read_as_they_were_written(seconds: int) -> None:
    text = timed._utc(seconds)
    assert timed.epoch(text) == calendar.timegm(time.gmtime(seconds)) == seconds
    assert timed.epoch(None) is timed.epoch("yesterday") is None


def test_units_say_what_was_asked_for() -> None:
    texts = timed.units(PROGRAM)
    service, timer = texts[f"pveguard-{NAME}.service"], texts[f"pveguard-{NAME}.timer"]
    assert "ExecStart=/usr/local/sbin/x verify 50%%\n" in service and "After=drbd.service\n" in service
    assert service.count("Nice=") == 1 and "Nice=5\n" in service
    assert "OnCalendar=Sun 03:00\n" in timer and "RandomizedDelaySec=600\n" in timer and "Persistent=yes\n" in timer


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    texts = timed.units(PROGRAM)
    for name, text in texts.items():
        (tmp_path / name).write_text(text.replace("/usr/local/sbin/x", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(tmp_path / name for name in texts)],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "info"},
    )
    assert [line for line in done.stderr.splitlines() if f"pveguard-{NAME}" in line] == [], done.stderr
    assert done.returncode == 0, done.stderr


def test_a_metric_without_a_sample_is_not_there() -> None:
    metrics = {"a": ("A", "gauge"), "b_total": ("B", "counter"), "c": ("C", "gauge")}
    text = metrics_text.render(metrics, {"c": [({}, 0.123456789123)], "b_total": [({}, 2**40)], "a": []}, "x_")
    assert text == (
        "# HELP x_b_total B.\n# TYPE x_b_total counter\nx_b_total 1099511627776\n"
        "# HELP x_c C.\n# TYPE x_c gauge\nx_c 0.123456789\n"
    )


def test_json_is_what_later_programs_read(root: Path) -> None:
    timed.record(NAME, lambda: ("fine", {"list": [1]}), root=root)
    assert json.loads((root / timed.FOLDER / f"{NAME}.json").read_text())["found"] == {"list": [1]}
