"""Write a model repository for NVIDIA Triton Inference Server.

A repository has five models: the three networks under their own names, ``text_tokenizer`` in
Triton's Python backend, and the ensemble ``text_query``, which turns raw texts into embeddings.

Tested: a real server (Triton 2.51 of the ``nvidia-pytriton`` wheel, on a CPU) serves a whole
repository of backend ``python``. All five models, batching across requests and the ensemble work,
and the answers equal those of :class:`DeployedModel`. That server lacks the backends
``onnxruntime`` and ``tensorrt``. It read their configurations, which a test checks against
Triton's protobuf schema, until it missed the backend. Not tested: serving with those two, and
anything on a GPU.
"""

from xclip_deploy.export.triton.description import TritonBackend, TritonRepository
from xclip_deploy.export.triton.repository import TritonExport, export_triton

__all__ = ["TritonBackend", "TritonExport", "TritonRepository", "export_triton"]
