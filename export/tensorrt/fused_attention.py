"""Whether TensorRT fused attention, seen in the engine's bytes without a GPU."""

from __future__ import annotations

from xclip_deploy.export.tensorrt.flavours import TensorRT
from xclip_deploy.export.tensorrt.graph_audit import GraphAudit
from xclip_deploy.runtime.engine_set import Flavour, FusedAttention

MARKER = b"_gemm_mha_v2_0x"
"""Begins the name of TensorRT-RTX's fused multi-head attention kernel. A plan in half precision
holds it three times for every fused block and every profile, one in FP32 nowhere."""
_MARKERS_A_BLOCK = 3


def fused_attention(
    library: TensorRT, plan: bytes, profiles: int, audit: GraphAudit
) -> FusedAttention:
    """Count the fused blocks of an engine that was built with ``profiles`` profiles."""
    fused = None
    if library.flavour is Flavour.RTX:
        fused = plan.count(MARKER) // (_MARKERS_A_BLOCK * profiles)
    return FusedAttention(
        blocks=len(audit.attention),
        expected=sum(block.fuses for block in audit.attention),
        fused=fused,
    )
