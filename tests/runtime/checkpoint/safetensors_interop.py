"""Python's safetensors reads what safetensors_tool writes, and the other way round.

Usage: safetensors_interop.py SAFETENSORS_TOOL
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import safetensors

VALUES = numpy.array([[0, 1, 2], [3, 100, 1]])
NUMPY_TYPES = {
    "F64": numpy.float64, "F32": numpy.float32, "F16": numpy.float16, "I64": numpy.int64,
    "I32": numpy.int32, "I16": numpy.int16, "I8": numpy.int8, "U8": numpy.uint8, "BOOL": numpy.bool_,
}
# numpy has no bfloat16: it is the upper half of a float32.
BFLOAT16 = (VALUES.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def expected():
    """name -> (dtype in the format, shape, bytes)"""
    tensors = {name: (name, [2, 3], VALUES.astype(kind).tobytes())
               for name, kind in NUMPY_TYPES.items()}
    tensors["BF16"] = ("BF16", [2, 3], BFLOAT16)
    tensors["scalar"] = ("F32", [], numpy.float32(-1.5).tobytes())
    tensors["empty"] = ("F32", [0, 3], b"")
    return tensors


def read_ours(tool, path):
    subprocess.run([tool, "write", path], check=True)
    read = {name: (item["dtype"], list(item["shape"]), bytes(item["data"]))
            for name, item in safetensors.deserialize(path.read_bytes())}
    assert read == expected(), read
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["by"] == "thinwire", file.metadata()
        assert numpy.array_equal(file.get_tensor("F32"), VALUES.astype(numpy.float32))


def let_ours_read(tool, path):
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
             "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
             "BOOL": "bool"}
    tensors = {name: {"dtype": names[dtype], "shape": shape, "data": data}
               for name, (dtype, shape, data) in expected().items()}
    safetensors.serialize_file(tensors, path, {"by": "python"})
    subprocess.run([tool, "check", path], check=True)


def main():
    tool = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        read_ours(tool, Path(folder) / "ours.safetensors")
        let_ours_read(tool, Path(folder) / "python.safetensors")


if __name__ == "__main__":
    main()
