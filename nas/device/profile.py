"""Measuring every block of a space once, and checking what that predicts against whole networks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.architecture import Architecture
from nas.device.reachable import blocks
from nas.device.settings import Settings, describe
from nas.device.table import Check, Table
from nas.device.timing import Bench, medians, seconds
from nas.errors import ConfigError, GraphError, SpaceError
from nas.pricing import Placed
from nas.space import Space

TOGETHER = 32
"""Blocks that take turns."""

PASSES = 3
"""Times that all blocks are measured, one after the other: a neighbour's busy minute spoils one of them."""

WARMUP, ROUNDS = 2, 5
"""Runs of a block in a pass: those that do not count, and those whose median does."""

EVERY = 5.0
"""Seconds after which what was measured is written."""

TRIES = 100
"""Architectures drawn for each that is wanted."""

Hear = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0 if that is not known)."""


def profile(
    space: Space, options: Mapping[str, Any], settings: Settings, out: Path, *, networks: int = 20, seed: int = 0,
    hear: Hear = lambda what, done, of: None,
) -> Table:  # fmt: skip
    """The table of a space's blocks, written to `out`; an interrupted one goes on, a finished one is checked again.

    Args:
        options: with which the space was made; noted in the table.
        networks: random ones to measure whole. Half of them fit scale and offset, the others say how large the error
            is.
        seed: of what is random: their choice, and the order of the blocks.

    Raises ConfigError if `out` holds a table of other blocks, another device or other settings, SpaceError for a space
    that cannot be measured block by block.
    """
    if networks < 6:
        raise ConfigError(f"networks: expected at least 6, half of them to fit two numbers to, got {networks}")
    table = _begun(space, options, settings, out)
    hear("finding blocks", 0, 0)
    found = blocks(space)
    bench = Bench(settings)
    try:
        for i in range(PASSES):
            _pass(table, found, i, bench, np.random.default_rng([seed, i]), hear)
        hear("networks", 0, 0)
        table.check = check(table, space, bench, networks, np.random.default_rng(seed))
    finally:
        table.write(out)
    return table


def _pass(
    table: Table, found: Mapping[str, Placed], done: int, bench: Bench, rng: np.random.Generator, hear: Hear
) -> None:
    """Add a median to each block that has but `done`; what there is is written every few seconds."""
    order = [key for key in sorted(found) if len(table.blocks.get(key, ())) <= done]
    rng.shuffle(order)  # so that a disturbance falls on blocks of every kind
    written = time.monotonic()
    for i in range(0, len(order), TOGETHER):
        hear("blocks", (done + 1) * len(found) - len(order) + i, PASSES * len(found))
        chosen = order[i : i + TOGETHER]
        with bench.ready():
            runs = [bench.run(block.lower(shape)) for block, shape in (found[key] for key in chosen)]
            for key, median in zip(chosen, medians(runs, warmup=WARMUP, rounds=ROUNDS), strict=True):
                table.blocks.setdefault(key, []).append(round(median, 9))
        if table.path is not None and time.monotonic() - written > EVERY:
            table.write(table.path)
            written = time.monotonic()


def check(table: Table, space: Space, bench: Bench, networks: int, rng: np.random.Generator) -> Check:
    """Measure random networks of a space beside what the table says of them."""
    chosen = sampled(space, networks, rng)
    with bench.ready():
        latencies = seconds([bench.run(architecture.graph()) for architecture in chosen])
    return Check.of(list(zip(map(table.sum, chosen), latencies, strict=True)))


def _begun(space: Space, options: Mapping[str, Any], settings: Settings, out: Path) -> Table:
    """The table that is there already, or an empty one."""
    about = {"name": space.name, "options": json.loads(json.dumps(options)), "input_shape": list(space.input_shape),
             "classes": space.classes}  # fmt: skip
    made = Table(settings, describe(settings), about, path=out)
    if not out.exists():
        return made
    known = Table.read(out)
    for name in ("settings", "device", "space"):
        mine, theirs = getattr(made, name), getattr(known, name)
        if mine != theirs:
            raise ConfigError(f"{out} holds a table of another {name}: {theirs}, here it is {mine}; give another --out")
    return known


def sampled(space: Space, count: int, rng: np.random.Generator) -> Sequence[Architecture]:
    """Different networks. Raises SpaceError where there are not enough."""
    found: dict[str, Architecture] = {}
    for _ in range(count * TRIES):
        architecture = space.architecture(space.sample(rng))
        try:
            found.setdefault(architecture.key(), architecture)
        except GraphError:
            continue
        if len(found) == count:
            return list(found.values())
    raise SpaceError(f"space {space.name!r}: {count} different networks were wanted, {len(found)} were found")
