"""Looking into a prepared cache: what it holds, whether its bytes are those that were written, its first rows, its statistics."""
