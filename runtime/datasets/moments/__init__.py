"""Datasets of moments: sentences, each with the seconds of a video that it describes.

catalogue    the datasets by name: ``open_moments``
records      what is read: ``MomentQuery``, ``MomentSplit``
didemo, …    one reader for each dataset; ``lines`` for files with a JSON object a line
"""

from __future__ import annotations

from xclip_deploy.runtime.datasets.moments.catalogue import MOMENT_DATASETS, open_moments
from xclip_deploy.runtime.datasets.moments.records import MomentQuery, MomentSplit, Span

__all__ = ["MOMENT_DATASETS", "MomentQuery", "MomentSplit", "Span", "open_moments"]
