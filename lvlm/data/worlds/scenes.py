"""What a scene of the built-in world is: up to three groups of equal shapes, each in a place of its own.
Called by `questions` and `lexicon` (what is said about a scene), by `render` (pixels) and by `writer` (corpora).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "arrow", "moon", "diamond")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom")
COUNTS = (1, 2, 3, 4)

# Colour and shape pairs that no training image shows. Each shape is held out once, no colour more than twice, so
# that every colour and every shape alone is frequent in training and only their combination is new at test time.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("yellow", "circle"),
        ("purple", "square"),
        ("white", "triangle"),
        ("blue", "star"),
        ("green", "heart"),
        ("orange", "cross"),
        ("black", "ring"),
        ("red", "arrow"),
        ("green", "moon"),
        ("blue", "diamond"),
    }
)
PAIRS: tuple[tuple[str, str], ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
TRAINING_PAIRS: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = tuple(pair for pair in PAIRS if pair in HELD_OUT)

GROUPS_PROBABILITY = {1: 0.60, 2: 0.25, 3: 0.15}


@dataclass(frozen=True, slots=True)
class Group:
    """`count` equal shapes of one colour and size, around one place of the image."""

    shape: str
    colour: str
    size: str
    place: str
    count: int

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[object, ...]] = {
            "shape": SHAPES,
            "colour": COLOURS,
            "size": SIZES,
            "place": PLACES,
            "count": COUNTS,
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"a group's {name} is one of {values}, not {getattr(self, name)!r}")

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape): the combination that is either a training pair or held out."""
        return self.colour, self.shape

    @property
    def attributes(self) -> frozenset[str]:
        """What a caption says of the group, as ids like "colour:red". A caption does not put a count of 1 in words."""
        said = {f"shape:{self.shape}", f"colour:{self.colour}", f"size:{self.size}", f"place:{self.place}"}
        return frozenset(said | ({f"count:{self.count}"} if self.count > 1 else set()))


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three groups; no two share a place, and no two share both colour and shape."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if len(self.groups) not in GROUPS_PROBABILITY:
            raise ValueError(f"a scene has 1 to 3 groups, not {len(self.groups)}")
        if len({group.place for group in self.groups}) < len(self.groups):
            raise ValueError(f"two groups of a scene share a place: {[group.place for group in self.groups]}")
        if len({group.pair for group in self.groups}) < len(self.groups):
            raise ValueError(f"two groups of a scene share colour and shape: {[group.pair for group in self.groups]}")

    @property
    def key(self) -> str:
        """Canonical string: equal for scenes that show the same thing, whatever the order of their groups."""
        return "|".join(sorted(f"{g.place}-{g.count}-{g.size}-{g.colour}-{g.shape}" for g in self.groups))

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(group.pair for group in self.groups)

    @property
    def attributes(self) -> frozenset[str]:
        """Union of the groups' attributes: what a complete caption says, in any language."""
        return frozenset().union(*(group.attributes for group in self.groups))


def sample_scene(
    rng: np.random.Generator, *, groups: int | None = None, pairs: Literal["training", "held_out"] = "training"
) -> Scene:
    """Draw a scene; all attributes are uniform and independent, given that places and pairs differ between groups.

    `groups` fixes the number of groups; None draws it from GROUPS_PROBABILITY. With pairs="held_out" the first group
    shows a held-out pair and the others training pairs; with "training" all are training pairs.
    """
    if pairs not in ("training", "held_out"):
        raise ValueError(f'pairs is "training" or "held_out", not {pairs!r}')
    if groups is None:
        groups = int(rng.choice(list(GROUPS_PROBABILITY), p=list(GROUPS_PROBABILITY.values())))
    chosen = [TRAINING_PAIRS[i] for i in rng.choice(len(TRAINING_PAIRS), size=groups, replace=False)]
    if pairs == "held_out":
        chosen[0] = HELD_OUT_PAIRS[int(rng.integers(len(HELD_OUT_PAIRS)))]
    places = rng.permutation(len(PLACES))[:groups]
    return Scene(
        tuple(
            Group(
                shape=shape,
                colour=colour,
                size=SIZES[int(rng.integers(len(SIZES)))],
                place=PLACES[int(place)],
                count=COUNTS[int(rng.integers(len(COUNTS)))],
            )
            for (colour, shape), place in zip(chosen, places, strict=True)
        )
    )
