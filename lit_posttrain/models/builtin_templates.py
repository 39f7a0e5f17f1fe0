"""The chat templates that --model.policy.chat_template knows by name, with the tokens that they need."""

from __future__ import annotations

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
TEMPLATE_TOKENS = {"chatml": ["<|im_start|>", "<|im_end|>"]}
END_OF_TURN = {"chatml": "<|im_end|>"}
