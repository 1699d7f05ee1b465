"""Whether a baseline has learned anything about these labels: its accuracy against chance, and against its own claim.

A network whose classes are in another order, whose inputs are normalised otherwise than in training, or whose weights
belong to another network answers at chance, and loses nothing by any conversion: a drop of 0 then means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.proportions import at_least

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANT = 0.01
"""A baseline counts as better than chance if chance would do as well in fewer than 1 of 100 draws of the samples."""
LEAST_GAIN = 10.0
"""Points of top-1 by which another order of the classes must fit better before it is reported."""
CERTAIN = 0.001


def against_chance(labels: NDArray[np.int64], right: NDArray[np.bool_], guesses: int) -> dict[str, Any]:
    """Exact one-sided binomial test of `right`, bool (n,), against always answering the `guesses` largest classes.

    Returns `correct`, `n`, `majority` (percent right by chance), `p_value`, and `better`: whether chance is excluded.
    Source of the test: Conover, 1999, "Practical Nonparametric Statistics", section 3.1.
    """
    import numpy as np

    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    share = float(counts[:guesses].sum()) / len(labels)
    correct = int(right.sum())
    # a split with one class (or five, for top-5) tells nothing: always answering it is right
    p_value = at_least(correct, len(labels), share)
    return {
        "correct": correct,
        "n": len(labels),
        "majority": round(100.0 * share, 4),
        "p_value": float(f"{p_value:.4g}"),
        "better": p_value < SIGNIFICANT,
    }


def other_order(answers: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float] | None:
    """`as_given` and `reordered` top-1 in percent, where another order of the classes explains the answers better.

    On one half of the samples each answered class is mapped to the label that it meets most often; the other half then
    judges that mapping, so that fitting it to few samples gains nothing by itself. None where the order fits,
    or where there are too few samples to tell. `answers` and `labels` are int64 (n,); a negative answer is no answer.
    """
    import numpy as np

    mapping: dict[int, int] = {}
    halves = np.random.default_rng(0).permutation(len(labels))  # labels may be in a periodic order
    fitted, judged = halves[0::2], halves[1::2]
    for answer in np.unique(answers[fitted]):
        met, counts = np.unique(labels[fitted][answers[fitted] == answer], return_counts=True)
        mapping[int(answer)] = int(met[counts.argmax()])
    mapped = np.array([mapping.get(int(a), int(a)) for a in answers[judged]], np.int64)
    given, reordered = answers[judged] == labels[judged], mapped == labels[judged]
    won, lost = int((reordered & ~given).sum()), int((given & ~reordered).sum())
    count = len(given)
    if not count or len(mapping) < 2 or 100.0 * (won - lost) / count < LEAST_GAIN:
        return None
    if at_least(won, won + lost, 0.5) >= CERTAIN:  # exact McNemar test
        return None
    return {
        "as_given": round(100.0 * float(given.mean()), 4),
        "reordered": round(100.0 * float(reordered.mean()), 4),
    }
