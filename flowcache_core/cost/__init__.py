"""What a configuration costs: FLOPs and K/V bytes, by the engine itself with a denoiser that counts."""

from .counted import Cost as Cost
from .counted import CountedCache as CountedCache
from .counted import CountingDenoiser as CountingDenoiser
from .counted import MagiShape as MagiShape
from .counted import ModelShape as ModelShape
from .counted import WanShape as WanShape
from .counted import count as count
