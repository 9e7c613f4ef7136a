"""The prompt with a passage, and the query in an answer."""

import pytest

from ance_cli.query_generation.writing import filled, query_of


def test_a_prompt_takes_the_passage_and_keeps_other_braces():
    assert filled("{title}: {text}", "bread", "old {title}") == "bread: old {title}"
    assert filled('{"passage": "{text}"}', "", "bread") == '{"passage": "bread"}'
    assert filled("{title} {text}", "", "bread") == "bread"


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("  what is\ta comet? \n", "what is a comet?"),
        ("\n \nfirst line\nsecond line", "first line"),
        ("", ""),
        (" \n\t", ""),
        ("half \ud83d a smile", "half ? a smile"),
    ],
)
def test_the_query_is_the_first_line_that_is_not_blank(answer, query):
    assert query_of(answer) == query
