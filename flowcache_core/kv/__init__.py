"""K/V of a run: where it lies, what it costs, and how finished history is compressed."""

from __future__ import annotations

from .compressor import Compressor
from .importance_redundancy import ImportanceRedundancy
from .random import Random
from .recent import Recent
from .shot_sink import ShotSink
from .sink_window import SinkWindow

COMPRESSORS: dict[str, type[Compressor]] = {
    SinkWindow.name: SinkWindow,
    ShotSink.name: ShotSink,
    ImportanceRedundancy.name: ImportanceRedundancy,
    Recent.name: Recent,
    Random.name: Random,
}
