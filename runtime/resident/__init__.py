"""Keep a gallery on an NVIDIA GPU and search it there exactly, whatever backend runs the encoders.

``scan`` is the interface between a gallery on the GPU and the kernels that scan it.
"""
