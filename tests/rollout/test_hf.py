"""The embedded engine against transformers' own generate, and its log-probs against a teacher-forced forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.attention import NAME, register
from lit_posttrain.models.policy import DecodeOutput, Policy
from lit_posttrain.rollout.engine import Completion, Sampling, prompt_seed
from lit_posttrain.rollout.hf import HFEngine, random_numbers, sample

EOS = [2, 9]
PROMPTS = [[5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18], [40, 41], [30, 31, 32, 33, 34, 35], [50]]


def make(kind: str = "llama", **changes: Any) -> Any:
    register()  # the attention that policies have on a CPU
    torch.manual_seed(3)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**sizes, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"attn_implementation": NAME}),
        ("mistral", {"sliding_window": 5}),
        ("gemma3_text", {"sliding_window": 5}),
        ("gpt_neox", {}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba", {"state_size": 4}),
        ("falcon_mamba", {"state_size": 4}),
        ("rwkv", {}),
        ("qwen3_next", {"num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2}),
        ("gpt_oss", {"num_local_experts": 4, "sliding_window": 5}),
    ],
)
def test_greedy_equals_transformers(kind: str, changes: dict[str, Any]) -> None:
    model = make(kind, **changes)
    drawn = HFEngine(Policy(model).eval(), EOS, batch_size=3).generate(PROMPTS, 1, Sampling(20, temperature=0.0))
    lengths = set()
    for prompt, (completion,) in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=EOS
        )[0, len(prompt) :].tolist()
        assert completion.tokens == expected
        assert completion.finish_reason == ("stop" if expected[-1] in EOS else "length")
        lengths.add(len(expected))
    assert len(lengths) > 1 or kind != "llama", "responses of different lengths are the point of this test"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("llama", {}), ("lfm2", {"layer_types": ["conv", "full_attention"]}), ("mamba", {"state_size": 4})],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(
    temperature: float, kind: str, changes: dict[str, Any]
) -> None:
    model = make(kind, **changes)
    sampling = Sampling(16, temperature=temperature, seed=6)
    drawn = HFEngine(Policy(model), EOS).generate(PROMPTS, 4, sampling)
    reasons = {c.finish_reason for group in drawn for c in group}
    assert reasons == {"stop", "length"}
    for prompt, group in zip(PROMPTS, drawn, strict=True):
        assert len({tuple(c.tokens) for c in group}) > 1, "samples of one prompt differ"
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.tokens]])
            logps = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
            expected = logps.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_same_seed_same_responses_and_global_rng_untouched() -> None:
    engine = HFEngine(Policy(make()), EOS)
    state = torch.get_rng_state()
    first = engine.generate(PROMPTS, 2, Sampling(8, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert engine.generate(PROMPTS, 2, Sampling(8, seed=1)) == first
    assert engine.generate(PROMPTS, 2, Sampling(8, seed=2)) != first


def test_samples_of_one_prompt_are_cut_to_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(make())
    sizes: list[int] = []
    inner = policy.decode

    def watched(ids: torch.Tensor, *rest: Any) -> DecodeOutput:
        sizes.append(len(ids))
        return inner(ids, *rest)

    monkeypatch.setattr(policy, "decode", watched)  # to see how many are decoded together
    found = HFEngine(policy, EOS, batch_size=4).generate(PROMPTS, 6, Sampling(8, seed=1))
    assert max(sizes) == 4
    assert [len(drawn) for drawn in found] == [6] * len(PROMPTS)
    assert len({tuple(one.tokens) for one in found[0]}) > 4, "the parts are not the same samples again"


def test_a_sample_depends_on_its_seed_alone() -> None:
    """Not on what is decoded beside it, nor on which process decodes it. Rounding apart, hence double precision."""
    policy = Policy(make().double())
    whole = HFEngine(policy, EOS).generate(PROMPTS, 6, Sampling(8, seed=1))

    def tokens(drawn: list[list[Completion]]) -> list[list[list[int]]]:
        return [[one.tokens for one in samples] for samples in drawn]

    for batch_size in (4, 6, 13):
        again = HFEngine(policy, EOS, batch_size=batch_size).generate(PROMPTS, 6, Sampling(8, seed=1))
        assert tokens(again) == tokens(whole)
    engine = HFEngine(policy, EOS)
    parts = engine.generate(PROMPTS[:1], 6, Sampling(8, seed=1))
    parts += engine.generate(PROMPTS[1:], 6, Sampling(8, seed=1), numbers=range(1, len(PROMPTS)))
    assert tokens(parts) == tokens(whole)
    seeds = [prompt_seed(seed, number) + k for seed in range(20) for number in range(20) for k in range(20)]
    assert len(set(seeds)) == len(seeds), "the next seed does not draw the same once more"


def test_training_mode_is_restored() -> None:
    policy = Policy(make()).train()
    HFEngine(policy, EOS).generate(PROMPTS, 1, Sampling(2))
    assert policy.training


def test_the_models_length_is_a_limit() -> None:
    engine = HFEngine(Policy(make(max_position_embeddings=20)), eos_ids=[])
    (short,), (long,) = engine.generate([[5, 6], [7] * 17], 1, Sampling(30, temperature=0.0))
    assert (len(short.tokens), len(long.tokens)) == (18, 3)
    assert short.finish_reason == long.finish_reason == "length"
    for prompt, message in (([7] * 20, "shorten it"), ([], "empty prompt")):
        with pytest.raises(PostTrainError, match=message):
            engine.generate([prompt], 1, Sampling(2))


def test_no_prompts_give_no_responses() -> None:
    assert HFEngine(Policy(make()), EOS).generate([], 2, Sampling(2)) == []


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    """10,000 draws from eight tokens, one of them impossible: chi-squared is below its 99.9 % quantile (6 degrees)."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf, 0.5, -3.0, 1.5])
    drawn, logps = sample(logits.expand(10_000, -1), Sampling(temperature=0.7), random_numbers([0], 10_000)[0])
    expected = (logits / 0.7).softmax(-1)
    counts = drawn.bincount(minlength=8)
    assert counts[4] == 0
    possible = expected > 0
    surprise = ((counts - 10_000 * expected) ** 2 / (10_000 * expected))[possible].sum()
    assert float(surprise) < 22.46
    assert torch.allclose(logps, expected.log()[drawn], atol=1e-6)


def test_truncated_sampling_draws_from_the_kept_set_with_its_own_logprobs() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    chances = random_numbers([0], 4000)[0]
    ids, logps = sample(logits, Sampling(1, top_k=2), chances)
    assert set(ids.tolist()) == {0, 1}
    torch.testing.assert_close(logps.exp(), torch.tensor([0.625, 0.375])[ids])
    assert abs(float((ids == 0).float().mean()) - 0.625) < 0.03
    ids, logps = sample(logits, Sampling(1, top_p=0.7), chances)
    assert set(ids.tolist()) == {0, 1}
    torch.testing.assert_close(logps.exp(), torch.tensor([0.625, 0.375])[ids])


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}])
def test_impossible_sampling_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PostTrainError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_broken_is_an_error_and_says_nothing(temperature: float) -> None:
    model = make()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(PostTrainError, match="logits are not finite"):
        HFEngine(Policy(model), EOS).generate(PROMPTS, 2, Sampling(3, temperature=temperature))


def test_responses_are_drawn_where_bfloat16_is_the_default() -> None:
    """As inside --trainer.precision bf16-true."""
    engine = HFEngine(Policy(make().to(torch.bfloat16)), EOS)
    torch.set_default_dtype(torch.bfloat16)
    try:
        (answers,) = engine.generate([PROMPTS[0]], 2, Sampling(4))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(answers) == 2
    assert all(logprob < 0 for answer in answers for logprob in answer.logprobs)
