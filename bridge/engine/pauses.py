"""How long to wait after failures."""

from __future__ import annotations


def pause_after(failures: int, backoff_s: tuple[float, float]) -> float:
    """Return the pause after one more failure than *failures* in a row.

    *backoff_s* is the first pause and the longest; each is twice the one before.
    """
    first_s, longest_s = backoff_s
    return min(first_s * 2.0 ** min(failures, 30), longest_s)
