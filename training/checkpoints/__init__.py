"""Checkpoints: from any container and naming to one configuration and one state dict.

reading      any file or folder to named tensors; runs nothing that it holds
layouts      whose names they are, and their canonical ones
dimensions   the configuration that the shapes tell
parameters   the names and shapes that a configuration asks for
loading      all of it: ``load_checkpoint``
"""

from xclip_deploy.training.checkpoints.loading import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    to_authors_state_dict,
)
from xclip_deploy.training.checkpoints.options import CheckpointOptions
from xclip_deploy.training.checkpoints.reading import SAVED_CONFIG_KEY, RawWeights, read_weights

__all__ = [
    "SAVED_CONFIG_KEY",
    "Checkpoint",
    "CheckpointOptions",
    "RawWeights",
    "load_checkpoint",
    "read_weights",
    "save_checkpoint",
    "to_authors_state_dict",
]
