"""Fingerprints of what a checkpoint depends on and does not contain, so that it is never used with another: the frozen
base of adapters, the reference of a loss, the tokenizer and its template.

The fingerprint of weights is a hash of sums of their bits, computed on their device: integer sums do not depend on the
order, so that one process, several with sharded weights, a CPU and a GPU agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.weights import PACKED
from lit_posttrain.tokenizer import Tokenizer

Identity = dict[str, Any]

# of a config: what changes with versions, devices and use, but no log-probability; of the dtype the weights themselves
# tell, and a config that was not loaded with them has another
_NO_DIFFERENCE = ("_name_or_path", "transformers_version", "use_cache", "architectures", "dtype")
_NO_DIFFERENCE_WITHIN = ("drop", "token_id", "attn_implementation", "id2label", "label2id", "output_")
_WORDS = 2**18  # of 8 bytes: what is summed at a time, small enough for a processor's cache
_PROBE = "The quick brown fox: 3 + 4 = 7.\n\tÄé 你好"


@torch.no_grad()
def identity_of(model: WrappedModel) -> Identity:
    """What decides a model's log-probs, as plain values: its config and weights, without those of fresh adapters, which
    change nothing, and of value heads. Collective if weights are sharded.

    weights: hash of the weights that are not quantized. packed: hash of the quantized ones, computed on a type of
    device (packed_on): another type may round some differently.
    """
    whole, packed = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    quantization = device = ""
    dtypes: set[str] = set()
    saved = model.state_dict(keep_vars=True)
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named |= {name: value for name, value in model.named_buffers(remove_duplicate=False) if name in saved}
    for name, value in named.items():
        if "lora_" in name or ".modules_to_save." in name or name.startswith("value_heads."):
            continue
        kind = PACKED.get(type(value).__name__, "")
        if kind:
            quantization, device = kind, value.device.type
        elif value.is_floating_point():
            dtypes.add(str(value.dtype).removeprefix("torch."))
        line = f"{name}|{value.dtype}|{tuple(value.shape)}|{_sums(value)};"
        (packed if kind else whole).update(line.encode())
    return {
        "config": _settings(model.config),
        "dtype": ", ".join(sorted(dtypes)),
        "quantization": quantization,
        "weights": whole.hexdigest(),
        "packed": packed.hexdigest() if quantization else "",
        "packed_on": device,
    }


def fingerprint(identity: Identity) -> str:
    """One hash of an identity, for names of cache folders."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def difference(saved: Identity, now: Identity) -> str:
    """A description of the difference between two identities of models; "" if there is none."""
    for name in ("quantization", "dtype"):
        if saved[name] != now[name]:
            return f"{name} {saved[name] or 'none'} then, {now[name] or 'none'} now"
    # a newer transformers may write settings that an older one did not know
    for name in sorted(saved["config"].keys() & now["config"].keys()):
        if saved["config"][name] != now["config"][name]:
            return f"{name} {saved['config'][name]} in its config then, {now['config'][name]} now"
    packed_alike = saved["packed_on"] != now["packed_on"] or saved["packed"] == now["packed"]
    return "" if saved["weights"] == now["weights"] and packed_alike else "other weights"


def tokenizer_identity(tokenizer: Tokenizer) -> Identity:
    """What decides how a tokenizer reads text, as plain values, with its chat template."""
    told = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE, add_special_tokens=False)["input_ids"]]
    digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
    return {"tokens": len(tokenizer), "vocabulary": digest.hexdigest(), "chat_template": tokenizer.chat_template}


def tokenizer_difference(saved: Identity, now: Identity) -> str:
    """A description of the difference between two tokenizers' identities, without the template; "" if there is none."""
    if saved["tokens"] != now["tokens"]:
        return f"{saved['tokens']} tokens then, {now['tokens']} now"
    return "" if saved["vocabulary"] == now["vocabulary"] else "other tokens"


def _settings(config: Any) -> dict[str, Any]:
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    return {
        name: value
        for name, value in _flat(plain).items()
        if name.rpartition(".")[2] not in _NO_DIFFERENCE and not any(part in name for part in _NO_DIFFERENCE_WITHIN)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _sums(value: Tensor) -> list[int]:
    """For every 2 MB of a tensor the sum, modulo 2**64, of its 8-byte words, each times an odd factor that depends on
    its position: a change of a single word always changes the sum."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    flat = whole.detach().contiguous().flatten().view(torch.uint8)
    factors = _factors(flat.device)
    words, found = torch.empty_like(factors), []
    for start in range(0, len(flat), 8 * _WORDS):
        part = flat[start : start + 8 * _WORDS]
        if len(part) % 8 or part.storage_offset() % 8:
            part = torch.nn.functional.pad(part, (0, -len(part) % 8)).clone()
        given = part.view(torch.int64)
        mixed = words[: len(given)]
        # the upper halves go into the lower ones: in a product high bits never reach lower ones
        torch.bitwise_right_shift(given, 32, out=mixed)
        found.append(mixed.bitwise_xor_(given).mul_(factors[: len(given)]).sum())
    return [int(total) for total in torch.stack(found).tolist()] if found else []


@cache
def _factors(device: torch.device) -> Tensor:
    drawn = torch.Generator(device="cpu").manual_seed(0)
    return torch.randint(-(2**62), 2**62, (_WORDS,), generator=drawn, device="cpu").to(device) | 1
