"""Images in a conditioning, from nodes made for image-to-video models, that a text-to-video model never looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def image_notes(conds: Mapping[str, Sequence[Mapping[str, Any]]], transformer: Any) -> tuple[str, ...]:
    """A sentence when the guider's conditionings carry an image for which ``transformer`` has no input.

    Samplers of this pack take no model with image channels beside the latents', so a concatenated image goes nowhere.
    """
    inputs = {"concat_latent_image": None, "clip_vision_output": "img_emb", "reference_latents": "ref_conv"}
    unread = [key for key, part in inputs.items() if part is None or getattr(transformer, part, None) is None]
    found = [
        key for key in unread for entries in conds.values() if any(entry.get(key) is not None for entry in entries)
    ]
    if not found:
        return ()
    where = f"the start image in the conditioning ({', '.join(dict.fromkeys(found))})"
    instead = "connect VAE Encode of the image to prefix of AR Video Sampler (FlowCache)"
    return (f"{where} has no effect: this is a text-to-video model; {instead}",)
