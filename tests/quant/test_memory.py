"""Where packed numbers lie while they are not needed."""

from __future__ import annotations

import copy
import errno
import tempfile
from pathlib import Path

import pytest
import torch

from visglm.errors import VisGLMError
from visglm.quant import QuantizedEmbedding, pack
from visglm.quant.layers import pack_matrix
from visglm.quant.memory import folder_of_files, forget, map_file, to_file


def resident_bytes(address: int) -> int:
    """Of the mapping that begins there."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
    raise AssertionError("no mapping begins there")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux lists mappings there")
def test_what_is_in_a_file_takes_memory_while_it_is_read():
    numbers = torch.randn(64, 4096)
    found, mapping = to_file(numbers)
    assert resident_bytes(found.data_ptr()) == 0
    assert torch.equal(found, numbers)
    assert resident_bytes(found.data_ptr()) == numbers.nbytes
    found[3] = numbers[3] = 7  # as load_state_dict does
    forget(mapping)
    assert resident_bytes(found.data_ptr()) == 0
    assert torch.equal(found, numbers)


def test_less_than_a_page_stays_where_it_is():
    numbers = torch.ones(3)
    found, mapping = to_file(numbers)
    assert found is numbers and mapping is None
    forget(mapping)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux lists mappings there")
def test_a_matrix_of_a_file_is_let_go_of_while_it_is_packed(tmp_path):
    torch.manual_seed(0)
    matrix, file = torch.randn(2**12, 2**10), tmp_path / "numbers"
    file.write_bytes(matrix.numpy().tobytes())
    mapped = torch.frombuffer(map_file(file), dtype=torch.float32).view(matrix.shape)
    packed = pack_matrix(mapped, "int4", 32)
    assert resident_bytes(mapped.data_ptr()) < matrix.nbytes / 8
    assert all(map(torch.equal, packed, pack_matrix(matrix, "int4", 32)))
    assert torch.equal(mapped, matrix)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux lists mappings there")
def test_a_packed_embedding_takes_memory_only_while_rows_are_looked_up():
    torch.manual_seed(0)
    table = QuantizedEmbedding(
        2**15, 1024, scheme="int8", group_size=32, padding_idx=None, output_dtype=torch.float32, device="cpu"
    )
    pack(table, torch.randn(2**15, 1024))
    ids = torch.tensor([[8000, 8000, 8001]])
    wanted = table(ids)
    table.settle()
    assert torch.equal(table(ids), wanted)
    assert resident_bytes(table.weight.data_ptr()) == 0
    twin = copy.deepcopy(table)
    assert torch.equal(twin(ids), wanted)
    assert resident_bytes(twin.weight.data_ptr()) == 0


def test_files_go_where_tmpdir_says_and_else_where_they_survive(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folder_of_files() == str(tmp_path)
    monkeypatch.delenv("TMPDIR")
    assert folder_of_files() == "/var/tmp"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert folder_of_files() == str(tmp_path)


def test_no_room_is_an_error_that_names_the_way_out(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(VisGLMError, match=r"8,192 bytes .* \(No space left on device\).*TMPDIR"):
        to_file(torch.zeros(2048))
