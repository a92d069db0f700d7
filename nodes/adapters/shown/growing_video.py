"""A video that grows: frames are encoded once, and what there is can be written as a whole file at any time."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import av
from torch import Tensor

CODEC = "h264"  # what the host saves videos with, and browsers play
OPTIONS = {"preset": "veryfast", "crf": "20", "tune": "zerolatency"}  # zerolatency: no frame waits in the encoder


class GrowingVideo:
    """Frames in memory as H.264 in a transport stream, the container that needs no end."""

    def __init__(self, width: int, height: int, fps: int) -> None:
        self.width, self.height, self.fps = width, height, fps
        self.stream = BytesIO()
        self.container: Any = None
        self.encoder: Any = None

    def open(self) -> None:
        self.container = av.open(self.stream, "w", format="mpegts", options={"flush_packets": "1"})
        self.encoder = self.container.add_stream(CODEC, rate=self.fps, options=OPTIONS)
        self.encoder.width, self.encoder.height, self.encoder.pix_fmt = self.width, self.height, "yuv420p"

    def add(self, frames: Tensor) -> None:
        """frames: ``[n, H, W, 3]`` uint8 on the CPU. The encoder is opened with the first of them."""
        if self.encoder is None:
            self.open()
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
        with suppress(av.FFmpegError):  # of an encoder that failed before its first frame
            if self.container is not None:
                self.container.close()
