"""Post-training of language models on Lightning: one batch type, one spine, a short file per method."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_posttrain.core.module import PostTrainingModule
    from lit_posttrain.core.optimisation import Optim
    from lit_posttrain.core.preference import PreferenceModule
    from lit_posttrain.core.sums import require_sums
    from lit_posttrain.core.terms import Term, loss_of
    from lit_posttrain.data.modules.conversation import ConversationData
    from lit_posttrain.data.modules.preference import PreferenceData
    from lit_posttrain.data.modules.prompts import PromptData
    from lit_posttrain.errors import PostTrainError
    from lit_posttrain.methods.distillation import Distillation
    from lit_posttrain.methods.dpo import DPO
    from lit_posttrain.methods.grpo import GRPO
    from lit_posttrain.methods.kto import KTO
    from lit_posttrain.methods.online_dpo import OnlineDPO
    from lit_posttrain.methods.orpo import ORPO
    from lit_posttrain.methods.ppo import PPO
    from lit_posttrain.methods.reward import RewardModel
    from lit_posttrain.methods.sft import SFT
    from lit_posttrain.methods.simpo import SimPO
    from lit_posttrain.models.spec import LoRASpec, ModelSpec
    from lit_posttrain.on_policy.module import OnPolicyModule
    from lit_posttrain.on_policy.options import RolloutConfig
    from lit_posttrain.rollout.engine import Completion, EngineSpec, Sampling
    from lit_posttrain.types import Response, Tree, TreeBatch

__version__ = "0.1.0"

# Imported on first use: `import lit_posttrain` stays quick, and `--help` does not wait for torch.
_HOMES = {
    "Completion": "rollout.engine",
    "ConversationData": "data.modules.conversation",
    "DPO": "methods.dpo",
    "Distillation": "methods.distillation",
    "OnlineDPO": "methods.online_dpo",
    "EngineSpec": "rollout.engine",
    "GRPO": "methods.grpo",
    "KTO": "methods.kto",
    "LoRASpec": "models.spec",
    "ModelSpec": "models.spec",
    "ORPO": "methods.orpo",
    "OnPolicyModule": "on_policy.module",
    "Optim": "core.optimisation",
    "PPO": "methods.ppo",
    "PostTrainError": "errors",
    "PostTrainingModule": "core.module",
    "RolloutConfig": "on_policy.options",
    "PreferenceData": "data.modules.preference",
    "PreferenceModule": "core.preference",
    "PromptData": "data.modules.prompts",
    "Response": "types",
    "RewardModel": "methods.reward",
    "SFT": "methods.sft",
    "Sampling": "rollout.engine",
    "SimPO": "methods.simpo",
    "Term": "core.terms",
    "Tree": "types",
    "TreeBatch": "types",
    "loss_of": "core.terms",
    "require_sums": "core.sums",
}
__all__ = [
    "DPO",
    "GRPO",
    "KTO",
    "ORPO",
    "PPO",
    "SFT",
    "Completion",
    "ConversationData",
    "Distillation",
    "EngineSpec",
    "LoRASpec",
    "ModelSpec",
    "OnPolicyModule",
    "OnlineDPO",
    "Optim",
    "PostTrainError",
    "PostTrainingModule",
    "PreferenceData",
    "PreferenceModule",
    "PromptData",
    "Response",
    "RewardModel",
    "RolloutConfig",
    "Sampling",
    "SimPO",
    "Term",
    "Tree",
    "TreeBatch",
    "loss_of",
    "require_sums",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_posttrain' has no attribute {name!r}")
    return getattr(import_module(f"lit_posttrain.{_HOMES[name]}"), name)
