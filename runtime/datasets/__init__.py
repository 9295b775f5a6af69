"""Video-caption datasets: read their annotations and find their files; needs no PyTorch.

catalogue         the datasets by name: ``open_dataset``
split             what is read: videos, captions, and which belongs to which
msrvtt, msvd, …   one reader for each dataset; ``folder`` for any CSV or JSONL file
matching          the file of each annotated video
"""

from __future__ import annotations

from xclip_deploy.runtime.datasets.catalogue import DATASETS, SPLITS, open_dataset
from xclip_deploy.runtime.datasets.split import Split, SplitName, SplitVideo

__all__ = ["DATASETS", "SPLITS", "Split", "SplitName", "SplitVideo", "open_dataset"]
