"""sglang.benchmark.serving, unmodified, without the engine around it: `sglang_serving.py FOLDER OPTION...`; FOLDER is its wheel, unpacked.

Its packages' own `__init__` import the engine and torch, so empty ones stand in for those, and a constant for the module that has only
that for a client. What measures and what it speaks to a server with is the wheel's.
"""

import pathlib
import runpy
import sys
import types

root = pathlib.Path(sys.argv.pop(1))
for name in ["sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.disaggregation"]:
    package = types.ModuleType(name)
    package.__path__ = [str(root / name.replace(".", "/"))]
    sys.modules[name] = package
constants = types.ModuleType("sglang.srt.disaggregation.utils")
constants.FAKE_BOOTSTRAP_HOST = ""
sys.modules[constants.__name__] = constants
runpy.run_module("sglang.benchmark.serving", run_name="__main__", alter_sys=True)
