"""Data: pristine photos for training (`pristine`), images with human scores (`rated`), tfds builders (`builders`)."""
