"""Sequence encoders, one file each: a history and a candidate in, one vector out (see `encoder.py`)."""
