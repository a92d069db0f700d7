"""The host's own AR sampler with our settings on its model."""
