"""Name tables: translate canonical parameter names to each published layout and back.

A table lists (canonical prefix, prefix in the file), the most specific first.
"""

from __future__ import annotations

PrefixTable = tuple[tuple[str, str], ...]

_LOGIT_SCALE = "scorer.logit_scale"
_VISUAL = "video_encoder.visual."
_TEMPORAL = "video_encoder.temporal."
_TEXT = "text_encoder."

CANONICAL_PREFIXES: PrefixTable = (("", ""),)

OPENAI_PREFIXES: PrefixTable = (
    (_LOGIT_SCALE, "logit_scale"),
    (_VISUAL, "visual."),
    (_TEXT, ""),
)

OPEN_CLIP_CUSTOM_TEXT_PREFIXES: PrefixTable = (
    (_LOGIT_SCALE, "logit_scale"),
    (_VISUAL, "visual."),
    (_TEXT, "text."),
)

AUTHORS_PREFIXES: PrefixTable = (
    (f"{_TEMPORAL}transformer.", "transformerClip."),
    (f"{_TEMPORAL}lstm.", "lstm_visual."),
    (f"{_TEMPORAL}frame_position_embeddings.", "frame_position_embeddings."),
    (_LOGIT_SCALE, "clip.logit_scale"),
    (_VISUAL, "clip.visual."),
    (_TEXT, "clip."),
    ("scorer.", ""),
)
"""Names of X-CLIP's and CLIP4Clip's code."""

HUGGING_FACE_PREFIXES: PrefixTable = (
    (_LOGIT_SCALE, "logit_scale"),
    (f"{_VISUAL}class_embedding", "vision_model.embeddings.class_embedding"),
    (f"{_VISUAL}conv1.", "vision_model.embeddings.patch_embedding."),
    (f"{_VISUAL}positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (f"{_VISUAL}ln_pre.", "vision_model.pre_layrnorm."),  # their spelling
    (f"{_VISUAL}transformer.resblocks.", "vision_model.encoder.layers."),
    (f"{_VISUAL}ln_post.", "vision_model.post_layernorm."),
    (f"{_VISUAL}proj", "visual_projection.weight"),
    (f"{_TEXT}token_embedding.", "text_model.embeddings.token_embedding."),
    (f"{_TEXT}positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (f"{_TEXT}transformer.resblocks.", "text_model.encoder.layers."),
    (f"{_TEXT}ln_final.", "text_model.final_layer_norm."),
    (f"{_TEXT}text_projection", "text_projection.weight"),
)

HUGGING_FACE_BLOCK: PrefixTable = (
    ("attn.in_proj_weight", "self_attn.{q,k,v}_proj.weight"),
    ("attn.in_proj_bias", "self_attn.{q,k,v}_proj.bias"),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_1.", "layer_norm1."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("ln_2.", "layer_norm2."),
)
"""Names within a transformer block. Each of the first two stands for three tensors."""


def to_canonical(name: str, table: PrefixTable) -> str | None:
    """Return the canonical name of a name in the file; None where the table has none."""
    for canonical, source in table:
        if name.startswith(source):
            return canonical + name[len(source) :]
    return None


def to_source(name: str, table: PrefixTable) -> str:
    """Return the file's name of a canonical name; the name itself where the table has none."""
    for canonical, source in table:
        if name.startswith(canonical):
            return source + name[len(canonical) :]
    return name
