"""Random damage: to bytes, to JSON values, to texts. Everything follows from one generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "../../x",
    "\0",
    "é\u202e</script>",
    [],
    {},
    [[[]]],
    {"a": {"b": 1}},
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four random faults."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_FAULTS)(data, rng)
    return data


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Return bytes of which one bit differs."""
    if not data:
        return b"\1"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _set(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + bytes([rng.choice(INTERESTING)]) + data[place + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _removed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 40) :]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.randrange(1, 40)]
    return data[:start] + part * rng.randrange(2, 5) + data[start:]


def _noise(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + bytes(rng.randrange(256) for _ in range(8)) + data[start + 8 :]


def _large(data: bytes, rng: random.Random) -> bytes:
    """Make a length field huge: four bytes, as most formats have them."""
    start = rng.randrange(len(data) + 1)
    return (
        data[:start] + rng.choice((b"\x7f\xff\xff\xff", b"\xff" * 4, b"\0" * 4)) + data[start + 4 :]
    )


_FAULTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    flipped,
    _set,
    _cut,
    _removed,
    _repeated,
    _noise,
    _large,
)


def other_json(data: bytes, rng: random.Random) -> bytes:
    """Return valid JSON of the wrong shape: one value somewhere in it is another."""
    try:
        value = json.loads(data)
    except ValueError:
        return json.dumps(rng.choice(ODD_VALUES)).encode()
    return json.dumps(_changed(value, rng)).encode()


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {other: part for other, part in value.items() if other != name}
        if rng.random() < 0.1:
            return {**value, f"{name}_": value[name], name: rng.choice(ODD_VALUES)}
        return {**value, name: _changed(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return value + 1 if rng.random() < 0.5 else -value
    return rng.choice(ODD_VALUES)


def text(rng: random.Random, longest: int = 12) -> str:
    """Return a text of letters, punctuation, control characters and other scripts."""
    letters = "abz019._-*:,=@+/\\\"'<>&%$#{}[]() \t\n\0\x1b\x7fäß漢\u202e\ud7ff🙂"
    return "".join(rng.choice(letters) for _ in range(rng.randrange(longest + 1)))
