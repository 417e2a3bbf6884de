"""Imported by a worker that finds this folder in its path: the module "endless" never gets built."""

import time

import tvm

_load_json = tvm.ir.load_json


def _endless(text):  # type: ignore[no-untyped-def]
    while text == '"endless"':
        time.sleep(1)
    return _load_json(text)


tvm.ir.load_json = _endless
