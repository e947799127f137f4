"""How fast batches come: ours against other libraries' loaders, on the same generated rows, in one run."""
