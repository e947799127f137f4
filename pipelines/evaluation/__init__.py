"""How good a trained run is: exact metrics, intervals, slices, and a page to look at."""
