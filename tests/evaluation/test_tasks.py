"""Tasks of lm-eval on a model in memory, with a task and questions of our own; nothing is
downloaded."""

import json
import sys
from pathlib import Path

import pytest
import torch

import spectail as st
from spectail.errors import EvaluationError
from tests.language import WORDS, bigram, llama, tokenizer

TASK = """
task: spectail_next_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{word}}}}"
doc_to_choice: ["w1", "w2", "w3"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten questions, in four of which the answer is the word that the model expects."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"word": f"w{i}", "answer": 1 if i < 4 else 0} for i in range(10)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "next.yaml").write_text(TASK.format(file=tmp_path / "questions.jsonl"))
    return tmp_path / "tasks"


@pytest.mark.filterwarnings("ignore")
def test_a_task_whose_answer_is_known(tasks: Path) -> None:
    pytest.importorskip("lm_eval")
    chances = torch.full((len(WORDS), len(WORDS)), 0.01)
    chances[:, WORDS.index("w2")] = 1 - 0.01 * (len(WORDS) - 1)
    scores = st.evaluate_tasks(
        bigram(chances), tokenizer(), ["spectail_next_word"], include_path=tasks
    )
    assert scores["spectail_next_word"]["acc"] == pytest.approx(0.4)
    assert scores["spectail_next_word"]["acc_stderr"] == pytest.approx((0.4 * 0.6 / 9) ** 0.5)
    first = st.evaluate_tasks(
        bigram(chances), tokenizer(), ["spectail_next_word"], include_path=tasks, limit=4
    )
    assert first["spectail_next_word"]["acc"] == 1.0
    with pytest.raises(
        EvaluationError, match="lm-eval has no task no_such; lm-eval ls tasks lists them"
    ):
        st.evaluate_tasks(llama(), tokenizer(), ["no_such"])


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        EvaluationError, match=r"tasks need lm-eval: pip install 'spectail\[eval\]'"
    ):
        st.evaluate_tasks(llama(), tokenizer(), ["hellaswag"])
