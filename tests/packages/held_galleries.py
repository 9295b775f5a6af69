"""A layout for galleries on a stand-in device, and checks of what lies there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gallery_samples import DIM, FRAMES

from stand_in_device import Device
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
from xclip_deploy.runtime.resident.gallery import DeviceGallery, Resident
from xclip_deploy.runtime.resident.layout import Layout

CONFIG = ModelConfig(
    embed_dim=DIM,
    vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
    text=TextConfig(width=64, layers=1, heads=1),
    max_words=5,
    max_frames=FRAMES,
    mask_padding=True,
)


LAYOUT = Layout(CONFIG)


def on_device(device: Device, resident: Resident) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a resident snapshot, read as a scan reads them."""
    found = {}
    for name, array in vars(resident.arrays).items():
        if array is not None:
            raw = device.read(array.address, array.nbytes, "a scan")
            found[name] = raw.view(array.dtype.value).reshape(array.shape)
    return found


def assert_holds(device: Device, gallery: DeviceGallery, snapshot: Snapshot) -> None:
    """Every row is in the slot of its view, and ties would be in the order of the rows."""
    with gallery.lease(snapshot) as resident:
        assert resident is not None
        rows = snapshot.rows()
        view = resident.view
        assert view.rows.tolist() == rows.tolist()
        arrays, features = on_device(device, resident), snapshot.features(rows)
        for name, values in vars(features).items():
            if name in arrays:
                np.testing.assert_array_equal(arrays[name][view.slots], values)
        allowed = np.ones(view.num_slots, np.bool_) if view.mask is None else view.mask
        assert np.flatnonzero(allowed).tolist() == np.sort(view.slots).tolist()
        ranks = arrays.get("ranks", np.arange(view.num_slots))
        assert (np.diff(ranks[view.slots]) > 0).all()
