"""How much of a text's wording another one has. Knows: characters. Does not know: meaning, models."""

from __future__ import annotations

from collections import Counter


def character_f(candidate: str, truth: str, *, order: int = 6, beta: float = 2.0) -> float:
    """chrF of one text against one truth, 0 to 1 (Popovic 2015, aclanthology.org/W15-3049).

    Precision and recall of character n-grams, without white space, each averaged over n = 1 to `order` where both
    texts have n-grams, then one F-score in which recall counts `beta` times as much. Two empty texts are the same.

    >>> character_f("abc", "abc"), character_f("", "abc"), round(character_f("abd", "abc", order=1), 3)
    (1.0, 0.0, 0.667)
    """
    a, b = ("".join(text.split()) for text in (candidate, truth))
    if not a or not b:
        return float(a == b)
    precisions, recalls = [], []
    for n in range(1, min(order, len(a), len(b)) + 1):
        own, wanted = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        shared = (own & wanted).total()
        precisions.append(shared / own.total())
        recalls.append(shared / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    if precision + recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
