"""The steps that the mini model's presets compute: ``python docs/images/schedules.py`` writes schedules.png here."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

HERE = Path(__file__).resolve().parent
PRESETS = HERE.parents[1] / "flowcache_core" / "presets" / "mini.json"
NAMES = ("fast", "balanced", "slow")
COMPUTED, REUSED = "#0072B2", "#F5B041"


def main() -> None:
    rows = json.loads(PRESETS.read_text(encoding="utf-8"))["presets"]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    labels, heights = [], []
    for i, name in enumerate(NAMES):
        steps, policy = int(rows[name]["requires"]["steps"]), rows[name]["policy"]
        for offset, chunk, computed in (
            (0.0, "later chunks", policy["computed"]),
            (0.9, "first chunk", policy["first"]),
        ):
            height = 2.2 * i + offset
            labels.append(f"{name}, {chunk}: {len(computed)} of {steps}")
            heights.append(height)
            for step in range(steps):
                colour = COMPUTED if step in computed else REUSED
                axes.add_patch(Rectangle((step - 0.44, height - 0.36), 0.88, 0.72, color=colour, linewidth=0))
    axes.set_xlim(-0.7, steps - 0.3)
    axes.set_ylim(-0.6, max(heights) + 0.6)
    axes.set_yticks(heights, labels)
    axes.set_xlabel("step of a chunk, from noise to clean (blue: computed, orange: forecast)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(HERE / "schedules.png", dpi=120)


if __name__ == "__main__":
    main()
