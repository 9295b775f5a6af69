"""Recognise whose names a state dict uses, and rename its tensors to the canonical ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from xclip_deploy.errors import CheckpointMismatchError, UnknownLayoutError
from xclip_deploy.training.checkpoints import hugging_face, names
from xclip_deploy.training.checkpoints.names import PrefixTable, to_canonical, to_source
from xclip_deploy.training.checkpoints.refusals import listing, refuse_known_others

# Buffers and attributes that the model computes for itself.
_NOT_WEIGHTS = re.compile(
    r"(.*\.)?(input_resolution|context_length|vocab_size|position_ids|attn_mask)"
)
CONV_3D_NAME = "clip.visual.conv2.weight"
CONV_2D_NAME = "clip.visual.conv1.weight"


@dataclass(frozen=True)
class Layout:
    """A published naming of the parameters."""

    name: str
    required: tuple[str, ...]
    """Tensors that tell the layout from others. The message names them when none matches."""
    prefixes: tuple[str, ...]
    """Prefixes of the layout: a name must begin with each."""
    canonical_name: Callable[[str], str | None]
    """Translation of a name in the file to the canonical name; None where there is none."""
    name_in_file: Callable[[str], str]
    """Translation of a canonical name to the file's, for messages and for saving."""

    def matches(self, found: Collection[str]) -> bool:
        """Tell whether the names are of this layout, complete or not."""
        return all(any(name.startswith(prefix) for name in found) for prefix in self.prefixes)


def _by_table(
    name: str, required: tuple[str, ...], prefixes: tuple[str, ...], table: PrefixTable
) -> Layout:
    return Layout(
        name,
        required,
        prefixes,
        lambda source: to_canonical(source, table),
        lambda canonical: to_source(canonical, table),
    )


_CLIP_NAMES = (
    "visual.class_embedding",
    "visual.conv1.weight",
    "visual.transformer.resblocks.0.ln_1.weight",
)
_AUTHORS_NAMES = tuple(
    f"clip.{name}" for name in (*_CLIP_NAMES, "transformer.resblocks.0.ln_1.weight")
)

AUTHORS = _by_table(
    "X-CLIP or CLIP4Clip (authors)",
    _AUTHORS_NAMES,
    ("clip.visual.", "clip.transformer."),
    names.AUTHORS_PREFIXES,
)
OPEN_CLIP_CUSTOM_TEXT = _by_table(
    "open_clip (custom text)",
    (*_CLIP_NAMES, "text.transformer.resblocks.0.ln_1.weight"),
    ("visual.", "text.transformer."),
    names.OPEN_CLIP_CUSTOM_TEXT_PREFIXES,
)
OPENAI = _by_table(
    "OpenAI CLIP",
    (*_CLIP_NAMES, "transformer.resblocks.0.ln_1.weight"),
    ("visual.", "transformer.resblocks."),
    names.OPENAI_PREFIXES,
)
HUGGING_FACE = Layout(
    "Hugging Face CLIP",
    (
        "vision_model.embeddings.class_embedding",
        "text_model.embeddings.token_embedding.weight",
        "visual_projection.weight",
        "text_projection.weight",
    ),
    ("vision_model.", "text_model."),
    hugging_face.canonical_name,
    hugging_face.source_name,
)
CANONICAL = _by_table(
    "xclip-deploy",
    ("video_encoder.visual.class_embedding", "text_encoder.token_embedding.weight"),
    ("video_encoder.", "text_encoder."),
    names.CANONICAL_PREFIXES,
)
LAYOUTS = (AUTHORS, OPEN_CLIP_CUSTOM_TEXT, OPENAI, HUGGING_FACE, CANONICAL)


@dataclass(frozen=True)
class Renamed:
    """Tensors under canonical names, and what is said of the others."""

    tensors: dict[str, Tensor]
    unexpected: tuple[str, ...]
    """Names in the file that this layout does not have."""
    notes: tuple[str, ...] = field(default=())


def detect_layout(found: Collection[str], hf_config: Mapping[str, object] | None) -> Layout:
    """Tell the layout by tensor names.

    Raises:
        UnknownLayoutError: the layout is unknown or not supported.
    """
    refuse_known_others(found, hf_config)
    for layout in LAYOUTS:
        if layout.matches(found):
            return layout
    compared = "; ".join(
        f"{layout.name} (missing {listing([n for n in layout.required if n not in found], 2)})"
        for layout in LAYOUTS
    )
    tops = sorted({name.partition(".")[0] for name in found})
    raise UnknownLayoutError(
        f"its {len(found)} tensors are of no known layout; they begin with "
        f"{listing(tops, limit=8)}; compared with {compared}"
    )


def rename(tensors: Mapping[str, Tensor], layout: Layout) -> Renamed:
    """Rename the tensors of a layout; the values stay as they are.

    Raises:
        CheckpointMismatchError: the tensors contradict each other.
    """
    weights = {n: t for n, t in tensors.items() if not _NOT_WEIGHTS.fullmatch(n)}
    notes: list[str] = []
    if layout is HUGGING_FACE:
        weights = hugging_face.fuse_projections(weights)
    if layout is AUTHORS:
        weights, notes = _drop_unused(weights)
    renamed: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for name, tensor in weights.items():
        canonical = layout.canonical_name(name)
        # Saving must give the same name again: "logit_scale" is not "clip.logit_scale".
        if canonical is None or layout.name_in_file(canonical) != name:
            unexpected.append(name)
        else:
            renamed[canonical] = tensor
    return Renamed(renamed, tuple(unexpected), tuple(notes))


def _drop_unused(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Drop tensors that the authors' code stores and does not use.

    Returns the other tensors, and notes on what was dropped.
    """
    tensors = dict(tensors)
    notes: list[str] = []
    heads = [
        p for p in ("transformerClip.", "lstm_visual.") if any(n.startswith(p) for n in tensors)
    ]
    if len(heads) == 2:
        raise CheckpointMismatchError(
            "has tensors of two temporal heads, transformerClip.* (seqTransf) and lstm_visual.* "
            "(seqLSTM); expected at most one"
        )
    positions = "frame_position_embeddings.weight"
    if heads != ["transformerClip."] and tensors.pop(positions, None) is not None:
        notes.append(f"{positions} was dropped: only the seqTransf head uses it")
    if CONV_3D_NAME in tensors:
        if tensors.pop(CONV_2D_NAME, None) is not None:
            notes.append(f"{CONV_2D_NAME} was dropped: linear_patch=3d uses {CONV_3D_NAME}")
        tensors[CONV_2D_NAME] = tensors.pop(CONV_3D_NAME)
    return tensors, notes
