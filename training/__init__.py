"""The PyTorch side: the model and its checkpoints."""
