"""Wan 2.1: transformer, autoencoder, denoiser; the files of SkyReels-V2 too, whose architecture it is."""

from .transformer import WanConfig as WanConfig
from .transformer import WanTransformer as WanTransformer
from .transformer import load_wan as load_wan
