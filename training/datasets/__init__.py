"""A split as training takes it: frames, pairs, batches, and generated videos."""
