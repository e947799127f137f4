"""The worker's half of the duel: one line in, one line of JSON out, so that a driver can alternate two libraries in one sitting.

    -> (start)     <- {"ready": true, "library": ..., "versions": {...}, "rows_per_step": 4096, ...}
    -> run 20      <- {"steps": 20, "seconds": 2.61, "loss": 0.41}
    -> quit        (or end of input)
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


def serve(step: Callable[[], float], *, about: dict[str, Any], answers: TextIO) -> None:
    """Answers requests on standard input until `quit` or its end.

    Args:
        step: one whole training step; returns its loss.
        about: what the driver should know of this worker; sent first.
        answers: where the lines go.

    Raises:
        ValueError: on a request that is neither `run N` nor `quit`.
    """

    def answer(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    answer({"ready": True, **about})
    for line in sys.stdin:
        words = line.split()
        if words == ["quit"]:
            return
        if len(words) != 2 or words[0] != "run" or not words[1].isdigit() or int(words[1]) < 1:
            raise ValueError(f"request {line.strip()!r}: expected 'run N' with N >= 1, or 'quit'")
        num_steps = int(words[1])
        loss = 0.0
        start = time.perf_counter()
        for _ in range(num_steps):
            loss = step()
        answer({"steps": num_steps, "seconds": time.perf_counter() - start, "loss": loss})


def claim_stdout() -> TextIO:
    """The real standard output, for answers; whatever a library prints from now on goes to standard error."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    return answers
