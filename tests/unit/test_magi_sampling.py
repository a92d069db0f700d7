"""MAGI-1 through the engine: against a plain loop written from the definition."""

from __future__ import annotations

import pytest
import torch
from magi_plain import SCALES, Plain, assert_close
from magi_sampled import CHUNKS, captions, distilled, engine, noise, random_model

from flowcache_core.engine import generate
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.plan import window


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return random_model()


VARIANTS = {
    "distilled": ({"distill": True}, {"nearly_clean": False}),
    "distilled-nearly-clean": ({"distill": True, "nearly_clean": True}, {}),
    "twelve-steps": ({"distill": True, "nearly_clean": True, "steps": 12}, {}),
    "guided": ({"scales": SCALES}, {}),
    "no-clean-pass": ({"distill": True, "clean_pass": False}, {"nearly_clean": False}),
    "ranges": ({"distill": True, "ranges": (4, 3, 2, 2)}, {"nearly_clean": False, "ranges": (4, 3, 2, 2)}),
    "clean-range": (
        {"distill": True, "ranges": (4, 3, 2, 2), "clean_range": 2},
        {"nearly_clean": False, "ranges": (4, 3, 2, 2), "clean_range": 2},
    ),
    "guided-four-steps": ({"scales": SCALES, "steps": 4}, {}),
    "guided-ranges": ({"scales": SCALES, "ranges": (3, 2)}, {"ranges": (3, 2)}),
}


def denoiser_of(model: MagiTransformer, plain: Plain, options: dict) -> MagiDenoiser:
    if plain.scales:
        return MagiDenoiser(model, captions(), guidance=plain.scales, **options)
    return distilled(model, plain.steps, **options)


@pytest.mark.parametrize("prefix_frames", [0, 1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engine_is_the_plain_loop(model, variant, prefix_frames):
    loop, options = VARIANTS[variant]
    plain = Plain(model, **loop)
    prefix = noise(CHUNKS)[:, :, -prefix_frames:] * 0.5 if prefix_frames else None
    settings = engine(prefix_frames=prefix_frames, steps=plain.steps, clean_pass=plain.clean_pass)
    ours = generate(denoiser_of(model, plain, options), settings, noise(), prefix=prefix)
    assert_close(ours, plain.run(noise(), prefix))
    if prefix is not None:
        assert torch.equal(ours[:, :, :prefix_frames], prefix)


def test_the_variants_are_not_the_same(model):
    results = [Plain(model, **loop).run(noise()) for loop, _ in VARIANTS.values()]
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert (one - other).abs().max() > 1e-2


def test_two_videos_at_once_are_two_runs(model):
    both = noise(batch=2)
    settings = engine()
    together = generate(distilled(model), settings, both)
    for item in range(2):
        assert_close(together[item : item + 1], generate(distilled(model), settings, both[item : item + 1]))


# -- prefix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "chunks", "held", "ticks"), [(0, 0, 0, 48), (1, 0, 1, 48), (6, 1, 0, 40), (8, 1, 2, 40)]
)
def test_a_prefix_of_no_whole_chunks_is_held_in_the_first_new_chunk(prefix, chunks, held, ticks):
    plan = window(18, 6, 32, 4, prefix)
    assert (plan.prefix_chunks, plan.held_frames, plan.prefix_frames) == (chunks, held, prefix)
    assert [chunk.first_frame for chunk in plan.chunks] == [0, 6, 12]
    assert len(plan.ticks) == ticks
