"""Confidence of a hit: how surely its score is more than chance in a gallery of this size.

Scores differ between queries, so that no fixed score separates right from wrong. The confidence
compares a hit with scores that the same query reaches by chance, its background::

    p(s)        = 0.1 · exp(-(s - q90) / beta),   beta = (q99 - q90) / ln 10
    confidence  = exp(-N · p(s))

q90 and q99 are quantiles of the background, and p is the probability that one segment scores above
s by chance. N is the number of segments that were searched. The confidence is thus the probability
that none of N segments without a match scores as high. It is the Gumbel distribution of the
largest of N scores. Below q90 it is 0.

p extends the line through log(0.1) at q90 and log(0.01) at q99: peaks over a threshold with an
exponential tail (Pickands 1975, shape 0). For every background with a log-concave density, such as
a normal or logistic one, that line lies above the true tail. The confidence is then too low rather
than too high. Of queries without a match, at most 1 - c have a hit with a confidence of c or more.
The best 1 % of the background do not count, so that matches among it do little harm.

The background is a fixed sample of the gallery's segments. With a query bank, it is the bank's
texts: their scores for the same segment. Below 200 scores, no confidence can be told. Where more
than 1 % of a gallery fits a query, the fitting segments pass for background and lower confidences.
A confidence is no probability that a person would agree with the hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from xclip_deploy.runtime.arrays import Float64Array, FloatArray
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.presentation import counted

SAMPLE = 1024
"""Segments of the gallery in the background."""
LEAST = 200
"""Fewest scores that make a background."""
_LOW, _HIGH = 0.90, 0.99
_SEED = 20


def sample_rows(snapshot: Snapshot, count: int = SAMPLE) -> Rows:
    """Return ``count`` sampled rows of a snapshot, ascending, the same at every call."""
    groups = snapshot.groups()
    rows = snapshot.rows() if groups is None else groups.rows
    if len(rows) <= count:
        return rows
    return np.sort(np.random.default_rng(_SEED).choice(rows, count, replace=False))


def shares(num_rows: Sequence[int]) -> list[int]:
    """Divide the sample among shards by their numbers of rows."""
    total = sum(num_rows)
    if total <= SAMPLE:
        return list(num_rows)
    ends = [round(SAMPLE * rows / total) for rows in accumulate(num_rows)]
    return [end - start for start, end in pairwise([0, *ends])]


def why_unknown(num_scores: int, unit: str, *, has_bank: bool) -> str | None:
    """Return the reason why a background of this size gives no confidence, or None.

    ``unit``: what the gallery's rows are: ``video`` or ``segment``.
    """
    if num_scores >= LEAST:
        return None
    if has_bank:
        return f"no confidence: the query bank holds {num_scores} texts; expected {LEAST} or more"
    return (
        f"no confidence: the gallery holds {counted(num_scores, unit)}; expected {LEAST} or more, "
        "or a query bank of as many texts"
    )


def tail(background: FloatArray) -> Float64Array:
    """Return q90 and q99 of a background [B], or of one for each row [B, n]: [2] or [2, n]."""
    quantiles: Float64Array = np.quantile(background.astype(np.float64), (_LOW, _HIGH), axis=0)
    return quantiles


def confidences(scores: FloatArray, quantiles: Float64Array, num_searched: int) -> Float64Array:
    """Return the confidence of each score [n].

    ``quantiles``: result of :func:`tail`. ``num_searched``: N.
    """
    low, high = quantiles
    # Equal scores have no tail: whatever is higher is no chance.
    beta = np.maximum((high - low) / np.log((1 - _LOW) / (1 - _HIGH)), 1e-9)
    above = (scores.astype(np.float64) - low) / beta
    chance = (1 - _LOW) * np.exp(-np.maximum(above, 0))
    found: Float64Array = np.where(above > 0, np.exp(-num_searched * chance), 0.0)
    return found
