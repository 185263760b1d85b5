"""ROUGE-L, and a pool of texts that knows whether another one is too similar to one of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Lower-case runs of letters and digits: those of the package rouge-score where a text is ASCII; no stemming."""
    return _WORD.findall(text.lower())


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words.

    References:
        Hyyrö, Bit-parallel LCS-length computation revisited, 2004: a row of the table of dynamic programming is a
        number, and a bit of it that is 0 says that the length grows there.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    row = full = (1 << len(left)) - 1
    for word in right:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(left) - row.bit_count()


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """ROUGE-L's F of two lists of words, in [0, 1]: the harmonic mean of both shares of their longest common
    subsequence.

    References:
        Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    return 2 * longest_common(left, right) / (len(left) + len(right)) if left and right else 0.0


class SimilarityPool:
    """Texts that grow in number, and whether a further one is similar to any of them.

    A text of m words is similar to one of n words, F > s, where their longest common subsequence has more than
    s (m + n) / 2 words, so that they have at least as many in common. As these are at most n, n > m s / (2 - s), and
    the words in common are more than m s / (2 - s), too. So a similar text holds one of the m - floor(m s / (2 - s))
    rarest words, which few do; of these few, the counts of all words rule out most.

    Args:
        above: ROUGE-L's F above which texts are similar, s; 1 finds none.
    """

    def __init__(self, above: float) -> None:
        self._above = above
        self._texts: list[tuple[list[str], Counter[str]]] = []
        self._with_word: dict[str, list[int]] = {}

    def add(self, text: str) -> None:
        """Take a text in."""
        words = words_of(text)
        counts = Counter(words)
        for word in counts:
            self._with_word.setdefault(word, []).append(len(self._texts))
        self._texts.append((words, counts))

    def similar(self, text: str) -> int | None:
        """Number of the first text of the pool that a text is similar to, in the order of `add`; None for none."""
        if self._above >= 1:
            return None
        words = words_of(text)
        counts = Counter(words)
        rarest = sorted(words, key=lambda word: len(self._with_word.get(word, ())))
        rarest = rarest[: len(words) - int(len(words) * self._above / (2 - self._above))]
        for number in sorted({number for word in set(rarest) for number in self._with_word.get(word, ())}):
            other, others = self._texts[number]
            least = self._above * (len(words) + len(other)) / 2
            possible = min(len(words), len(other)) > least and (counts & others).total() > least
            if possible and rouge_l(words, other) > self._above:
                return number
        return None
