"""ONNX Runtime, without its telemetry.

Its published builds for Linux, from 1.29 on, report to their maker by default: sessions with hashes of graph and weights, and run
times. They run threads for that, and keep what is not sent yet in ~/.cache/Microsoft (docs/design.md).
"""

import os
from pathlib import Path

# Read as the package is imported, which is when the threads start: disable_telemetry_events() is too late for these.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

onnxruntime.disable_telemetry_events()  # for a process that had imported the package before us


def open_session(graph: Path | bytes, *, num_threads: int = 1) -> onnxruntime.InferenceSession:
    """A graph on the CPU.

    Args:
        graph: a file, or what would stand in it.
        num_threads: of one call, inside operators.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
