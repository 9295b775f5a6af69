"""Data of training: frames, pairs and batches of a split, and generated videos."""
