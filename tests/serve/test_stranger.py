"""What strangers send: an adapter folder with traps in it, and requests that nobody should make."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from megedit.adapter.adapter import load_adapter
from megedit.errors import MegError
from megedit.model import MegModel
from tests.conftest import Fitted
from tests.serve.conftest import EDIT_KEY, Serve

CODE = "from pathlib import Path\nPath({mark!r}).touch()\nclass Class: pass\n"
JINJA = "{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{{{ c.__init__.__globals__ }}}}{{% endfor %}}"


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.mark),)


def planted(folder: Path, mark: Path) -> None:
    """Put what would run, if anything of the folder were run, into an adapter, and keep its hashes right."""
    code, bomb = CODE.format(mark=str(mark)), pickle.dumps(Bomb(str(mark)))
    for place in (folder, folder / "encoder"):
        for name in ("code.py", "__init__.py", "sitecustomize.py", "modeling.py", "tokenization.py"):
            (place / name).write_text(code)
        for name in ("pytorch_model.bin", "model.pkl", "weights.pt", "ledger.pkl"):
            (place / name).write_bytes(bomb)
    classes = {"AutoModel": "code.Class", "AutoConfig": "code.Class", "AutoTokenizer": ["code.Class", None]}
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / "encoder" / name
        values = json.loads(path.read_text()) | {"auto_map": classes, "chat_template": JINJA.format()}
        path.write_text(json.dumps(values))
    (folder / "encoder" / "chat_template.jinja").write_text(JINJA.format())
    resigned(folder)


def resigned(folder: Path) -> None:
    """Write the hashes of the files as they are now, as whoever made the folder would."""
    from megedit.runtime.files import sha256_of

    path = folder / "meg_config.json"
    values = json.loads(path.read_text())
    values["files"] = {name: sha256_of(folder / name) for name in values["files"]}
    path.write_text(json.dumps(values))


def test_nothing_in_an_adapter_is_run(serve: Serve, adapter_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    planted(adapter_folder, mark)
    live = serve()
    edit = live.model.edits[0]
    assert live.said(edit.prompt).startswith(edit.target)
    live.post("/v1/explain", {"question": edit.prompt})
    live.post("/v1/edits", {"edits": [{"prompt": "Who leads Atlas?", "target": "Ma"}]})
    live.said("Who leads Atlas?")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../secret", "encoder/../../secret", "/etc/passwd"])
def test_a_name_that_leads_out_of_the_folder_is_refused(adapter_folder: Path, name: str) -> None:
    path = adapter_folder / "meg_config.json"
    values = json.loads(path.read_text())
    values["files"][name] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(MegError, match="damaged"):
        load_adapter(adapter_folder)


def test_a_link_that_leads_out_of_the_folder_is_refused(adapter_folder: Path, tmp_path: Path) -> None:
    for name in ("seen.safetensors", "encoder/config.json"):
        outside = tmp_path / Path(name).name
        shutil.move(adapter_folder / name, outside)
        (adapter_folder / name).symlink_to(outside)
        with pytest.raises(MegError, match="damaged"):
            load_adapter(adapter_folder)
        (adapter_folder / name).unlink()
        shutil.move(outside, adapter_folder / name)


def test_a_chat_template_that_reaches_for_attributes_is_refused(
    serve: Serve, fitted: Fitted, base: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    """It is the base model's, which the operator trusts; it is rendered in a sandbox all the same."""
    live = serve()
    tokenizer = base[1]
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = JINJA.format()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        answer = live.post("/v1/chat/completions", body)
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]
    finally:
        tokenizer.chat_template = kept
    assert MegModel(*base, load_adapter(fitted.adapter, dtype=torch.float32)).answer("Hi", 4) is not None


def test_questions_that_look_like_templates_are_text(serve: Serve) -> None:
    live = serve()
    for text in ("{query}", "{{ ''.__class__ }}", "{% raw %}", "%s %(x)s", "</s>", "\u202e\u200b", "a\nuser: b"):
        live.said(text)
        assert live.post("/v1/explain", {"question": text}).status_code in (200, 400)


def test_made_up_requests_get_clear_answers(serve: Serve) -> None:
    """A few requests for each route, from the description of the API; benchmarks/serving_fuzz.py makes many."""
    live = serve(max_tokens=4)
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) > 15

    def check(operation: Any) -> None:
        @seed(0)
        @settings(
            max_examples=8,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {EDIT_KEY}"})
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            assert "Traceback" not in answer.text

        ask()

    for operation in operations:
        check(operation)
