"""The cost model: published figures, and closed forms against torch's own FLOP counter on a small real model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowcache_core.commands.cost import main
from flowcache_core.cost import MagiShape, WanShape
from flowcache_core.cost.assumed import counted_policy
from flowcache_core.errors import SettingError
from flowcache_core.kv import ImportanceRedundancy
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.presets import load_preset, parse_row
from flowcache_core.video.magi import MagiSettings
from flowcache_core.video.skyreels import SkyReelsSettings

SKYREELS = ["--model", "skyreels-v2-1.3b-540p"]
MAGI = ["--model", "magi-1-4.5b"]
NO_REUSE = [*MAGI, "--preset", "reference-no-reuse"]


def cost(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "pflops"),
    [
        ([*SKYREELS, "--preset", "vanilla"], 113.6),
        ([*SKYREELS, "--preset", "causal"], 79.7),
        ([*SKYREELS, "--preset", "slow"], 35.3),
        ([*SKYREELS, "--preset", "fast"], 27.2),
        ([*SKYREELS, "--preset", "reference-slow"], 36.7),
        ([*SKYREELS, "--preset", "reference-fast"], 28.7),
        ([*MAGI], 306.0),
        ([*MAGI, "--steps", "16"], 76.5),
        ([*NO_REUSE, "--budget-total", "5"], 191.8),
        ([*NO_REUSE, "--budget-total", "6"], 217.5),
        ([*NO_REUSE, "--budget-total", "7"], 239.2),
        ([*NO_REUSE, "--kv-budget", "4"], 257.0),
        ([*NO_REUSE], 280.7),
        ([*MAGI, "--preset", "reference-slow"], 161.0),
        ([*MAGI, "--preset", "reference-fast"], 140.0),
    ],
)
def test_published_flops_within_one_percent(capsys, arguments, pflops):
    assert cost(capsys, *arguments)["pflops"] == pytest.approx(pflops, rel=0.01)


def test_vanilla_as_executed_is_bidirectional(capsys):
    assert cost(capsys, *SKYREELS)["pflops_bidirectional"] == pytest.approx(165.4, rel=0.01)


@pytest.mark.parametrize(("preset", "computed"), [("causal", 450), ("slow", 208), ("fast", 9 * 18)])
def test_computed_steps_of_nine_chunks(capsys, preset, computed):
    result = cost(capsys, *SKYREELS, "--preset", preset)
    assert (result["computed_steps"], result["total_steps"]) == (computed, 450)


@pytest.mark.parametrize(("total", "events"), [("5", 5), ("6", 4), ("10", 0)])
def test_magi_compression_events_and_bytes(capsys, total, events):
    result = cost(capsys, *MAGI, "--budget-total", total)
    assert result["compressions"] == events
    assert result["kv_bytes"] == int(total) * 12150 * 34 * 4096


def test_magi_rows_say_what_they_assume(capsys):
    reference = cost(capsys, *MAGI, "--preset", "reference-fast")
    assert (reference["kv_budget"], reference["compressions"], reference["pflops_clean_pass"]) == (1, 5, 0)
    assert reference["computed_steps"] == 10 * 46 and "assumes B_total 5 and 46 of 64" in reference["notes"][0]
    # A budget of one's own goes before the assumed one: B_total 10 is the whole video.
    whole = cost(capsys, *MAGI, "--preset", "reference-fast", "--budget-total", "10")
    assert (whole["kv_budget"], whole["compressions"]) == (6, 0)


def test_magi_passes_beside_the_steps(capsys):
    """The clean re-encode of 9 chunks over 1 to 9 chunks of context; the nearly-clean pass of 16 of 64 steps."""
    shape = MagiShape(dim=3072, ffn_dim=12288, layers=34, kv_dim=1024)
    vanilla, plain = cost(capsys, *MAGI), cost(capsys, *NO_REUSE)
    encoded = sum(shape.forward(12150, 12150 * (i + 1)) for i in range(9))
    assert vanilla["pflops_clean_pass"] == pytest.approx(encoded / 1e15)
    nearly_clean = 160 * shape.forward(12150, 12150) / 1e15
    assert vanilla["pflops"] - plain["pflops"] == pytest.approx(nearly_clean)
    # With B_total 5: the chunk that is left of history and itself; more once no chunk begins any more.
    short = sum(shape.forward(12150, 12150 * context) for context in (1, 2, 2, 2, 2, 2, 2, 3, 4))
    assert cost(capsys, *MAGI, "--budget-total", "5")["pflops_clean_pass"] == pytest.approx(short / 1e15)


def test_a_video_dependent_preset_needs_a_number_of_computed_steps():
    preset = replace(load_preset("magi-1-4.5b", "reference-slow"), computed_steps=None)
    with pytest.raises(SettingError, match="--computed N: how many of 64 steps"):
        counted_policy(preset, 64, None)


def test_closed_form_equals_the_flop_counter():
    config = WanConfig(dim=48, ffn_dim=80, num_layers=3, num_heads=4, text_dim=32, freq_dim=16)
    model = WanTransformer(config).eval()
    past = [torch.randn(1, 4, 12, 12) for _ in range(2)]

    def memory(layer, q, k, v):
        return torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)

    # the counter knows plain matrix products, not the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        x, text = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 5, 32)
        model.forward_chunk(x, torch.tensor([500.0]), text, first_frame=2, attention=attending(memory, attend_heads))
    shape = WanShape(dim=48, ffn_dim=80, layers=3, text_tokens=5, text_dim=32)
    time_path = 2 * (16 * 48 + 48 * 48 + 48 * 6 * 48)
    assert counter.get_total_flops() - time_path == shape.forward(tokens=12, context=24)


def test_block_causal_window_costs_the_sum_of_its_chunks():
    shape = WanShape(dim=64, ffn_dim=128, layers=2, text_tokens=4, text_dim=16)
    chunks = [shape.attention(10, 10), shape.attention(20, 30), shape.attention(5, 35)]
    causal = shape.window((10, 20, 5), "block-causal")
    assert causal == pytest.approx(shape.forward(35, 0) + sum(chunks))
    assert shape.window((10, 20, 5), "bidirectional") == shape.forward(35, 35)


def test_magi_forward_is_the_sum_of_its_parts():
    shape = MagiShape(dim=3072, ffn_dim=12288, layers=34, kv_dim=1024, text_tokens=0)
    assert shape.forward(12150, 0) == pytest.approx(98.76e12, rel=1e-3)
    assert shape.attention(12150, 12150) == pytest.approx(61.68e12, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "wan"], "model: got 'wan', accepted: magi-1-4.5b"),
        ([*SKYREELS, "--preset", "turbo"], "preset: got 'turbo', accepted: vanilla, causal"),
        ([*MAGI, "--steps", "30"], "steps: got 30"),
        ([*MAGI, "--budget-total", "4"], "budget_total: got 4.0, accepted: >= 5"),
        ([*MAGI, "--kv-budget", "nan"], "budget: got nan"),
        ([*MAGI, "--budget-total", "nan"], "budget_total: got nan, accepted: a number >= 0"),
        (
            [*SKYREELS, "--preset", "fast", "--steps", "30"],
            "preset fast: got '30 steps', accepted: 50 steps at shift 8",
        ),
        ([*MAGI, "--chunks", "0"], "chunks: got 0"),
    ],
)
def test_bad_arguments_are_one_plain_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "Traceback" not in error


def test_a_stretched_table_is_said_to_be_one(capsys):
    result = cost(capsys, *SKYREELS, "--preset", "fast", "--steps", "25", "--rescale")
    (warning,) = [note for note in result["notes"] if note.startswith("warning: ")]
    assert "calibrated for 50 steps at shift 8; stretched to 25 steps" in warning
    assert result["total_steps"] == 9 * 25 and result["computed_steps"] < 18 * 9
    asked = cost(capsys, *SKYREELS, "--preset", "fast", "--steps", "25", "--computed", "9")
    assert asked["computed_steps"] == 9 * 9 and not any("warning" in note for note in asked["notes"])


def test_the_kvcompress_row_drops_when_a_chunk_finishes(capsys):
    """Five chunks side by side fit without a compression; the published script drops all the same, which shortens what
    later chunks attend to and saves no memory."""
    row, slow = (cost(capsys, *SKYREELS, "--preset", f"reference-{name}") for name in ("kvcompress", "slow"))
    assert (row["kv_budget"], row["computed_steps"]) == (1, slow["computed_steps"])
    # Two windows: 3 drops in the first (behind chunks 1 to 3), 3 in the second, whose first chunk is given.
    assert row["compressions"] == 6 and row["pflops"] < slow["pflops"] and row["kv_bytes"] == slow["kv_bytes"]


def test_published_rows_bring_their_score_and_order():
    magi = MagiSettings.of_preset("magi-1-4.5b", "reference-fast").kv
    assert magi == KVSettings(1, ImportanceRedundancy(reference_order=True))
    sky = SkyReelsSettings.of_preset("skyreels-v2-1.3b-540p", "reference-kvcompress").kv
    assert sky == KVSettings(1, ImportanceRedundancy(query_granularity="chunk", reference_order=True), at_finish=True)
    own = KVSettings(3.0)
    assert MagiSettings.of_preset("magi-1-4.5b", "reference-fast", kv=own).kv == own
    assert MagiSettings.of_preset("magi-1-4.5b", "vanilla").kv == KVSettings()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("all", "presets.x.kv"),
        ({"budget": 2}, "presets.x.kv"),
        ({"budget": "2", "compressor": "recent"}, "presets.x.kv.budget"),
        ({"budget": 2, "compressor": "best"}, "presets.x.kv.compressor"),
        ({"budget": 0.5, "compressor": "recent"}, "presets.x.kv.budget"),
        ({"budget": 2, "compressor": "recent", "at_finish": 1}, "presets.x.kv.at_finish"),
        ({"budget": 2, "compressor": "recent", "storage": "int3"}, "presets.x.kv.storage"),
    ],
)
def test_a_row_with_other_kv_is_refused(row, message):
    with pytest.raises(SettingError, match=message):
        parse_row("mini", "x", {"text": "", "policy": {"name": "never"}, "kv": row})


def test_rows_that_compute_some_tokens_say_what_they_assume(capsys):
    """As many steps as the chunkwise row, those of the uniform phase whole, the others at the mean weight."""
    chunkwise, motion = (cost(capsys, *SKYREELS, "--preset", f"reference-{name}slow") for name in ("", "motion-"))
    assert motion["computed_steps"] == 9 * 11 and motion["part_steps"] == 9 * 12 and chunkwise["part_steps"] == 0
    # FLOPs are proportional to the tokens: 11 + 12 x 0.8 of the 23 steps of the chunkwise row.
    assert motion["pflops"] == pytest.approx(chunkwise["pflops"] * (11 + 12 * 0.8) / 23, rel=0.01)
    assert any(
        "12 in part at 80% of the tokens (weights spread evenly from 0.6 to 1)" in one for one in motion["notes"]
    )
    published = 26.0 / 30.0  # fast over slow, of MotionCache's own table
    fast = cost(capsys, *SKYREELS, "--preset", "reference-motion-fast")["pflops"]
    assert fast / motion["pflops"] == pytest.approx(published, abs=0.08)
    by_hand = ("--preset", "causal", "--policy", '{"name": "motion", "share": 0.5}', "--computed", "50")
    by_share = cost(capsys, *SKYREELS, *by_hand)
    assert any("at 50% of the tokens (fixed_share 0.5)" in one for one in by_share["notes"])
    assert cost(capsys, *SKYREELS, *by_hand[:-2])["pflops"] == by_share["pflops"]  # it computes something at every step
    capped = cost(capsys, *SKYREELS, *by_hand[:2], "--policy", '{"name": "motion", "share": 0.1, "max_reuses": 3}')
    assert any("at 25% of the tokens" in one for one in capped["notes"])


def test_policies_that_compute_some_tokens_are_named_where_they_cannot_be_counted(capsys):
    for line, named in (
        (("--policy", "motion"), "policy: got 'motion', accepted: .*vanilla, whose attention is bidirectional"),
        (("--preset", "causal", "--policy", "motion"), "computed: got None, .*policy motion computes"),
    ):
        with pytest.raises(SystemExit):
            main([*SKYREELS, *line])
        assert re.search(named, capsys.readouterr().err)


def test_steps_with_the_nearly_clean_pass_are_counted_whole_as_they_run(capsys):
    policy = ("--policy", '{"name": "motion", "share": 0.5, "uniform_updates": 0}')
    vanilla, none = (cost(capsys, *MAGI, "--preset", row, *policy) for row in ("vanilla", "reference-no-reuse"))
    assert none["computed_steps"] == 10 * 6 and none["part_steps"] == 10 * 58
    assert vanilla["computed_steps"] == 10 * (5 + 16) and vanilla["part_steps"] == 10 * (64 - 5 - 16)
    for found in (vanilla, none):
        whole, part = found["computed_steps"] // 10, found["part_steps"] // 10
        assert any(f"assumed: {whole} steps whole and {part} in part" in note for note in found["notes"])


def test_documented_lines_name_a_model():
    """Without one there is nothing to count; what only names an option says so alone."""
    root, found = Path(__file__).parents[2], 0
    for page in (root / "README.md", *(root / "docs").glob("*.md"), *(root / "web/docs").rglob("*.md")):
        for line in re.findall(r"python dev\.py cost ([^`\n]*)", page.read_text(encoding="utf-8")):
            found += 1
            assert "--model " in line or len(line.split()) == 1, (page.name, line)
    assert found > 5


def test_magis_motion_row_comes_near_the_published_share(capsys):
    base, motion = (
        cost(capsys, *MAGI, "--preset", name, "--chunks", "7")
        for name in ("reference-no-reuse", "reference-motion-slow")
    )
    assert motion["pflops"] / base["pflops"] == pytest.approx(100 / 139, abs=0.02)
