"""From a checkpoint to a bundle: ONNX graphs, parity with PyTorch, TensorRT engines."""
