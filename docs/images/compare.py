"""Draws compare.png and map.png of the README from a demo run: python docs/images/compare.py out/demo"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
COLUMNS, SIDE, GAP, LABEL = 8, 128, 4, 210


def frames(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        decoded = [frame.to_image() for frame in container.decode(video=0)]
    return [decoded[i * (len(decoded) - 1) // (COLUMNS - 1)] for i in range(COLUMNS)]


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    font = ImageFont.load_default(18)
    rows = ("vanilla", "flowcache")
    sheet = Image.new("RGB", (LABEL + COLUMNS * (SIDE + GAP), len(rows) * (SIDE + GAP)), "#17171c")
    for row, name in enumerate(rows):
        run, top = report["runs"][name], row * (SIDE + GAP)
        shown = {"vanilla": "every step computed", "flowcache": "FlowCache"}[name]
        text = f"{shown}\n{run['computed_steps']} of {run['total_steps']} steps\n{run['seconds']:.1f} s"
        text += f"\nK/V {run['kv_bytes_peak'] / 1e6:.1f} MB"
        text += "" if name == "vanilla" else f"\nPSNR {report['quality']['psnr']:.1f} dB"
        ImageDraw.Draw(sheet).multiline_text((12, top + 10), text, fill="white", font=font, spacing=5)
        for column, frame in enumerate(frames(folder / f"{name}.mp4")):
            sheet.paste(frame.resize((SIDE, SIDE)), (LABEL + column * (SIDE + GAP), top))
    sheet.save(HERE / "compare.png", optimize=True)
    shutil.copyfile(folder / "map.png", HERE / "map.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
