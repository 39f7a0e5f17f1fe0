"""What follows a run: validate, predict, export, generate, chat."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import fit, one_line
from helpers.runs import write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.callbacks.predictions import PredictionWriter
from lit_posttrain.cli.main import main
from lit_posttrain.models.restore import restore


@pytest.mark.parametrize("config", ["dpo.yaml", "simpo.yaml", "orpo.yaml"])
def test_preferences_from_the_command_to_the_folder(
    config: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 5)} for i in range(32)]
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    common = ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    common += ["--data.path", "pairs.jsonl", "--model.optim.lr", "3e-3", "--trainer.max_epochs", "6"]
    assert main(["fit", "--config", config, *common, "--name", "one", "--data.val_fraction", "0.2"]) == 0
    with Path("runs/one/metrics.csv").open() as stream:
        measured = [r for r in csv.DictReader(stream) if r["val/loss"]]
    assert float(measured[-1]["val/rewards/accuracies"]) == 1.0, "rows so alike are learned at once"
    assert float(measured[-1]["val/rewards/margins"]) > float(measured[0]["val/rewards/margins"])
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert main(["generate", "--model", "out", "--prompt", "what is 3", "--max_new_tokens", "4"]) == 0


def test_validate_says_what_it_measured(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.precision", "32-true") == 0
    shown = capsys.readouterr().out
    aside = json.loads(Path("runs/one/audit.json").read_text())["held_out"]
    with Path("runs/one/metrics.csv").open() as stream:
        loss = [float(r["val/loss"]) for r in csv.DictReader(stream) if r["val/loss"]][-1]
    assert f"{aside} held out for validation" in shown
    assert f"val/loss {loss:.4g}" in shown
    assert "lit-posttrain export --ckpt runs/one --out one-hf" in shown
    # a run's folder stands for its best checkpoint, and its config for its data
    assert main(["validate", "--config", "runs/one/config.yaml", "--ckpt_path", "runs/one"]) == 0
    shown = capsys.readouterr().out
    assert f"{tiny_model} with the weights of runs/one/best.ckpt" in shown
    assert f"{aside} examples: the rows held out of {chats}" in shown
    figures = {line.split()[0]: float(line.split()[1]) for line in shown.splitlines() if line.startswith("val/")}
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-4)
    # a file of its own is measured alone
    own = ["--config", "sft.yaml", "--data.val_path", str(chats), "--model.policy.path", str(tiny_model)]
    assert main(["validate", *own, "--trainer.accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "as it is, without a --ckpt_path" in shown
    assert f"24 examples: {chats}" in shown
    assert "held out" not in shown


def test_predict_covers_every_row(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", "--trainer.precision", "32-true") == 0
    common = ["predict", "--config", "runs/one/config.yaml", "--ckpt_path", "last"]
    assert main(common) == 0
    assert "wrote 24 rows to runs/one/predictions.jsonl" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert all(r["logprob"] < 0 and r["tokens"] > 0 for r in rows)
    assert [r["source"] for r in rows] == [f"{chats}:{line}" for line in range(1, 25)]
    answer = json.loads(chats.read_text().splitlines()[3])["completion"]
    fourth = restore("runs/one")
    text = fourth.tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is 3 plus 3"}], tokenize=False, add_generation_prompt=True
    )
    before, whole = (torch.tensor([fourth.tokenizer(t)["input_ids"]]) for t in (text, f"{text}{answer}<|im_end|>"))
    with torch.no_grad():
        logps = fourth.policy.transformer(whole).logits.log_softmax(-1)[0, before.shape[1] - 1 : -1]
    expected = float(logps.gather(1, whole[0, before.shape[1] :, None]).sum())
    assert rows[3]["logprob"] == pytest.approx(expected, abs=1e-3)
    assert main(common) == 2
    assert "predictions.jsonl exists already" in one_line(capsys)
    Path("two.jsonl").write_text("".join(chats.read_text().splitlines(keepends=True)[:2]))
    assert main([*common, "--data.test_path", "two.jsonl", "--overwrite", "true"]) == 0
    rows = [json.loads(line) for line in Path("runs/one/predictions.jsonl").read_text().splitlines()]
    assert [r["source"] for r in rows] == ["two.jsonl:1", "two.jsonl:2"]
    Path("one.jsonl").write_text(chats.read_text().splitlines(keepends=True)[0])
    capsys.readouterr()
    assert main([*common, "--data.test_path", "one.jsonl", "--name", "single"]) == 0
    said = capsys.readouterr().out
    assert "1 example: one.jsonl" in said
    assert "wrote 1 row to" in said
    earlier, write = Path("runs/one/predictions.jsonl").read_bytes(), PredictionWriter.write_on_batch_end

    def stopped(writer: PredictionWriter, *given: Any) -> None:
        if Path("runs/one/predictions.part").read_bytes():
            raise KeyboardInterrupt
        write(writer, *given)

    monkeypatch.setattr(PredictionWriter, "write_on_batch_end", stopped)
    capsys.readouterr()
    assert main([*common, "--data.eval_batch_size", "5", "--overwrite", "true"]) != 0
    assert "5 rows are kept in runs/one/predictions.part" in capsys.readouterr().err
    assert len(Path("runs/one/predictions.part").read_text().splitlines()) == 5
    assert Path("runs/one/predictions.jsonl").read_bytes() == earlier, "the earlier one is not lost"


@pytest.mark.parametrize(
    ("overlay", "extra", "tolerance"),
    [
        ("none", [], 1e-4),
        ("lora", ["--config", "configs/with/lora.yaml"], 1e-4),
        ("qlora", ["--config", "configs/with/qlora.yaml"], 1e-4),
        ("dora", ["--model.policy.lora.r", "4", "--model.policy.lora.dora", "true"], 1e-4),
        ("rslora", ["--model.policy.lora.r", "4", "--model.policy.lora.rslora", "true"], 1e-4),
        ("qdora", ["--config", "configs/with/qlora.yaml", "--model.policy.lora.dora", "true"], 1e-4),
    ],
)
def test_the_exported_folder_equals_the_trained_module(
    overlay: str, extra: list[str], tolerance: float, chats: Path, tiny_model: Path
) -> None:
    # a learning rate that moves the weights enough for a wrong merge to show
    assert fit(chats, tiny_model, *extra, "--name", "one", "--model.optim.lr", "0.01") == 0
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    trained = restore("runs/one").policy.transformer
    plain = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert tokenizer.chat_template
    assert not (Path("out") / "adapter_config.json").exists()
    ids = torch.tensor([tokenizer("what is 3 plus 3")["input_ids"]])
    with torch.no_grad():
        actual, expected = plain(ids).logits, trained(ids).logits
        start = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    assert float((actual - expected).abs().max()) <= tolerance
    assert float((actual - start).abs().max()) > 100 * tolerance, "training changed the model"
    card = (Path("out") / "README.md").read_text()
    assert "SFT" in card
    assert "24 rows" in card
    saved = torch.load("runs/one/last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in saved) == (overlay != "none"), "adapters are saved alone"


def test_adapters_are_exported_for_peft(chats: Path, tiny_model: Path) -> None:
    from peft import PeftModel

    assert fit(chats, tiny_model, "--config", "with/lora.yaml", "--name", "one") == 0
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    kept = restore("runs/one").spec.dtype  # bfloat16, where this processor is fast in it
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=kept)
    loaded = PeftModel.from_pretrained(base, "adapter").float().eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, restore("runs/one").policy.transformer(ids).logits)


def test_generate_and_audit(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["--prompts", str(chats), "--max_new_tokens", "4", "--n", "2", "--temperature", "1.0"]
    assert main(["generate", "--model", str(tiny_model), *prompts, "--out", "answers.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert all(len(r["responses"]) == 2 for r in rows)
    origins = [(one["model"], one["sampling"]["temperature"]) for r in rows for one in r["responses"]]
    assert len(set(origins)) == 1  # annotators and judges learn where a response comes from
    arguments = ["--config", "sft.yaml", "--data.path", str(chats), "--model.policy.path", str(tiny_model)]
    assert main(["audit", *arguments, "--out", "audit.json"]) == 0
    assert "24" in capsys.readouterr().out
    assert json.loads(Path("audit.json").read_text())["total"]["rows"] == 24
    assert not Path("runs").exists(), "an audit leaves no run behind"


def test_chat_keeps_the_conversation(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["what is one", "and two", "/reset", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    assert main(["chat", "--model", str(tiny_model), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.count("model>") == 2


def test_the_card_of_the_best_checkpoint_shows_its_own_figures(chats: Path, tiny_model: Path) -> None:
    # a learning rate that ruins the model: the first validation is the best one
    rates = ["--model.optim.lr", "0.5", "--model.optim.warmup_ratio", "0", "--model.optim.schedule", "constant"]
    steps = ["--data.batch_size", "4", "--trainer.val_check_interval", "1"]
    assert fit(chats, tiny_model, "--name", "one", *rates, *steps) == 0
    best = torch.load("runs/one/best.ckpt", weights_only=True)
    assert best["global_step"] < torch.load("runs/one/last.ckpt", weights_only=True)["global_step"]
    assert main(["export", "--ckpt", "runs/one/best.ckpt", "--out", "out"]) == 0
    with Path("runs/one/metrics.csv").open() as stream:
        logged = [r for r in csv.DictReader(stream) if r["val/loss"]]
    lowest = min(float(r["val/loss"]) for r in logged)
    card = Path("out/README.md").read_text()
    assert f"- val/loss: {lowest:.4f}" in card
    assert f"- val/loss: {float(logged[-1]['val/loss']):.4f}" not in card


def test_answers_keep_the_other_columns(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{n}", "question": f"what is {n}", "answer": str(n)} for n in range(2)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = ["generate", "--model", str(tiny_model), "--prompts", "asked.jsonl", "--max_new_tokens", "2"]
    assert main([*draw, "--out", "out.jsonl"]) == 0
    for row, line in zip(rows, Path("out.jsonl").read_text().splitlines(), strict=True):
        made = json.loads(line)
        assert (made["id"], made["prompt"], made["answer"]) == (row["id"], row["question"], row["answer"])


def test_best_of_n_makes_data_to_train_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [{"prompt": f"what is {n}", "answer": str(n)} for n in range(3)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    draw = ["generate", "--model", str(tiny_model), "--prompts", "asked.jsonl", "--n", "8", "--temperature", "1"]
    draw += ["--max_new_tokens", "8", "--cut_off", "true", "--rewards+=Regex", "--rewards.pattern", "a|e|i|o"]
    found = {}
    for keep in ("best", "all", "pairs"):
        assert main([*draw, "--keep", keep, "--out", f"{keep}.jsonl"]) == 0
        found[keep] = [json.loads(line) for line in Path(f"{keep}.jsonl").read_text().splitlines()]
    assert len(found["best"]) == 3
    for row in found["all"]:
        scores = [answer["reward"] for answer in row["responses"]]
        assert scores == sorted(scores, reverse=True)
        assert row["responses"][0]["rank"] == 0
    for best, pair in zip(found["best"], found["pairs"], strict=False):
        assert best["messages"][-1]["role"] == "assistant"
        assert pair["reward"][0] > pair["reward"][1]
        assert {best["answer"], pair["answer"]} <= {"0", "1", "2"}
    tiny = ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    tiny += ["--trainer.enable_progress_bar", "false", "--data.val_fraction", "0", "--trainer.max_steps", "1"]
    for config, keep in (("sft", "best"), ("reward_kwise", "all"), ("dpo", "pairs")):
        config_file = str(Path(__file__).parents[2] / f"configs/{config}.yaml")
        assert main(["fit", "--config", config_file, "--data.path", f"{keep}.jsonl", "--name", keep, *tiny]) == 0


def test_best_of_n_survives_a_prompt_of_which_all_answers_fail(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_rewards.py").write_text(
        "def picky(completions, answer):\n    return [1 / int(a) + len(c) for c, a in zip(completions, answer)]\n"
    )
    rows = [{"prompt": f"what is {n}", "answer": str(n)} for n in range(3)]  # the first one divides by 0
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = ["generate", "--model", str(tiny_model), "--prompts", "asked.jsonl", "--n", "2", "--temperature", "1"]
    draw += [
        "--max_new_tokens",
        "8",
        "--cut_off",
        "true",
        "--rewards+=FunctionReward",
        "--rewards.function",
        "my_rewards.picky",
    ]
    assert main([*draw, "--keep", "best", "--out", "best.jsonl"]) == 0
    assert len(Path("best.jsonl").read_text().splitlines()) == 2
    assert "reward picky failed on 2 of 6 responses" in caplog.text


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_predictions_of_pairs_and_rankings_say_which_response_they_are_of(
    method: str, chats: Path, tiny_model: Path
) -> None:
    pair = {"prompt": "what is 1 plus 1", "chosen": "1 plus 1 equals 2", "rejected": "3"}
    other = {"prompt": "what is 2 plus 2", "chosen": "4", "rejected": "2 plus 2 equals 5"}
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (pair, other)))
    ranked = [{"text": "2 plus 2", "rank": 1}, {"text": "4", "rank": 0}, {"text": "six and seven", "rank": 2}]
    Path("ranked.jsonl").write_text(json.dumps({"prompt": "what is 2 plus 2", "responses": ranked}) + "\n")
    common = ["predict", "--config", f"configs/{method}.yaml", "--model.policy.path", str(tiny_model)]
    for name, expected in (("pairs", [(0, 0), (1, 1)] * 2), ("ranked", [(0, 1), (1, 0), (2, 2)])):
        assert main([*common, "--name", name, "--data.path", f"{name}.jsonl", "--trainer.accelerator", "cpu"]) == 0
        rows = [json.loads(line) for line in Path(f"runs/{name}/predictions.jsonl").read_text().splitlines()]
        assert [(row["response"], row["rank"]) for row in rows] == expected
        assert len({row["tokens"] for row in rows if row["source"] == f"{name}.jsonl:1"}) > 1
        value = "score" if method == "reward" else "logprob"
        assert all(isinstance(row[value], float) for row in rows)


def test_best_of_n_says_what_it_leaves_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"what is {n}", "answer": "a fox" if n else None} for n in range(20)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = ["generate", "--model", str(tiny_model), "--prompts", "asked.jsonl", "--n", "3", "--temperature", "1"]
    draw += ["--max_new_tokens", "1", "--out", "out.jsonl", "--rewards+=ExactMatch", "--seed", "4"]
    assert main([*draw, "--keep", "best"]) == 2
    told = "nothing is left to keep: 60 of 60 answers were cut off at 1 tokens (--max_new_tokens, --cut_off true)"
    assert told in capsys.readouterr().err
    assert main([*draw, "--keep", "best", "--cut_off", "true", "--min_reward", "1"]) == 2
    told = r"\d+ of 60 answers have no score, or no text; 19 of 20 prompts have no answer of at least 1.0"
    assert re.search(told, capsys.readouterr().err)
    assert main([*draw, "--keep", "pairs", "--cut_off", "true"]) == 2
    assert "19 of 20 prompts have no two answers of different scores" in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
    assert main([*draw, "--keep", "best", "--cut_off", "true"]) == 0
    assert 10 < len(Path("out.jsonl").read_text().splitlines()) <= 19, "some answers are empty"


def test_best_of_n_says_what_it_needs(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "what is it"}\n')
    draw = ["generate", "--model", str(tiny_model), "--prompts", str(tmp_path / "asked.jsonl")]
    assert main([*draw, "--keep", "best"]) == 2
    assert "--keep and --rewards go together" in capsys.readouterr().err
    assert main([*draw, "--keep", "best", "--rewards+=Repetition"]) == 2
    assert "pass --n 8, say, and --temperature 1" in capsys.readouterr().err
    assert main([*draw, "--keep", "best", "--n", "2", "--temperature", "1", "--rewards+=ExactMatch"]) == 2
    assert "ExactMatch needs the column `answer`" in capsys.readouterr().err


@pytest.mark.parametrize("adapters", [[], ["--model.policy.lora.r", "2"]], ids=["all weights", "adapters"])
def test_a_run_on_relative_paths_is_used_from_any_folder(
    adapters: list[str], chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, "model")
    Path("tok").mkdir()
    for file in [*Path("model").glob("*token*"), Path("model/chat_template.jinja")]:
        file.rename(Path("tok") / file.name)
    Path("t.jinja").write_text(tiny.CHATML)
    own = ["--model.policy.tokenizer", "tok", "--model.policy.chat_template", "t.jinja", "--trainer.max_steps", "1"]
    assert fit(chats, Path("model"), "--name", "one", *own, *adapters) == 0
    Path("other").mkdir()
    monkeypatch.chdir("other")
    assert main(["generate", "--model", "../runs/one", "--prompt", "what is 3", "--max_new_tokens", "2"]) == 0
    assert main(["export", "--ckpt", "../runs/one", "--out", "hf"]) == 0
    assert main(["fit", "--resume", "../runs/one", "--trainer.max_steps", "2"]) == 0


AUDITED: dict[str, dict[str, object]] = {
    "sft.yaml": {"prompt": "what is it", "completion": "a fox"},
    "dpo.yaml": {"prompt": "what is it", "chosen": "a fox", "rejected": "a dog"},
    "reward.yaml": {"prompt": "what is it", "chosen": "a fox", "rejected": "a dog"},
    "kto.yaml": {"prompt": "what is it", "completion": "a fox", "label": True},
    "grpo_gsm8k.yaml": {"question": "how many are there", "answer": "There are #### 5"},
}


@pytest.mark.parametrize("config", AUDITED)
def test_every_kind_of_data_is_audited(
    config: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[dict[str, object]] = []
    for number in range(20):
        row = {name: f"{said} {number}" if isinstance(said, str) else said for name, said in AUDITED[config].items()}
        made.append(row | ({"label": number % 2 == 0} if "label" in row else {}))
    rows = write(tmp_path / "rows.jsonl", made)
    assert main(["audit", "--config", config, "--model.policy.path", str(tiny_model), "--data.path", rows]) == 0
    assert "rows read" in capsys.readouterr().out
