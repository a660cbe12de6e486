"""Parts for training, validation and test: by patient, seeded, and checked for leaks. Pure.

What belongs together stays together: a patient, a study, and every case that shares a slice with another, wherever it
was copied to. Only then are groups dealt, the largest first, to the part that is farthest below its share; groups of
rarer classes are dealt before, so that no part goes without a class that there is enough of.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRACTIONS", "Item", "Split", "leaks", "slice_digests", "split"]

FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What the split must know of a case."""

    id: str
    patient: str
    study: str
    content: frozenset[str]
    """Digests of its slices that show anything (`slice_digests`)."""
    group: str = ""
    """Its class; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which case lies in which part."""

    seed: int
    parts: Mapping[str, tuple[str, ...]]

    def part_of(self, case: str) -> str:
        """Return the part of a case."""
        return next(part for part, cases in self.parts.items() if case in cases)


def slice_digests(array: NDArray[np.generic]) -> frozenset[str]:
    """Return a digest of each slice (Z, Y, X) that is not all one value: equal pixels, equal digest."""
    return frozenset(
        hashlib.sha256(str(plane.shape).encode() + np.ascontiguousarray(plane, dtype=np.float32).tobytes()).hexdigest()
        for plane in array
        if plane.size and plane.min() != plane.max()
    )


def split(items: Sequence[Item], *, seed: int, fractions: Mapping[str, float] = FRACTIONS) -> Split:
    """Return the parts; the same items in any order, the same parts.

    Raises
    ------
    ValueError
        Fractions are not above 0, or do not sum to 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) <= 0:
        raise ValueError(f"fractions {dict(fractions)} are not above 0 and 1 together")
    groups = _groups(items)
    of_class = Counter(item.group for item in items)

    def order(members: list[Item]) -> tuple[int, int, str]:
        mixed = hashlib.sha256(f"{seed}/{min(each.id for each in members)}".encode()).hexdigest()
        return min(of_class[each.group] for each in members), -len(members), mixed

    parts: dict[str, list[str]] = {part: [] for part in fractions}
    held: dict[str, Counter[str]] = {part: Counter() for part in fractions}
    for members in sorted(groups, key=order):
        classes = Counter(each.group for each in members)

        def need(part: str, classes: Counter[str] = classes) -> tuple[float, float]:
            share = fractions[part]
            by_class = sum(n * (share * of_class[c] - held[part][c]) / of_class[c] for c, n in classes.items())
            return by_class / share, share * len(items) - len(parts[part])

        chosen = max(fractions, key=need)
        parts[chosen] += [each.id for each in members]
        held[chosen] += classes
    return Split(seed=seed, parts={part: tuple(sorted(cases)) for part, cases in parts.items()})


def leaks(items: Sequence[Item], parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return in words what lies in two parts: a patient, a study, equal slices, a case; and cases in no part."""
    of_case: dict[str, set[str]] = {}
    for part, cases in parts.items():
        for case in cases:
            of_case.setdefault(case, set()).add(part)
    found = [f"{case} lies in {' and '.join(sorted(where))}" for case, where in of_case.items() if len(where) > 1]
    found += [f"{item.id} lies in no part" for item in items if item.id not in of_case]
    for what, keys in (
        ("one patient", lambda item: (item.patient,)),
        ("one study", lambda item: (item.study,)),
        ("equal slices", lambda item: item.content),
    ):
        seen: dict[str, list[Item]] = {}
        for item in items:
            for key in keys(item):
                seen.setdefault(key, []).append(item)
        pairs = set()
        for members in seen.values():
            where = {part for item in members for part in of_case.get(item.id, ())}
            if len(where) > 1:
                pairs.add((tuple(sorted(where)), tuple(sorted(item.id for item in members))))
        found += [f"{what} in {' and '.join(where)}: {', '.join(cases)}" for where, cases in sorted(pairs)]
    return found


def _groups(items: Sequence[Item]) -> list[list[Item]]:
    """Return the items by what ties them together (union-find over patients, studies and slices)."""
    parent = {item.id: item.id for item in items}

    def root(case: str) -> str:
        while parent[case] != case:
            parent[case] = parent[parent[case]]
            case = parent[case]
        return case

    first: dict[tuple[str, str], str] = {}
    for item in sorted(items, key=lambda each: each.id):
        ties = [("patient", item.patient), ("study", item.study), *(("slice", each) for each in sorted(item.content))]
        for tie in ties:
            parent[root(item.id)] = root(first.setdefault(tie, item.id))
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda each: each.id):
        groups.setdefault(root(item.id), []).append(item)
    return list(groups.values())
