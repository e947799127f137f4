"""ONNX Runtime, without its telemetry.

Its published builds for Linux, from 1.29 on, report to their maker by default: sessions with hashes of graph and weights, and run
times. They run threads for that, and keep what is not sent yet in ~/.cache/Microsoft (docs/design.md).
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

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


def bound(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], output: str, answers_MT: np.ndarray
) -> Callable[[int], np.ndarray]:
    """A function from N to the answers [N, T] for the first N rows of the inputs, as they are then.

    Args:
        inputs: [M, ...] each, contiguous.
        answers_MT: where the answers are put, M rows.
    """
    bindings = []
    for num_rows in range(1, len(answers_MT) + 1):
        binding, answers_NT = session.io_binding(), answers_MT[:num_rows]
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array[:num_rows]))
        binding.bind_ortvalue_output(output, onnxruntime.OrtValue.ortvalue_from_numpy(answers_NT))
        bindings.append((binding, answers_NT))
    run = session.run_with_iobinding

    def run_first(num_rows: int) -> np.ndarray:
        binding, answers_NT = bindings[num_rows - 1]
        run(binding)
        return answers_NT

    return run_first
