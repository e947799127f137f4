"""docs/models.md is rendered, never written: it must say what the registry and the result files say."""

from benchmarks.models_page import PAGE, page


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(), "render it again: python -m benchmarks.models_page"
