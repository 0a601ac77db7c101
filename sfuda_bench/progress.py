"""Progress of a run: one live matrix on a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

SOURCE_ROW = "source model"
"""The ``method`` under which source models are shown; their ``pair`` is the domain."""

_HEARTBEAT_S = 60.0  # a piped log shows within this time that a long stage is alive
_FPS = 4
_STYLES = {"done": "green", "reused": "green", "failed": "red", "running": "cyan", "todo": "dim"}


@dataclass
class _Item:
    method: str
    pair: str
    state: str = "todo"
    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    told_s: float = 0.0  # when its last line was written

    @property
    def name(self) -> str:
        return f"{self.method} {self.pair}"

    @property
    def doing(self) -> str:
        return f"{self.stage} {self.epoch}/{self.epochs}" if self.epochs else self.stage

    @property
    def finished(self) -> bool:
        return self.state in ("done", "reused", "failed")


class Progress:
    """Show what the workers do, on stderr; stdout stays free for data.

    Calls may come from any thread and never raise because of the terminal.

    Args:
        stream: Where to write; stderr by default. A live matrix is drawn if it is a terminal.
        clock: Monotonic seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._lock = threading.RLock()
        self._items: dict[str, _Item] = {}
        self._live: Live | None = None
        self._began_s = clock()

    def __enter__(self) -> Self:
        self._live = self._start_live()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):
                live.stop()

    def start(self, cells: Iterable[tuple[str, str, str]]) -> None:
        """Say what will be computed.

        Args:
            cells: (id, method, pair); for source models (id, ``SOURCE_ROW``, domain). Ids known
                already keep their state, so that later work can be added.
        """
        with self._lock:
            for name, method, pair in cells:
                self._items.setdefault(name, _Item(method, pair))

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """Say what one item does now.

        Args:
            id: Item; an unknown or finished one is ignored.
            stage: One or two words, such as ``adapting``.
            epoch: Current step of the stage, from 1.
            epochs: Number of its steps, or 0.
        """
        with self._lock:
            item = self._items.get(id)
            if item is None or item.finished:
                return
            changed = item.stage != stage or item.state != "running"
            item.state, item.stage, item.epoch, item.epochs = "running", stage, epoch, epochs
            if changed or self._clock() - item.told_s >= _HEARTBEAT_S:
                self._tell(item, item.doing)

    def done(self, id: str, seconds: float, reused: bool = False) -> None:
        """Say that one item is finished.

        Args:
            id: Item; an unknown one is ignored.
            seconds: How long it took.
            reused: Whether it was already in the store.
        """
        with self._lock:
            item = self._items.get(id)
            if item is None:
                return
            item.state, item.seconds = ("reused" if reused else "done"), seconds
            self._tell(item, "reused" if reused else f"done in {_duration(seconds)}")

    def failed(self, id: str, message: str) -> None:
        """Say that one item failed, and why (it may begin with the item's name), in one line."""
        with self._lock:
            item = self._items.get(id)
            name = item.name if item is not None else id
            if item is not None:
                item.state = "failed"
            text = " ".join(message.split())
            self.note(f"failed: {text}" if text.startswith(name) else f"failed: {name}: {text}")

    def note(self, text: str) -> None:
        """Write a line; on a terminal it stays above the matrix."""
        with suppress(OSError, ValueError):  # a closed pipe stops no run
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False)
            else:
                self._stream.write(f"{datetime.now():%H:%M:%S} {text}\n")
                self._stream.flush()

    def summary(self) -> str:
        """Return one line: counts, elapsed time and the estimated time left."""
        with self._lock:
            items = list(self._items.values())
            counts = {state: sum(item.state == state for item in items) for state in _STYLES}
            finished = sum(item.finished for item in items)
            parts = [f"{finished}/{len(items)}"]
            parts += [f"{n} {state}" for state, n in counts.items() if n and state != "done"]
            parts.append(f"elapsed {_duration(self._clock() - self._began_s)}")
            left = self._seconds_left(items)
            if left is not None:
                parts.append(f"about {_duration(left)} left")
            return " · ".join(parts)

    def _tell(self, item: _Item, text: str) -> None:
        """Write a line in a pipe; on a terminal the matrix shows it."""
        item.told_s = self._clock()
        if self._live is None:
            left = f" ({self.summary()})" if item.finished else ""
            self.note(f"{item.name}: {text}{left}")

    def _seconds_left(self, items: Sequence[_Item]) -> float | None:
        """Estimate from the mean duration of each method, shared by those running at once."""
        known: dict[str, list[float]] = {}
        for item in items:
            if item.state == "done":
                known.setdefault(item.method, []).append(item.seconds)
        waiting = [item for item in items if not item.finished]
        if not waiting or not known:
            return None
        every = [seconds for values in known.values() for seconds in values]
        means = {method: sum(values) / len(values) for method, values in known.items()}
        overall = sum(every) / len(every)
        at_once = max(1, sum(item.state == "running" for item in items))
        return (
            sum(means.get(item.method, overall) * (1 - _share(item)) for item in waiting) / at_once
        )

    def _start_live(self) -> Live | None:
        if not _is_terminal(self._stream):
            return None
        from rich.console import Console
        from rich.live import Live

        # Rich itself honours NO_COLOR. stdout is never redirected: it carries data.
        console = Console(file=self._stream)
        live = Live(
            console=console,
            get_renderable=lambda: self._render(console),
            refresh_per_second=_FPS,
            redirect_stdout=False,
        )
        with suppress(OSError, ValueError):
            live.start()
        return live

    def _render(self, console: Console) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            items = list(self._items.values())
            sources = [item for item in items if item.method == SOURCE_ROW]
            cells = [item for item in items if item.method != SOURCE_ROW]
            tables = [_matrix(part, console.width) for part in (sources, cells) if part]
            return Group(*tables, Text(self.summary()))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False


def _matrix(items: Sequence[_Item], width: int) -> Any:
    """Draw methods by pairs, the longer axis downwards; rich shortens what is too wide."""
    from rich.table import Table
    from rich.text import Text

    methods = list(dict.fromkeys(item.method for item in items))
    pairs = list(dict.fromkeys(item.pair for item in items))
    groups: dict[tuple[str, str], list[_Item]] = {}
    for item in items:
        groups.setdefault((item.method, item.pair), []).append(item)
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    flipped = len(pairs) > len(methods)
    across, down = (methods, pairs) if flipped else (pairs, methods)
    table.add_column("")
    for name in across:
        table.add_column(Text(name), overflow="fold" if width < 60 else "ellipsis")
    for name in down:
        keys = [(other, name) if flipped else (name, other) for other in across]
        table.add_row(Text(name), *(_entry(groups.get(key, [])) for key in keys))
    return table


def _entry(items: Sequence[_Item]) -> Text:
    """Describe the runs of one method and pair: what runs now, else how many are finished."""
    from rich.text import Text

    if not items:
        return Text("")
    running = [item for item in items if item.state == "running"]
    states = [item.state for item in items]
    finished = sum(item.finished for item in items)
    count = f"{finished}/{len(items)} " if len(items) > 1 else ""
    if running:
        return Text(f"{count}{running[0].doing}", style=_STYLES["running"])
    if "failed" in states:
        return Text(f"{count}failed", style=_STYLES["failed"])
    if finished == len(items):
        last = "reused" if set(states) == {"reused"} else "done"
        return Text(f"{count}{last}", style=_STYLES[last])
    return Text(f"{count}todo", style=_STYLES["todo"])


def _share(item: _Item) -> float:
    """Return the finished share of a running item's stage, at most a half.

    Stages differ in length, so a stage's end says little about the item's end.
    """
    if item.state != "running" or not item.epochs:
        return 0.0
    return min(0.5, item.epoch / item.epochs / 2)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
