"""Targets: what is typed or written by hand: settings, study files, selectors."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

from sfuda_bench.datasets import canonical_name
from sfuda_bench.errors import SfudaError
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.search.ablation import read_ablation, requests
from sfuda_bench.search.cells import Flags
from sfuda_bench.search.study_file import read_study
from sfuda_bench.search.toml_file import shipped_studies
from sfuda_bench.selectors import Pair, parse_methods, parse_pairs, parse_seeds
from sfuda_bench.settings import explain, resolve
from sfuda_bench.tunable import bounds_of
from tests.fuzz.mutations import damaged, text
from tests.fuzz.outcome import Finding, only_our_errors

DOMAINS = ("drishti_gs", "rim_one_r3", "refuge_train", "syn_a")
KNOBS = ("blur", "noise")
SETTINGS_KEYS = (
    "data.image_size",
    "source.lr",
    "cpr.radius",
    "cpr.low",
    "dpl.epochs",
    "run.precision",
)
VALUES = (
    *("0", "-0", "1e999", "-1", "nan", "inf", "-inf", "1e-320", "0x10", "1_000", "9" * 400),
    *("true", "none", "null", "[]", "1,2", '"a"', "١٢", " 3 ", "4;5", "6=7", "²"),
)
TOML_VALUES = (
    *(
        "0",
        "-1",
        "1e999",
        "nan",
        "-inf",
        "9" * 30,
        "9" * 5000,
        "true",
        '""',
        '"\\u0000"',
        "[]",
        "[1, 'a']",
    ),
    *("{}", "{a = {b = 1}}", "1979-05-27T07:32:00Z", "07:32:00", '"a:b"', "'''x'''", "0x_1"),
)


def settings_values(rng: random.Random) -> None:
    """Resolve --set values; a value that is taken lies within its declared bounds."""
    key = rng.choice((*SETTINGS_KEYS, f"methods.{text(rng, 5)}", text(rng, 6), "cpr.", ".x"))
    value = rng.choice((*VALUES, text(rng)))
    override = rng.choice((f"{key}={value}", f"{key} = {value}", text(rng, 20)))
    found = only_our_errors(
        lambda: resolve(
            rng.choice(("quick", "small", "reproduction")), overrides=[override], methods=["cpr"]
        )
    )
    if not isinstance(found, SfudaError):
        _check_bounds(found)


def settings_file(rng: random.Random, folder: Path) -> None:
    """Resolve a --config file: damaged presets, random tables, bytes that are no text."""
    path = folder / "config.toml"
    path.write_bytes(_toml(rng))
    found = only_our_errors(lambda: resolve("quick", config_file=path, methods=["cpr", "dpl"]))
    if not isinstance(found, SfudaError):
        _check_bounds(found)
        for _, value, origin in explain(found):
            str(value), str(origin)


def study_file(rng: random.Random, folder: Path) -> None:
    """Read a damaged study or ablation file; nothing is computed."""
    shipped = shipped_studies()
    path = folder / f"study_{rng.randrange(3)}.toml"
    data = shipped[rng.choice(sorted(shipped))].read_bytes()
    path.write_bytes(_changed_toml(data, rng) if rng.random() < 0.7 else damaged(data, rng))
    flags = Flags(out=folder / "out", preset=rng.choice((None, "quick", text(rng, 4))))
    only_our_errors(lambda: read_study(path, flags, allow_oracle=rng.random() < 0.5))
    only_our_errors(lambda: requests(read_ablation(path), flags))


def selectors(rng: random.Random) -> None:
    """Parse --methods, --pairs and --seeds; what is taken means what it says."""
    seeds = only_our_errors(lambda: parse_seeds(_seeds(rng)), "--seeds")
    if isinstance(seeds, list):
        if not seeds or len(seeds) != len({*seeds}) or min(seeds) < 0 or len(seeds) > 100_000:
            raise Finding(f"seeds {seeds[:9]}...")
    methods = only_our_errors(lambda: parse_methods(_methods(rng)))
    if isinstance(methods, list) and not {*methods} <= {*METHODS.names()}:
        raise Finding(f"methods {methods}")
    given = _pairs(rng)
    pairs = only_our_errors(
        lambda: parse_pairs(
            given,
            DOMAINS,
            canonical_name,
            knobs=lambda name: KNOBS if name.startswith("syn_a") else (),
        )
    )
    if isinstance(pairs, list) and (
        not pairs
        or len(pairs) > 100_000
        or any(not isinstance(pair, Pair) or pair.source == pair.target for pair in pairs)
    ):
        raise Finding(f"--pairs {given}: {pairs[:5]}")


def _check_bounds(settings: Any) -> None:
    configs = [settings.data, settings.source, *settings.methods.values()]
    for config in configs:
        for field in dataclasses.fields(config):
            bounds, value = bounds_of(field), getattr(config, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, bool) or not isinstance(part, int | float):
                    continue
                low = -math.inf if bounds.low is None else bounds.low
                high = math.inf if bounds.high is None else bounds.high
                if not (math.isfinite(part) and low <= part <= high):
                    raise Finding(f"{field.name} = {part!r} was taken")


def _toml(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        presets = Path(__file__).parents[2] / "sfuda_bench" / "presets"
        data = rng.choice(sorted(presets.glob("*.toml"))).read_bytes()
        return _changed_toml(data, rng) if rng.random() < 0.5 else damaged(data, rng)
    if kind == 1:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    if kind == 2:
        deep = rng.randrange(1, 3000)
        return rng.choice(
            (b"a = " + b"[" * deep, b"[" + b"a." * deep + b"a]\n", b"a = " + b"{a=" * deep)
        )
    names = ("data", "source", "methods", "methods.cpr", "methods.CPR", "pair", "on_network")
    more = ('pair."a:b".methods.cpr', f"on_network.{NETWORKS.names()[0]}.data", text(rng, 4))
    lines = []
    for _ in range(rng.randrange(1, 5)):
        lines.append(f"[{rng.choice((*names, *more))}]")
        for _ in range(rng.randrange(4)):
            key = rng.choice(("image_size", "radius", "fallback", "lr", "name", text(rng, 5)))
            lines.append(f"{key} = {rng.choice(TOML_VALUES)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _changed_toml(data: bytes, rng: random.Random) -> bytes:
    """Return TOML in which one or two values are of another type, or keys of another name."""
    lines = data.decode().splitlines()
    places = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    for place in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        key = lines[place].partition(" = ")[0]
        if rng.random() < 0.2:
            key = rng.choice((f"{key}x", '"a b"', '"<b>"', '""'))
        lines[place] = f"{key} = {rng.choice(TOML_VALUES)}"
    return "\n".join(lines).encode()


def _seeds(rng: random.Random) -> str:
    parts = ("0", "3", "0..4", "4..0", "0..1000000000", "9" * 5000, "-1", "..", "1..", "²", "٣")
    return rng.choice((",", ", ", ",,")).join(
        rng.choice((*parts, text(rng, 6))) for _ in range(rng.randrange(4))
    )


def _methods(rng: random.Random) -> str:
    parts = (*METHODS.names(), "CPR", "cprr", "")
    return ",".join(rng.choice((*parts, text(rng, 6))) for _ in range(rng.randrange(4)))


def _pairs(rng: random.Random) -> str:
    ends = (
        *DOMAINS,
        "*",
        "refuge",
        "Domain1",
        "Domain9",
        "",
        text(rng, 5),
        *map(_derived, [rng] * 5),
    )
    words = ("all", "*:*", "*", "a->b->c", ",,")
    return ",".join(
        rng.choice(
            (f"{rng.choice(ends)}{rng.choice((':', '->', ' : '))}{rng.choice(ends)}",) * 9 + words
        )
        for _ in range(rng.randrange(3) + (rng.random() < 0.9))
    )


def _derived(rng: random.Random) -> str:
    level = (
        "0",
        "1",
        "0.5",
        "2",
        "-1",
        "nan",
        "0..1/5",
        "0..1/99",
        "1..0/3",
        "0..1/0",
        ".1..1/9",
        "",
    )
    knobs = [
        f"{rng.choice(('blur', 'noise', '*', 'x', ''))}={rng.choice(level)}"
        for _ in range(rng.randrange(1, 5))
    ]
    return f"{rng.choice(('syn_a', 'drishti_gs', ''))}@{rng.choice(('+', '@', '++')).join(knobs)}"
