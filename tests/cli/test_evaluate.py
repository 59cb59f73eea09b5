"""spectail evaluate: perplexity of a folder on a file, what it prints and writes, and what is
wrong.
"""

import json
from pathlib import Path

import pytest

import spectail as st
from spectail.cli import run
from tests.language import llama, tokenizer, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate")
    llama().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    (path / "text.txt").write_text(words(200))
    return path


def test_the_perplexity_of_a_folder_is_printed_and_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        str(folder / "model"),
        "--text",
        str(folder / "text.txt"),
        "--seq-len",
        "40",
    ]
    assert run([*arguments, "--max-sequences", "4", "--out", str(tmp_path / "ppl.json")]) == 0
    expected = st.perplexity(llama(), tokenizer(), words(160), seq_len=40)
    words_, stored = capsys.readouterr().out, json.loads((tmp_path / "ppl.json").read_text())
    assert (
        words_
        == f"perplexity {expected:.4f} +- {expected.se:.2g} (4 sequences of 40 tokens, BOS: none)\n"
    )
    assert stored == {
        "source": str(folder / "model"), "dtype": "auto", "perplexity": pytest.approx(expected),
        "standard_error": pytest.approx(expected.se), "loss": pytest.approx(expected.loss),
        "seq_len": 40, "sequences": 4, "tokens": 156, "bos": "none",
    }  # fmt: skip


def test_json_is_alone_on_standard_output(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--text", str(folder / "text.txt"), "--seq-len", "40", "--max-sequences", "4"]
    assert run(["evaluate", str(folder / "model"), *options, "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["sequences"] == 4
    assert "perplexity " in captured.err


def test_one_sequence_has_no_error_and_the_json_stays_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--text", str(folder / "text.txt"), "--seq-len", "150", "--dtype", "bfloat16"]
    assert (
        run(["evaluate", str(folder / "model"), *options, "--out", str(tmp_path / "ppl.json")]) == 0
    )
    assert "(1 sequence of 150 tokens, BOS: none)" in capsys.readouterr().out
    assert json.loads((tmp_path / "ppl.json").read_text())["standard_error"] is None


@pytest.mark.parametrize(
    ("rule", "shown"), [("every", "every block"), ("first", "start of the text")]
)
def test_bos_is_put_where_it_is_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, shown: str
) -> None:
    options = ["--text", str(folder / "text.txt"), "--seq-len", "40", "--bos", rule]
    assert (
        run(["evaluate", str(folder / "model"), *options, "--out", str(tmp_path / "ppl.json")]) == 0
    )
    expected = st.perplexity(llama(), tokenizer(), words(200), seq_len=40, bos=rule)
    assert f"(5 sequences of 40 tokens, BOS: {shown})" in capsys.readouterr().out
    stored = json.loads((tmp_path / "ppl.json").read_text())
    assert (stored["bos"], stored["perplexity"]) == (rule, pytest.approx(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --text FILE or --tasks NAMES"),
        (["--text", "TEXT", "--tasks", "a"], "give either --text FILE or --tasks NAMES"),
        (["--tasks", "a", "--seq-len", "8"], "--seq-len does not go with --tasks: leave it out"),
        (["--text", "TEXT", "--few-shot", "0"], "--few-shot does not go with --text: leave it out"),
        (["--text", "none.txt"], "no text file at none.txt"),
        (
            ["--text", "TEXT", "--seq-len", "256"],
            "the text has 200 tokens, fewer than one block of 256",
        ),
        (
            ["--text", "TEXT", "--bos", "both"],
            "bos must be one of auto, first, every, none, not 'both'",
        ),
        (["--tasks", "a", "--bos", "every"], "--bos does not go with --tasks: leave it out"),
        (
            ["--text", "TEXT", "--dtype", "int8"],
            "dtype must be one of auto, float32, bfloat16, float16, not 'int8'",
        ),
        (["--text", "TEXT", "--out", "TEXT"], "text.txt exists, so it stays; give another name"),
    ],
)
def test_what_is_wrong_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    options = [str(folder / "text.txt") if option == "TEXT" else option for option in options]
    assert run(["evaluate", str(folder / "model"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_include_chooses_the_language_model_inside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--text", str(folder / "text.txt"), "--seq-len", "40", "--max-sequences", "2"]
    command = ["evaluate", str(folder / "model"), *text]
    assert run(command) == 0
    whole = capsys.readouterr().out
    assert run([*command, "--include", "model.layers.*"]) == 0
    assert capsys.readouterr().out == whole, "a model with one head at the top stays whole"
    assert run([*command, "--include", "vision.*"]) == 2
    assert "--include 'vision.*' matches none" in capsys.readouterr().err
