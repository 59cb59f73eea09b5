"""spectail prune: a folder that transformers loads, what it prints, and one line for what is
wrong."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import spectail as st
from spectail.cli import run
from spectail.pruning import pipeline
from spectail.pruning import prune as pruning
from spectail.pruning.methods.magnitude import Magnitude
from spectail.pruning.texts import hold_out
from spectail.pruning.weights_to_prune import PruningTarget
from tests.pruning.models import decoder

transformers = pytest.importorskip("transformers")
command = importlib.import_module("spectail.cli.prune")
perplexity = importlib.import_module("spectail.evaluation.perplexity")
WORDS = [f"w{i}" for i in range(90)]
TEXT = " ".join(WORDS[(7 * i * i + i) % 90] for i in range(400))


def remember(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    *,
    results: list[Any] | None = None,
    second_arguments: list[Any] | None = None,
) -> None:
    """Append what a function gives, or its second argument, to a list at every call."""
    inner = getattr(module, name)

    def remembering(*given: Any, **named: Any) -> Any:
        found = inner(*given, **named)
        if results is not None:
            results.append(found)
        if second_arguments is not None:
            second_arguments.append(given[1])
        return found

    monkeypatch.setattr(module, name, remembering)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("prune") / "model"
    decoder("llama").save_pretrained(path)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(
        path
    )
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A calibration text."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def _run(folder: Path, tmp_path: Path, *options: str) -> int:
    return run(["prune", str(folder), "--out", str(tmp_path / "out"), *options])


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "magnitude", "--allocation", "uniform"],
        ["--method", "wanda", "--allocation", "owl"],
        ["--method", "sparsegpt", "--allocation", "alphapruning", "--eps", "0.1"],
        ["--method", "sparsegpt", "--allocation", "uniform", "--pattern", "2:4"],
        ["--method", "wanda", "--allocation", "dlp", "--eps", "0.2"],
        ["--method", "magnitude", "--allocation", "lamp"],
        ["--method", "magnitude", "--allocation", "depth-kind:first", "--eps", "0.3"],
    ],
    ids=" ".join,
)
def test_the_folder_loads_and_holds_what_was_asked_for(
    folder: Path, tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    words = ["--calibration", str(text), "--samples", "6", "--seq-len", "16"]
    assert _run(folder, tmp_path, "--sparsity", "0.5", *options, *words) == 0
    printed = capfd.readouterr().out
    assert "sparsity 0.5" in printed
    assert "Zeros alone make nothing smaller or faster" in printed
    out = tmp_path / "out"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(out)
    report = json.loads((out / "pruning.json").read_text())
    allocation = st.Allocation.load(out / "allocation.json")
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in allocation)
    assert zeros == round(0.5 * sum(share.numel for share in allocation.shares))
    assert report["realised"] == 0.5
    assert report["method"] == options[1]
    assert not (model.lm_head.weight == 0).any()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_only_layers_of_a_kind_are_pruned(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--method", "magnitude", "--sparsity", "0.5", "--allocation", "uniform")
    assert _run(folder, tmp_path, *options, "--kind", "q,k", "--quiet") == 0
    weights = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    sparse = {name for name, weight in weights.items() if (weight == 0).float().mean() > 0.4}
    assert sparse
    assert {name.split(".")[-2] for name in sparse} == {"q_proj", "k_proj"}
    other = tmp_path / "other"
    other.mkdir()
    assert _run(folder, other, *options, "--type", "conv") == 2
    assert "--type 'conv' matches no layer; the types here are" in capsys.readouterr().err


def test_a_file_of_allocate_and_a_quiet_run(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    analysis = tmp_path / "run"
    assert run(["analyze", str(folder), "--out", str(analysis), "--preset", "full", "--quiet"]) == 0
    file = tmp_path / "a.json"
    options = ["--target", "sparsity", "--budget", "0.4", "--out", str(file), "--quiet"]
    assert run(["allocate", str(analysis), *options]) == 0
    capfd.readouterr()
    options = ["--sparsity", "0.4", "--method", "magnitude", "--allocation", str(file), "--quiet"]
    assert _run(folder, tmp_path, *options) == 0
    assert capfd.readouterr() == ("", "")
    kept = st.Allocation.load(tmp_path / "out" / "allocation.json")
    assert dict(kept) == dict(st.Allocation.load(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1"], "a sparsity must be at least 0 and below 1, not 1.0"),
        (
            ["--sparsity", "0.5", "--method", "lottery"],
            "method must be one of magnitude, wanda, wanda-variant, sparse",
        ),
        (
            ["--sparsity", "0.5"],
            "wanda with the allocation depth-kind:first-rising needs calibration text: give "
            "--calibration FILE",
        ),
        (
            ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "no.json"],
            "allocation must be one of uniform",
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT"],
            "the calibration text has 400 tokens, and one sequence takes",
        ),
        (
            ["--sparsity", "0.5", "--eps", "much"],
            "eps must be a number from 0 to 1, or auto, not 'much'",
        ),
        (
            ["--sparsity", "0.5", "--eps", "1.5"],
            "eps must be a number from 0 to 1, or auto, not '1.5'",
        ),
        (
            ["--sparsity", "0.5", "--allocation", "uniform", "--eps", "auto"],
            "eps goes with depth, depth-kind, farms,",
        ),
        (
            ["--sparsity", "0.5", "--method", "magnitude", "--eps", "auto"],
            "--eps auto needs text to choose by: give",
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT", "--selection", "TEXT"],
            "--selection goes with --eps auto",
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT", "--selection", "TEXT", "--eps", "auto"],
            "--calibration text.txt and --selection text.txt share their text",
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT", "--seq-len", "50", "--eps", "auto"],
            "the last 10% of text.txt: the text has 40 tokens, fewer than one block of 50",
        ),
        (
            [
                "--sparsity",
                "0.5",
                "--method",
                "magnitude",
                "--seq-len",
                "64",
                "--evaluate",
                "SHORT",
            ],
            "short.txt: the text has 2 tokens, fewer than one block of 64: give more text",
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT", "--seq-len", "16", "--bos", "every"],
            (
                "the tokenizer has no BOS token to start every block with: use bos none, or set "
                "the tokenizer's bos_token"
            ),
        ),
        (
            ["--sparsity", "0.5", "--calibration", "TEXT", "--bos", "on"],
            "bos must be one of auto, first, every, none",
        ),
        (
            [
                "--sparsity",
                "0.5",
                "--method",
                "magnitude",
                "--allocation",
                "uniform",
                "--bos",
                "every",
            ],
            "--bos goes with text, and this run reads none: leave it out",
        ),
        (
            ["--sparsity", "0.5", "--pattern", "2-4"],
            "a pattern is written N:M, such as 2:4, not '2-4'",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    folder: Path,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "short.txt").write_text("w1 w2")
    files = {"TEXT": str(text), "SHORT": str(tmp_path / "short.txt")}
    options = [files.get(word, word) for word in options]
    assert _run(folder, tmp_path, *options) == 2
    error = capfd.readouterr().err.strip()
    assert message in error.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_somebody_fills_meanwhile_stays_and_is_named(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(_: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("keep")

    # The last moment, when a large model is brought to the disk.
    monkeypatch.setattr("spectail.basics.files._flush", elsewhere)
    assert _run(folder, tmp_path, "--sparsity", "0.5", "--method", "magnitude") == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'out'} exists and is not an empty folder" in error
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["out", "out/mine.txt"]


def test_a_folder_in_use_and_a_folder_without_a_model(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert _run(folder, tmp_path, "--sparsity", "0.5") == 2
    assert (
        "exists and is not an empty folder, so nothing is written there" in capfd.readouterr().err
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    options = ["--sparsity", "0.5", "--method", "magnitude", "--out", str(tmp_path / "new")]
    assert run(["prune", str(tmp_path / "empty"), *options]) == 2
    assert (
        "has no config.json; expected a model folder that transformers wrote"
        in capfd.readouterr().err
    )
    assert run(["prune", str(tmp_path / "none"), *options]) == 2
    assert "expected a model folder, a .gguf file, 'demo' or a hub id" in capfd.readouterr().err


def test_an_interruption_writes_nothing_and_says_how_far(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: PruningTarget | Magnitude | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "prune_weight", interrupt)
    options = ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "uniform"]
    assert _run(folder, tmp_path, *options) == 130
    assert (
        "interrupted after 0 of 14 layers; the others are as they were; nothing was written"
        in capfd.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    assert torch.is_grad_enabled()


def test_an_interruption_while_the_model_loads_writes_nothing(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: str, **options: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "open_language_model", interrupt)
    assert _run(folder, tmp_path, "--sparsity", "0.5", "--method", "magnitude") == 130
    assert capfd.readouterr().err.strip() == "interrupted; nothing was written"
    assert not (tmp_path / "out").exists()


def test_eps_is_chosen_on_the_end_of_the_calibration_text_and_the_result_tested(
    folder: Path, tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test.txt"
    test.write_text(" ".join(reversed(TEXT.split())))
    words = ["--calibration", str(text), "--samples", "6", "--seq-len", "16", "--sparsity", "0.5"]
    options = [
        "--method",
        "wanda",
        "--allocation",
        "alphapruning",
        "--eps",
        "auto",
        "--evaluate",
        str(test),
    ]
    assert _run(folder, tmp_path, *words, *options, "--max-sequences", "5") == 0
    printed = capfd.readouterr()
    assert (
        "chosen by selection perplexity (not a test result) on the last 10% of text.txt: 0.1: "
        in printed.out
    )
    assert "perplexity on test.txt (test text): dense " in printed.out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed.out
    report = json.loads((tmp_path / "out" / "pruning.json").read_text())
    allocation = st.Allocation.load(tmp_path / "out" / "allocation.json")
    candidates = {x["eps"]: x["perplexity"] for x in report["selected"]["candidates"]}
    assert list(candidates) == list(st.presets.PRUNE_EPS_CANDIDATES)
    assert (
        report["selected"]["eps"]
        == min(candidates, key=lambda eps: candidates[eps])
        == allocation.settings["eps"]
    )
    assert allocation.settings["eps_scores"] == {
        f"{eps:g}": value for eps, value in candidates.items()
    }
    pruned, tokenizer = st.open_language_model(tmp_path / "out")
    [found] = report["evaluated"]
    for model, key in ((st.open_language_model(folder)[0], "before"), (pruned, "after")):
        expected = st.perplexity(model, tokenizer, test, seq_len=16, max_sequences=5)
        assert found[key]["perplexity"] == pytest.approx(float(expected), rel=1e-6)
        assert found[key]["sequences"] == 5
    last = hold_out(TEXT)[1]
    assert candidates[report["selected"]["eps"]] == pytest.approx(
        float(st.perplexity(pruned, tokenizer, last, seq_len=16, max_sequences=16)), rel=1e-6
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        f"spectail prune {folder} --sparsity 0.5 --out DIR --allocation alphapruning "
        f"--calibration {text} --eps auto --evaluate {test} --samples 6 --seq-len 16 "
        "--max-sequences 5</pre>"
    ) in page


def test_calibration_never_sees_the_text_that_eps_is_chosen_by(
    folder: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    remember(monkeypatch, pipeline, "calibration_tokens", results=seen)
    words = [
        "--calibration",
        str(text),
        "--samples",
        "99",
        "--seq-len",
        "8",
        "--sparsity",
        "0.5",
        "--quiet",
    ]
    assert (
        _run(folder, tmp_path, *words, "--method", "wanda", "--allocation", "owl", "--eps", "auto")
        == 0
    )
    assert seen[0].numel() <= 0.9 * 400
    report = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert report["selected"]["dense"]["sequences"] == 5


def test_the_same_eps_for_owl_and_a_selection_text_for_magnitude(
    folder: Path, tmp_path: Path, text: Path
) -> None:
    words = ["--calibration", str(text), "--seq-len", "16", "--sparsity", "0.5", "--quiet"]
    assert (
        _run(
            folder, tmp_path, *words, "--allocation", "owl", "--eps", "0.3", "--method", "magnitude"
        )
        == 0
    )
    settings = st.Allocation.load(tmp_path / "out" / "allocation.json").settings
    assert (settings["eps"], settings["lambda"]) == (0.3, pytest.approx(0.15))
    # The method read no text, and the allocation did.
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["calibration"] == [25, 16]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The method reads no text." in page
    assert "on inputs that went through the pruned blocks" not in page
    options = [
        "--selection",
        str(text),
        "--seq-len",
        "16",
        "--sparsity",
        "0.5",
        "--quiet",
        "--out",
        str(tmp_path / "b"),
    ]
    options += ["--allocation", "alphapruning", "--eps", "auto", "--method", "magnitude"]
    assert run(["prune", str(folder), *options]) == 0
    selected = json.loads((tmp_path / "b" / "pruning.json").read_text())["selected"]
    assert selected["text"] == "text.txt"
    assert selected["dense"]["sequences"] == 16


def test_the_form_of_depth_is_chosen_with_its_eps(folder: Path, tmp_path: Path, text: Path) -> None:
    words = ["--selection", str(text), "--seq-len", "16", "--sparsity", "0.5", "--quiet"]
    options = ["--allocation", "depth-kind", "--eps", "auto", "--method", "magnitude"]
    assert _run(folder, tmp_path, *words, *options) == 0
    selected = json.loads((tmp_path / "out" / "pruning.json").read_text())["selected"]
    candidates = {(c["form"], c["eps"]): c["perplexity"] for c in selected["candidates"]}
    assert len(candidates) == 42
    chosen = (selected["form"], selected["eps"])
    assert candidates[chosen] == min(candidates.values())
    settings = st.Allocation.load(tmp_path / "out" / "allocation.json").settings
    assert (settings["form"], settings["eps"]) == chosen
    assert len(settings["eps_scores"]) == 42
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the block&#39;s place in depth and the kind of layer" in page
    assert "first-falling" in page


@pytest.mark.parametrize(
    ("method", "form"),
    [("magnitude", "first-last"), ("wanda", "first-rising"), ("sparsegpt", "first-rising")],
)
def test_without_an_allocation_depth_and_kind_decide(
    folder: Path, tmp_path: Path, text: Path, method: str, form: str
) -> None:
    words = ["--calibration", str(text), "--samples", "6", "--seq-len", "16", "--quiet"]
    options = ["--sparsity", "0.5", "--method", method, *words]
    assert _run(folder, tmp_path, *options) == 0
    default = st.Allocation.load(tmp_path / "out" / "allocation.json")
    named = tmp_path / "named"
    named.mkdir()
    assert _run(folder, named, *options, "--allocation", f"depth-kind:{form}") == 0
    assert dict(default) == dict(st.Allocation.load(named / "out" / "allocation.json"))
    assert default.settings["form"] == form
    assert default.settings["eps"] == st.presets.PRUNE_EPS


def test_without_an_allocation_eps_auto_chooses_the_form_too(
    folder: Path, tmp_path: Path, text: Path
) -> None:
    words = ["--selection", str(text), "--seq-len", "16", "--sparsity", "0.5", "--quiet"]
    assert _run(folder, tmp_path, *words, "--method", "magnitude", "--eps", "auto") == 0
    selected = json.loads((tmp_path / "out" / "pruning.json").read_text())["selected"]
    assert len({c["form"] for c in selected["candidates"]}) == 7


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 with a tokenizer of whole words that has a BOS, 1, and does not add it."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("gemma") / "model"
    decoder("gemma3").save_pretrained(path)
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {
        word: i + 3 for i, word in enumerate(WORDS)
    }
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>"
    )
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("given", "rule", "shown"),
    [(None, "every", "every block"),
     ("first", "first", "start of the text; none in calibration samples"),
     ("none", "none", "none")],
)  # fmt: skip
def test_one_rule_for_bos_holds_for_all_texts_and_is_told(
    gemma: Path,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    rule: str,
    shown: str,
) -> None:
    drawn: list[Any] = []
    read: list[Any] = []
    remember(monkeypatch, pipeline, "calibration_tokens", results=drawn)
    remember(monkeypatch, perplexity, "batch_losses", second_arguments=read)
    test = tmp_path / "test.txt"
    test.write_text(" ".join(reversed(TEXT.split())))
    options = [
        "--sparsity",
        "0.5",
        "--method",
        "wanda",
        "--allocation",
        "alphapruning",
        "--eps",
        "auto",
    ]
    options += [
        "--calibration",
        str(text),
        "--samples",
        "6",
        "--seq-len",
        "16",
        "--evaluate",
        str(test),
    ]
    assert _run(gemma, tmp_path, *options, *(["--bos", given] if given else [])) == 0
    assert (drawn[0][:, 0] == 1).all() == (rule == "every")
    blocks = torch.cat(read)
    starts = {"every": len(blocks), "none": 0}
    passes = (
        2 + 1 + len(st.presets.PRUNE_EPS_CANDIDATES)
    )  # test text twice, selection text once and for each eps
    assert int((blocks[:, 0] == 1).sum()) == starts.get(rule, passes)
    assert not (blocks[:, 1:] == 1).any()
    printed = capfd.readouterr().out
    assert f"BOS: {shown}\n" in printed
    report = json.loads((tmp_path / "out" / "pruning.json").read_text())
    [found] = report["evaluated"]
    assert {
        report["bos"],
        found["before"]["bos"],
        found["after"]["bos"],
        report["selected"]["dense"]["bos"],
    } == {rule}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<span>BOS <b>{shown}</b></span>" in page
    assert ("models need: draw them with bos every" in printed) == (rule != "every")
    model, tokenizer = st.open_language_model(gemma)
    expected = st.perplexity(model, tokenizer, test, seq_len=16, bos=rule)
    assert found["before"]["perplexity"] == pytest.approx(float(expected), rel=1e-6)


def test_a_run_without_text_says_nothing_of_bos(
    gemma: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "uniform"]
    assert _run(gemma, tmp_path, *options) == 0
    assert "BOS" not in capfd.readouterr().out
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["bos"] is None
    assert "BOS" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_a_choice_of_eps_goes_on_where_it_was_interrupted(
    kept: int,
    folder: Path,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--sparsity", "0.5", "--method", "wanda", "--allocation", "alphapruning"]
    options += ["--eps", "auto", "--calibration", str(text), "--samples", "6", "--seq-len", "16"]
    (tmp_path / "whole").mkdir()
    assert _run(folder, tmp_path / "whole", *options) == 0
    whole = _without_time(tmp_path / "whole" / "out")
    times, prune = 0, pruning.prune

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal times
        times += 1
        if times == kept + 1:
            raise KeyboardInterrupt
        return prune(*args, **more)

    monkeypatch.setattr(pipeline, "prune", counted)
    assert _run(folder, tmp_path, *options) == 130
    scores = tmp_path / "out.choice.json"
    assert f"no model was written; the same command goes on with the scores in {scores}" in (
        capfd.readouterr().err
    )
    assert [path.name for path in tmp_path.glob("out*")] == [scores.name]
    for other in (["--sparsity", "0.6"], ["--seed", "3"], ["--kind", "q,k"], ["--seq-len", "12"]):
        assert _run(folder, tmp_path, *options, *other) == 2
        assert f"{scores} holds the scores of a run with another " in capfd.readouterr().err
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"silu"', '"gelu"'))
    assert _run(folder, tmp_path, *options) == 2
    assert f"{scores} holds the scores of a run with another configuration: " in (
        capfd.readouterr().err
    )
    (folder / "config.json").write_text(config)
    times = 100
    assert _run(folder, tmp_path, *options) == 0
    # What is left of six candidates, and the run itself.
    assert times == 100 + 6 - kept + 1
    assert _without_time(tmp_path / "out") == whole
    assert not scores.exists()


def _without_time(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "pruning.json").read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("mine", "exists and spectail did not write it"),
        ('{"format": "spectail-choice-1", "run": {}}', "is damaged (object missing"),
        ('{"format": "spectail-choice-1", "run": {}, "scores": {"0.1": "x"}}', "is damaged ("),
        ('{"format": "spectail-choice-1", "run": {}, "scores": {}}', "with another model, method"),
    ],
)
def test_a_file_of_scores_that_cannot_be_used_is_one_line(
    content: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out.choice.json").write_text(content)
    options = ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "alphapruning"]
    options += ["--eps", "auto", "--selection", str(text), "--seq-len", "16"]
    assert _run(folder, tmp_path, *options) == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    assert message in line
    assert (tmp_path / "out.choice.json").read_text() == content


def test_an_interruption_while_eps_is_chosen(
    folder: Path,
    tmp_path: Path,
    text: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: PruningTarget | Magnitude | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "prune_weight", interrupt)
    options = [
        "--sparsity",
        "0.5",
        "--method",
        "magnitude",
        "--allocation",
        "alphapruning",
        "--eps",
        "auto",
    ]
    assert _run(folder, tmp_path, *options, "--selection", str(text), "--seq-len", "16") == 130
    assert "interrupted while eps was chosen; nothing was written" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
