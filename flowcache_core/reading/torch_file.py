"""A .pt / .pth file, read as weights only after its outline has shown that it holds tensors, as large as it says."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from ..errors import Found, SettingError, listed, require, shown
from .limits import PICKLE_BYTES, TENSORS
from .pickle_outline import Made, Name, NotAnOutline, Outline, Stored
from .tensors import require_shape

ZIP, OLD = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch begin: since 1.6, before
PICKLES_BEFORE = 3  # an old file has three short pickles before the one that counts, and its storages' keys after it
ONLY_WEIGHTS = "weights alone: torch.save(model.state_dict(), ...) or a .safetensors file"

TENSOR = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}  # with their arguments' least number
PARAMETER = "_rebuild_parameter"
# Classes of storages; other numbers (fp8) lie in an UntypedStorage, and their tensors name the dtype.
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
    "ShortStorage": torch.int16, "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
HARMLESS = frozenset({
    Name("torch", "Size"), Name("torch", "device"), Name("_codecs", "encode"), Name("collections", "Counter"),
})  # fmt: skip
# What of torch's own makes tensors that are no plain ones, in words.
ODD = {
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta)", "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_wrapper_subclass": "a tensor of another class", "_rebuild_from_type_v2": "a tensor of another class",
    "_rebuild_device_tensor_from_numpy": "a tensor kept as a numpy array",
    "_rebuild_parameter_with_state": "a tensor with attributes",
}  # fmt: skip


def read_torch(path: Path, size: int, field: str, accepted: str) -> Any:
    """Content of the file, every tensor in it on the CPU. SettingError naming what else it holds, or what is wrong."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(OLD))
            file.seek(0)
            records = _records(file, size) if start.startswith(ZIP) else None
            if records is None:
                outline, held = _old_outline(file, start), size
            else:
                outline, held = Outline(BytesIO(records.pickle)), None
        _check_storages(outline, None if records is None else records.sizes, held)
        _check_objects(outline)
    except NotAnOutline as error:
        raise SettingError(field, Found(str(error)), accepted) from error
    except SettingError as error:
        raise error.within(field) from error
    except OSError as error:
        raise SettingError(field, Found(f"unreadable: {error.strerror or error}"), accepted) from error
    try:
        with open(path, "rb") as file:  # by its name, torch might take it for another format
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in whatever way its bytes say
        reason = listed((str(error) or type(error).__name__).splitlines(), 1)
        raise SettingError(field, Found(f"unreadable: {reason}"), accepted) from error


class _Records:
    """The zip archive around a pickle: the pickle's bytes and how many bytes every storage has."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        entries = archive.infolist()
        if len(entries) > 2 * TENSORS:
            raise NotAnOutline(f"an archive of {len(entries)} files")
        names = [entry.filename for entry in entries]
        if len({name.casefold() for name in names}) < len(names):
            raise NotAnOutline("an archive with two files of one name")
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise NotAnOutline(f"compressed data ({listed(packed, 1)}), which torch does not write")
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < end or entry.file_size != entry.compress_size:
                raise NotAnOutline("an archive whose files lie over one another")
            end = entry.header_offset + entry.file_size
        if end > size:
            raise NotAnOutline("an archive cut short")
        folders = {name.partition("/")[0] for name in names}
        pickle = next((name for name in names if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if pickle is None or len(folders) != 1:
            numpy = any(name.endswith(".npy") for name in names)
            raise NotAnOutline("a numpy archive (.npz)" if numpy else "a zip archive that torch did not write")
        folder = pickle.removesuffix("data.pkl")
        if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in names):
            raise NotAnOutline("a program (TorchScript), not weights alone")
        if archive.getinfo(pickle).file_size > PICKLE_BYTES:
            raise NotAnOutline(f"a pickle of {archive.getinfo(pickle).file_size} bytes")
        self.pickle = archive.read(pickle)
        data = f"{folder}data/"
        self.sizes = {
            entry.filename.removeprefix(data): entry.file_size for entry in entries if entry.filename.startswith(data)
        }


def _records(file: Any, size: int) -> _Records:
    try:
        with zipfile.ZipFile(file) as archive:
            return _Records(archive, size)
    except NotAnOutline:
        raise
    except Exception as error:  # zipfile's readers raise some ten kinds
        raise NotAnOutline(f"a damaged archive ({error})") from error


def _old_outline(file: Any, start: bytes) -> Outline:
    """The weights' pickle of a file from before torch 1.6; SettingError naming what any other pickle would make."""
    source = BytesIO(file.read(PICKLE_BYTES))
    if start != OLD:
        _check_objects(Outline(source))
        raise NotAnOutline("a pickle that torch did not write")
    for _ in range(PICKLES_BEFORE):
        _check_objects(Outline(source))
    outline = Outline(source)
    _check_objects(Outline(source))
    return outline


def _check_storages(outline: Outline, sizes: Mapping[str, int] | None, held: int | None) -> None:
    """Every storage is as large as the file says it is; without ``sizes`` all together fit into ``held`` bytes."""
    claimed: dict[str, int] = {}
    for stored in outline.stored:
        key, count = _storage(stored)
        if sizes is not None:
            require(sizes.get(key) == count, f"data {shown(key)}", Found(f"{count} bytes"), f"{sizes.get(key)} bytes")
        claimed[key] = count
    if held is not None:
        require(sum(claimed.values()) <= held, "data", Found(f"{sum(claimed.values())} bytes"), f"up to {held} bytes")


def _storage(stored: Stored) -> tuple[str, int]:
    """Key and bytes of a storage."""
    given = stored.identifier
    if not isinstance(given, tuple) or len(given) not in (5, 6) or given[0] != "storage" or not _named(given[1]):
        raise NotAnOutline(f"data of an unknown kind ({shown(given)})")
    _, kind, key, location, count = given[:5]
    if not isinstance(key, str) or not isinstance(location, str) or type(count) is not int or count < 0:
        raise NotAnOutline(f"data of an unknown kind ({shown(given)})")
    if len(given) == 6 and given[5] is not None:
        raise NotAnOutline("data that is a view of other data, which torch has not written for years")
    return key, count * _item(kind).itemsize


def _item(kind: Name) -> torch.dtype:
    """What a storage class counts in."""
    if kind.name == "UntypedStorage":
        return torch.uint8
    if kind.module != "torch" or kind.name not in STORAGES:
        raise NotAnOutline(f"data of an unknown kind ({kind})")
    return STORAGES[kind.name]


def _named(value: Any) -> bool:
    return isinstance(value, Name)


def _check_objects(outline: Outline) -> None:
    """Only plain tensors, each within its storage; other objects are named."""
    others = {str(made.function) for made in outline.made if not _is_known(made)}
    odd = sorted(others & {f"torch._utils.{name}" for name in ODD} | others & {"torch._tensor._rebuild_from_type_v2"})
    if odd:
        raise NotAnOutline(f"{ODD[odd[0].rpartition('.')[2]]} in it")
    if others:
        found = f"not tensors alone, and only a pickle that runs code makes the rest: {listed(sorted(others), 3)}"
        raise SettingError("objects", Found(found), ONLY_WEIGHTS)
    if sum(made.function.name in TENSOR for made in outline.made) > TENSORS:
        raise NotAnOutline(f"more than {TENSORS} tensors")
    for made in outline.made:
        if made.function.module == "torch._utils" and made.function.name in TENSOR:
            _check_tensor(made)


def _is_known(made: Made) -> bool:
    utils = made.function.module == "torch._utils" and made.function.name in (*TENSOR, PARAMETER)
    return utils or made.function in HARMLESS


def _check_tensor(made: Made) -> None:
    given = made.arguments
    if len(given) < TENSOR[made.function.name] or not isinstance(given[0], Stored):
        raise NotAnOutline("a damaged pickle (a tensor without data)")
    stored, offset = given[:2]
    size = require_shape("a tensor's shape", given[2])
    stride = require_shape("a tensor's strides", given[3])
    held = _storage(stored)[1]
    if made.function.name == "_rebuild_tensor_v3":
        dtype = getattr(torch, given[6].name, None) if _named(given[6]) and given[6].module == "torch" else None
    else:
        dtype = _item(stored.identifier[1])
    if not isinstance(dtype, torch.dtype):
        raise NotAnOutline(f"a tensor of unknown numbers ({shown(given[-1])})")
    whole = type(offset) is int and offset >= 0 and len(size) == len(stride)
    if not whole:
        raise NotAnOutline("a damaged pickle (a tensor with another number of strides than sizes)")
    count = _product(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    needed = max(count, last + 1 if count else 0) * dtype.itemsize
    if needed > held:
        raise NotAnOutline(f"a tensor of {needed} bytes over {held} bytes of data")


def _product(sizes: Iterable[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
