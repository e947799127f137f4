"""Other libraries at the same work. Run with the interpreter of an environment of their own; nothing of our library is imported."""
