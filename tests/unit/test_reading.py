"""What others wrote, in the forms that do harm: each is refused by name, before anything of its size is made."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowcache_core.errors import SettingError
from flowcache_core.models.common.checkpoint import read_state_dict
from flowcache_core.models.common.sharded import read_weights
from flowcache_core.models.magi.text import load_special_tokens
from flowcache_core.models.magi.vae import load_magi_vae
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.load import load_wan
from flowcache_core.presets import read_presets
from flowcache_core.reading.json_text import parse_json, parse_object, read_json
from flowcache_core.reading.limits import JSON_BYTES, JSON_DEPTH

# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * 10_000 + "]" * 10_000, f"nested more than {JSON_DEPTH} deep"),
        ('{"a":' * 50 + "1" + "}" * 50, f"nested more than {JSON_DEPTH} deep"),
        ("[NaN]", "NaN, which is not JSON"),
        ("[-Infinity]", "-Infinity, which is not JSON"),
        ("[1e999]", "1e999"),
        ("1" * 5000, "a number of 5000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (b'["\xff\xfe"]', "unreadable"),
        ('["\\ud800"]', "surrogates not allowed"),
        ("", "unreadable"),
        ("[1,]", "unreadable"),
        (" " * (JSON_BYTES + 1), f"{JSON_BYTES + 1} characters"),
    ],
)
def test_json_that_is_refused(text, found):
    with pytest.raises(SettingError) as caught:
        parse_json(text, "the field", "JSON of some form")
    assert str(caught.value).startswith("the field: got ") and found in str(caught.value)
    assert len(str(caught.value)) < 200


def test_json_that_is_read():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xbc", null, true]}', "f", "JSON")["a"][2] == "ü"
    assert parse_json(str(2**70), "f", "JSON") == 2**70  # what a number may be is its field's own business
    with pytest.raises(SettingError, match="a JSON object"):
        parse_object("[1]", "f", "JSON")


def test_a_json_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "big.json", "wb") as file:
        file.truncate(2**40)  # takes no room on disk
    with pytest.raises(SettingError, match=f"{2**40} bytes"):
        read_json(tmp_path / "big.json", "f", "JSON")


# ---- safetensors -----------------------------------------------------------------------------------------------------


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object, size: int, dtype: str = "F32", start: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (raw({"a": entry([2], 8)}, bytes(4)), "cut short"),
        (raw({"a": entry([2], 8)}, bytes(12)), "more data than its header names"),
        (raw({"a": entry([2**31], 8)}, bytes(8)), "shape of a"),
        (raw({"a": entry([2**20] * 5, 8)}, bytes(8)), "shape of a"),
        (raw({"a": entry([1] * 9, 4)}, bytes(4)), "shape of a"),
        (raw({"a": entry([-2], 8)}, bytes(8)), "shape of a"),
        (raw({"a": entry([2.0], 8)}, bytes(8)), "shape of a"),
        (raw({"a": entry([3], 8)}, bytes(8)), "12 bytes apart"),
        (raw({"a": entry([2], 8, dtype="F4")}, bytes(8)), "dtype of a"),
        (raw({"a": entry([2], 8, dtype=["F32"])}, bytes(8)), "dtype of a"),  # type: ignore[arg-type]
        (raw({"a": [1]}), "header of a"),
        (raw({"a": entry([2], 8), "b": entry([2], 8)}, bytes(16)), "unreadable"),  # one over the other
        (raw({"k" * 10_000: entry([1], 4)}, bytes(4)), "name of a tensor"),
        (raw({f"k{i}": entry([0], 0) for i in range(20_001)}), "20001 tensors"),
        (raw({"__metadata__": {"a": 3}, "a": entry([1], 4)}, bytes(4)), "metadata"),
        (raw({"__metadata__": [1], "a": entry([1], 4)}, bytes(4)), "metadata"),
        (raw(b'{"a": ' + b"[" * 10_000), "unreadable"),
        (raw(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
        (raw({}, length=2**63), "unreadable"),
        (raw({}, length=10**8), "unreadable"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "a JSON object"),
    ],
)
def test_headers_that_are_refused(tmp_path, content, found):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(SettingError) as caught:
        read_state_dict(path)
    assert "m.safetensors" in str(caught.value) and found in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        ({"config": "[1]"}, "metadata config"),
        ({"config": '{"transformer": [1]}'}, "metadata config"),
        ({"config": '{"transformer": {"num_heads": [1]}}'}, "num_heads"),
        ({"config": '{"transformer": {"num_heads": 1e400}}'}, "metadata config"),
        ({"config": '{"transformer": {"eps": ' + str(10**400) + "}}"}, "eps"),
        ({"config": '{"transformer": {"dim": "' + "x" * 10_000 + '"}}'}, "config.transformer.dim"),
        ({"_quantization_metadata": "3"}, "_quantization_metadata"),
        ({"_quantization_metadata": '{"layers": [1]}'}, "_quantization_metadata"),
        ({"_quantization_metadata": '{"layers": {"head.head": 3}}'}, "_quantization_metadata"),
        ({"_quantization_metadata": '{"layers": {"head.head": {"format": "nvfp4"}}}'}, "nvfp4"),
    ],
)
def test_metadata_that_is_refused(tmp_path, metadata, found):
    from flowcache_core.models.wan.transformer import WanTransformer

    config = WanConfig(dim=128, ffn_dim=8, num_layers=1, num_heads=1, text_dim=8, freq_dim=8)
    save_file(WanTransformer(config).state_dict(), tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(SettingError, match=found):
        load_wan(tmp_path / "m.safetensors")


# ---- .pt -------------------------------------------------------------------------------------------------------------


def repacked(content: object, change=lambda name, data: data, how: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch with entries changed, checksums right."""
    saved, stream = io.BytesIO(), io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(stream, "w", how) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return stream.getvalue()


def with_pickle(instructions: bytes) -> bytes:
    """An archive whose pickle is ours."""
    return repacked({"a": torch.ones(2)}, lambda name, data: instructions if name.endswith("data.pkl") else data)


def cglobal(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(name: str, *arguments: bytes) -> bytes:
    return cglobal(name) + b"(" + b"".join(arguments) + b"tR"


def number(value: int) -> bytes:
    content = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + content


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: str, count: int, kind: str = "torch.FloatStorage", view: bytes = b"") -> bytes:
    return b"(" + text("storage") + cglobal(kind) + text(key) + text("cpu") + number(count) + view + b"tQ"


def tensor(data: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    sides, steps = (b"(" + b"".join(map(number, row)) + b"t" for row in (shape, stride))
    return call("torch._utils._rebuild_tensor_v2", data, number(offset), sides, steps, b"\x89", b"}")


def one(value: bytes, key: bytes = text("a")) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def nested_tuple(depth: int) -> bytes:
    return b")" + b"\x85" * depth


HARMFUL = {
    "a storage larger than its data": (one(tensor(storage("0", 1000), (1000,), (1,))), "4000 bytes"),
    "a storage of a terabyte": (one(tensor(storage("0", 2**40), (2**30,), (1,))), "bytes"),
    "a storage that is not there": (one(tensor(storage("7", 2), (2,), (1,))), "data '7'"),
    "a tensor beyond its storage": (one(tensor(storage("0", 2), (3,), (1,))), "12 bytes over 8 bytes"),
    "an offset beyond it": (one(tensor(storage("0", 2), (2,), (1,), 1)), "12 bytes over 8 bytes"),
    "an offset below it": (one(tensor(storage("0", 2), (2,), (1,), -1)), "damaged"),
    "negative strides": (one(tensor(storage("0", 2), (2,), (-1,))), "strides"),
    "expanded": (one(tensor(storage("0", 2), (30_000, 30_000), (0, 0))), "bytes over 8 bytes"),
    "strides of another length": (one(tensor(storage("0", 2), (2,), ())), "strides"),
    "a view of a storage": (one(tensor(storage("0", 2, view=b"(" + text("x") + b"t"), (2,), (1,))), "view"),
    "an unknown storage": (one(tensor(storage("0", 2, "torch.EvilStorage"), (2,), (1,))), "EvilStorage"),
    "another persistent id": (one(b"(" + text("file") + b"tQ"), "unknown kind"),
    "an id that is no tuple": (one(text("x") + b"Q"), "unknown kind"),
    "a bytearray of ten gigabytes": (one(call("builtins.bytearray", number(10**10))), "builtins.bytearray"),
    "a tensor by its class": (one(call("torch.Tensor", number(10**6), number(10**6))), "torch.Tensor"),
    "a call of builtins": (one(call("builtins.eval", text("1"))), "builtins.eval"),
    "a call of os": (one(call("os.system", text("true"))), "os.system"),
    "a call of a method": (one(call("builtins.getattr", cglobal("os.path"), text("x")) + b")R"), "runs code"),
    "meta": (one(call("torch._utils._rebuild_meta_tensor_no_storage")), "without data"),
    "a key a hundred thousand tuples deep": (one(text("x"), nested_tuple(2 * 10**5)), "keys"),
    "a value a hundred thousand tuples deep": (one(nested_tuple(2 * 10**5)), "other things"),
    "a set": (one(b"\x8f"), "other things"),
    "protocol 4": (b"\x80\x04\x95" + bytes(8) + b"}.", "FRAME"),
    "a memo that is empty": (b"\x80\x02h\x05.", "damaged"),
    "nothing at all": (b".", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "a text longer than the file": (b"\x80\x02}X\xff\xff\xff\x7fabc", "damaged"),
    "itself": (b"\x80\x02}q\x00" + text("model") + b"h\x00s.", "nested more than"),
    "itself in a list": (b"\x80\x02]q\x00h\x00a.", "no dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_pickles_that_are_refused(tmp_path, name):
    instructions, found = HARMFUL[name]
    path = tmp_path / "m.pt"
    path.write_bytes(with_pickle(instructions))
    with pytest.raises(SettingError) as caught:
        read_state_dict(path)
    assert "checkpoint m.pt" in str(caught.value) and found in str(caught.value), caught.value


def test_doubling_lists_are_not_walked(tmp_path):
    """Thirty lists, each twice in the next: a billion entries to whoever walks them."""
    lists = b"]q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(30))
    path = tmp_path / "m.pt"
    path.write_bytes(with_pickle(one(b"(" + lists + b"t")))
    with pytest.raises(SettingError, match="other things"):
        read_state_dict(path)


@pytest.mark.parametrize("old", [False, True])
def test_pickles_by_hand_are_read_where_they_are_right(tmp_path, old):
    path = tmp_path / "m.pt"
    path.write_bytes(with_pickle(one(tensor(storage("0", 2), (2,), (1,)))))
    assert read_state_dict(path)[0]["a"].tolist() == [1, 1]
    torch.save({"a": torch.ones(3, 2).T, "b": torch.ones(2, dtype=torch.bfloat16)}, path,
               _use_new_zipfile_serialization=not old)  # fmt: skip
    assert read_state_dict(path)[0]["a"].shape == (2, 3)


def test_fp8_is_read_from_both(tmp_path):
    weights = {"a": torch.ones(4).to(torch.float8_e4m3fn)}
    torch.save(weights, tmp_path / "m.pt")
    assert read_state_dict(tmp_path / "m.pt")[0]["a"].dtype == torch.float8_e4m3fn


def test_an_old_file_that_claims_more_than_it_has(tmp_path):
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    content = stream.getvalue()
    claimed = content.replace(b"K\x02Nt", b"J\xff\xff\xff\x7fNt")
    assert claimed != content
    (tmp_path / "m.pt").write_bytes(claimed)
    with pytest.raises(SettingError, match="8589934588 bytes"):
        read_state_dict(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (repacked({"a": torch.zeros(2**20)}, how=zipfile.ZIP_DEFLATED), "compressed"),
        (repacked({"a": torch.zeros(2)}, lambda name, data: data * 2 if "data/0" in name else data), "8 bytes"),
        (pickle.dumps({"a": 1}), "torch does not write|unreadable"),
        (pickle.dumps({"a": Path("x")}, protocol=2), "runs code|unreadable"),
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF|gguf"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    ],
)
def test_other_files_are_named(tmp_path, content, found):
    for suffix in (".pt", ".safetensors"):
        (tmp_path / f"m{suffix}").write_bytes(content)
        with pytest.raises(SettingError, match=found):
            read_state_dict(tmp_path / f"m{suffix}")


def test_records_over_one_another_are_refused(tmp_path):
    """Fifty directory entries for one megabyte: a file that unpacks to far more than it holds."""
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(2**18)}, saved)
    with zipfile.ZipFile(saved) as source:
        entries = source.infolist()
        large = next(entry for entry in entries if entry.filename.endswith("data/0"))
        stream = io.BytesIO(saved.getvalue())
    with zipfile.ZipFile(stream, "a") as target:
        for copy in range(1, 50):
            info = zipfile.ZipInfo(large.filename[:-1] + str(copy))
            info.file_size = info.compress_size = large.file_size
            info.CRC, info.header_offset = large.CRC, large.header_offset
            target.filelist.append(info)
            target.NameToInfo[info.filename] = info
        target._didModify = True
    (tmp_path / "m.pt").write_bytes(stream.getvalue())
    with pytest.raises(SettingError, match="over one another"):
        read_state_dict(tmp_path / "m.pt")


def test_a_file_under_the_wrong_name_is_read_as_what_it_is(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "m.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    for name in ("m.pt", "m.safetensors"):
        assert read_state_dict(tmp_path / name)[0]["a"].tolist() == [1, 1]


def test_what_is_left_out_is_said(tmp_path, caplog):
    torch.save({"generator_ema": {"a": torch.ones(1)}, "critic": {"b": torch.ones(1)}, "step": 3}, tmp_path / "m.pt")
    assert list(read_state_dict(tmp_path / "m.pt")[0]) == ["a"]
    assert "checkpoint m.pt: not read: critic, step" in caplog.text


# ---- folders, shards, sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("places", "found"),
    [
        ({"a": "x" * 300 + ".safetensors"}, "1 of 1 shards missing"),
        ({"a": "../m.safetensors"}, "same folder"),
        ({"a": "sub\\m.safetensors"}, "same folder"),
        ({"a": 3}, "same folder"),
        ({"a": None}, "same folder"),
        ({"a": "m\0.safetensors"}, "missing"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"k" * 1000: "m.safetensors"}, "name of a tensor"),
        ({f"k{i}": "m.safetensors" for i in range(20_001)}, "20001 tensors"),
    ],
)
def test_indices_that_are_refused(tmp_path, places, found):
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(SettingError, match=found) as caught:
        read_weights(index)
    assert len(str(caught.value)) < 400


def test_a_tensor_that_the_index_does_not_name_is_not_lost(tmp_path):
    save_file({"a": torch.ones(1), "a.scale_weight": torch.ones(1)}, tmp_path / "m.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m.safetensors"}}))
    with pytest.raises(SettingError, match="also holds a.scale_weight"):
        read_weights(index)


def test_a_config_of_a_million_layers(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    sizes = {"embed_dim": 256, "depth": 1_000_000, "num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"ddconfig": sizes}))
    with pytest.raises(SettingError, match="depth: got 1000000, accepted: a whole number >= 1 and <= 256"):
        load_magi_vae(tmp_path)


@pytest.mark.parametrize(
    "numbers", [range(20_000 // 8), [0, 2], ["0", "x"], [0, 1, 7]], ids=["many", "a gap", "a word", "far"]
)
def test_blocks_that_are_none(tmp_path, numbers):
    blocks = {f"blocks.{number}.x": torch.zeros(1) for number in numbers}
    weights = {"head.modulation": torch.zeros(1, 2, 128), "patch_embedding.weight": torch.zeros(128, 16, 1, 2, 2),
               "blocks.0.ffn.0.weight": torch.zeros(8, 128), "head.head.weight": torch.zeros(64, 128),
               "text_embedding.0.weight": torch.zeros(128, 8),
               "time_embedding.0.weight": torch.zeros(128, 8)}  # fmt: skip
    save_file({**weights, **blocks}, tmp_path / "m.safetensors")
    with pytest.raises(SettingError, match="without a gap|num_layers"):
        load_wan(tmp_path / "m.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_file_larger_than_can_be_mapped(tmp_path):
    header = json.dumps({"a": entry([2**30], 2**32)}).encode()
    with open(tmp_path / "m.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**32)  # takes no room on disk
    program = (
        "import resource, sys\nfrom flowcache_core.models.common.checkpoint import read_state_dict\n"
        "from flowcache_core.errors import SettingError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try:\n    read_state_dict(sys.argv[1])\nexcept SettingError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("checkpoint m.safetensors: got 'unreadable: "), (done.stdout, done.stderr)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_that_unpacks_to_gigabytes(tmp_path):
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("other_tokens.npy", "w") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(SettingError, match=f"{64 * 2**20} bytes, unpacked"):
        load_special_tokens(path)


@pytest.mark.parametrize("shape", [(100, 10**12), (10**9, 10**9), (2**62,), (100, 8, 1)])
def test_a_table_that_claims_more_than_it_has(tmp_path, shape):
    path = tmp_path / "t.npz"
    np.savez(path, caption_token=np.zeros((1, 8)), logo_token=np.zeros((1, 8)))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other_tokens.npy", header.getvalue())
    with pytest.raises(SettingError, match="other_tokens"):
        load_special_tokens(path, dim=8)


def test_a_table_of_infinities(tmp_path):
    rows = {"caption_token": np.full((1, 8), 1e9), "logo_token": np.zeros((1, 8)), "other_tokens": np.zeros((100, 8))}
    np.savez(tmp_path / "t.npz", **rows)
    with pytest.raises(SettingError, match="caption_token.*not finite"):
        load_special_tokens(tmp_path / "t.npz", dim=8)


# ---- the file system -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (getattr(os, "mkfifo", None), "a device or a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device or a pipe"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: None, "an existing file"),
    ],
)
def test_what_is_no_file(tmp_path, make, found):
    for name, load in (("m.safetensors", read_state_dict), ("p.json", read_presets), ("t.npz", load_special_tokens)):
        make(tmp_path / name)
        with pytest.raises(SettingError, match=found):
            load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"x")
    (tmp_path / "m.pt").chmod(0)
    with pytest.raises(SettingError, match="unreadable: Permission denied"):
        read_state_dict(tmp_path / "m.pt")
