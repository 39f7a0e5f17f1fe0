"""An OpenAI-compatible endpoint that judges by a rule which is known: what a policy should learn from it is known too.

    python benchmarks/scripted_judge.py --rule second    # prints its URL, and serves until it is ended

second: the response is the second of the words in the prompt, as benchmarks/demo_words.py asks. longer: the longer
response is the better one, whatever it says. It answers the questions of lit_posttrain's judges: a mark from 0 to 9 by
the probabilities of the digits, A or B by those of the letters, or a ranking in words.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONGEST = 100  # characters that `longer` gives its best mark
SURE = 0.95  # the probability of an answer that is clear

Rule = Callable[[str, str], float]  # of the prompt's last message and a response: from 0 to 1


def second(prompt: str, response: str) -> float:
    """1 for the second word, else 0."""
    words = [word.strip() for word in prompt.partition(":")[0].split(",")]
    return float(len(words) > 1 and response.strip() == words[1])


def longer(prompt: str, response: str) -> float:
    """The share of the longest length that counts."""
    return min(len(response), LONGEST) / LONGEST


RULES: dict[str, Rule] = {"second": second, "longer": longer}


@dataclass(frozen=True)
class Question:
    """What a judge is shown. prompt: the conversation's last message. responses: one or more."""

    prompt: str
    responses: Sequence[str]


def question(text: str) -> Question:
    """The parts of a question that are between lines with its mark."""
    found = re.search(r'begin with "(=== [0-9a-f]+)"', text)
    if found is None:
        raise ValueError("no mark between the parts")
    mark = re.escape(found[1])
    parts = re.findall(rf"^{mark} ([^\n]+)\n(.*?)(?=\n{mark} )", text, re.MULTILINE | re.DOTALL)
    said = [words for name, words in parts if name.startswith("response")]
    return Question([words for name, words in parts if not name.startswith("response")][-1], said)


def answered(asked: dict[str, Any], rule: Rule) -> dict[str, Any]:
    """The body of a chat completion."""
    about = question(asked["messages"][-1]["content"])
    values = [rule(about.prompt, response) for response in about.responses]
    if not asked.get("logprobs"):
        said, likely = ranking(values), {}
    elif len(values) == 1:
        said = str(round(9 * values[0]))
        likely = {said: 1.0}
    else:
        first = 0.5 if values[0] == values[1] else SURE if values[0] > values[1] else 1 - SURE
        said = "A" if first >= 0.5 else "B"
        likely = {"A": first, "B": 1 - first}
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": said},
        "finish_reason": "stop",
        "logprobs": None,
    }
    if likely:
        top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in likely.items()]
        choice["logprobs"] = {"content": [{"token": said, "logprob": 0.0, "bytes": None, "top_logprobs": top}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    told = {"id": "0", "object": "chat.completion", "created": 0, "model": asked["model"]}
    return {**told, "choices": [choice], "usage": usage}


def ranking(values: Sequence[float]) -> str:
    """The ranking of the responses, as listwise judges write it."""
    levels: dict[float, list[str]] = {}
    for place, value in enumerate(values):
        levels.setdefault(value, []).append(chr(ord("A") + place))
    ranked = " > ".join(" = ".join(levels[value]) for value in sorted(levels, reverse=True))
    return f"By the rule.\nRanking: {ranked}"


class Server(ThreadingHTTPServer):
    """Answers by a rule. calls: so far."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rule: Rule, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.rule, self.calls = rule, 0

    @property
    def url(self) -> str:
        """What --judge.endpoint takes."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        self.server.calls += 1
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(answered(asked, self.server.rule)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", required=True, choices=list(RULES))
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    options = parser.parse_args()
    with Server(RULES[options.rule], options.port) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
