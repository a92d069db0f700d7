"""Models: the transformers and autoencoders that the core runs by itself."""
