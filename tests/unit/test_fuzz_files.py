"""Several hundred damaged files: refused by our own error, or read as the format's own library reads them.

Each within ten seconds and one gigabyte.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mutants import (
    archive_changed,
    bytes_changed,
    json_changed,
    odd_contents,
    odd_paths,
    pickled,
    safetensors_changed,
)
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.common.checkpoint import read_state_dict
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.text import load_special_tokens
from flowcache_core.models.magi.transformer import MagiTransformer, load_magi
from flowcache_core.models.magi.vae import MagiVAE, MagiVAEConfig, load_magi_vae
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.load import load_wan
from flowcache_core.models.wan.skyreels_checkpoint import load_skyreels
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.models.wan.vae import WanVAE, load_wan_vae
from flowcache_core.models.wan.vae_layers import WanVAEConfig
from flowcache_core.presets import FOLDER, load_preset

Change = Callable[[bytes, random.Random], bytes]
SECONDS, BYTES = 10, 2**30
WAN = WanConfig(dim=16, ffn_dim=16, num_layers=2, num_heads=1, text_dim=8, freq_dim=8, fps_embedding=True)
MAGI = MagiConfig(16, 16, 2, 2, 1, 8, 8, text_dim=8, text_len=4, freq_dim=8, bands=1)
MAGI_VAE = {"embed_dim": 256, "depth": 1, "num_heads": 4, "mlp_ratio": 0.1, "video_size": 16, "video_length": 4}
ROW = 8


@dataclass(frozen=True)
class Kind:
    """load: what the file's user calls, on a copy of the folder. file: which one is changed. per: mutants of each."""

    load: Callable[[Path], Any]
    file: str
    changes: tuple[Change, ...]
    per: int = 30


def drawn(module: torch.nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {key: torch.randn(tensor.shape, generator=draw) for key, tensor in module.state_dict().items()}


def shard(weights: dict[str, Tensor], folder: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    keys = sorted(weights)
    for name, own in zip(names, (keys[::2], keys[1::2]), strict=True):
        safetensors.torch.save_file({key: weights[key] for key in own}, folder / name)
    places = {key: name for name, own in zip(names, (keys[::2], keys[1::2]), strict=True) for key in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per kind with the undamaged files."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("wan", "sky", "magi", "magi_vae", "wan_vae", "table", "preset"):
        (root / name).mkdir()
    wan = drawn(WanTransformer(WAN))
    config = {"config": json.dumps({"transformer": {"num_heads": 1, "eps": 1e-6, "patch": [1, 2, 2]}})}
    safetensors.torch.save_file(wan, root / "wan" / "w.safetensors", metadata=config)
    plain = {key: value for key, value in wan.items() if "fps_" not in key}
    (root / "wan" / "w.pt").write_bytes(pickled({"generator_ema": {f"model.{k}": v for k, v in plain.items()}}))
    (root / "wan" / "old.pt").write_bytes(pickled(plain, old=True))
    shard(wan, root / "sky")
    official = {"model_type": "t2v", "dim": 16, "num_heads": 1, "eps": 1e-6, "num_layers": 2, "_x": {"y": [1]}}
    (root / "sky" / "config.json").write_text(json.dumps(official))
    shard(drawn(MagiTransformer(MAGI)), root / "magi")
    vae = root / "magi_vae"
    safetensors.torch.save_file(drawn(MagiVAE(MagiVAEConfig(**MAGI_VAE))), vae / "diffusion_pytorch_model.safetensors")
    (vae / "config.json").write_text(json.dumps({"_class_name": "ViTVAE", "ddconfig": MAGI_VAE}))
    safetensors.torch.save_file(drawn(WanVAE(WanVAEConfig(dim=4))), root / "wan_vae" / "v.safetensors")
    rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    tables = {name: np.full((count, ROW), 0.5, np.float16) for name, count in rows.items()}
    np.savez(root / "table" / "t.npz", **tables)
    content = json.loads((FOLDER / "mini.json").read_text(encoding="utf-8"))
    some = {name: content["presets"][name] for name in ("fast", "reference-fast", "vanilla")}
    for row in some.values():
        if "evidence" in row:
            row["evidence"]["curve"] = row["evidence"]["curve"][:2]
        for name in ("computed", "first"):
            if name in row["policy"]:
                row["policy"][name] = [0, 2, 49]
    (root / "preset" / "p.json").write_text(json.dumps({"schema": 1, "presets": some}))
    return root


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return module.state_dict()


def load_one_wan(folder: Path) -> None:
    compare(load_wan(folder / "w.safetensors").state_dict(), safetensors.torch.load_file(folder / "w.safetensors"))


def read_pt(name: str) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        found, _ = read_state_dict(folder / name)
        known = torch.load(folder / name)
        compare(found, known.get("generator_ema", known))

    return load


def compare(found: dict[str, Tensor], known: dict[str, Tensor]) -> None:
    """The weights are those that the format's own library finds in the file."""
    assert known.keys() == found.keys()
    assert all(same(found[key], known[key].to(found[key].dtype)) for key in found)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def use_preset(folder: Path) -> None:
    """What commands and nodes do with a preset."""
    for name in ("fast", "reference-fast", "vanilla"):
        preset = load_preset("mini", f"{folder / 'p.json'}:{name}")
        try:
            fitted, _ = preset.fit(20, 5.0, rescale=True)
            fitted.policy.note(20)
        except SettingError:
            preset.fit(50, 5.0)


def use_table(folder: Path) -> None:
    tokens = load_special_tokens(folder / "t.npz", dim=ROW)
    with np.load(folder / "t.npz") as known:
        for name, found in (("caption_token", tokens.caption), ("other_tokens", tokens.other)):
            assert np.array_equal(known[name].astype(np.float16).astype(np.float32), found.numpy())


SHARD = "model-00001-of-00002.safetensors"
KINDS = {
    "wan bytes": Kind(load_one_wan, "wan/w.safetensors", (bytes_changed,)),
    "wan header": Kind(load_one_wan, "wan/w.safetensors", (safetensors_changed,), 60),
    "pt bytes": Kind(read_pt("w.pt"), "wan/w.pt", (bytes_changed,), 60),
    "pt archive": Kind(read_pt("w.pt"), "wan/w.pt", (archive_changed,), 90),
    "old pt": Kind(read_pt("old.pt"), "wan/old.pt", (bytes_changed,), 60),
    "index": Kind(lambda folder: weights_of(load_skyreels(folder)), "sky/model.safetensors.index.json",
                  (json_changed, bytes_changed)),
    "config": Kind(lambda folder: weights_of(load_skyreels(folder)), "sky/config.json", (json_changed, bytes_changed)),
    "shard": Kind(lambda folder: weights_of(load_skyreels(folder)), f"sky/{SHARD}", (safetensors_changed,)),
    "magi index": Kind(lambda folder: weights_of(load_magi(folder)), "magi/model.safetensors.index.json",
                       (json_changed,)),
    "magi shard": Kind(lambda folder: weights_of(load_magi(folder)), f"magi/{SHARD}",
                       (safetensors_changed, bytes_changed)),
    "magi vae config": Kind(lambda folder: weights_of(load_magi_vae(folder)), "magi_vae/config.json",
                            (json_changed, bytes_changed)),
    "magi vae": Kind(lambda folder: weights_of(load_magi_vae(folder)), "magi_vae/diffusion_pytorch_model.safetensors",
                     (safetensors_changed,)),
    "wan vae": Kind(lambda folder: weights_of(load_wan_vae(folder / "v.safetensors")), "wan_vae/v.safetensors",
                    (safetensors_changed, bytes_changed)),
    "table": Kind(use_table, "table/t.npz", (archive_changed, bytes_changed), 40),
    "preset": Kind(use_preset, "preset/p.json", (json_changed, json_changed, bytes_changed), 60),
}  # fmt: skip


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Fail when the block takes longer, or the process grows by more, than a bad file may."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{what}: more than {SECONDS} s")

    timed, before, kept = hasattr(signal, "setitimer"), peak(), {}
    if timed:  # in seconds of this process, since others may use the machine; and in all, for what only waits
        kept = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    begun = time.process_time()
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in kept.items():
                signal.signal(number, handler)
    assert time.process_time() - begun < SECONDS, what
    assert peak() - before < BYTES, f"{what}: {(peak() - before) / 2**30:.1f} GiB"


def peak() -> int:
    """The most bytes this process has had in memory; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outcome(load: Callable[[Path], Any], path: Path, what: str) -> str | None:
    """What is wrong with the way a file is read or refused; None when nothing is."""
    try:
        with bounded(what), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(path)
    except SettingError as error:
        text = str(error)
        return None if len(text) < 1500 and text.isprintable() else f"{what}: {len(text)} characters: {text[:300]}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {str(error)[:300]}"
    return None


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files(whole: Path, tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    original = (whole / kind.file).read_bytes()
    folder = tmp_path / Path(kind.file).parent
    shutil.copytree((whole / kind.file).parent, folder)
    kind.load(folder)  # undamaged it is read
    wrong = []
    for number, change in enumerate(kind.changes * kind.per):
        draw = random.Random(f"{name} {number}")
        (tmp_path / kind.file).write_bytes(change(original, draw))
        found = outcome(kind.load, folder, f"{name}, mutant {number}")
        wrong += [found] if found else []
    assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} of {number + 1}"


def test_there_are_enough_of_them() -> None:
    assert sum(len(kind.changes) * kind.per for kind in KINDS.values()) >= 900


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old"])
def test_other_things_saved_with_torch(whole: Path, tmp_path: Path, old: bool) -> None:
    weights = {key: value for key, value in drawn(WanTransformer(WAN)).items()}
    wrong = []
    accepted = {"transposed", "parameter", "nested twice"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contents = odd_contents(weights)
    for what, content in contents.items():
        path = tmp_path / "w.pt"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path.write_bytes(pickled(content, old))
        except Exception:  # the old format cannot hold everything
            assert old, what
            continue
        found = outcome(read_state_dict, path, what)
        found = found or outcome(lambda path: load_magi(path), path, what)
        wrong += [found] if found else []
        if what not in accepted:
            try:
                load_wan(path)
                wrong.append(f"{what}: read")
            except SettingError:
                pass
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz", ".json", ".index.json"])
def test_other_things_in_place_of_a_file(whole: Path, tmp_path: Path, suffix: str) -> None:
    loaders: dict[str, tuple[Callable[[Path], Any], str]] = {
        ".safetensors": (load_wan, "wan/w.safetensors"),
        ".pt": (load_wan, "wan/w.pt"),
        ".npz": (lambda path: load_special_tokens(path, dim=ROW), "table/t.npz"),
        ".json": (lambda path: load_preset("mini", str(path)), "preset/p.json"),
        ".index.json": (load_magi, "magi/model.safetensors.index.json"),
    }
    load, file = loaders[suffix]
    wrong = [
        found
        for what, path in odd_paths(tmp_path, (whole / file).read_bytes(), suffix)
        if (found := outcome(load, path, what))
    ]
    assert not wrong, "\n".join(wrong)
    if os.name == "posix":
        shutil.rmtree(tmp_path, ignore_errors=True)
