"""What a shell completes."""

import pytest

from fxdecomp.cli.app import _COMMANDS
from tests.cli.test_cli import run


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fxdecomp ", {command.__name__.replace("_", "-") for command in _COMMANDS}),
        ("fxdecomp compress --rec", {"--recover"}),
        ("fxdecomp compress --preset ", {"safe", "balanced", "small"}),
        ("fxdecomp compress --quantize i", {"int8"}),
        ("fxdecomp compress --provider cu", {"cuda"}),
        ("fxdecomp bench --provider open", {"openvino"}),
        ("fxdecomp inspect --provider tens", {"tensorrt"}),
    ],
)
def test_commands_options_and_the_words_that_an_option_takes(
    words: str, wanted: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FXDECOMP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert run(monkeypatch=monkeypatch) == 0
    assert set(capsys.readouterr().out.split()) == wanted


def test_the_script_is_for_the_program_however_it_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["python -m fxdecomp"])
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert run("--show-completion", "bash", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1].endswith(" fxdecomp")
    assert "_FXDECOMP_COMPLETE=complete_bash" in told
