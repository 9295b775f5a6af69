"""checkpoint → bundle: ONNX graphs in two precisions, parity with PyTorch, TensorRT engines."""
