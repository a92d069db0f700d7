"""What a configuration costs: FLOPs and K/V bytes, by the engine itself with a denoiser that counts."""

from .counted import Cost as Cost
from .counted import CountedCache as CountedCache
from .counted import CountingDenoiser as CountingDenoiser
from .counted import count as count
from .shapes import MagiShape as MagiShape
from .shapes import ModelShape as ModelShape
from .shapes import WanShape as WanShape
