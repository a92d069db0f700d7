"""K/V of a run: where it lies, what it costs, and how finished history is compressed."""

from __future__ import annotations

from .compressor import Compressor
from .density import Density
from .headwise import HeadWise
from .importance_redundancy import ImportanceRedundancy
from .merge import Merge
from .participative import Participative
from .random import Random
from .recent import Recent
from .settled import Settled
from .shot_sink import ShotSink
from .sink_window import SinkWindow

COMPRESSORS: dict[str, type[Compressor]] = {
    SinkWindow.name: SinkWindow,
    ShotSink.name: ShotSink,
    ImportanceRedundancy.name: ImportanceRedundancy,
    Density.name: Density,
    Participative.name: Participative,
    HeadWise.name: HeadWise,
    Settled.name: Settled,
    Merge.name: Merge,
    Recent.name: Recent,
    Random.name: Random,
}
