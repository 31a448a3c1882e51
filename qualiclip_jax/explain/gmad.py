"""gMAD: pairs of images by which two models can be judged against each other.

One model, the defender, gives both images of a pair nearly the same score. The other, the attacker, gives them scores
as different as can be. Who looks at the pair sees which of the two is wrong.

Source: Ma et al., "Group maximum differentiation competition: model comparison with few samples" (TPAMI 2020).
"""

import dataclasses

import numpy as np

WINDOW = 0.05  # share of the images that count as equal to the defender
FEWEST = 10  # images that can be compared


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images, and what the models say of them.

    Attributes:
      better, worse: numbers of the images, as the attacker sees them.
      level: share of the images that the defender scores lower than these, 0 to 1.
      defender_gap: by what share of its ranks the defender tells them apart.
      attacker_gap: the same of the attacker.
    """

    better: int
    worse: int
    level: float
    defender_gap: float
    attacker_gap: float


def pairs(defender: np.ndarray, attacker: np.ndarray, levels: int = 4) -> list[Pair]:
    """The pair at each level of quality that the attacker tells apart best, among images equal to the defender.

    Scores are compared as ranks, so the models may have different scales.

    Args:
      defender, attacker: scores [N], N at least `FEWEST`.
      levels: of the defender's quality, evenly spread.

    Returns:
      At most one pair a level, lowest level first; no image twice.
    """
    count = len(defender)
    order = np.argsort(defender, kind="stable")
    ranks = [np.argsort(np.argsort(scores, kind="stable")) / max(1, count - 1) for scores in (defender, attacker)]
    half = max(1, round(WINDOW * count / 2))
    found: list[Pair] = []
    used: set[int] = set()
    for number in range(levels):
        level = (number + 0.5) / levels
        middle = round(level * (count - 1))
        window = [int(i) for i in order[max(0, middle - half) : middle + half + 1] if int(i) not in used]
        if len(window) < 2:
            continue
        better, worse = max(window, key=lambda i: ranks[1][i]), min(window, key=lambda i: ranks[1][i])
        used |= {better, worse}
        gaps = [float(abs(rank[better] - rank[worse])) for rank in ranks]
        found.append(Pair(better, worse, level, *gaps))
    return found
