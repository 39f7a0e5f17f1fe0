"""Reward models: scores that no layout changes, a folder that plain transformers reads, honest figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import rankings
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lit_posttrain import ModelSpec, PostTrainError, PreferenceData, Response, RewardModel, Tree
from lit_posttrain.cli.main import main
from lit_posttrain.data.store.packing import collate
from lit_posttrain.models.loading import build_scorer
from lit_posttrain.ops.calibration import reliability_sums
from lit_posttrain.types import Pairs, RowLayout

TEXTS = [
    ("what is 3 plus 3", "it is 6"),
    ("the quick brown fox", "jumps over the lazy dog and seven wizards brew strong potions at night"),
    ("question", "answer"),
]
LAYOUTS = {
    "flat": RowLayout(tails=True, flat=True),
    "unshared": RowLayout(tails=True, shared=False),
    "one a row, padded": RowLayout(tails=True, shared=False, packed=False),
    "packed, padded to 64": RowLayout(tails=True, multiple=64),
}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a reward model has been trained (`runs/rm`) and exported (`hf`)."""
    home = tmp_path_factory.mktemp("reward")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LIT_POSTTRAIN_CACHE", str(home / "cache"))
        shutil.copytree(tiny_model, "base")  # padded with the end token, as most chat models are
        tokenizer = AutoTokenizer.from_pretrained("base", pad_token="<|im_end|>")
        tokenizer.save_pretrained("base")
        config = AutoConfig.from_pretrained("base", pad_token_id=tokenizer.eos_token_id)
        config.save_pretrained("base")
        options = ["--model.policy.path", "base", "--wandb.mode", "disabled", "--name", "rm"]
        options += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
        options += ["--model.optim.lr", "1e-3", "--trainer.precision", "32-true"]
        assert main(["fit", "--config", "configs/reward_kwise.yaml", *options]) == 0
        assert main(["export", "--ckpt", "runs/rm/last.ckpt", "--out", "hf"]) == 0
        rows: list[dict[str, Any]] = [{"prompt": p, "completion": c} for p, c in TEXTS]
        Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return home


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_a_score(layout: str, tiny_model: Path) -> None:
    scorer = build_scorer(ModelSpec(str(tiny_model), dtype="float64"), 400).eval()
    trees = rankings(12)
    for tree in trees:  # a score is read behind the last trained token, too
        tree.responses[0].loss_mask[-1:] = False
    batch = collate(trees, LAYOUTS[layout], {})
    alone = []
    for tree in trees:
        for response in tree.responses:
            ids = torch.from_numpy(np.concatenate([tree.prompt, response.tokens]).astype(np.int64))
            hidden = scorer.transformer.model(ids[None]).last_hidden_state
            alone.append(scorer.transformer.score(hidden[0, -1]))
    torch.testing.assert_close(scorer(batch), torch.cat(alone), atol=1e-10, rtol=0)


def test_a_layout_without_tails_ends_at_the_last_counted_token(tiny_model: Path) -> None:
    scorer = build_scorer(ModelSpec(str(tiny_model)), 400).eval()
    marks = np.array([True, True, False])
    tree = Tree(np.array([5, 6], np.int32), [Response(np.array([7, 8, 9], np.int32), marks)])
    cut = Tree(np.array([5, 6], np.int32), [Response(np.array([7, 8], np.int32), marks[:2])])
    expected = scorer(collate([cut], RowLayout(tails=True), {}))
    assert torch.equal(scorer(collate([tree], RowLayout(), {})), expected)
    assert not torch.equal(scorer(collate([tree], RowLayout(tails=True), {})), expected)


def test_exported_folder_scores_a_padded_batch_in_plain_transformers_as_we_do(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    for model, out in (("hf", "a.jsonl"), ("runs/rm/last.ckpt", "b.jsonl")):
        assert main(["score", "--model", model, "--data", "rows.jsonl", "--out", out, "--overwrite", "true"]) == 0
    ours = [json.loads(line)["scores"][0] for line in Path("a.jsonl").read_text().splitlines()]
    trained = [json.loads(line)["scores"][0] for line in Path("b.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained("hf")
    model_ = AutoModelForSequenceClassification.from_pretrained("hf")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model_.config.pad_token_id == tokenizer.pad_token_id
    chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in TEXTS]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        inputs = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        plain = model_(**inputs).logits[:, 0]
        torch.testing.assert_close(plain, torch.tensor(ours), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(trained), torch.tensor(ours), atol=1e-5, rtol=0)
    assert max(ours) - min(ours) > 1e-2, "equal scores would prove nothing"


def test_score_keeps_the_order_of_responses_and_says_what_it_could_not_score(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    rows: list[dict[str, Any]] = [
        {"prompt": "what is it", "responses": [{"text": "a fox"}, {"text": "a lazy dog"}, {"text": "the night"}]},
        {"prompt": "what is it", "responses": [{"text": "a lazy dog"}, {"text": "a fox"}]},
        {"prompt": "what is it", "responses": [{"text": ""}, {"text": "a fox"}]},
        {"prompt": "what is it", "responses": [{"text": "a fox"}, {"text": "a fox"}]},
    ]
    Path("drawn.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["score", "--model", "hf", "--data", "drawn.jsonl"]) == 0
    shown = capsys.readouterr()
    first, second, third, fourth = (json.loads(line) for line in shown.out.splitlines())
    assert first["prompt"] == "what is it"
    assert first["scores"][:2] == pytest.approx(second["scores"][::-1], abs=1e-5)
    assert third["scores"] is None
    assert fourth["scores"] == pytest.approx([first["scores"][0]] * 2, abs=1e-5), "the same twice is no mistake here"
    assert "drawn.jsonl:3: dropped, empty response" in shown.err
    judged = {"instruction": "what is it", "output_1": "a fox", "output_2": "a lazy dog", "label": 2}
    Path("judged.jsonl").write_text(json.dumps(judged) + "\n")
    assert main(["score", "--model", "hf", "--data", "judged.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(first["scores"][:2], abs=1e-5)


def test_score_gives_a_conversation_one_score_and_keeps_what_is_no_unicode(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    turns = [("user", "what is it"), ("assistant", "a fox"), ("user", "and then"), ("assistant", "a lazy dog")]
    talk = {"messages": [{"role": role, "content": said} for role, said in turns]}
    Path("talk.jsonl").write_text(json.dumps(talk) + "\n")
    assert main(["score", "--model", "hf", "--data", "talk.jsonl"]) == 0
    (expected,) = json.loads(capsys.readouterr().out)["scores"]
    shutil.copytree("hf", "rewriting")
    tokenizer = AutoTokenizer.from_pretrained("rewriting")
    # leaves "a" out of all turns but the last, as templates of reasoning models leave the reasoning out
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "(message['content'] if loop.last else message['content'].replace('a ', ''))"
    )
    tokenizer.save_pretrained("rewriting")
    assert main(["score", "--model", "rewriting", "--data", "talk.jsonl"]) == 0
    (rewritten,) = json.loads(capsys.readouterr().out)["scores"]
    assert rewritten != pytest.approx(expected, abs=1e-5)
    halves = [{"prompt": "a", "chosen": said, "rejected": "c"} for said in ("b \ud83d", "b")]
    Path("half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in halves))
    assert main(["score", "--model", "hf", "--data", "half.jsonl", "--out", "half-scored.jsonl"]) == 0
    row, _ = map(json.loads, Path("half-scored.jsonl").read_text().splitlines())
    assert (row["chosen"], row["scores"]) == ("b \ud83d", None)
    assert main(["score", "--model", "hf", "--data", "half-scored.jsonl"]) == 2
    assert "half-scored.jsonl:1: has a column `scores` already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"q": "what is it", "up": "a fox", "down": "a lazy dog"}, ("prompt=q", "chosen=up", "rejected=down")),
        ({"q": "what is it", "a": "a fox"}, ("prompt=q", "completion=a")),
    ],
)
def test_score_takes_names_of_columns(
    row: dict[str, str],
    options: tuple[str, ...],
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run)
    known = {"prompt": "what is it", "responses": ["a fox", "a lazy dog"]}
    Path("known.jsonl").write_text(json.dumps(known) + "\n")
    Path("own.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["score", "--model", "hf", "--data", "known.jsonl"]) == 0
    expected = json.loads(capsys.readouterr().out)["scores"][: len(row) - 1]
    own = ["score", "--model", "hf", "--data", "own.jsonl"]
    assert main([*own, *(f"--columns.{option}" for option in options)]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(expected, abs=1e-5)
    assert main([*own, "--columns.chosen", "best", "--columns.rejected", "down"]) == 2
    assert "no column `best` (--columns.chosen)" in capsys.readouterr().err
    Path("own.jsonl").write_text(json.dumps({"prompt": "what is it", "chosen": "a fox", "rejcted": "a dog"}) + "\n")
    assert main(own) == 2
    assert "did you mean --columns.rejected rejcted?" in capsys.readouterr().err


def test_score_reads_sides_of_several_turns_and_keeps_what_rows_had(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)

    def chat(*turns: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]

    sides = {"chosen": chat("what", "a fox", "and", "a dog"), "rejected": chat("what", "the night", "and", "a dog")}
    Path("one.jsonl").write_text(json.dumps(sides) + "\n")
    Path("chat.jsonl").write_text(json.dumps({"messages": sides["chosen"]}) + "\n")
    found = []
    for file in ("one.jsonl", "chat.jsonl"):
        assert main(["score", "--model", "hf", "--data", file]) == 0
        found.append(json.loads(capsys.readouterr().out)["scores"])
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][0] != pytest.approx(found[0][1], abs=1e-5)
    Path("one.jsonl").write_text(json.dumps({**sides, "scores": [9, 9]}) + "\n")
    assert main(["score", "--model", "hf", "--data", "one.jsonl"]) == 2
    assert "has a column `scores` already" in capsys.readouterr().err


def test_validation_reports_calibration_and_length_bias(run: Path) -> None:
    header = (run / "runs/rm/metrics.csv").read_text().splitlines()[0].split(",")
    for name in ("rewards/accuracies", "rewards/margins", "ece", "brier", "length/score_correlation"):
        assert f"val/{name}" in header
    assert not any("_bin" in name or "_moment" in name for name in header)


def test_a_margin_that_is_no_number_shows_in_the_calibration_and_ends_nothing() -> None:
    count, confidence, _ = reliability_sums(torch.tensor([1.0, torch.nan]), torch.zeros(2))
    assert float(count.sum()) == 2
    assert bool(confidence.sum().isnan())


def test_figures_of_calibration_and_length_on_hand_computed_pairs(tiny_model: Path) -> None:
    module = RewardModel(ModelSpec(str(tiny_model)))
    sums: dict[str, tuple[float, float]] = {}

    def track(name: str, total: Any, count: Any) -> None:
        sums[name] = (float(total), float(count))

    module.track = track  # type: ignore[method-assign]  # there is no trainer
    score, length = torch.tensor([2.0, 0.0, 1.0, 1.5]), torch.tensor([10.0, 9.0, 4.0, 8.0])
    pairs = Pairs(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([0.0, 0.2]), torch.zeros(2))
    module._track_quality(score, length, pairs)
    values = {name: total / count for name, (total, count) in sums.items() if count}
    found = module.derived_metrics(values)
    first, second = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-0.5))  # confidences; the second prefers the worse one
    assert found["ece"] == pytest.approx((abs(1 - first) + abs(0.2 - second)) / 2)
    assert values["brier"] == pytest.approx(((1 - first) ** 2 + (0.8 - (1 - second)) ** 2) / 2)
    assert found["length/score_correlation"] == pytest.approx(np.corrcoef(score, length)[0, 1])
    assert values["length/similar_accuracies"] == 1.0  # 10 and 9 tokens; 4 and 8 are not alike
    assert values["length/longer_scored_higher"] == 1.0
    assert values["length/longer_preferred"] == pytest.approx((1 + 0.2) / 2)


def test_margins_come_from_the_data(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "what", "chosen": "a fox", "rejected": "a dog", "margin": 1.5}) + "\n")
    data = PreferenceData(str(file), cache_dir=str(tmp_path / "cache"))
    data.build(tokenizer)
    assert [r.labels for r in data.train_store[0].responses] == [{"rank": 0, "margin": 1.5}, {"rank": 1}]
    with pytest.raises(PostTrainError, match="no use for margins"):
        RewardModel(ModelSpec(str(tiny_model)), loss="plackett_luce").check_store(data.train_store)
    file.write_text(json.dumps({"prompt": "what", "chosen": "a fox", "rejected": "a dog", "margin": "much"}) + "\n")
    with pytest.raises(PostTrainError, match=r"pairs.jsonl:1: `margin` is 'much'; a margin is a number"):
        PreferenceData(str(file), cache_dir=str(tmp_path / "cache")).build(tokenizer)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["score", "--model", "MODEL", "--data", "rows.jsonl"], "a language model without a score head"),
        (["generate", "--model", "hf", "--prompt", "hello"], "a reward model cannot write"),
        (["fit", "--config", "configs/dpo.yaml", "--model.policy.path", "hf"], "is a reward model or classifier"),
        (["score", "--model", "hf", "--data", "rows.jsonl", "--out", "rows.jsonl"], "exists already"),
    ],
)
def test_mistakes_are_one_line(
    command: list[str],
    message: str,
    run: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(run / "cache"))
    assert main([str(tiny_model) if word == "MODEL" else word for word in command]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapters_are_merged_into_the_folder(
    quantization: str | None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score head is trained whole beside the adapters, and kept out of quantization."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    options = ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--model.policy.lora.r", "4"]
    options += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--name", "rm"]
    options += ["--model.optim.lr", "1e-2", "--trainer.max_steps", "3", "--trainer.precision", "32-true"]
    options += ["--model.policy.quantization", quantization] if quantization else []
    assert main(["fit", "--config", "configs/reward.yaml", *options]) == 0
    assert main(["export", "--ckpt", "runs/rm/last.ckpt", "--out", "hf"]) == 0
    found = []
    for model in ("hf", "runs/rm/last.ckpt"):
        out = f"{Path(model).name}.jsonl"
        assert main(["score", "--model", model, "--data", "builtin:demo_preferences", "--out", out]) == 0
        found.append([s for line in Path(out).read_text().splitlines() for s in json.loads(line)["scores"]])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
