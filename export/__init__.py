"""Turn a checkpoint into a bundle: export ONNX graphs, check parity, build TensorRT engines."""
