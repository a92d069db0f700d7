"""Videos as mp4 files. Needs PyAV (extra "video"), and for labels Pillow, which matplotlib brings (extra "plots")."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SettingError, require, require_count, require_finite
from ..files import whole_file

VIEW_SIZE = 256  # pixels; smaller videos are enlarged for viewing


def write_video(path: Path, video: Tensor, *, fps: float = 16, crf: int = 17, view_size: int = VIEW_SIZE) -> None:
    """Write ``[T, H, W, 3]`` uint8 as H.264 (yuv420p), enlarged by whole pixels to at least ``view_size``.

    crf: 0 (lossless) to 51. A side that ends up odd is extended by repeating its last pixel row or column. The file
    appears under its name only when it is whole. Raises SettingError for a wrong shape or an unwritable folder.
    """
    import av

    _require_video("video", video)
    require_finite("fps", fps, minimum=0.001)
    require_count("crf", crf, minimum=0, maximum=51)
    frames = even(enlarge(video, view_size)).numpy()
    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf)}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> Tensor:
    """Frames ``[T, H, W, 3]`` uint8 of a video file. Raises SettingError when it holds none."""
    import av

    try:
        with av.open(str(path)) as container:
            images = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    except (OSError, av.FFmpegError, IndexError) as error:
        raise SettingError("video", str(path), f"a video file that can be read ({error})") from error
    require(bool(images), "video", str(path), "a video with at least one frame")
    return torch.stack(images)


def pixels(video: Tensor) -> Tensor:
    """Values in -1..1 as uint8, of any shape. NaN becomes black, infinite values the end they lie beyond: what a byte
    makes of them differs from machine to machine."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).nan_to_num(0).byte()


def enlarge(video: Tensor, view_size: int) -> Tensor:
    """``[T, H, W, 3]`` with every pixel repeated until the shorter side is at least ``view_size``."""
    factor = max(1, -(-view_size // min(video.shape[1:3])))
    return video.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def even(video: Tensor) -> Tensor:
    """``[T, H, W, 3]`` with even height and width, as yuv420p needs."""
    if video.shape[1] % 2:
        video = torch.cat([video, video[:, -1:]], dim=1)
    if video.shape[2] % 2:
        video = torch.cat([video, video[:, :, -1:]], dim=2)
    return video.contiguous()


def side_by_side(videos: Sequence[Tensor], labels: Sequence[str], *, view_size: int = VIEW_SIZE) -> Tensor:
    """Videos of one shape ``[T, H, W, 3]`` uint8 next to each other, enlarged, each under its label."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    require(len(videos) == len(labels) > 0, "labels", len(labels), f"one for each of the {len(videos)} videos")
    shape = videos[0].shape
    columns = []
    for video, label in zip(videos, labels, strict=True):
        _require_video("video", video)
        require(video.shape == shape, "video", tuple(video.shape), f"the first one's shape {tuple(shape)}")
        pictures = enlarge(video, view_size)
        frames, height, width, _ = pictures.shape
        bar = max(20, height // 12)
        strip = Image.new("RGB", (width, bar), (24, 24, 28))
        font = ImageFont.load_default(size=bar * 0.6)
        ImageDraw.Draw(strip).text((width / 2, bar / 2), label, fill=(235, 235, 235), font=font, anchor="mm")
        head = torch.from_numpy(np.array(strip)).expand(frames, -1, -1, -1)
        gap = torch.full((frames, bar + height, 4, 3), 24, dtype=torch.uint8)
        columns += [torch.cat([head, pictures], dim=1), gap]
    return torch.cat(columns[:-1], dim=2)


def _require_video(field: str, video: Tensor) -> None:
    fits = video.ndim == 4 and video.shape[3] == 3 and video.dtype == torch.uint8 and min(video.shape) > 0
    require(fits, field, f"{tuple(video.shape)} {video.dtype}", "shape [T, H, W, 3], uint8")
