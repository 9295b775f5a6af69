"""Compile the kernels that scan a gallery on a GPU, ahead of time and without a GPU.

``source`` has the kernels in Triton. ``compiling`` turns one into code for each architecture.
``building`` adds the kernels of a model to its bundle. All of it needs the extra ``scan``.
"""
