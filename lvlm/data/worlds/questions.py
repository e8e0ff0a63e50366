"""What is asked about a scene, as language-free questions with their answers.
Called by `writer`; `Lexicon.question` and `Lexicon.answer` turn a question into text.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lvlm.data.worlds.scenes import COLOURS, HELD_OUT, SHAPES, Scene

KINDS = ("colour", "shape", "size", "count", "place", "exists", "more")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer; `binding` says that the image has several groups, so one must be told from another.

    answer: an attribute id ("colour:red", "count:3", "place:top"), or "exists:yes" / "exists:no".
    places: the place asked about (binding colour, shape, size, count), or the two places compared (more).
    pair: (colour, shape) named in the question (exists, binding place); many: it is named in the plural.
    """

    kind: str
    binding: bool
    answer: str
    places: tuple[str, ...] = ()
    pair: tuple[str, str] | None = None
    many: bool = False


def questions_for(scene: Scene, rng: np.random.Generator, *, n: int) -> tuple[Question, ...]:
    """Draw n distinct questions with one right answer each; kinds come evenly, each once before any comes twice.

    A scene has 5 questions with one group, at least 11 with two and 16 with three: a larger n is a ValueError. Whether
    a pair is there (`exists`) is asked of several groups only, where it takes telling which colour has which shape.
    """
    pools = _pools(scene, rng)
    available = sum(len(pool) for pool in pools.values())
    if not 0 <= n <= available:
        raise ValueError(f"n={n} questions asked for; the scene {scene.key} has {available}")
    drawn: list[Question] = []
    while len(drawn) < n:
        kinds = [kind for kind in KINDS if pools[kind]]
        for i in rng.permutation(len(kinds))[: n - len(drawn)]:
            pool = pools[kinds[i]]
            drawn.append(pool.pop(int(rng.integers(len(pool)))))
    return tuple(drawn)


def _pools(scene: Scene, rng: np.random.Generator) -> dict[str, list[Question]]:
    """Every question that can be asked, by kind. Of `exists` there is at most one, by the toss of a coin yes or no."""
    binding = len(scene.groups) > 1
    pools: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for group in scene.groups:
        for kind in ("colour", "shape", "size", "count"):
            asked = (group.place,) if binding else ()
            pools[kind].append(Question(kind, binding, f"{kind}:{getattr(group, kind)}", places=asked))
        where = Question("place", binding, f"place:{group.place}")
        pools["place"].append(replace(where, pair=group.pair, many=group.count > 1) if binding else where)
    for one, other in combinations(scene.groups, 2):
        if one.count != other.count:
            compared = (one.place, other.place) if rng.random() < 0.5 else (other.place, one.place)
            more = max(one, other, key=lambda group: group.count)
            pools["more"].append(Question("more", binding, f"place:{more.place}", places=compared))
    if binding:
        if rng.random() < 0.5:
            pool, answer = sorted(scene.pairs), "exists:yes"
        else:
            pool, answer = _absent_pairs(scene, rng), "exists:no"
        pools["exists"].append(Question("exists", binding, answer, pair=pool[int(rng.integers(len(pool)))]))
    return pools


def _absent_pairs(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Pairs to ask for in vain, as near to the scene as can be.

    The colour of one group with the shape of another, where that is not in the scene itself; else one attribute of a
    group changed. A held-out pair is never named over a scene of training pairs, or training would teach that those
    pairs do not exist.
    """
    unseen = bool(scene.pairs & HELD_OUT)

    def absent(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return sorted(pair for pair in set(pairs) - scene.pairs if unseen or pair not in HELD_OUT)

    colours = {colour for colour, _ in scene.pairs}
    shapes = {shape for _, shape in scene.pairs}
    recombined = absent((colour, shape) for colour in colours for shape in shapes)
    if recombined:
        return recombined
    recoloured = absent((colour, shape) for colour in COLOURS for shape in shapes)
    reshaped = absent((colour, shape) for colour in colours for shape in SHAPES)
    return recoloured if rng.random() < 0.5 else reshaped
