from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sfuda_bench.progress import SOURCE_ROW, Progress

CELLS = [
    ("s", SOURCE_ROW, "syn_a"),
    ("c0", "cpr", "syn_a:syn_b"),
    ("c1", "cpr", "syn_a:syn_b"),
    ("t", "tent [online]", "syn_b:syn_a"),
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[str]:
    """Lines without their time stamps, which must be there."""
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    return [line[9:] for line in lines]


def test_a_pipe_gets_a_line_per_stage_and_not_per_epoch() -> None:
    stream = io.StringIO()
    with Progress(stream, clock=Clock()) as progress:
        progress.start(CELLS)
        for epoch in range(1, 21):
            progress.update("c0", "adapting", epoch, 20)
        progress.update("c0", "predicting")

    assert ["cpr syn_a:syn_b: adapting 1/20", "cpr syn_a:syn_b: predicting"] == lines_of(stream)


def test_a_long_stage_shows_once_a_minute_that_it_is_alive() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock) as progress:
        progress.start(CELLS)
        for epoch in range(1, 8):
            progress.update("c0", "adapting", epoch, 20)
            clock.now_s += 25

    expected = [f"cpr syn_a:syn_b: adapting {epoch}/20" for epoch in (1, 4, 7)]
    assert expected == lines_of(stream)


def test_finished_items_say_how_long_they_took_and_what_is_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock) as progress:
        progress.start(CELLS)
        progress.done("s", 60.0, reused=True)
        progress.update("c0", "adapting")
        clock.now_s = 90
        progress.done("c0", 90.0)

    reused, _, done = lines_of(stream)
    assert reused == "source model syn_a: reused (1/4 · 1 reused · 3 todo · elapsed 0:00)"
    # Two cells are left; each is expected to take the 90 s that the only computed one took.
    assert done == (
        "cpr syn_a:syn_b: done in 1:30 (2/4 · 1 reused · 2 todo · elapsed 1:30 · about 3:00 left)"
    )


def test_the_estimate_is_shared_by_what_runs_at_once() -> None:
    with Progress(io.StringIO(), clock=Clock()) as progress:
        progress.start([(str(number), "cpr", "a:b") for number in range(5)])
        progress.done("0", 100.0)
        progress.update("1", "adapting")
        progress.update("2", "adapting")

    assert "about 3:20 left" in progress.summary()


def test_a_failure_is_one_line() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.start(CELLS)
        progress.failed("c0", "out of\nmemory")
        progress.failed("c1", "cpr syn_a:syn_b seed 1: killed")

    expected = ["cpr syn_a:syn_b: out of memory", "cpr syn_a:syn_b seed 1: killed"]
    assert [f"failed: {text}" for text in expected] == lines_of(stream)
    assert "2 failed" in progress.summary()


def test_unknown_items_and_a_closed_pipe_raise_nothing() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.update("nobody", "adapting")
        progress.done("nobody", 1.0)
        progress.failed("nobody", "why")
        stream.close()
        progress.note("lost")


def test_what_is_finished_stays_finished() -> None:
    """Scores that arrive after a cell was stored do not make it run again."""
    with Progress(io.StringIO()) as progress:
        progress.start(CELLS[:1])
        progress.done("s", 1.0)
        progress.update("s", "scored")

    assert progress.summary().startswith("1/1")


def test_items_can_be_added_and_keep_their_state() -> None:
    with Progress(io.StringIO()) as progress:
        progress.start(CELLS[:2])
        progress.done("s", 1.0)
        progress.start(CELLS)

    assert progress.summary().startswith("1/4")


@pytest.mark.parametrize("width", ["1", "2", "10", "40", "200"])
def test_a_terminal_of_any_width_gets_a_matrix(monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("LINES", "50")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.start(CELLS)
        progress.start([(f"x{n}", f"method_{n % 3}", f"a:domain_{n // 3}") for n in range(36)])
        progress.update("s", "training", 3, 15)
        progress.done("c0", 5.0)
        progress.update("c1", "adapting", 2, 20)
        progress.failed("t", "no [memory] left")

    if width == "200":
        drawn = stream.getvalue()
        for text in ("1/2 adapting 2/20", "training 3/15", "tent [online]", "no [memory] left"):
            assert text in drawn


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    colour = re.compile(r"\x1b\[[0-9;]*3[1-6]m")
    drawn = []
    for name in ("", "1"):
        monkeypatch.setenv("NO_COLOR", name)
        stream = Terminal()
        with Progress(stream) as progress:
            progress.start(CELLS)
            progress.failed("t", "why")
        drawn.append(bool(colour.search(stream.getvalue())))

    assert [True, False] == drawn


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.start(CELLS)
        progress.update("s", "training")

    assert ["source model syn_a: training"] == lines_of(stream)


def test_an_error_inside_passes_through_and_restores_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(stream) as progress:
        progress.start(CELLS)
        raise KeyboardInterrupt

    assert stream.getvalue().rstrip("\n").endswith("\x1b[?25h")  # the cursor is shown again


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, sfuda_bench.progress;"
        "print([m for m in ('torch', 'pandas', 'numpy', 'rich') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
