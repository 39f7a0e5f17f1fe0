"""Loss and gradient of distillation: beside TRL's DistillationTrainer, and beside whole logits in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.on_policy import save_recurrent
from torch import Tensor

from lit_posttrain import Distillation, ModelSpec, Response, RolloutConfig, Tree, TreeBatch, loss_of
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate

BETAS = [0.0, 0.5, 1.0]
TEMPERATURE = 0.7
GROUP, SIZES = 3, [5, 12, 1, 7, 3, 9]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("student") / "llama", seed=2)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """alike: of the student's architecture, wider. padded: its head has entries that the tokenizer does not. recurrent:
    it reads one sequence a row."""
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "alike": tiny.save_model(
            folder / "alike", seed=1, hidden_size=96, num_attention_heads=6, num_key_value_heads=2
        ),
        "padded": tiny.save_model(folder / "padded", seed=3, vocab_size=576),
        "recurrent": save_recurrent(folder / "recurrent", seed=4),
    }


def causal(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def sampled() -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) token ids of two groups, of unequal lengths."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 390, size).tolist() for size in (6, 11)]
    return [(prompts[i // GROUP], random.integers(3, 390, size).tolist()) for i, size in enumerate(SIZES)]


def trees() -> list[Tree]:
    """The same as two prompts with three responses each; not every token of the first one is trained on."""
    found: list[Tree] = []
    for place, (prompt, said) in enumerate(sampled()):
        if place % GROUP == 0:
            found.append(Tree(np.array(prompt, np.int32), []))
        mask = np.ones(len(said), np.bool_)
        mask[1:3] = place > 0
        found[-1].responses.append(Response(np.array(said, np.int32), mask))
    return found


def padded(parts: list[Any], left: bool) -> tuple[Tensor, Tensor]:
    """The parts as rows, and where they are."""
    width = max(len(part) for part in parts)
    whole, mask = torch.zeros(len(parts), width, dtype=torch.int64), torch.zeros(len(parts), width, dtype=torch.int64)
    for row, part in enumerate(parts):
        here = slice(width - len(part), None) if left else slice(0, len(part))
        whole[row, here], mask[row, here] = torch.as_tensor(part), 1
    return whole, mask


def trl_side(student: Path, teacher: Path, beta: float, out: Path) -> tuple[float, Any]:
    """TRL's loss of two micro-batches, and its model with the gradient."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    trainer: Any = DistillationTrainer(
        model=causal(student, torch.float32),
        teacher_model=causal(teacher, torch.float32),
        args=DistillationConfig(
            output_dir=str(out),
            beta=beta,
            temperature=TEMPERATURE,
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "question"}] * 4),
        processing_class=tiny.tokenizer(),
    )
    trainer.model.train()
    prompts, prompt_mask = padded([prompt for prompt, _ in sampled()], left=True)
    said, said_mask = padded([said for _, said in sampled()], left=False)
    trained = padded([response.loss_mask for tree in trees() for response in tree.responses], left=False)[0]
    total = 0.0
    for rows in (slice(0, 4), slice(4, 6)):
        inputs = {"prompt_ids": prompts[rows], "prompt_mask": prompt_mask[rows]}
        inputs |= {"completion_ids": said[rows], "completion_mask": said_mask[rows], "tool_mask": trained[rows]}
        loss = trainer.compute_loss(trainer.model, {**inputs, "num_items_in_batch": trained.sum()})
        loss.backward()
        total += float(loss.detach())
    return total, trainer.model


def built(student: Path, teacher: Path, dtype: Any, **options: Any) -> Distillation:
    """The module with its models."""
    module = Distillation(
        ModelSpec(str(student), dtype=dtype),
        ModelSpec(str(teacher), dtype=dtype),
        rollout=RolloutConfig(group_size=GROUP, temperature=TEMPERATURE),
        **options,
    )
    module.configure_model()
    return module


def batch_of(module: Distillation) -> TreeBatch:
    found = trees()
    return collate(found, module.layout, step_denominators(MemoryTrees(found), range(len(found))))


def our_side(module: Distillation) -> float:
    """Our loss; its gradient is in the module."""
    batch = batch_of(module)
    loss = loss_of(module.loss_terms(batch), batch.denominators)
    loss.backward()
    return float(loss.detach())


def same_gradient(mine: Any, theirs: Any, tolerance: float) -> None:
    gradients = {name: p.grad for name, p in mine.named_parameters()}
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters())
    assert largest > 1e-3
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=tolerance, atol=tolerance * largest), name


@pytest.mark.parametrize("beta", BETAS)
def test_loss_and_gradient_are_trls(beta: float, student: Path, teachers: dict[str, Path], tmp_path: Path) -> None:
    expected, theirs = trl_side(student, teachers["alike"], beta, tmp_path)
    module = built(student, teachers["alike"], "float32", beta=beta)
    assert our_side(module) == pytest.approx(expected, rel=1e-5)
    same_gradient(module.language_model.transformer, theirs, 1e-4)


def whole_logits(student: Any, teacher: Any, beta: float, entries: int) -> Tensor:
    """The loss, a token at a time from the logits of one sequence at a time."""
    losses = []
    for (prompt, said), response in zip(sampled(), (r for tree in trees() for r in tree.responses), strict=True):
        ids = torch.tensor([prompt + said])
        here = slice(len(prompt) - 1, -1)
        ours, theirs = (
            torch.log_softmax(model(ids).logits[0, here, :entries] / TEMPERATURE, -1) for model in (student, teacher)
        )
        theirs = theirs.detach()
        for log_p, log_q, trained in zip(ours, theirs, response.loss_mask.tolist(), strict=True):
            if not trained:
                continue
            log_m = torch.log((1 - beta) * log_p.exp() + beta * log_q.exp())
            forward, reverse = (log_q.exp() * (log_q - log_p)).sum(), (log_p.exp() * (log_p - log_q)).sum()
            to_mixture = (
                beta * (log_q.exp() * (log_q - log_m)).sum() + (1 - beta) * (log_p.exp() * (log_p - log_m)).sum()
            )
            losses.append(forward if beta == 0 else reverse if beta == 1 else to_mixture)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("kind", "entries"), [("alike", 512), ("padded", len(tiny.tokenizer())), ("recurrent", 512)])
def test_whole_logits_in_double_precision(
    kind: str, entries: int, beta: float, student: Path, teachers: dict[str, Path]
) -> None:
    theirs = causal(student, torch.float64)
    expected = whole_logits(theirs, causal(teachers[kind], torch.float64), beta, entries)
    expected.backward()
    module = built(student, teachers[kind], "float64", beta=beta)
    assert (module.teacher.model.layout is not None) == (kind == "recurrent")
    assert our_side(module) == pytest.approx(float(expected.detach()), rel=1e-6)
    same_gradient(module.language_model.transformer, theirs, 1e-6)  # transformers norms in float32


def test_without_a_graph_there_is_no_gradient(student: Path, teachers: dict[str, Path]) -> None:
    module = built(student, teachers["alike"], "float32")
    with torch.no_grad():
        assert not module.loss_terms(batch_of(module))["divergence"].total.requires_grad
    values = module.metrics_of(batch_of(module))
    assert values["loss"] == pytest.approx(our_side(module), rel=1e-6)
    assert values["entropy"] > 1
