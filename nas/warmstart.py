"""Known architectures to begin a search with: from the zoo, from earlier runs, from files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.architecture import Architecture
from nas.choices import Genotype
from nas.errors import GraphError, SpaceError
from nas.locate import nearest
from nas.plugins import reference
from nas.space import Space
from nas.trial import Proposal

SHOWN = 4
"""Differences that are written out."""


def starts(names: Sequence[str], space: Space) -> list[Proposal]:
    """Proposals for architectures that are known already, in the order given; each network once.

    Args:
        names: each an architecture of the zoo, a run folder (its whole front, best first), or a JSON file: an
            architecture, a run's `front.json`, or a genotype of the space.
        space: where they are looked for. Genotypes of a run of the same space are taken over; all others are matched
            by their blocks: exactly, or else the nearest architecture that the space has.

    The note says where it comes from (`start`), whether it is the same network (`match`: `exact` or `nearest`, for the
    images and classes of the space, dropout aside), and what differs (`differs`).

    Raises NasError for a name that cannot be read, or an architecture that is too far from the space.
    """
    found: dict[str, Proposal] = {}
    for name in names:
        for proposal in _read(name, space):
            architecture = space.architecture(proposal.genotype)
            try:
                found.setdefault(architecture.key(), proposal)
            except GraphError as error:
                raise SpaceError(f"start: {proposal.note['start']} cannot be built in this space: {error}") from None
    return list(found.values())


def describe(proposal: Proposal) -> str:
    """One line about a proposal of `starts`."""
    note = proposal.note
    differs = f": {', '.join(note['differs'])}" if note["differs"] else ""
    return f"{note['start']} ({note['match']}{differs})"


def _read(name: str, space: Space) -> Iterator[Proposal]:
    path = Path(name)
    if path.is_dir():
        yield from _front(path, space)
    elif path.suffix == ".json":
        yield from _file(path, space)
    elif len(path.parts) > 1:
        raise SpaceError(f"start: {name!r} is no run folder; expected one, a JSON file, or a name of the zoo")
    else:
        yield _located(replace(reference(name), name=name), space)


def _front(path: Path, space: Space) -> Iterator[Proposal]:
    from nas.session import load

    results = load(path)
    results.best()  # raises where there is none
    for trial in results.front:
        name = f"{path.name}:{trial.number}"
        if _key(trial.genotype, space) == trial.key:
            yield _proposal(name, trial.genotype)
        else:
            yield _located(replace(results.trial(trial.number).architecture, name=name), space)


def _file(path: Path, space: Space) -> Iterator[Proposal]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SpaceError(f"start: {path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise SpaceError(
            f"start: {path} holds a {type(data).__name__}, expected an architecture, a front or a genotype"
        )
    if "body" in data:
        yield _given(data, path.name, space)
    elif isinstance(data.get("front"), list):
        for i, entry in enumerate(data["front"]):
            if not isinstance(entry, dict) or not isinstance(entry.get("architecture"), dict):
                raise SpaceError(f"start: {path} has no architecture in entry {i} of its front")
            yield _given(entry["architecture"], f"{path.name}:{entry.get('number', i)}", space)
    else:
        try:
            yield _proposal(path.name, space.check(data))
        except SpaceError as error:
            raise SpaceError(f"start: {path} is no architecture, and no genotype of this space: {error}") from None


def _given(data: Mapping[str, Any], name: str, space: Space) -> Proposal:
    return _located(replace(Architecture.from_json(data), name=name), space)


def _located(architecture: Architecture, space: Space) -> Proposal:
    match = nearest(space, architecture)
    return _proposal(architecture.name, match.genotype, exact=match.exact, differs=match.differs)


def _proposal(name: str, genotype: Genotype, *, exact: bool = True, differs: Sequence[str] = ()) -> Proposal:
    shown = list(differs[:SHOWN]) + [f"{len(differs) - SHOWN} more"] * (len(differs) > SHOWN)
    return Proposal(dict(genotype), {"start": name, "match": "exact" if exact else "nearest", "differs": shown})


def _key(genotype: Genotype, space: Space) -> str | None:
    """Structural key of a genotype, None if it is of another space."""
    try:
        return space.architecture(space.check(genotype)).key()
    except (SpaceError, GraphError):
        return None
