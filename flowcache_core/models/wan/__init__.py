"""Wan 2.1: transformer, autoencoder, denoiser; the files of SkyReels-V2 too, whose architecture it is."""

from .config import WanConfig as WanConfig
from .load import load_wan as load_wan
from .transformer import WanTransformer as WanTransformer
