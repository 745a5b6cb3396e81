"""Sets larger than memory: a run takes memory for batches, and none that grows with the set.

Every program runs in a process of its own, and its anonymous memory (RssAnon) is looked at. What
is mapped from files is not in it: the system may take that away at any time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

for module in ("tyro", "sklearn", "safetensors"):
    pytest.importorskip(module)
from helpers import memory_run  # noqa: E402

import jaxdp  # noqa: E402

STATUS = Path("/proc/self/status")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not STATUS.exists() or "RssAnon" not in STATUS.read_text(), reason="Linux tells RssAnon"
    ),
]
ROOT = Path(jaxdp.__file__).parents[1]
ROWS = 10_000  # that are written at a time
FIRST, LATER = 700, 200  # MB until the end of the first step, and after it. The goal is 500


def write_bytes(folder, kind):
    """2 GB of bytes, as a .npy or alone, and labels."""
    width = memory_run.FEATURES[kind]
    parts = 2 * 10**9 // (ROWS * width) + 1
    block = np.random.default_rng(0).integers(0, 256, (ROWS, width), np.uint8)
    with open(folder / ("x.npy" if kind == "mapped" else "x.bin"), "wb") as file:
        if kind == "mapped":
            header = {"descr": "|u1", "fortran_order": False, "shape": (parts * ROWS, width)}
            np.lib.format.write_array_header_1_0(file, header)
        for _ in range(parts):
            file.write(block.data)
    np.save(folder / "y.npy", np.arange(parts * ROWS, dtype=np.int32) % 10)


def write_table(folder, kind):
    """500 MB of numbers, in row groups."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [f"c{i}" for i in range(memory_run.FEATURES[kind])]
    values = np.random.default_rng(0).random((10 * ROWS, len(columns)), np.float32)
    cells = dict(zip(columns, values.T, strict=True))
    group = pyarrow.table({"y": np.arange(len(values)) % 10, **cells})
    with parquet.ParquetWriter(
        folder / "x.parquet", group.schema, compression=None, use_dictionary=False
    ) as file:
        for _ in range(20):
            file.write_table(group)
    declared = [f'[columns.{name}]\nkind = "number"\nlow = 0\nhigh = 1' for name in columns]
    values = ", ".join(f'"{i}"' for i in range(10))
    declared.append(f'[columns.y]\nkind = "category"\nvalues = [{values}]')
    (folder / "schema.toml").write_text("\n".join(['origin = "made up"', *declared]))


@pytest.mark.parametrize(
    ("kind", "write", "size", "opening"),
    [
        ("mapped", write_bytes, 2e9, 50),  # 4 MB were measured
        ("source", write_bytes, 2e9, 50),  # 5
        ("table", write_table, 5e8, 250),  # 130, by pyarrow: 600 if it keeps what it has read
    ],
)
def test_a_set_takes_no_memory(tmp_path, kind, write, size, opening):
    """From the end of the first step on, 60 MB were measured, by batches that are read ahead.

    From the opened set to there, it was 340 MB, by JAX, which compiles.
    """
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # pytest would keep it
        write(Path(folder), kind)
        done = subprocess.run(
            [sys.executable, memory_run.__file__, kind, folder],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["bytes"] > size
    assert told["opening"] - told["start"] < opening, told
    assert told["first"] - told["start"] < FIRST, told
    assert told["training"] - told["first"] < LATER, told
