"""Run TensorRT engines of either flavour, on NVIDIA's own Python bindings alone.

``library`` finds TensorRT. ``engine_choice`` chooses the engine set that fits. ``engine`` loads one
plan. ``lane`` is one stream with its buffers and execution contexts. ``runner`` is the session.
``gallery`` keeps embeddings on the GPU between searches. ``backend`` combines them. CUDA itself is
called by ``runtime/cuda``. Nothing here imports CUDA or TensorRT before a session is opened.
"""
