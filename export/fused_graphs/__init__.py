"""Rewrite exported graphs to ONNX Runtime's fused operators, for its CUDA provider.

``patterns`` finds the primitive operators of one block. ``rewriting`` replaces them by operators of
the domain ``com.microsoft``, counts them, and compares the counts with the model's configuration.
``exporting`` writes the graph beside the plain one, whose weights it shares. ONNX Runtime fuses
these blocks by itself only in part: the casts around FP16 layer norms hide them from it.
"""
