"""The published module name of the published metrics; the code is in the rooms that this imports from."""

from __future__ import annotations

from benchmark.metrics.keras import ScoreHistogram, finalize, histogram, losses_of, scores_of

__all__ = ["ScoreHistogram", "finalize", "histogram", "losses_of", "scores_of"]
