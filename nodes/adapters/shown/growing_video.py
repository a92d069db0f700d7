"""A video that grows: frames are encoded once, and what there is can be written as a whole file at any time."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
from torch import Tensor

CODEC = "h264"  # what the host saves videos with, and browsers play
OPTIONS = {"preset": "veryfast", "crf": "20", "tune": "zerolatency"}  # zerolatency: no frame waits in the encoder


class GrowingVideo:
    """Frames in memory as H.264 in a transport stream, the container that needs no end."""

    def __init__(self, width: int, height: int, fps: int) -> None:
        self.stream = BytesIO()
        self.container = av.open(self.stream, "w", format="mpegts", options={"flush_packets": "1"})
        self.encoder = self.container.add_stream(CODEC, rate=fps, options=OPTIONS)
        self.encoder.width, self.encoder.height, self.encoder.pix_fmt = width, height, "yuv420p"

    def add(self, frames: Tensor) -> None:
        """frames: ``[n, H, W, 3]`` uint8 on the CPU."""
        for frame in frames.numpy():
            self.container.mux(self.encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def write(self, path: Path) -> None:
        """All frames so far as an mp4, copied without encoding again."""
        source = BytesIO(self.stream.getvalue())
        with (
            av.open(source, format="mpegts") as given,
            av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file,
        ):
            copy = file.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = copy
                    file.mux(packet)

    def close(self) -> None:
        self.container.close()
