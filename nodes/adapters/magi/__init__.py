"""MAGI-1 in the host: model, text, sampling, autoencoder."""
