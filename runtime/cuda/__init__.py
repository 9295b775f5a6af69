"""Use an NVIDIA GPU through CUDA's own Python bindings, which are imported at the first use.

``runtime_api`` checks every call of the CUDA runtime. ``memory`` owns all allocations. Engines and
galleries on the GPU share both.
"""
