"""What transformers and autoencoders of every family share: files, attention, rotary angles, tiles."""
