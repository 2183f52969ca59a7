"""Files of weights that mean well, are damaged, or mean harm."""

import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import ConfigError, JobError
from pipeline.importing import reader
from pipeline.store.url import Url
from tests.pipeline.importing.test_caffe import write
from tests.support.examples import examples

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(3)}


def saved(value: object, *, zipped: bool = True, protocol: int = 2) -> bytes:
    """Bytes of torch.save: of today, or as before torch 1.6."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue()


def read(data: bytes, name: str = "weights.pth") -> dict[str, Tensor]:
    return reader.parse_weights(data, origin=name).tensors


def refusal(data: bytes, name: str = "weights.pth") -> str:
    with pytest.raises(ConfigError) as caught:
        reader.parse_weights(data, origin=name)
    return str(caught.value)


def is_state(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


# ---------------------------------------------------------------- files that mean well


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, *reader.WRAPPERS])
def test_a_file_of_torch_is_read_bare_or_wrapped(zipped: bool, wrapper: str | None) -> None:
    value = STATE if wrapper is None else {"epoch": 3, "args": {"lr": 0.1}, wrapper: OrderedDict(STATE), "best": None}
    source = reader.parse_weights(saved(value, zipped=zipped), origin="weights.pth")
    assert source.kind == "torch"
    assert is_state(source.tensors)
    assert source.left_out == (() if wrapper is None else ("epoch", "args", "best"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("score", [np.float64(0.78), np.float32(0.5), np.int64(3), np.bool_(True)], ids=repr)
def test_a_best_score_of_numpy_is_no_obstacle(zipped: bool, score: object) -> None:
    """VainF and jfzhang95 keep one beside the weights; torch alone would refuse the file."""
    data = saved({"model_state": STATE, "best_score": score}, zipped=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(data), weights_only=True)
    assert is_state(read(data))


def test_an_optimiser_beside_the_weights_is_left_out() -> None:
    network = nn.Linear(2, 2)
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    data = saved({"state_dict": network.state_dict(), "optimizer": optimiser.state_dict()})
    assert reader.parse_weights(data, origin="w.tar").left_out == ("optimizer",)
    assert torch.equal(read(data)["weight"], network.weight)


def test_several_dicts_of_tensors_keep_their_names_apart() -> None:
    value = {"model": STATE, "ema": {"module": STATE, "decay": 0.9}, "epoch": 3, "optimizer": {"state": {0: {}}}}
    source = reader.parse_weights(saved(value), origin="w.pth")
    assert source.tensors.keys() == {prefix + name for prefix in ("model.", "ema.module.") for name in STATE}
    assert source.entries == ("model.", "ema.module.")
    assert source.left_out == ("ema.decay", "epoch", "optimizer")


def test_dicts_whose_joined_names_are_equal_are_refused() -> None:
    value = {"a": {"b.c": torch.ones(1)}, "a.b": {"d.c": torch.ones(1)}}
    assert read(saved(value)).keys() == {"a.b.c", "a.b.d.c"}
    value["a"] |= {"b.d.c": torch.ones(1)}
    assert "names run into each other: a., a.b." in refusal(saved(value))


@pytest.mark.parametrize("wrapper", reader.WRAPPERS)
def test_weights_with_an_entry_that_is_no_tensor_are_refused_whatever_is_beside_them(wrapper: str) -> None:
    value = {wrapper: STATE | {"extra": "text"}, "ema": STATE}
    assert "has entries that are no tensors: 'extra'" in refusal(saved(value))


def test_dicts_that_contain_each_other_many_times_end_in_a_refusal() -> None:
    """A few bytes for each reference to one dict: six levels of ten thousand would be 10**24 visits."""
    value: dict = STATE
    for _ in range(6):
        value = {f"a{number}": value for number in range(10_000)}
    assert "more than 100000 entries" in refusal(saved(value))
    value["a0"] = value
    assert "more than 100000 entries" in refusal(saved(value))


def test_parameters_are_read_as_plain_tensors() -> None:
    found = read(saved({"weight": nn.Parameter(torch.ones(2))}))["weight"]
    assert type(found) is Tensor
    assert not found.requires_grad


def test_tensors_that_share_memory_are_read() -> None:
    whole = torch.arange(6.0)
    found = read(saved({"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3).t()}))
    assert torch.equal(found["b"], whole[3:])
    assert torch.equal(found["c"], whole.view(2, 3).t())


def test_what_a_file_is_its_first_bytes_say() -> None:
    assert is_state(read(safetensors.torch.save(STATE), "renamed.pth"))
    assert is_state(read(saved(STATE), "renamed.safetensors"))
    found = read(write({"conv": [np.ones((2, 3, 1, 1), np.float32)]}), "net.caffemodel")
    assert found["conv.weight"].shape == (2, 3, 1, 1)


def test_a_file_is_read_from_a_store_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved(STATE))
    source = reader.read_weights(Url(str(tmp_path / "a.pth")))
    assert (source.name, source.kind, len(source.sha256)) == ("a.pth", "torch", 64)
    assert is_state(source.tensors)


# ---------------------------------------------------------------- files that mean harm


class Trap:
    """Calls a function when unpickled."""

    def __init__(self, function, *arguments: object) -> None:
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def traps(path: str) -> dict[str, object]:
    code = f"import os; os.mkdir({path!r})"
    return {
        "os.system": Trap(os.system, f"mkdir {path}"),
        "os.mkdir": Trap(os.mkdir, path),
        "exec": Trap(exec, code),
        "eval": Trap(eval, f"__import__('os').mkdir({path!r})"),
        "getattr": Trap(getattr, "text", "upper"),
        "bytearray": Trap(bytearray, 2**50),
        "set": Trap(set, [1]),
        "tensor of any size": Trap(torch.Tensor, 2, 3),
        "numpy array": np.ones(3),
        "a module": nn.Linear(2, 2),
        "a class of its own": Trap,
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", traps(""))
def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    path = tmp_path / "sprung"
    trap = traps(str(path))[name]
    said = refusal(saved({"state_dict": STATE, "trap": trap}, zipped=zipped))
    assert "more than tensors" in said
    assert "nothing was run" in said
    assert not path.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_of_any_protocol_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "sprung"
    refusal(pickle.dumps({"a": Trap(os.mkdir, str(path))}, protocol))
    refusal(pickle.dumps({"a": torch.ones(1)}, protocol))
    assert not path.exists()


def test_a_function_named_by_another_opcode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sprung"
    by_stack = pickle.dumps(Trap(os.mkdir, str(path)), 4)
    by_instance = b"\x80\x02(S'" + str(path).encode() + b"'\nios\nmkdir\n."
    for evil in (by_stack, by_instance):
        archive = rezipped(saved(STATE), {"data.pkl": evil})
        assert "more than tensors" in refusal(archive)
    assert not path.exists()


@pytest.mark.parametrize("later", range(5))
def test_a_trap_in_a_later_pickle_of_an_old_file_is_found(tmp_path: Path, later: int) -> None:
    """They hold five, one after the other."""
    data, path = saved({"a": torch.ones(1)}, zipped=False), tmp_path / "sprung"
    stream = io.BytesIO(data)
    cuts = [0]
    for _ in range(5):
        list(pickletools.genops(stream))
        cuts.append(stream.tell())
    evil = pickle.dumps(Trap(os.mkdir, str(path)), 2)
    refusal(data[: cuts[later]] + evil + data[cuts[later + 1] :])
    assert not path.exists()


def rezipped(data: bytes, replaced: dict[str, bytes], **how) -> bytes:
    """A zip with other content under some names."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", **how) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.rpartition("/")[2], old.read(name)))
    return out.getvalue()


def test_a_compressed_zip_is_refused_before_it_is_unfolded() -> None:
    bomb = rezipped(saved({"a": torch.zeros(2**20)}), {}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**16
    assert "compressed zip" in refusal(bomb)


def test_a_zip_whose_entries_overlap_is_refused() -> None:
    """Ten names for the same bytes: D. Fifield, "A better zip bomb", WOOT 2019."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", bytes(1000))
    data = file.getvalue()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, tail = data[start:end], bytearray(data[end:])
    entries = b"".join(entry[:46] + bytes([97 + number]) + entry[47:] for number in range(10))
    struct.pack_into("<HHI", tail, 8, 10, 10, len(entries))
    assert "10 entries that claim more than" in refusal(data[:start] + entries + bytes(tail))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_different_readers_would_read_differently_is_refused() -> None:
    file = io.BytesIO(saved(STATE))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data.pkl", archive.read("archive/data.pkl"))
    assert "two files of one name" in refusal(file.getvalue())


def test_a_program_of_torchscript_is_refused() -> None:
    file = io.BytesIO(saved(STATE))
    with zipfile.ZipFile(file, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
        archive.writestr("archive/code/__torch__.py", "def forward(self, x): ...")
    assert "TorchScript" in refusal(file.getvalue())


def test_the_old_tar_format_is_refused(tmp_path: Path) -> None:
    """Torch of 2016 kept pickles in a tar; weights_only did not guard it (CVE-2025-32434)."""
    path, file = tmp_path / "sprung", io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            evil = pickle.dumps(Trap(os.mkdir, str(path)), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(evil)
            archive.addfile(entry, io.BytesIO(evil))
    assert "not a weight file" in refusal(file.getvalue(), "model.pth.tar")
    assert not path.exists()


def test_few_numbers_repeated_to_fill_all_memory_are_refused() -> None:
    assert "more than the numbers stored" in refusal(saved({"a": torch.zeros(1).expand(10**6, 10**6)}))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_storage_is_refused(zipped: bool) -> None:
    """By hand: the storage has 4 numbers, the tensor is said to have 10**12."""
    honest = saved({"a": torch.zeros(4)}, zipped=zipped)
    size = b"K\x04\x85"  # the tuple of sizes
    assert honest.count(size) == 1
    larger = size.replace(b"K\x04", b"\x8a\x06" + (10**12).to_bytes(6, "little"))
    if zipped:
        inner = zipfile.ZipFile(io.BytesIO(honest)).read("archive/data.pkl")
        refusal(rezipped(honest, {"data.pkl": inner.replace(size, larger)}))
    else:
        refusal(honest.replace(size, larger))


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, device="meta"),
    ],
    ids=["sparse", "complex", "float8", "meta"],
)
def test_tensors_that_are_not_plain_are_refused(value: Tensor) -> None:
    said = refusal(saved({"a": value}))
    assert "not a plain tensor" in said or "more than tensors" in said


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2], "no dict of tensors"),
        ({}, "no dict of tensors"),
        (torch.ones(1), "no dict of tensors"),
        ({"a": torch.ones(1), "b": "text"}, "has entries that are no tensors: 'b'"),
        ({3: torch.ones(1)}, "has entries that are no tensors: 3"),
        ({"state_dict": {}}, "no dict of tensors"),
        ({"a": {"b": torch.ones(1)}}, "has entries that are no tensors: 'a'"),
    ],
)
def test_a_file_of_something_else_is_refused(value: object, says: str) -> None:
    assert says in refusal(saved(value))


# ---------------------------------------------------------------- damaged and oversized files

WHOLE = {"zip": saved(STATE), "old": saved(STATE, zipped=False), "safetensors": safetensors.torch.save(STATE)}


@pytest.mark.parametrize("kind", WHOLE)
@examples(60)
@given(st.data())
def test_a_file_that_ends_early_is_refused(kind: str, data) -> None:
    length = data.draw(st.integers(0, len(WHOLE[kind]) - 1))
    refusal(WHOLE[kind][:length])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WHOLE)
@examples(150)
@given(st.data())
def test_a_wrong_byte_is_a_refusal_or_another_number(kind: str, data) -> None:
    at, value = data.draw(st.integers(0, len(WHOLE[kind]) - 1)), data.draw(st.integers(0, 255))
    damaged = WHOLE[kind][:at] + bytes([value]) + WHOLE[kind][at + 1 :]
    try:
        found = read(damaged)
    except ConfigError:
        return
    assert sum(one.numel() for one in found.values()) <= len(damaged)


@examples(100)
@given(st.sampled_from([b"", reader.ZIP, b"\x80\x02", b"\x80\x04"]), st.binary(max_size=100))
def test_any_bytes_are_refused(start: bytes, garbage: bytes) -> None:
    for name in ("a.pth", "a.safetensors"):
        refusal(start + garbage, name)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.pth").write_bytes(saved(STATE))
    monkeypatch.setattr(reader, "_MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="limit 100"):
        reader.read_weights(Url(str(tmp_path / "a.pth")))


def test_a_name_that_is_no_name_is_refused() -> None:
    assert "name of 1000000 characters, limit 300: xxxx" in refusal(saved({"x" * 1_000_000: torch.ones(1)}))


def test_more_tensors_than_any_network_has_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(reader, "MAX_TENSORS", 1)
    assert "2 tensors" in refusal(safetensors.torch.save(STATE))


@pytest.mark.parametrize(("name", "says"), [("none.pth", "does not exist"), ("folder", "cannot read")])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(JobError, match=says):
        reader.read_weights(Url(str(tmp_path / name)))
