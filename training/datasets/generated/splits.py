"""Choose the scenes of training and of the held-out splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from xclip_deploy.runtime.datasets import SplitName
from xclip_deploy.training.datasets.generated.scenes import Kind, Scene, all_scenes


@dataclass(frozen=True)
class SplitSizes:
    """Videos of each split."""

    train: int = 4800
    val: int = 200
    test: int = 200


_TRAIN_SHARES: dict[Kind, float] = {"single": 0.06, "flash": 0.4}
"""Shares of the training split; the rest are sequences. Half of the held-out scenes have a flash.
There are fewer such scenes than this share: they are drawn several times, never alike."""
_HELD_OUT_SINGLES = 12
"""Single scenes in a held-out split. Training needs most of the 72, which teach the words."""


def make_splits(sizes: SplitSizes, seed: int) -> dict[SplitName, list[Scene]]:
    """Choose the scenes of each split; no scene, and so no caption, is in two.

    Held-out scenes are easily mistaken for each other: a sequence comes with its reverse, a
    flash with another thing that flashes during the same motion. A training split can have
    several drawings of one scene. The same seed always gives the same scenes.
    """
    random = np.random.default_rng(seed)
    kinds: tuple[Kind, ...] = ("single", "sequence", "flash")
    pools = {kind: _shuffled(all_scenes(kind), random) for kind in kinds}
    taken: set[Scene] = set()
    splits: dict[SplitName, list[Scene]] = {}
    held_out: tuple[tuple[SplitName, int], ...] = (("test", sizes.test), ("val", sizes.val))
    for name, size in held_out:
        splits[name] = _held_out(pools, size, taken)
        taken.update(splits[name])
    rest = {kind: [s for s in scenes if s not in taken] for kind, scenes in pools.items()}
    counts = {kind: round(sizes.train * share) for kind, share in _TRAIN_SHARES.items()}
    counts["sequence"] = sizes.train - sum(counts.values())
    train = [scene for kind, count in counts.items() for scene in islice(cycle(rest[kind]), count)]
    splits["train"] = _shuffled(train, random)
    return splits


def _held_out(pools: dict[Kind, list[Scene]], size: int, taken: set[Scene]) -> list[Scene]:
    chosen: dict[Scene, None] = {}  # serves as a set that keeps its order

    def add(scenes: Iterable[Scene]) -> None:
        group = list(scenes)
        if len(chosen) + len(group) <= size and not taken.intersection(group):
            chosen.update(dict.fromkeys(group))

    singles = [scene for scene in pools["single"] if scene not in taken]
    for scene in singles[: min(_HELD_OUT_SINGLES, size // 4)]:
        add([scene])
    middle = len(chosen) + (size - len(chosen)) // 2
    for scene in pools["sequence"]:
        if len(chosen) >= middle:
            break
        assert scene.second is not None
        add([scene, Scene("sequence", scene.second, scene.first)])
    partner: dict[object, Scene] = {}
    for scene in pools["flash"]:
        if len(chosen) >= size - 1:
            break
        if scene in taken or scene in chosen:
            continue
        other = partner.pop(scene.first, None)
        if other is None:
            partner[scene.first] = scene
        else:
            add([other, scene])
    for scene in pools["sequence"]:  # an odd rest
        add([scene] if scene not in chosen else [])
    return list(chosen)


def _shuffled(scenes: Sequence[Scene], random: np.random.Generator) -> list[Scene]:
    return [scenes[number] for number in random.permutation(len(scenes))]
