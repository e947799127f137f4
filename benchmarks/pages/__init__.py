"""The tables of docs/*.md, written between markers from benchmarks/results/*.json: `python -m benchmarks.pages`."""
