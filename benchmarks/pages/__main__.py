"""Writes the tables of docs/*.md from benchmarks/results/*.json: python -m benchmarks.pages.

Whatever stands outside the markers is kept. A test compares the pages with what this would write.
"""

from .page import fill
from .results import Results
from .tables import PAGES

if __name__ == "__main__":
    results = Results()
    for page, tables in PAGES.items():
        before, after = page.read_text(), fill(page, tables, results)
        if before != after:
            page.write_text(after)
        print(f"{page.name}: {len(tables)} tables, {'written' if before != after else 'as it was'}")
