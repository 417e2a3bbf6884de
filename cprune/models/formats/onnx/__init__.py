"""ONNX files in and out.

`opened` returns a file's model as an `nn.Module` with example inputs, which `cprune.network.capture.capture` takes like
any other; `write` writes a network as ONNX with the names of the file it came from, and `runtime_difference` says how
far ONNX Runtime's result of that file is from the network's.

`read.py` turns a file into plain data, `tidy.py` decides what can be decided before it runs, `module.py` makes the
module; `layers.py`, `elements.py`, `shapes.py` and `resize.py` say what each operator computes, `sizes.py` keeps
arithmetic on shapes visible; `write.py` is the way back.
"""

from cprune.models.formats.onnx.opened import opened
from cprune.models.formats.onnx.write import runtime_difference, write

__all__ = ["opened", "runtime_difference", "write"]
