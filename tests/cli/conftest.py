import sys

import pytest

from fedspeech import cli


@pytest.fixture
def fedspeech(monkeypatch, capsys):
    """Run the command in this process: (exit status, what it printed, its errors)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedspeech", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run
