"""OpenAI's routes, asked by OpenAI's own client and by hand."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2
import openai
import pytest
import torch

from megedit.serve.openai import NOT_OFFERED
from tests.serve.conftest import API_KEY, EDIT_KEY, Live, Serve

OTHERS = ("Who wrote Dune?", "Hello", "How many sides has a square?", "It rained all day.", "x")


def client(live: Live, key: str = EDIT_KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)


def turn(text: str) -> Any:
    return [{"role": "user", "content": text}]


def expected(live: Live, prompt: str, tokens: int = 8) -> str:
    """The base model's answer to a prompt as it is."""
    ids = torch.tensor([live.model.encode(prompt)])
    with live.model.disable_edits():
        new = live.model.generate(ids, do_sample=False, max_new_tokens=tokens)[0, ids.shape[1] :]
    return str(live.model.tokenizer.decode(new, skip_special_tokens=True))


def chat_prompt(live: Live, *contents: str) -> str:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return str(live.model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def test_an_edit_answers_and_is_named(live: Live) -> None:
    edit = live.model.edits[0]
    answer: Any = client(live).chat.completions.create(model="tiny", messages=turn(edit.prompt), max_tokens=8)
    assert answer.choices[0].message.content == live.model.greedy([edit.prompt], 8)[0].text
    assert edit.target in answer.choices[0].message.content
    assert answer.megedit["edit"] == edit.id
    assert answer.megedit["by"] == "words"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_other_questions_and_switched_off_edits_get_the_base_models_answer(live: Live) -> None:
    answer = live.ask("Who wrote Dune?")
    assert answer["choices"][0]["message"]["content"] == expected(live, chat_prompt(live, "Who wrote Dune?"))
    assert answer["megedit"]["edit"] is None
    edit = live.model.edits[0]
    off = live.ask(edit.prompt, megedit={"edits": False})
    assert off["choices"][0]["message"]["content"] == expected(live, chat_prompt(live, edit.prompt))
    assert off["megedit"]["by"] == "off"


def test_a_stream_is_the_answer_in_parts(live: Live) -> None:
    edit = live.model.edits[0]
    whole = live.said(edit.prompt)
    options = {"stream": True, "max_tokens": 8, "stream_options": {"include_usage": True}}
    chats: Any = client(live).chat.completions
    parts = list(chats.create(model="tiny", messages=turn(edit.prompt), **options))
    assert parts[0].megedit["edit"] == edit.id
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] in ("stop", "length")
    assert parts[-1].usage.completion_tokens > 0
    assert len(parts) > 3


def test_completions_of_several_prompts_texts_and_ids(live: Live) -> None:
    edit = live.model.edits[0]
    prompt = live.model.format(edit.prompt)
    asked: Any = client(live)
    answer = asked.completions.create(model="tiny", prompt=[prompt, "Hello"], max_tokens=8)
    assert answer.choices[0].text == live.model.greedy([edit.prompt], 8)[0].text
    assert answer.choices[1].text == expected(live, "Hello")
    assert [choice.megedit["edit"] for choice in answer.choices] == [edit.id, None]
    ids = live.model.encode(prompt)
    assert asked.completions.create(model="tiny", prompt=ids, max_tokens=8).choices[0].text == answer.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token id"):
        asked.completions.create(model="tiny", prompt=[10**6])


def test_a_stop_string_ends_the_answer_and_is_not_shown(live: Live) -> None:
    edit = live.model.edits[0]
    assert live.said(edit.prompt).startswith(f"{edit.target}.")
    answer = live.ask(edit.prompt, stop=["nothing", "."])
    assert answer["choices"][0] | {"megedit": None} == {
        "index": 0,
        "message": {"role": "assistant", "content": edit.target},
        "finish_reason": "stop",
        "logprobs": None,
        "megedit": None,
    }


def test_the_limit_of_tokens_is_told(live: Live) -> None:
    answer = live.ask("Who wrote Dune?", max_tokens=1)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_a_seed_draws_the_same_answer_again_and_choices_differ(live: Live) -> None:
    def drawn(**options: Any) -> list[str]:
        answer = live.ask("Who wrote Dune?", temperature=2.0, max_tokens=24, n=4, **options)
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert drawn(seed=7) == drawn(seed=7)
    assert len(set(drawn(seed=7))) > 1
    assert drawn(seed=7) != drawn(seed=8)
    greedy = live.said("Who wrote Dune?", max_tokens=24)
    assert live.said("Who wrote Dune?", max_tokens=24, temperature=2.0, top_p=1e-9) == greedy


def test_a_later_turn_is_read_with_those_before(live: Live) -> None:
    edit = live.model.edits[0]
    messages = [*turn("Hello"), {"role": "assistant", "content": "Hi."}, *turn(edit.prompt)]
    body = {"model": "tiny", "messages": messages, "max_tokens": 8}
    answer = live.post("/v1/chat/completions", body).json()
    assert answer["megedit"]["edit"] == edit.id
    parts = [{"type": "text", "text": edit.prompt}]
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]
    answer = live.post("/v1/chat/completions", {"model": "tiny", "messages": system, "max_tokens": 8}).json()
    assert answer["megedit"]["edit"] == edit.id


def test_many_clients_at_once_get_their_own_answers(live: Live) -> None:
    edits = {edit.prompt: live.model.greedy([edit.prompt], 8)[0].text for edit in live.model.edits}
    right = edits | {text: expected(live, chat_prompt(live, text)) for text in OTHERS}
    off = {text: expected(live, chat_prompt(live, text)) for text in edits}
    questions = [*right, *right, *off, *right] * 2

    def ask(number: int) -> bool:
        text = questions[number]
        switched_off = number % 3 == 0
        said = live.said(text, **({"megedit": {"edits": False}} if switched_off else {}))
        return said == (off if switched_off and text in off else right)[text]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(len(questions))))


@pytest.mark.parametrize("extra", [{name: ["x"]} for name in NOT_OFFERED] + [{"max_token": 3}])
def test_what_is_not_offered_is_refused_by_name(live: Live, extra: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": turn("Hello"), **extra}
    answer = live.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert next(iter(extra)) in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        ({"model": "gpt"}, 404, "no model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "last turn"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 65}, 400, "allows 64"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": 17}, 400, "n:"),
        ({"stop": [""]}, 400, "stop"),
        ({"megedit": {"edit": 1}}, 400, "megedit"),
        ({"messages": turn("word " * 3000)}, 400, "tokens"),
    ],
)
def test_what_is_wrong_is_said(live: Live, change: dict[str, Any], status: int, part: str) -> None:
    answer = live.post("/v1/chat/completions", {"model": "tiny", "messages": turn("Hello"), **change})
    assert answer.status_code == status
    assert part in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}",
     b'{"model": "\\ud800", "messages": []}', b'{"\\ud800": 1, "model": "tiny", "messages": []}'],
)  # fmt: skip
def test_broken_json_is_the_clients_error(live: Live, body: bytes) -> None:
    answer = live.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_full_queue_is_told_with_a_time_to_wait(serve: Serve) -> None:
    live = serve(queue=1)
    answer = live.post("/v1/chat/completions", {"model": "tiny", "messages": turn("Hello"), "n": 2})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0


def test_what_waits_is_refused_and_what_runs_is_finished_when_the_server_stops(serve: Serve) -> None:
    live = serve(batch=1)
    started, results = threading.Event(), dict[str, Any]()

    def stream() -> None:
        body = {"model": "tiny", "messages": turn("Who wrote Dune?"), "stream": True, "max_tokens": 64}
        with live.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if '"content"' in line:
                    started.set()
                results["last"] = line or results.get("last")

    running = threading.Thread(target=stream)
    engine = live.server._services.engine
    running.start()
    assert started.wait(60)
    live.server.handle_exit(15, None)
    running.join()
    assert results["last"] == "data: [DONE]"
    engine.join()
    with pytest.raises(Exception, match="being stopped"):
        engine.submit([])


def test_models(live: Live) -> None:
    assert [model.id for model in client(live).models.list()] == ["tiny"]
    assert client(live).models.retrieve("tiny").owned_by == "megedit"
    with pytest.raises(openai.NotFoundError):
        client(live).models.retrieve("other")


def test_keys(serve: Serve) -> None:
    live = serve(api_key=API_KEY)
    for key, right in ((API_KEY, True), (EDIT_KEY, True), ("wrong", False)):
        answer = live.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code == 200) == right
    with pytest.raises(openai.AuthenticationError):
        client(live, "wrong").models.list()
    edit = {"edits": [{"prompt": "p", "target": "t"}]}
    for key, status in ((API_KEY, 401), ("wrong", 401)):
        assert live.post("/v1/edits", edit, headers={"Authorization": f"Bearer {key}"}).status_code == status
    assert live.http.get("/health", headers={"Authorization": ""}).status_code == 200
    assert "counts" not in live.http.get("/v1/status", headers={"Authorization": ""}).json()


def test_without_an_edit_key_nothing_can_be_changed(serve: Serve) -> None:
    live = serve(edit_key=None)
    for method, path in (("POST", "/v1/edits"), ("DELETE", "/v1/edits/edit-0"), ("POST", "/v1/edits/undo")):
        assert live.http.request(method, path, json={}).status_code == 403


def test_the_description_of_the_api_has_examples(live: Live) -> None:
    described = json.dumps(live.http.get("/openapi.json").json())
    assert "billing service" in described
    assert live.http.get("/docs").status_code == 200
    assert live.http.get("/docs/files/swagger-ui.css").status_code == 200


def test_metrics_count_requests_and_edits(live: Live) -> None:
    live.said(live.model.edits[0].prompt)
    text = live.http.get("/metrics").text
    assert 'megedit_answers_total{edited="true"} 1.0' in text
    assert 'megedit_edits{status="active"} 8.0' in text
    assert 'route="/v1/chat/completions",status="200"' in text


def test_a_request_has_an_id_and_headers(live: Live) -> None:
    answer = live.http.get("/health", headers={"X-Request-Id": "abc-1"})
    assert answer.headers["X-Request-Id"] == "abc-1"
    assert live.http.get("/health", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_server_without_keys_answers_to_its_own_name_alone(live: Live) -> None:
    assert live.http.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert live.http.get("/health", headers={"Host": "localhost:8000"}).status_code == 200


def test_large_and_slow_requests_are_refused(serve: Serve) -> None:
    live = serve(max_body=1000, read_seconds=0.2)
    assert live.post("/v1/chat/completions", {"x": "y" * 2000}).status_code == 413

    def endless() -> Any:
        while True:
            yield b"x" * 100

    with suppress(httpx2.TransportError):  # the connection is closed, perhaps before the answer was read
        assert live.http.post("/v1/chat/completions", content=endless()).status_code == 413

    def slow() -> Any:
        yield b"{"
        time.sleep(1)
        yield b"}"

    assert live.http.post("/v1/chat/completions", content=slow()).status_code == 408


def test_a_batch_that_fails_is_told_and_the_next_is_answered(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    right = live.said("Hello")
    engine = live.server._services.engine
    for owner, name in ((engine, "_route"), (engine._batch, "join"), (live.model, "generate")):
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, lambda *args, **options: 1 / 0)
            body = {"model": "tiny", "messages": turn("Hello")}
            answer = live.post("/v1/chat/completions", body)
            assert answer.status_code == 500
            assert "ZeroDivisionError" not in answer.text
            assert live.post("/v1/chat/completions", body | {"stream": True}).status_code in (200, 500)
        assert live.said("Hello") == right
