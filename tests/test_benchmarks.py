"""The benchmarks compute the right numbers from measurements, and they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Spread, alone, compared, skipped
from benchmarks.isolated import Failed, run
from benchmarks.profile import SUBJECTS, Subject
from benchmarks.report import Report, as_markdown, as_text
from benchmarks.rounds import in_turn
from benchmarks.setting import Size
from benchmarks.suite import BENCHMARKS, chosen
from bindsock.testing.lab import Lab

_ROOT = Path(__file__).parent.parent
_LEAST = Size(quick=True, rounds=2, many=20)


def test_each_round_calls_every_side_and_the_order_is_reversed_from_one_to_the_next() -> None:
    called: list[str] = []

    def side(name: str) -> float:
        called.append(name)
        return float(len(called))

    costs = in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, 2, warm_up=1)

    assert called == ["a", "b", "b", "a", "a", "b"]
    assert costs == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_a_ratio_is_that_of_the_halves_of_a_round_not_of_the_medians() -> None:
    row = compared("x", "s", [1.0, 20.0, 3.0], "y", [1.0, 10.0, 1.0])

    assert row.ratio is not None
    assert row.ratio.median == 2.0
    assert row.ours is not None
    assert row.ours.median == 3.0


def test_a_rate_that_is_half_as_high_costs_twice_as_much() -> None:
    row = compared("x", "1/s", [50.0, 50.0], "y", [100.0, 100.0], rate=True, ratio_limit=1.5)

    assert row.cost is not None
    assert row.cost.median == 2.0
    assert row.within is False


def test_limits_are_kept_by_the_median_of_the_figure_and_of_the_ratio() -> None:
    assert compared("x", "s", [2.0, 2.0], "y", [1.0, 1.0], ratio_limit=2.0, limit=2.0).within is True
    assert compared("x", "s", [2.1, 2.1], "y", [1.0, 1.0], ratio_limit=2.0).within is False
    assert alone("x", "s", [2.1, 2.1], limit=2.0).within is False
    assert alone("x", "s", [2.1, 2.1]).within is None


def test_a_single_round_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        Spread.of([1.0])


def test_a_report_that_was_saved_is_the_same_when_it_is_loaded(tmp_path: Path) -> None:
    rows = [compared("x", "s", [1.0, 2.0], "y", [2.0, 2.0], limit=3.0), alone("z", "B", [1.0, 2.0]), skipped("w", "not here")]
    report = Report({"system": "Linux"}, {"Things": rows})

    report.save(tmp_path / "results" / "report.json")

    assert Report.load(tmp_path / "results" / "report.json") == report


def test_what_was_skipped_is_shown_with_the_reason() -> None:
    row = skipped("the proxy beside dante", "dante is not installed")

    assert "dante is not installed" in as_text(row)
    assert "dante is not installed" in as_markdown(Report({}, {"The proxy": [row]}))


def test_a_pattern_chooses_benchmarks_and_quick_leaves_out_the_long_ones() -> None:
    assert [b.name for b in chosen(["r*"], quick=True)] == ["routes", "reading", "recovery", "replacing"]
    assert chosen([], quick=False) == list(BENCHMARKS)
    assert {b.name for b in chosen([], quick=True)} < {b.name for b in BENCHMARKS}


def test_a_benchmark_measures_in_a_process_of_its_own() -> None:
    (benchmark,) = chosen(["import"], quick=True)

    rows = list(run(benchmark, _LEAST, timeout=60))

    assert [row.beside for row in rows] == ["import asyncio", "import asyncio"]
    assert all(row.ours is not None and row.ours.median > 0 for row in rows)


def test_a_benchmark_that_takes_too_long_is_ended_and_said_to() -> None:
    (benchmark,) = chosen(["import"], quick=True)

    with pytest.raises(Failed, match="more than"):
        list(run(benchmark, Size(quick=True, rounds=50_000, many=20), timeout=0.5))


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_while_the_process_is_started_ends_that_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    (benchmark,) = chosen(["import"], quick=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(run(benchmark, Size(quick=True, rounds=50_000, many=20), timeout=100))
        (process,) = started
        assert process.poll() == 130
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def test_ctrl_c_while_a_benchmarks_process_imports_ends_it_quietly(tmp_path: Path) -> None:
    """It is interrupted by the first module that it imports."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\nif any('carry_out' in argument for argument in sys.orig_argv): signal.raise_signal(signal.SIGINT)\n"
    )
    command = [sys.executable, "-m", "benchmarks", "--only", "import", "--rounds", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(tmp_path)])}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=100)
    assert "import: it ended with status 130" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.lab
@pytest.mark.parametrize("name", ["endpoints", "moving"])
def test_a_benchmark_measures_in_the_laboratory(lab: Lab, name: str) -> None:
    (benchmark,) = chosen([name], quick=True)

    rows = list(run(benchmark, _LEAST, timeout=100))

    assert rows
    assert all(row.ours is not None for row in rows if not row.skipped)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_the_steps_of_a_profile_are_functions_that_there_are(subject: Subject) -> None:
    for step in subject.steps:
        assert all(callable(function) for _, _, function in step.resolved()), step.what


@pytest.mark.lab
def test_a_profile_says_what_each_step_takes(lab: Lab, tmp_path: Path) -> None:
    table = tmp_path / "profile.md"
    command = [sys.executable, "-m", "benchmarks.profile", "send", "--table", str(table)]
    subprocess.run(command, check=True, timeout=100)
    rows = [line.split(" | ") for line in table.read_text().splitlines() if line.startswith("| ")]
    took = {cells[0].removeprefix("| "): cells[1] for cells in rows}
    assert {step.what for step in SUBJECTS["send"].steps} <= took.keys()
    # On a busy machine a single step may take less than what is subtracted for measuring it.
    assert sum(float(microseconds) for what, microseconds in took.items() if what != "step") > 0


def test_ctrl_c_ends_the_benchmarks_with_130_and_keeps_what_was_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "import", "--rounds", "50000", "--json", str(results)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=_ROOT, start_new_session=True)
    assert process.stderr is not None
    with process:
        assert b"import" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()

    assert process.returncode == 130
    assert b"Traceback" not in said
