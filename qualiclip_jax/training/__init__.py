"""Training: configuration, state, step, optimizer and loop, a file each."""
