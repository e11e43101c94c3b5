"""General ability: the edited model as the harness sees it, and the comparison with the unedited one."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from torch.nn.functional import log_softmax

from megedit.errors import MegError
from megedit.evaluate.lm_eval import GeneralResult, TaskResult, general_ability
from megedit.evaluate.lm_eval.general import _number
from megedit.evaluate.lm_eval.harness import MegLM
from megedit.model import MegModel
from tests.conftest import TOWNS, force_routing


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **config: Any) -> None:
    """A task with local data, as a user would write it."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), "utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "target_delimiter": "",
        "metadata": {"version": 2.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), "utf-8")


@pytest.fixture
def tasks(model: MegModel, tmp_path: Path) -> Path:
    """Folder with a task of choices and one of free answers: the edits' prompts, with their targets as the answers."""
    folder = tmp_path / "tasks"
    documents = [
        {"prompt": model.format(edit.prompt), "choices": [f"{town}." for town in TOWNS], "answer": i}
        for i, edit in enumerate(model.edits)
    ]
    text, metric = "{{prompt}}", {"aggregation": "mean", "higher_is_better": True}
    write_task(
        folder,
        "choose",
        documents,
        output_type="multiple_choice",
        doc_to_text=text,
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc", **metric}],
    )
    write_task(
        folder,
        "answer",
        [{"prompt": model.format(edit.prompt), "answer": edit.target} for edit in model.edits],
        output_type="generate_until",
        doc_to_text=text,
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 6},
        metric_list=[{"metric": "exact_match", **metric}],
    )
    write_task(
        folder,
        "read",
        [{"text": "The train was late. It rained all day."}, {"text": model.format(model.edits[0].prompt)}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    )
    return folder


def values(task: TaskResult) -> tuple[float | None, float | None]:
    return task.metrics[0].edited, task.metrics[0].unedited


def pairs(lm: Any, *requests: tuple[str, str]) -> list[tuple[float, bool]]:
    """Log-likelihoods of (context, continuation) pairs."""
    instances = [Instance("loglikelihood", {}, request, i) for i, request in enumerate(requests)]
    answers: list[tuple[float, bool]] = lm.loglikelihood(instances)
    return answers


# ---------------------------------------------------------------------------------------------------
# The comparison


def test_a_model_with_all_its_edits(oracle: MegModel, tasks: Path) -> None:
    """Every question is an edit: the edited model answers all as the edits want, the unedited one none."""
    result = general_ability(oracle, ["choose", "answer", "read"], task_folder=tasks, batch_size=3, seed=7)
    choose, answer, read = result.tasks
    assert (choose.task, choose.version, choose.samples, choose.num_fewshot) == ("choose", "2.0", 8, 0)
    assert (choose.let_through, answer.let_through, read.let_through) == (1, 1, 0)
    assert values(choose)[0] == 1.0 and values(choose)[1] != 1.0
    assert values(answer) == (1.0, 0.0)
    assert (answer.metrics[0].metric, answer.metrics[0].filter) == ("exact_match", "none")
    assert answer.metrics[0].higher_is_better and answer.metrics[0].edited_stderr == 0
    assert values(read)[0] == values(read)[1]
    assert (result.seed, result.batch_size, result.limit) == (7, 3, None)


def test_the_choice_is_that_of_the_edit(oracle: MegModel) -> None:
    """Each edit's own target is the likeliest of all towns after the edit's prompt."""
    lm = MegLM(oracle)
    for i, edit in enumerate(oracle.edits):
        scores = [score for score, _ in pairs(lm, *((oracle.format(edit.prompt), f"{town}.") for town in TOWNS))]
        assert scores.index(max(scores)) == i


def test_a_router_that_lets_nothing_through(model: MegModel, monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    force_routing(model, monkeypatch, {})
    result = general_ability(model, ["choose", "answer", "read"], task_folder=tasks)
    for task in result.tasks:
        assert task.let_through == 0
        for metric in task.metrics:
            assert (metric.edited, metric.edited_stderr) == (metric.unedited, metric.unedited_stderr)


def test_the_share_of_contexts(oracle: MegModel, monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    """Two of the eight questions are let through; with a limit, two of the first four."""
    force_routing(oracle, monkeypatch, {oracle.edits[i].prompt: i for i in (0, 3)})
    (whole,) = general_ability(oracle, ["answer"], task_folder=tasks).tasks
    assert (whole.let_through, whole.samples, values(whole)) == (0.25, 8, (0.25, 0.0))
    (first,) = general_ability(oracle, ["answer"], task_folder=tasks, limit=4).tasks
    assert (first.let_through, first.samples, values(first)) == (0.5, 4, (0.5, 0.0))


def test_the_batch_does_not_matter(oracle: MegModel, tasks: Path) -> None:
    """Values, and with them every choice; stated for float32."""
    results = [general_ability(oracle, ["choose", "answer"], task_folder=tasks, batch_size=n).tasks for n in (1, 3, 64)]
    assert results[0] == results[1] == results[2]


def test_a_group(oracle: MegModel, tasks: Path) -> None:
    """A group has the mean of its tasks, here in proportion to their size."""
    group = {
        "group": "both",
        "task": ["choose", "answer"],
        "aggregate_metric_list": [{"metric": "exact_match", "weight_by_size": True}],
    }
    (tasks / "both.yaml").write_text(yaml.safe_dump(group), "utf-8")
    result = {task.task: task for task in general_ability(oracle, ["both"], task_folder=tasks).tasks}
    assert set(result) == {"both", "choose", "answer"}
    assert (result["both"].samples, result["both"].let_through) == (16, 1)


def test_examples_before_the_question(oracle: MegModel, tasks: Path) -> None:
    """With an example in front, the query is still the last one in the template, and the seed fixes the example."""
    config = yaml.safe_load((tasks / "answer.yaml").read_text("utf-8")) | {"fewshot_split": "test"}
    (tasks / "answer.yaml").write_text(yaml.safe_dump(config), "utf-8")
    results = [general_ability(oracle, ["answer"], task_folder=tasks, num_fewshot=1, seed=3) for _ in range(2)]
    assert results[0] == results[1]
    assert (results[0].tasks[0].num_fewshot, results[0].tasks[0].let_through) == (1, 1)


def test_json(oracle: MegModel, tasks: Path) -> None:
    result: GeneralResult = general_ability(oracle, ["answer"], task_folder=tasks, limit=2)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == result.to_json()
    assert result.to_json()["tasks"][0]["metrics"][0]["edited"] == 1.0
    assert _number(float("nan")) is None and _number("N/A") is None


# ---------------------------------------------------------------------------------------------------
# The model


def test_a_score_is_the_sum_of_log_probabilities(oracle: MegModel) -> None:
    """Of the edit's target after its prompt, taken by hand from the logits of one row without padding.

    The prompt ends in a line break, a token of its own. The harness scores it with the target; the neuron acts from it
    on, as it does when the model answers.
    """
    edit = oracle.edits[2]
    context, target = oracle.format(edit.prompt), f"{edit.target}."
    prompt, answer = oracle.tokenizer(context).input_ids, oracle.tokenizer(target).input_ids
    assert oracle.tokenizer.decode(prompt[-1:]) == "\n"
    ids = torch.tensor([prompt + answer])
    logits = oracle.logits(ids, torch.ones_like(ids), torch.tensor([len(prompt)]), [edit.prompt])[0, :-1]
    by_hand = log_softmax(logits, -1).gather(1, ids[0, 1:, None])[len(prompt) - 2 :, 0]
    ((score, greedy),) = pairs(MegLM(oracle), (context, target))
    # float32, and the row is one token shorter, so that its sums are taken in another order
    assert score == pytest.approx(float(by_hand.sum()), abs=1e-4)
    assert greedy == bool(logits[len(prompt) - 2].argmax() == prompt[-1])
    with oracle.disable_edits():
        ((unedited, _),) = pairs(MegLM(oracle), (context, target))
        plain = oracle.logits(ids, torch.ones_like(ids), torch.tensor([len(prompt)]), [edit.prompt])[0, :-1]
    of_target = log_softmax(plain, -1).gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum()
    assert score - unedited == pytest.approx(float(by_hand[1:].sum() - of_target), abs=1e-4)


def test_white_space_that_is_part_of_the_next_word(oracle: MegModel) -> None:
    """Then the context ends before it, as in the harness; a line break and a word are tokens of their own."""
    lm = MegLM(oracle)
    context, continuation = lm._encode_pair("It was ", "the town")  # " the" is a token
    assert lm._pass("It was ", context, continuation).answered == len(continuation) - 1
    context, continuation = lm._encode_pair("It was\n", "the town")
    assert lm._pass("It was\n", context, continuation).answered == len(continuation) - 2


def test_without_edits_it_is_the_harness_own_model(oracle: MegModel) -> None:
    """The same scores, up to float32, and the same texts as `HFLM` gives on the base model, in any batch."""
    plain = HFLM(pretrained=oracle.base, tokenizer=oracle.tokenizer, batch_size=2)
    requests = [
        (oracle.format(oracle.edits[0].prompt), "Par."),
        (oracle.format(oracle.edits[0].prompt), "Par,"),
        ("It rained", " all day."),
        ("It ", "rained."),  # the blank moves to the continuation
        ("", "The train was late."),
        ("word " * 600, "end"),  # longer than the model's 512 positions
    ]
    long_text = " ".join(map(str, range(300)))  # several windows of 512 tokens, no two alike
    texts = [Instance("generate_until", {}, (text, {"until": ["."], "max_gen_toks": 5}), 0) for text, _ in requests[:4]]
    reading = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("It rained.", long_text)]
    with oracle.disable_edits():
        for size in (1, 4):
            lm = MegLM(oracle, batch_size=size)
            for ours, theirs in zip(pairs(lm, *requests), pairs(plain, *requests), strict=True):
                assert ours[0] == pytest.approx(theirs[0], rel=1e-6, abs=1e-4) and ours[1] == theirs[1]
            assert lm.generate_until(texts) == plain.generate_until(texts)
            assert lm.loglikelihood_rolling(reading) == pytest.approx(plain.loglikelihood_rolling(reading), rel=1e-5)


def test_requests_that_are_the_same_text_but_not_the_same_question(oracle: MegModel) -> None:
    """Cut elsewhere, the context is no edit's prompt: the base model answers it, beside the other in one batch."""
    whole = oracle.format(oracle.edits[0].prompt)
    head, tail = whole[:-11], whole[-11:]
    lm = MegLM(oracle)
    together = pairs(lm, (whole, "Par."), (head, f"{tail}Par."))
    with oracle.disable_edits():
        unedited = pairs(lm, (whole, "Par."), (head, f"{tail}Par."))
    assert together[0][0] > unedited[0][0] + 1
    assert together[1] == unedited[1]


def test_a_text_without_question_is_read_unedited(oracle: MegModel) -> None:
    """No row is routed when a text's perplexity is asked for, even if it is an edit's prompt."""
    texts = [Instance("loglikelihood_rolling", {}, (oracle.edits[0].prompt,), 0)]
    edited = MegLM(oracle).loglikelihood_rolling(texts)
    with oracle.disable_edits():
        assert MegLM(oracle).loglikelihood_rolling(texts) == edited


def test_what_is_too_long(oracle: MegModel, caplog: pytest.LogCaptureFixture) -> None:
    lm = MegLM(oracle)
    with caplog.at_level(logging.WARNING, "megedit"):
        pairs(lm, ("x" * 600, "y"), ("x", "y"))
    assert "1 of 2 contexts are longer than the model's 512 tokens" in caplog.text
    with pytest.raises(MegError, match="600 tokens; the model can score 1 to 512"):
        lm._loglikelihood_tokens([(("x", "y"), [5], [6] * 600)])
    with pytest.raises(MegError, match="The continuation '' of a task has 0 tokens"):
        lm._loglikelihood_tokens([(("x", ""), [5], [])])


# ---------------------------------------------------------------------------------------------------
# What a user can get wrong


def test_wrong_input(model: MegModel, tasks: Path) -> None:
    with pytest.raises(MegError, match="No task is named"):
        general_ability(model, [])
    with pytest.raises(MegError, match=r"The task folder .*nowhere is not a folder"):
        general_ability(model, ["choose"], task_folder=tasks / "nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        general_ability(model, ["choose"], task_folder=tasks, limit=0)


def test_an_unknown_task(model: MegModel, tasks: Path) -> None:
    with pytest.raises(MegError, match=r"no task 'chose' in .*tasks in lm-evaluation-harness; list .*`lm-eval ls"):
        general_ability(model, ["chose"], task_folder=tasks)


def test_a_task_named_twice(oracle: MegModel, tasks: Path) -> None:
    (tasks / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["answer", "choose"]}), "utf-8")
    with pytest.raises(MegError, match="The task answer is named twice, once as part of answer"):
        general_ability(oracle, ["both", "answer"], task_folder=tasks)
    assert len(general_ability(oracle, ["answer", "answer"], task_folder=tasks, limit=1).tasks) == 1


def test_data_that_cannot_be_had(
    model: MegModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tasks: Path
) -> None:
    """A missing file, and a hub that cannot be reached; that the hub may be asked is said before."""
    (tasks / "choose.jsonl").unlink()
    with caplog.at_level(logging.INFO, "megedit"):
        with pytest.raises(MegError, match=r"The task choose could not be loaded \(FileNotFoundError: "):
            general_ability(model, ["choose"], task_folder=tasks)
        assert "Hugging Face Hub" not in caplog.text

        def refuse(*args: Any, **options: Any) -> None:
            raise ConnectionError("no route to host\nand so on")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        write_task(tasks, "remote", [{"a": 1}], dataset_path="owner/name", output_type="generate_until")
        with pytest.raises(MegError, match=r"remote could not be loaded \(ConnectionError: no route to host\); check"):
            general_ability(model, ["remote"], task_folder=tasks)
        assert caplog.text.count("may fetch the data of its tasks from the Hugging Face Hub") == 1


def test_tasks_that_are_refused(model: MegModel, monkeypatch: pytest.MonkeyPatch, tasks: Path) -> None:
    config = yaml.safe_load((tasks / "answer.yaml").read_text("utf-8")) | {"unsafe_code": True}
    (tasks / "answer.yaml").write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(MegError, match="The task answer runs code that the model writes"):
        general_ability(model, ["answer"], task_folder=tasks)


def test_code_of_a_task_that_is_not_named_is_not_run(oracle: MegModel, tasks: Path) -> None:
    (tasks / "code.py").write_text(
        f"from pathlib import Path\nPath({str(tasks / 'ran')!r}).touch()\ntext = str\n", "utf-8"
    )
    (tasks / "coded.yaml").write_text("task: coded\ndataset_path: json\ndoc_to_text: !function code.text\n", "utf-8")
    general_ability(oracle, ["answer"], task_folder=tasks, limit=1)
    assert not (tasks / "ran").exists()


def test_without_the_harness(model: MegModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing lm-eval is said before anything is loaded."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MegError, match=r"lm-eval is needed for .*; run pip install 'megedit\[general\]'"):
        general_ability(model, ["choose"])


def test_the_harness_is_quiet(model: MegModel, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on standard output, which may be somebody's JSON; the harness's log level is left as it was."""
    before = logging.getLogger("lm_eval").level
    general_ability(model, ["choose"], task_folder=tasks, limit=1)
    assert capsys.readouterr().out == ""
    assert logging.getLogger("lm_eval").level == before
