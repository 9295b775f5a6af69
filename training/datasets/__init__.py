"""Video-caption datasets: annotations, frames, batches."""
