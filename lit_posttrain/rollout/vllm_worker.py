"""The process in which vLLM lives, and the only file that knows it. Not to be run by itself: see vllm_engine.py.

Requests come as JSON lines on standard input, answers go as JSON lines to the pipe whose number is the only argument;
weights come as safetensors files. Nothing is unpickled. When the trainer is gone, so is its end of standard input, and
this process ends, whatever it is at.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

Answer = dict[str, Any]


class Worker:
    """Does what requests ask for, by the name in their `do`."""

    def __init__(self, requests: queue.Queue[dict[str, Any]], answer: Any) -> None:
        self.requests, self.answer = requests, answer
        self.llm: Any = None

    def start(self, arguments: dict[str, Any]) -> Answer:
        """Build the engine with weights that mean nothing."""
        from vllm import LLM

        self.llm = LLM(**arguments)
        return {"length": int(self.llm.llm_engine.model_config.max_model_len)}

    def load(self) -> Answer:
        """Take weights, a file a request, until one says that there are no more."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._incoming()})
        self.llm.reset_prefix_cache()
        return {}

    def _incoming(self) -> Iterator[tuple[str, Any]]:
        from safetensors.torch import load_file

        while file := self.requests.get()["file"]:
            yield from load_file(file).items()
            self.answer({"read": file})

    def score(self, tokens: list[int]) -> Answer:
        """Log-probs of all tokens but the first, each after those before it."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        self.llm.reset_prefix_cache()  # what is cached is not scored
        (found,) = self.llm.generate([{"prompt_token_ids": tokens}], asked, use_tqdm=False)
        scores = zip(tokens[1:], found.prompt_logprobs[1:], strict=True)
        return {"logprobs": [row[token].logprob for token, row in scores]}

    def generate(self, prompts: list[list[int]], room: list[int], stop: list[int], sampling: dict[str, Any]) -> Answer:
        """The samples of each prompt: tokens, log-probs, and True if an end token came."""
        from vllm import SamplingParams

        seeds = sampling.pop("seeds")  # vLLM draws sample k of a prompt by its seed + k
        asked = [
            SamplingParams(
                **sampling,
                max_tokens=size,
                stop_token_ids=stop,
                logprobs=0,
                detokenize=False,
                seed=seed,
            )
            for size, seed in zip(room, seeds, strict=True)
        ]
        drawn = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return {"samples": [[_sample(one) for one in sorted(of.outputs, key=lambda o: o.index)] for of in drawn]}

    def sleep(self) -> Answer:
        """Free what the engine holds of a GPU: its cache, and the weights, which come anew."""
        self.llm.sleep(level=2)
        return {}

    def wake(self, tag: str) -> Answer:
        """Take up room for `weights` or for the cache (`kv_cache`) again."""
        self.llm.wake_up(tags=[tag])
        return {}


def _sample(one: Any) -> dict[str, Any]:
    tokens = list(one.token_ids)
    logprobs = [row[token].logprob for token, row in zip(tokens, one.logprobs, strict=True)]
    return {"tokens": tokens, "logprobs": logprobs, "stopped": one.finish_reason == "stop"}


def _read(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # the trainer is gone


def main() -> None:
    """Serve until standard input ends."""
    pipe = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8")

    def answer(told: Answer) -> None:
        pipe.write(json.dumps(told) + "\n")
        pipe.flush()

    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    worker = Worker(requests, answer)
    while True:
        request = requests.get()
        try:
            told = getattr(worker, request.pop("do"))(**request)
        except Exception as problem:
            lines = str(problem).strip().splitlines() or [""]
            answer({"error": f"{type(problem).__name__}: {lines[0]}"})
            raise  # its traceback goes to the log
        answer({"done": told})


if __name__ == "__main__":
    main()
