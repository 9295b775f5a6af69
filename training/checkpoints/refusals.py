"""Recognise model families that are not supported, and word refusals."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from xclip_deploy.errors import UnknownLayoutError
from xclip_deploy.runtime.presentation import printable

LORA_ADVICE = (
    "merge them into the model that they were trained on: "
    "model = PeftModel.from_pretrained(model, FOLDER).merge_and_unload(), then "
    "torch.save(model.state_dict(), path)"
)
_MAX_NAME = 120
"""Most characters of a name in a message."""
_SUPPORTED = "supported are X-CLIP, CLIP4Clip and CLIP with a vision transformer"

# (a name that only this family has, what it is)
_OTHERS = (
    (
        r"(clip\.)?visual\.layer1\.",
        "CLIP with a ResNet image tower (RN50, RN101, ...)",
    ),
    (
        r"(cross|similarity_dense)\.",
        "CLIP4Clip with the tight similarity head (tightTransf), which scores every pair with "
        "a cross encoder and so has no separate video and text encoders; train with meanP, "
        "seqTransf or seqLSTM",
    ),
    (
        r"(mit|prompts_generator|prompts_visual_layernorm)\.|.*\.message_fc\.",
        "Microsoft's X-CLIP for video classification, another model than the X-CLIP for "
        "video-text retrieval",
    ),
    (r"visual\.trunk\.", "open_clip with a timm image tower"),
    (r"visual\.blocks\.", "CLIP with an EVA image tower"),
    (r"visual\.attn_pool\.|text_decoder\.|text\.cls_emb", "open_clip's CoCa"),
    (r"logit_bias$|vision_model\.head\.", "SigLIP, or CLIP trained with its sigmoid loss"),
    (
        r"text\.transformer\.(embeddings|encoder|layer|block)\.",
        "open_clip with a Hugging Face text tower",
    ),
)


# (names of a file that is part of a model, what it is and what to do)
_PARTS = (
    (
        r"(.*\.)?(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|lora_down|lora_up|ia3_l)"
        r"(\.|$)|lora_(unet|te)",
        "holds LoRA adapters, which are changes to a model and no model ({name}); " + LORA_ADVICE,
    ),
    (
        r"(.*\.)?_?flat_param(_\d+)?$",
        "holds the flattened parameters of FSDP ({name}); gather the whole where it was trained: "
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
        "cpu_offload=True)), and save that",
    ),
)


def refuse_parts(names: Collection[str]) -> None:
    """Raise UnknownLayoutError for adapters and for flattened parameters."""
    for pattern, advice in _PARTS:
        telling = next((name for name in names if re.match(pattern, name)), None)
        if telling is not None:
            raise UnknownLayoutError(advice.format(name=shown_name(telling)))


def refuse_known_others(names: Collection[str], hf_config: Mapping[str, Any] | None) -> None:
    """Raise UnknownLayoutError for the names of a family that is known and not supported."""
    for pattern, family in _OTHERS:
        telling = next((name for name in names if re.match(pattern, name)), None)
        if telling is not None:
            raise UnknownLayoutError(
                f"the tensor {shown_name(telling)} is that of {family}: not supported; {_SUPPORTED}"
            )
    towers = {"text_model", "vision_model"} & {name.partition(".")[0] for name in names}
    if len(towers) == 1:
        (tower,) = towers
        raise UnknownLayoutError(
            f"holds one tower of a Hugging Face CLIP alone ({tower}.*); expected both "
            "text_model.* and vision_model.*, as CLIPModel.save_pretrained writes them"
        )
    model_type = (hf_config or {}).get("model_type", "clip")
    if towers and model_type != "clip":
        raise UnknownLayoutError(
            f"config.json says model_type {model_type!r}: not supported; {_SUPPORTED}"
        )


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Join names into ``a, b, c and 12 more``; ``limit``: names that are spelled out."""
    every = list(names)
    if not every:
        return "none"
    rest = len(every) - limit
    shown = ", ".join(map(shown_name, every[:limit]))
    return shown + (f" and {rest} more" if rest > 0 else "")


def shown_name(name: str) -> str:
    """Return a name of a file in printable characters, and shortened."""
    short = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
    return printable(short)


def first_line(error: BaseException) -> str:
    """Return the type and first line of an error; torch's messages run over many lines."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {printable(lines[0][:300])}" if lines else name


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")
