"""Model, checkpoints and training in PyTorch."""
