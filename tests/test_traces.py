import pytest

from fedspeech import traces
from fedspeech.errors import ConfigError

KNOWN = {"anna", "bert", "cleo"}


@pytest.fixture
def file(tmp_path):
    def write(text: str, encoding="utf-8"):
        path = tmp_path / "file.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def told(read, path) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, KNOWN)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_spans_include_both_ends_and_add_up(file):
    path = file("speaker,from,until\nanna,1,3\n\nbert,2,2\nanna,7,9\n")
    found = traces.spans(path, KNOWN)
    assert {s: sorted(n for span in spans for n in span) for s, spans in found.items()} == {
        "anna": [1, 2, 3, 7, 8, 9],
        "bert": [2],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_factors(file, encoding):
    path = file("speaker,factor\nanna, 0.5\ncleo,3\n", encoding)
    assert traces.factors(path, KNOWN) == {"anna": 0.5, "cleo": 3.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zoe,1,2", "file.csv:3: the corpus has no speaker 'zoe'"),
        ("bert,1", "file.csv:3: expected speaker,from,until, found bert,1"),
        *(
            (
                f"bert,{ends}",
                "file.csv:3: expected two rounds, the first (at least 1) and the last, "
                f"found {ends}",
            )
            for ends in ("0,2", "3,2", "a,2", "1,2.5", "-1,2", "1," + 5000 * "9")
        ),
    ],
)
def test_a_line_of_a_trace_that_cannot_be_is_named(file, line, message):
    assert told(traces.spans, file(f"speaker,from,until\nanna,1,3\n{line}\n")) == message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zoe,1", "file.csv:3: the corpus has no speaker 'zoe'"),
        ("anna,2", "file.csv:3: speaker anna has a factor already"),
        ("bert", "file.csv:3: expected speaker,factor, found bert"),
        *(
            (f"bert,{text}", f"file.csv:3: expected a factor above 0, found {text}")
            for text in ("0", "-1", "nan", "inf", "fast", "")
        ),
    ],
)
def test_a_factor_that_cannot_be_is_named(file, line, message):
    assert told(traces.factors, file(f"speaker,factor\nanna,1\n{line}\n")) == message


@pytest.mark.parametrize(
    ("text", "found"), [("", "nothing"), ("anna,1,3\n", "anna,1,3"), ("speaker,to\n", "speaker,to")]
)
def test_a_file_without_its_header_is_named(file, text, found):
    message = f"file.csv:1: expected the header speaker,from,until, found {found}"
    assert told(traces.spans, file(text)) == message


def test_a_file_that_cannot_be_read_is_named(file, tmp_path):
    path = tmp_path / "none.csv"
    assert told(traces.spans, path).startswith("none.csv: not readable as CSV: ")
    path = file("speaker,from,until\nänna,1,1\n", encoding="latin-1")
    assert told(traces.spans, path).startswith("file.csv: not readable as CSV: ")
    path = file('speaker,factor\n"anna,1\n')
    assert told(traces.factors, path).startswith("file.csv: not readable as CSV: ")
