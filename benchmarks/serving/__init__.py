"""How many requests a server answers on one core, and how fast: ours, and others' with the same graph and transforms."""
