"""``python tests/host/first_video.py``, with the host's Python: seconds from the start of a server to the first video.

A real server over a folder of its own, the mini template as it is posted from the frontend.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from api_copy import COPIES, read
from comfy_server import comfy_server, lay_out

TEMPLATE = "flowcache_mini_text_to_video"


def main() -> None:
    host = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "comfy"
        base.mkdir()
        lay_out(base)
        begun = time.monotonic()
        with comfy_server(host, Path(sys.executable), base) as server:
            up = time.monotonic()
            outputs = server.run(read(COPIES / f"{TEMPLATE}.json"))
            done = time.monotonic()
            (video,) = (
                server.file(entry)
                for shown in outputs.values()
                for entry in shown.get("images", ())
                if entry["filename"].endswith(".mp4") and entry["type"] == "output"
            )
            print(
                f"server up after {up - begun:.1f} s, video after {done - begun:.1f} s ({video.stat().st_size} bytes)"
            )


if __name__ == "__main__":
    main()
