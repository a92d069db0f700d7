"""MAGI-1: transformer, autoencoder, captions, guidance, denoiser."""

from .transformer import MagiTransformer as MagiTransformer
from .transformer import load_magi as load_magi
