"""KV Cache Compressor's presets in the host: megabytes, and what published runs kept."""

from __future__ import annotations

import pytest
from hostkit import METHOD, NODES, SAME, hosts, latent, module, node, ours, sample, sigmas_of

errors = module("flowcache_core.errors")
record_of = module("nodes.adapters.run.settings").last_record
kv_node = module("nodes.kv")


@pytest.fixture(scope="module")
def mini():
    return NODES["FlowCacheMiniModel"].execute().args[0]


def compressed(model, preset, **fields):
    fields = {"method": METHOD, "dtype": SAME, "device": SAME, **fields}
    return node("KVCompressor", model=model, budget=4.0, preset=preset, **fields)


def run(model, sampler=None, length=69):
    positive = node("MiniPrompt", text="a red circle moving right")
    start = latent(length, width=64, height=64)
    return sample(model, sampler, positive=positive, start=start, sigmas=sigmas_of(model, 3))[0], record_of(model)


@pytest.mark.parametrize("sampler", [ours, hosts])
def test_megabytes_are_kept_to_and_the_report_says_what_was_chosen(mini, sampler):
    found = []
    for megabytes in (0.9, 1.2, 100.0):
        out, record = run(compressed(mini, {"preset": "auto (MB)", "megabytes": megabytes}), sampler())
        assert record.kv_bytes <= megabytes * 1e6 and out.isfinite().all()
        notes = [note for note in record.started.notes if f"of {megabytes:g} MB" in note]
        assert len(notes) == 1 and "measured on mini" in notes[0]
        # ComfyUI's own sampler reads all heads of a layer at once.
        assert ("layer and head" in notes[0]) == (sampler is ours and megabytes == 0.9)
        found.append((record.kv_bytes, notes[0]))
    assert found[0][0] < found[1][0] < found[2][0] and "the whole history" in found[2][1]


def test_a_measured_profile_in_the_user_s_folder_is_chosen_by(mini, monkeypatch, tmp_path):
    profiles = module("nodes.adapters.files.kv_profiles")
    monkeypatch.setattr(profiles, "own_folder", lambda: tmp_path / "presets")
    shipped = module("flowcache_core.kv.profile").FOLDER / "mini.json"
    (tmp_path / "kv").mkdir()
    mine = tmp_path / "kv" / "mine.json"
    mine.write_text(shipped.read_text().replace('"model":"mini"', '"model":"my own run"'))
    _, record = run(compressed(mini, {"preset": "auto (MB)", "megabytes": 1.2}), ours())
    assert [note for note in record.started.notes if "measured on my own run" in note]
    mine.write_text("[]")
    with pytest.raises(errors.SettingError, match="K/V profile"):
        compressed(mini, {"preset": "auto (MB)", "megabytes": 1.2})


def test_too_few_megabytes_name_node_field_and_the_least(mini):
    with pytest.raises(errors.SettingError, match="megabytes: got 0.05, accepted: [0-9.]+ or more: 1 finished chunk"):
        run(compressed(mini, {"preset": "auto (MB)", "megabytes": 0.05}))


def test_a_published_row_leaves_the_fields_aside(mini):
    for name, at_finish in (
        ("magi-1-4.5b reference-fast", False),
        ("skyreels-v2-1.3b-540p reference-kvcompress", True),
    ):
        kv = kv_node.settings(4.0, METHOD, SAME, SAME, None, {"preset": name})
        assert (kv.budget, kv.compressor.name, kv.at_finish) == (1, "importance-redundancy", at_finish)
        assert kv.compressor.reference_order
        out, record = run(compressed(mini, {"preset": name}))
        assert out.isfinite().all() and {one.tokens_after for one in record.compressions} == {3 * 16}


def test_a_workflow_without_the_field_is_as_before(mini):
    old = node("KVCompressor", model=mini, budget=4.0, method=METHOD, dtype=SAME, device=SAME)
    new = compressed(mini, {"preset": "custom"})
    one, other = (module("nodes.adapters.run.settings").settings_of(model.model_options).kv for model in (old, new))
    assert one == other


def test_an_unknown_preset_is_refused_with_all_there_are():
    said = NODES["FlowCacheKVCompressor"].validate_inputs(method="recent", preset="best")
    assert "preset: got best, accepted: custom, auto (MB), magi" in said


@pytest.mark.parametrize("method", ["merge", "settled"])
def test_merged_and_settled_tokens(mini, method):
    patched = node("KVCompressor", model=mini, budget=2.0, method={"method": method}, dtype=SAME, device=SAME)
    whole, bounded = run(mini)[0], run(patched)
    error = (bounded[0] - whole).square().mean() / whole.square().mean()
    assert 0 < error < 0.2 and bounded[1].compressions


def test_merge_beside_another_node_s_attention(mini):
    patched = node("KVCompressor", model=mini, budget=2.0, method={"method": "merge"}, dtype=SAME, device=SAME)
    other = patched.clone()
    other.model_options["transformer_options"] = {
        **other.model_options.get("transformer_options", {}),
        "optimized_attention_override": lambda func, *args, **kwargs: func(*args, **kwargs),
    }
    with pytest.raises(errors.SettingError, match="method: got 'merge beside another node's attention'|method"):
        run(other)
