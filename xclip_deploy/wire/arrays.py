"""Arrays in JSON: type, shape, and the bytes in base64."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.wire.base import WireModel

Axis = Annotated[int, Field(ge=0, lt=1 << 31)]
MAX_ARRAY_BYTES = 1 << 28
"""Largest array in a request or response: 256 MiB."""


class ArrayModel(WireModel):
    """An array: little-endian, in C order."""

    dtype: Literal["float32", "int32"]
    shape: Annotated[list[Axis], Field(max_length=4)]
    data: str
    """Bytes in base64."""

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> ArrayModel:
        """Encode a float or whole-number array as ``float32`` or ``int32``."""
        kind: Literal["float32", "int32"] = "float32" if array.dtype.kind == "f" else "int32"
        content = np.ascontiguousarray(array, np.dtype(kind).newbyteorder("<"))
        return cls(
            dtype=kind,
            shape=list(array.shape),
            data=base64.b64encode(content.tobytes()).decode("ascii"),
        )

    def array(self) -> npt.NDArray[Any]:
        """Decode the array. Raises InvalidArgumentError if the bytes do not fill the shape."""
        wanted = math.prod(self.shape) * 4
        if wanted > MAX_ARRAY_BYTES:
            raise InvalidArgumentError(
                f"an array has the shape {self.shape}; expected {MAX_ARRAY_BYTES} bytes at most"
            )
        try:
            content = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidArgumentError(f"the data of an array is no base64: {error}") from error
        if len(content) != wanted:
            raise InvalidArgumentError(
                f"an array of shape {self.shape} has {len(content)} bytes; expected {wanted}"
            )
        stored = np.frombuffer(content, np.dtype(self.dtype).newbyteorder("<"))
        return stored.astype(self.dtype).reshape(self.shape)


class TextFeaturesModel(WireModel):
    """Embeddings of texts; see :class:`TextFeatures`."""

    sentence_features: ArrayModel
    word_features: ArrayModel
    num_words: ArrayModel

    @classmethod
    def of(cls, features: TextFeatures) -> TextFeaturesModel:
        """Encode features."""
        return cls(**{name: ArrayModel.of(value) for name, value in vars(features).items()})

    def features(self) -> TextFeatures:
        """Decode features. Raises InvalidArgumentError."""
        return TextFeatures(
            self.sentence_features.array(), self.word_features.array(), self.num_words.array()
        )


class VideoFeaturesModel(WireModel):
    """Embeddings of videos; see :class:`VideoFeatures`."""

    video_features: ArrayModel
    frame_features: ArrayModel
    num_frames: ArrayModel

    @classmethod
    def of(cls, features: VideoFeatures) -> VideoFeaturesModel:
        """Encode features."""
        return cls(**{name: ArrayModel.of(value) for name, value in vars(features).items()})

    def features(self) -> VideoFeatures:
        """Decode features. Raises InvalidArgumentError."""
        return VideoFeatures(
            self.video_features.array(), self.frame_features.array(), self.num_frames.array()
        )
