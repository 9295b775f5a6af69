"""A model repository for NVIDIA Triton Inference Server.

Five models: the three networks under their own names, ``text_tokenizer`` in Triton's Python
backend, and the ensemble ``text_query``, which takes raw texts and gives their embeddings.

What was run. A real server (Triton 2.51, the one of the ``nvidia-pytriton`` wheel, on a CPU)
serves a repository of backend ``python`` whole: all five models, batching across requests, the
ensemble; its answers are the :class:`DeployedModel`'s. That server has no other backend: of
``onnxruntime`` and ``tensorrt`` it took the configurations, up to where it missed the backend,
and they are held against Triton's protobuf schema. Serving with those two, and anything on a
GPU, was never run.
"""

from xclip_deploy.export.triton.description import TritonBackend, TritonRepository
from xclip_deploy.export.triton.repository import TritonExport, export_triton

__all__ = ["TritonBackend", "TritonExport", "TritonRepository", "export_triton"]
