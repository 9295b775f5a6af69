"""Temporal heads, patch kinds and pooling, each against an independent formulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xclip_deploy.runtime.model_config import PatchEmbedding, TemporalHead
from xclip_deploy.training.video_encoder import mark_valid

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def pooled(frame_out: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
    """Unit frames, mean over the valid ones of each video, unit video."""
    videos = []
    for frames, count in zip(functional.normalize(frame_out, dim=-1), num_frames, strict=True):
        videos.append(functional.normalize(frames[: int(count)].mean(dim=0), dim=0))
    return torch.stack(videos)


def test_mean_pooling_over_valid_frames(make_model: Any, inputs: Inputs) -> None:
    _, frames, num_frames = inputs
    encoder = make_model().video_encoder
    with torch.inference_mode():
        raw = encoder.encode_frames(frames, mark_valid(frames.shape[1], num_frames))
        found = encoder(frames, num_frames)
    torch.testing.assert_close(found.video_features, pooled(raw, num_frames))
    torch.testing.assert_close(found.frame_features, functional.normalize(raw, dim=-1))


def test_lstm_is_the_packed_one_of_the_authors(make_model: Any, inputs: Inputs) -> None:
    """Their code packs the sequences; ours runs over padding that cannot reach back."""
    _, frames, num_frames = inputs
    encoder = make_model(temporal_head=TemporalHead.LSTM).video_encoder
    with torch.inference_mode():
        raw = encoder.encode_frames(frames, mark_valid(frames.shape[1], num_frames))
        packed = pack_padded_sequence(raw, num_frames, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(
            encoder.temporal.lstm(packed)[0], batch_first=True, total_length=raw.shape[1]
        )
        found = encoder(frames, num_frames)
    torch.testing.assert_close(found.video_features, pooled(out + raw, num_frames))
    torch.testing.assert_close(found.frame_features, functional.normalize(raw, dim=-1))


def test_transformer_head_sees_order_but_not_padding(make_model: Any, inputs: Inputs) -> None:
    _, frames, num_frames = inputs
    model = make_model(temporal_head=TemporalHead.TRANSFORMER)
    encoder = model.video_encoder
    torch.nn.init.normal_(encoder.temporal.frame_position_embeddings.weight)
    with torch.inference_mode():
        found = encoder(frames, num_frames).video_features
        cut = encoder(frames[1:2, :3], num_frames[1:2]).video_features  # without its padding
        turned = encoder(frames.flip(1)[:1], num_frames[:1]).video_features
    torch.testing.assert_close(found[1:2], cut, rtol=1e-5, atol=1e-6)
    assert (found[0] - turned[0]).abs().max() > 1e-3


def test_3d_patches_are_a_convolution_over_neighbouring_frames(
    make_model: Any, inputs: Inputs
) -> None:
    _, frames, num_frames = inputs
    flat = make_model()
    deep = make_model(patch_embedding=PatchEmbedding.CONV_3D)
    state = flat.state_dict()
    name = "video_encoder.visual.conv1.weight"
    kernel = torch.zeros_like(deep.state_dict()[name])
    kernel[:, :, 1] = state[name]
    deep.load_state_dict({**state, name: kernel})
    with torch.inference_mode():
        same = deep.video_encoder(frames, num_frames)
        expected = flat.video_encoder(frames, num_frames)
    # A kernel of the middle frame alone is the 2d convolution ...
    torch.testing.assert_close(same, expected, rtol=1e-5, atol=1e-6)
    # ... and one of the frame before shifts the video by a frame.
    shifted = torch.zeros_like(kernel)
    shifted[:, :, 0] = state[name]
    deep.load_state_dict({**state, name: shifted})
    full = torch.full_like(num_frames, 5)
    with torch.inference_mode():
        after = deep.video_encoder(frames, full).frame_features[:, 1:]
        before = flat.video_encoder(frames, full).frame_features[:, :-1]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", list(TemporalHead))
def test_features_have_unit_length(make_model: Any, inputs: Inputs, head: TemporalHead) -> None:
    _, frames, num_frames = inputs
    with torch.inference_mode():
        features = make_model(temporal_head=head).video_encoder(frames, num_frames)
    for tensor in features:
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))
