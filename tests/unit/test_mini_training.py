"""What the mini model's training relies on: noise patterns, the optimizer, a run that goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowcache_core.commands import train_mini
from flowcache_core.errors import NotFiniteError, SettingError
from flowcache_core.mini import checkpoint, clip_pool, evaluate, train
from flowcache_core.mini import transformer_training as training
from flowcache_core.mini.clip_pool import ClipPool
from flowcache_core.mini.noise_levels import chunk_sigmas, shifted
from flowcache_core.mini.optim import Muon, orthogonal
from flowcache_core.mini.vae_training import NormalisedVAE
from flowcache_core.mini_magi import evaluate as magi_evaluate
from flowcache_core.mini_magi import train as magi_train
from flowcache_core.mini_magi.training import RECIPE
from flowcache_core.models.common.attention import attend
from flowcache_core.models.wan.vae import WanVAE
from flowcache_core.models.wan.vae_layers import WanVAEConfig


def test_noise_levels_cover_the_samplers_patterns() -> None:
    sigma = chunk_sigmas(4000, 4, torch.Generator().manual_seed(0))
    assert sigma.shape == (4000, 4)
    assert sigma.min() == 0 and sigma.max() == 1
    noisy = sigma > 0
    # The last chunk of a row with a clean history always has noise, and mostly so has the first.
    assert noisy.any(1).float().mean() > 0.9
    clean_then_one_level = (sigma[:, 1:] >= sigma[:, :-1]).all(1)
    assert 0.7 < clean_then_one_level.float().mean() < 0.9
    history = ((sigma[:, 0] == 0) & noisy[:, 3]).float().mean()
    assert 0.3 < history < 0.7


def test_shift_keeps_the_ends() -> None:
    assert shifted(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.0, 0.75, 1.0]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonal_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_descends() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    muon = Muon([weight])
    first = weight.detach().square().sum()
    for _ in range(100):
        weight.grad = 2 * weight.detach()
        muon.step(0.02)
    assert weight.square().sum() < 0.5 * first


def test_attention_in_a_training_in_half_precision_is_the_same_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 32, generator=generator, requires_grad=True) for n in (24, 72, 72))
    expected = attend(q, k, v)
    slopes = torch.autograd.grad(expected.square().sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, k, v)
    assert found.dtype is torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    for slope, other in zip(torch.autograd.grad(found.float().square().sum(), (q, k, v)), slopes):
        assert (slope - other).norm() < 0.03 * other.norm()


def test_exported_vae_is_the_trained_one_under_official_constants() -> None:
    torch.manual_seed(0)
    model = NormalisedVAE()
    video = torch.rand(2, 3, 5, 24, 24) * 2 - 1
    with torch.no_grad():
        model.norm.momentum = 0.5  # instead of hundreds of steps
        for _ in range(6):
            model.train()(video)
        model.eval()
        vae = model.export()
        expected = model(video).clamp(-1, 1)
        latents = vae.encode(video)
    assert torch.allclose(vae.decode(latents), expected, atol=1e-3)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.5


def test_an_autoencoder_is_gone_on_from_where_another_training_left_it() -> None:
    torch.manual_seed(0)
    vae, model = WanVAE(WanVAEConfig(dim=8)).requires_grad_(False), NormalisedVAE()
    model.take(vae)
    latents = torch.randn(1, 16, 2, 4, 4)
    with torch.no_grad():
        raw = latents * vae.latent_std + vae.latent_mean
        assert torch.allclose(model.vae.decoder(model.vae.conv2(latents)), vae.decoder(vae.conv2(raw)), atol=1e-4)


@pytest.fixture
def two_clips(monkeypatch: pytest.MonkeyPatch) -> WanVAE:
    """A training on two clips of one chunk; its autoencoder."""
    monkeypatch.setattr(clip_pool, "FILE_CLIPS", 2)
    short = replace(training.WAN, phases=(training.Phase(1.01, 1, 2, 1, 2),), first_clips=2)
    monkeypatch.setattr(training, "WAN", short)
    return WanVAE(WanVAEConfig(dim=2)).requires_grad_(False)


def test_training_stops_saves_and_resumes(tmp_path: Path, two_clips: WanVAE) -> None:
    vae = two_clips
    said: list[str] = []

    def train(steps: int, resume: bool) -> dict[str, float]:
        checkpoint = tmp_path / "transformer.pt"
        shared = {"seed": 0, "device": torch.device("cpu"), "checkpoint": checkpoint, "say": said.append}
        return training.train_transformer(vae, minutes=0, steps=steps, resume=resume, **shared)[1]

    first = train(2, resume=False)
    assert first["steps"] == 2 and 0.5 < first["loss"] < 5
    files = sorted(path.name for path in (tmp_path / "clips").rglob("*.pt"))
    assert files == ["clips-3-0000.pt"]
    assert train(3, resume=True)["steps"] == 3
    assert train(3, resume=True)["steps"] == 3


# -- refused before any training ---------------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that begins fails the test."""
    for module, name in ((train, "train_vae"), (train, "train_transformer"), (train, "train_decoder"),
                         (train, "encode_ahead"), (magi_train, "train_transformer")):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("the training has begun"))


def call(main, *arguments: object) -> SettingError:
    with pytest.raises(SettingError) as caught:
        main([str(argument) for argument in arguments])
    return caught.value


@pytest.mark.parametrize("main", [train.main, magi_train.main], ids=["mini", "mini-magi"])
@pytest.mark.parametrize("field", ["out", "work"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_folders_that_cannot_be_written_are_refused_first(untrained, tmp_path: Path, main, field: str, place: str):
    (tmp_path / "file").write_text("mine")
    folders = {"--out": tmp_path / "out", "--work": tmp_path / "work", f"--{field}": tmp_path / place}
    error = call(main, *(part for pair in folders.items() for part in pair))
    assert (error.field, error.value) == (field, str(tmp_path / place)) and "a file is in its place" in error.accepted
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("main", [train.main, magi_train.main], ids=["mini", "mini-magi"])
def test_weights_that_cannot_be_replaced_are_refused_first(untrained, tmp_path: Path, main) -> None:
    for name in (train.TRANSFORMER_FILE.name, magi_train.TRANSFORMER_FILE.name):
        (tmp_path / name).mkdir()
    error = call(main, "--out", tmp_path, "--work", tmp_path / "work")
    assert error.field == "out" and error.accepted == "a file, not a folder"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("--seed", -1), "seed"), (("--seed", 2**80), "seed"), (("--steps", 0), "steps"),
     (("--minutes", "nan"), "minutes"),
     (("--stage", "decoder"), f"checkpoint {train.VAE_FILE.name}"), (("--stage", "encode", "--resume"), "resume")],
)  # fmt: skip
def test_options_that_come_to_nothing_are_refused_first(untrained, tmp_path: Path, arguments, field: str) -> None:
    error = call(train.main, *arguments, "--out", tmp_path, "--work", tmp_path / "work")
    assert error.field == field


def test_the_scenes_are_refused_the_same_way(untrained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert call(train_mini.main, "--scenes", "--out", tmp_path / "file", "--work", tmp_path / "work").field == "out"
    error = call(train_mini.main, "--scenes", "--stage", "decoder", "--out", tmp_path, "--work", tmp_path / "work")
    assert error.field == "checkpoint flowcache_mini_scenes_vae.safetensors"


def test_too_little_disk_for_the_clips_is_refused_first(untrained, tmp_path: Path, monkeypatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=training.WAN.clip_bytes(8) // 2)
    monkeypatch.setattr("flowcache_core.files.shutil.disk_usage", lambda folder: free)
    error = call(train.main, "--out", tmp_path, "--work", tmp_path)
    assert error.field == "work" and "MB of free space" in error.accepted


def checkpoint_of(kind: str, path: Path) -> None:
    """Checkpoints that a transformer training of the Wan kind cannot go on from."""
    recipe = RECIPE if kind == "of another model" else training.WAN
    trained = training.Trained.begin(recipe, torch.device("cpu"))
    for parameter in trained.others:
        parameter.grad = torch.zeros_like(parameter)
    trained.adam.step()
    checkpoint.save(path, trained.parts, checkpoint.Stand(7, 1.5, 0.25))
    content = torch.load(path, weights_only=True)
    if kind == "half a file":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    if kind == "text":
        path.write_text("step 7")
        return
    if kind == "without an optimizer":
        del content["muon"]
    elif kind == "NaN weights":
        next(iter(content["average"].values())).view(-1)[0] = torch.nan
    elif kind == "steps that are none":
        content["step"] = -1
    elif kind == "moments of another shape":
        content["adam"]["state"][0]["exp_avg"] = torch.zeros(3, 2)
    elif kind == "matrices of another shape":
        content["muon"] = [tensor[..., :1] for tensor in content["muon"]]  # which torch would broadcast
    elif kind == "a list":
        content = [1, 2]
    torch.save(content, path)


DAMAGED = ("half a file", "text", "without an optimizer", "NaN weights", "steps that are none", "a list",
           "moments of another shape", "matrices of another shape", "of another model")  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_checkpoints_that_do_not_fit_are_refused_first(untrained, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "transformer.pt"
    checkpoint_of(kind, path)
    error = call(train.main, "--resume", "--out", tmp_path, "--work", tmp_path)
    assert (error.field, error.value) == ("resume", str(path))
    assert "\n" not in str(error) and len(str(error)) < 500
    if kind == "of another model":
        assert call(train.main, "--resume", "--work", tmp_path, "--out", tmp_path).field == "resume"
        path.rename(tmp_path / "mini_magi.pt")
        with pytest.raises(pytest.fail.Exception, match="begun"):  # there it belongs
            magi_train.main(["--resume", "--out", str(tmp_path), "--work", str(tmp_path)])


@pytest.mark.parametrize("main", [train.main, magi_train.main], ids=["mini", "mini-magi"])
def test_resuming_what_was_never_begun_is_refused(untrained, tmp_path: Path, main) -> None:
    error = call(main, "--resume", "--out", tmp_path, "--work", tmp_path)
    assert error.field == "resume" and "that an earlier training left there" in error.accepted


def test_a_checkpoint_of_the_first_stage_is_checked_too(untrained, tmp_path: Path) -> None:
    torch.save({"model": {}, "step": 1, "spent": 0.0}, tmp_path / "vae.pt")
    error = call(train.main, "--resume", "--out", tmp_path, "--work", tmp_path)
    assert error.value == str(tmp_path / "vae.pt") and "it has no average, optimizer" in error.accepted


def test_a_training_goes_on_exactly_where_its_checkpoint_stands(tmp_path: Path) -> None:
    begun = training.Trained.begin(training.WAN, torch.device("cpu"))
    for parameter in begun.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    begun.adam.step()
    begun.muon.step(0.1)
    checkpoint.save(tmp_path / "a.pt", begun.parts, checkpoint.Stand(3, 1.5, 0.25))
    again = training.Trained.begin(training.WAN, torch.device("cpu"))
    assert checkpoint.load(tmp_path / "a.pt", again.parts) == checkpoint.Stand(3, 1.5, 0.25)
    for one, other in zip(begun.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(begun.muon.velocity, again.muon.velocity, strict=True))
    for one, other in zip(begun.others, again.others, strict=True):
        assert torch.equal(begun.adam.state[one]["exp_avg"], again.adam.state[other]["exp_avg"])


def test_a_full_disk_in_the_middle_does_not_end_a_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("flowcache_core.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    said: list[str] = []
    parts = {"model": torch.nn.Linear(1, 1)}
    checkpoint.save_or_say(tmp_path / "a.pt", parts, checkpoint.Stand(5), said.append)
    assert len(said) == 1 and said[0].startswith("no checkpoint at step 5: work: got") and "disk is full" in said[0]
    with pytest.raises(SettingError, match="the disk is full"):
        checkpoint.save(tmp_path / "a.pt", parts, checkpoint.Stand(5))


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_what_was(tmp_path: Path, two_clips: WanVAE) -> None:
    vae, place = two_clips, tmp_path / "transformer.pt"
    shared = {"seed": 0, "device": torch.device("cpu"), "checkpoint": place, "say": print, "minutes": 0}
    training.train_transformer(vae, steps=1, resume=False, **shared)
    good = place.read_bytes()

    def broken(model, clean, context, generator):
        return training.WAN.loss(model, clean, context, generator) * torch.nan

    with pytest.raises(NotFiniteError, match="transformer step 2: the loss is nan"):
        training.train_transformer(vae, steps=3, resume=True, recipe=replace(training.WAN, loss=broken), **shared)
    assert place.read_bytes() == good


def test_damaged_clip_files_are_made_again(tmp_path: Path, two_clips: WanVAE) -> None:
    vae = two_clips
    pool = ClipPool(vae, 1, 0, tmp_path)
    path = pool.file()
    good = torch.load(path, weights_only=True)
    for damaged in (b"", path.read_bytes()[:5000]):
        path.write_bytes(damaged)
        again = ClipPool(vae, 1, 0, tmp_path)
        again.take_files(2)
        assert torch.equal(torch.stack(again.latents), good) and torch.equal(torch.load(path, weights_only=True), good)
    torch.save(torch.zeros(2, 16, 2, 8, 8), path)  # of another length
    again = ClipPool(vae, 1, 0, tmp_path)
    again.take_files(2)
    assert torch.equal(torch.stack(again.latents), good)


# -- what evaluations write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [evaluate, magi_evaluate], ids=["mini", "mini-magi"])
@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("--json", "folder"), "json"), (("--json", "file/a.json"), "json"), (("--picture", "folder.png"), "picture"),
     (("--picture", "a.xyz"), "picture"), (("--picture", "file/a.png"), "picture"), (("--samples", 0), "samples"),
     (("--rows", 0), "rows"), (("--steps", 0), "steps"), (("--guidance", "nan"), "guidance"), (("--seed", -1), "seed")],
)  # fmt: skip
def test_evaluations_refuse_first(tmp_path: Path, monkeypatch, module, arguments, field: str) -> None:
    monkeypatch.setattr(module, "sample", lambda *_, **__: pytest.fail("the sampling has begun"))
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("mine")
    assert call(module.main, *arguments).field == field


def test_an_evaluation_writes_what_it_was_asked_for(tmp_path: Path, capsys) -> None:
    arguments = ["--samples", "1", "--chunks", "1", "--steps", "1"]
    evaluate.main([*arguments, "--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")])
    assert json.loads((tmp_path / "a.json").read_text())["samples"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]
