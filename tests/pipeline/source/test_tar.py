"""The strict tar reader: equal to Python's tarfile on good archives, and an error for each kind of damage."""

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.source.tar import BLOCK, entries
from tests.support.examples import examples
from tests.support.tars import END_KEY, FORMATS, THREE, codes, pax_header, read_tar, tar_of

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)


@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=6), st.sampled_from(["gnu", "pax"]))
@examples(150)
def test_members_are_those_tarfile_finds(files, kind):
    tar = tar_of(files, kind)
    with tarfile.open(fileobj=io.BytesIO(tar)) as reference:
        expected = [(member.name, member.size, member.offset_data, member.isreg()) for member in reference]
    members = [(entry.name, entry.size, entry.data_at, entry.regular) for entry in entries(io.BytesIO(tar))]
    assert members == expected


parts = st.text("ab.-é", min_size=20, max_size=40)


@given(st.lists(parts, min_size=2, max_size=5).map("/".join), st.binary(max_size=600))
def test_names_parted_over_two_fields_are_those_tarfile_finds(name, data):
    try:
        tar = tar_of([(name, data)], "ustar")
    except ValueError:  # does not fit 155 and 100 bytes
        assume(False)
    (entry,) = entries(io.BytesIO(tar))
    with tarfile.open(fileobj=io.BytesIO(tar)) as reference:
        assert [entry.name] == reference.getnames() == [name]
    assert tar[entry.data_at :][: entry.size] == data


@pytest.mark.parametrize("kind", FORMATS)
def test_links_folders_and_devices_carry_no_data_and_are_not_plain_files(kind):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[kind]) as tar:
        for flag in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            header = tarfile.TarInfo(f"evil-{flag!r}.jpg")
            header.type, header.linkname = flag, "/etc/passwd"
            tar.addfile(header)
        header = tarfile.TarInfo("deep/" * 20 + "x.jpg")
        header.size = 4
        tar.addfile(header, io.BytesIO(b"data"))
    members = list(entries(io.BytesIO(out.getvalue())))
    assert [entry.regular for entry in members] == [False] * 5 + [True]
    assert list(codes(read_tar(out.getvalue())).values()) == ["ok"]


def test_sparse_files_are_not_plain_files():
    """Their data is not what the file holds: GNU tar 1.0 sparse format puts a map before it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sparse.jpg", "plain.jpg"):
            header = tarfile.TarInfo(name)
            header.size = 4
            header.pax_headers = {"GNU.sparse.major": "1"} if name == "sparse.jpg" else {"comment": "none"}
            tar.addfile(header, io.BytesIO(b"data"))
    assert codes(read_tar(out.getvalue())) == {"a.tar#plain": "ok"}


def test_checksums_of_signed_bytes_are_taken_too():
    """Some old tars add up the header as signed bytes; it shows in names outside ASCII."""
    header = tarfile.TarInfo("é.jpg")
    header.size = 1
    block = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in block)
    assert codes(read_tar(bytes(block) + b"x".ljust(BLOCK, b"\0") + bytes(2 * BLOCK))) == {"a.tar#é": "ok"}


def test_sizes_above_8_gib_are_understood():
    for kind in ("gnu", "pax"):
        header = tarfile.TarInfo("big.jpg")
        header.size = 10 * 2**30
        block = header.tobuf(FORMATS[kind])
        with pytest.raises(InputError, match=r"cut in or after member 'big\.jpg'"):
            list(entries(io.BytesIO(block)))
        member = next(entries(io.BytesIO(block)))
        assert (member.size, member.data_at) == (10 * 2**30, len(block))


def test_names_that_are_not_utf8_become_keys_that_are():
    header = tarfile.TarInfo("caf\udce9.jpg")
    header.size = 1
    tar = header.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(BLOCK, b"\0") + bytes(2 * BLOCK)
    assert [item.key for item in read_tar(tar)] == ["a.tar#caf\\xe9"]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("member", range(3))
@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
@examples(60)
def test_a_flipped_byte_in_a_header_never_loses_a_sample_quietly(member, position, flip):
    tar = bytearray(tar_of(THREE, "gnu"))
    header_at = list(entries(io.BytesIO(tar)))[member].data_at - BLOCK
    tar[header_at + position] ^= flip
    items = read_tar(bytes(tar))
    keys = [f"a.tar#{name[:-4]}" for name, _ in THREE]
    if codes(items) != dict.fromkeys(keys, "ok"):  # the byte between checksum and type is free
        assert codes(items) == dict.fromkeys(keys[:member], "ok") | {END_KEY: "archive_truncated"}
        assert f"byte {header_at} " in items[-1].failure.detail


@pytest.mark.parametrize("member", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_zeroed_header_is_not_the_end_of_the_archive(member, blocks):
    """tarfile ends here without an error."""
    tar = bytearray(tar_of(THREE, "gnu"))
    at = list(entries(io.BytesIO(tar)))[member].data_at - BLOCK
    tar[at : at + blocks * BLOCK] = bytes(blocks * BLOCK)
    rest_is_zero = not any(tar[at:])
    items = read_tar(bytes(tar))
    assert [item.key for item in items[:member]] == [f"a.tar#{name[:-4]}" for name, _ in THREE[:member]]
    assert len(items) == member + (not rest_is_zero)
    assert rest_is_zero or items[-1].failure.code == "archive_truncated"


def test_two_tars_in_one_file_are_refused_after_the_first():
    assert codes(read_tar(tar_of(THREE[:1]) + tar_of(THREE[1:]))) == {"a.tar#a": "ok", END_KEY: "archive_truncated"}


@pytest.mark.parametrize("payload", [b"nonsense", b"9999 path=x\n", b"0 a=b\n", b"12 path=x.jpg", b"13 size=-1\n\n"])
def test_a_malformed_pax_header_is_damage(payload):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(payload)
    tar = header.tobuf(tarfile.USTAR_FORMAT) + payload.ljust(BLOCK, b"\0") + tar_of([("a.jpg", b"x")])
    assert codes(read_tar(tar)) == {END_KEY: "archive_truncated"}


@pytest.mark.parametrize("size", ["", "-1", "1e3", "0x1", "\N{ARABIC-INDIC DIGIT THREE}", "9" * 19, "9" * 5000])
def test_a_pax_size_that_is_no_number_of_bytes_is_damage(size):
    """Python refuses to read a number of more than 4300 digits."""
    text = f" size={size}\n".encode()
    length = next(n for n in range(len(text), len(text) + 9) if len(str(n)) + len(text) == n)
    tar = pax_header(str(length).encode() + text) + tar_of([("a.jpg", b"x")])
    assert codes(read_tar(tar)) == {END_KEY: "archive_truncated"}


def test_a_long_name_makes_no_long_failure():
    text = b" path=" + b"n" * 10_000 + b".jpg\n"
    tar = pax_header(b"%d" % (len(text) + 5) + text) + tar_of([("a.jpg", b"x" * 100)])
    (item,) = read_tar(tar[: -3 * BLOCK + 50])
    assert item.failure.code == "archive_truncated"
    assert len(item.failure.detail) < 500


def test_an_extended_header_of_a_gigabyte_is_not_read():
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    with pytest.raises(InputError, match="limit 1048576"):
        list(entries(io.BytesIO(header.tobuf(tarfile.GNU_FORMAT))))


@given(st.binary(max_size=3 * BLOCK), st.integers(0, 3000))
@examples(100)
def test_nothing_but_input_errors_comes_out_of_any_bytes(noise, at):
    tar = tar_of(THREE)
    with suppress(InputError):
        list(entries(io.BytesIO(tar[:at] + noise + tar[at:])))
