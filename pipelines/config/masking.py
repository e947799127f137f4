"""Keeps passwords out of every text that is shown or stored."""

import re

MASK = "***"
_PASSWORD = re.compile(r"""(://[^\s:/@'"]*):[^'"\n]*@""")  # up to the last @: no part of a password with odd characters shows
_OPTION = re.compile(r"""([?&]\w*(?:password|passwd|pwd|token|secret)\w*=)[^&\s'"]*""", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with the passwords of all URIs in it replaced by `***`: `scheme://user:***@host`, `?password=***`."""
    return _OPTION.sub(rf"\1{MASK}", _PASSWORD.sub(rf"\1:{MASK}@", text))
