"""Checkpoints: convert any container and naming to one configuration and one state dict.

reading      reads any file or folder to named tensors; runs nothing that it holds
choosing     chooses where a file holds several state dicts
layouts      recognises the naming and translates it to the canonical one
dimensions   reads the configuration off the shapes
parameters   lists the names and shapes that a configuration needs
loading      does all of it: ``load_checkpoint``
"""

from xclip_deploy.training.checkpoints.loading import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_settings,
    to_authors_state_dict,
)
from xclip_deploy.training.checkpoints.options import CheckpointOptions
from xclip_deploy.training.checkpoints.reading import RawWeights, read_weights

__all__ = [
    "Checkpoint",
    "CheckpointOptions",
    "RawWeights",
    "load_checkpoint",
    "read_weights",
    "save_checkpoint",
    "saved_settings",
    "to_authors_state_dict",
]
