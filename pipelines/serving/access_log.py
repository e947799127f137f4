"""One JSON line per request, or per sampled request."""

import sys
import time
from typing import TextIO

from .messages import Request, encode_json, share_of


class AccessLog:
    """Writes `{"time", "method", "path", "status", "seconds", "client", "request_id"}` lines.

    Args:
        share: of the requests that are written, chosen by their request id, or else spread evenly; answers of status 500 and
            above are always written.
        out: where to; default standard output.
    """

    def __init__(self, share: float = 1.0, *, out: TextIO | None = None) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"the share of requests to log must lie in (0, 1], got {share:g}; leave the option out to log none")
        self._share = share
        self._out = out or sys.stdout
        self._owed = 0.0

    def write(self, request: Request, client: tuple[str, int] | None, status: int, seconds: float) -> None:
        request_id = request.header(b"x-request-id")
        if status < 500 and not self._is_chosen(request_id):
            return
        line = {
            "time": round(time.time(), 6),
            "method": request.method,
            "path": request.path[:500],
            "status": status,
            "seconds": round(seconds, 6),
            "client": client[0] if client else None,
            "request_id": request_id.decode("latin-1")[:200] if request_id else None,
        }
        self._out.write(encode_json(line).decode() + "\n")
        self._out.flush()

    def _is_chosen(self, request_id: bytes | None) -> bool:
        if request_id is not None:
            return share_of(request_id) < self._share
        self._owed += self._share
        if self._owed < 1:
            return False
        self._owed -= 1
        return True
