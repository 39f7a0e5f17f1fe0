"""Short templates of the shapes that model families have and that TRL's do not show. Written for these tests."""

from __future__ import annotations

_EACH, _DONE = "{% for m in messages %}", "{% endfor %}"
_ASKS = "{% if add_generation_prompt %}"
_SAID = "{% set said = m.content.split('</think>')[-1].strip() %}"
_LATE = "(loop.index0 > last.user)"
_LAST_USER = (
    "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
)
_THOUGHT = (
    "{% set thought = m.reasoning_content or (m.content.split('</think>')[0].split('<think>')[-1].strip() "
    "if '</think>' in m.content else '') %}"
)


def _calls(before: str, each: str, behind: str) -> str:
    calls = f"{before}{{% for c in m.tool_calls %}}{each}{{% endfor %}}{behind}"
    return f"{{% if m.tool_calls %}}{calls}{{% endif %}}"


_JSON = "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
SHAPES = {
    # the tools stand before the last user turn, roles alternate, results are JSON
    "mistral": (
        "{{ '<s>' }}"
        + _LAST_USER
        + _EACH
        + "{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
        "{% elif m.role == 'user' %}"
        "{% if tools and loop.index0 == last.user %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}"
        "{% endif %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'tool' %}"
        "{{ '[TOOL_RESULTS]' + ({'content': m.content} | tojson) + '[/TOOL_RESULTS]' }}{% else %}{{ m.content }}"
        + _calls("{{ '[TOOL_CALLS][' }}", _JSON + "{{ '' if loop.last else ', ' }}", "{{ ']' }}")
        + "{{ '</s>' }}{% endif %}"
        + _DONE
    ),
    # content in parts alone, calls that look like Python
    "llama4": (
        "{{ '<|begin_of_text|>' }}"
        + _EACH
        + "{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' }}{% for part in m.content or [] %}{{ part.text }}"
        "{% endfor %}"
        + _calls("{{ '[' }}", "{{ c.function.name + '(' }}{{ c.function.arguments | tojson }}{{ ')' }}", "{{ ']' }}")
        + "{{ '<|eot|>' }}"
        + _DONE
        + _ASKS
        + "{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"
    ),
    # a token of its own for every speaker, a default system prompt
    "kimi": (
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_system|>system<|im_middle|>You are of help.<|im_end|>' }}{% endif %}"
        + _EACH
        + "{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + m.content }}"
        + _calls(
            "{{ '<|tool_calls_section_begin|>' }}",
            "{{ '<|tool_call_begin|>functions.' + c.function.name + ':0<|tool_call_argument_begin|>' }}"
            "{{ c.function.arguments | tojson }}{{ '<|tool_call_end|>' }}",
            "{{ '<|tool_calls_section_end|>' }}",
        )
        + "{{ '<|im_end|>' }}"
        + _DONE
        + _ASKS
        + "{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
    ),
    # thoughts of turns before the last user turn are dropped, the prompt opens one
    "minimax": (
        _LAST_USER
        + _EACH
        + _SAID
        + _THOUGHT
        + "{{ ']~b]' + {'assistant': 'ai'}.get(m.role, m.role) + '\n' }}{% if m.role == 'assistant' and thought and "
        + _LATE
        + " %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"
        + _calls("{{ '\n<minimax:tool_call>' }}", _JSON, "{{ '</minimax:tool_call>' }}")
        + "{{ '[e~[\n' }}"
        + _DONE
        + _ASKS
        + "{{ ']~b]ai\n<think>\n' }}{% endif %}"
    ),
    # a date in the system prompt
    "granite": (
        "{{ '<|start_of_role|>system<|end_of_role|>Today is ' + strftime_now('%B %d, %Y') + '.<|end_of_text|>\n' }}"
        + _EACH
        + "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content }}"
        + _calls("{{ '<|tool_call|>[' }}", _JSON, "{{ ']' }}")
        + "{{ '<|end_of_text|>\n' }}"
        + _DONE
        + _ASKS
        + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    ),
    # a tag of its own for thoughts
    "seed": (
        _EACH + "{{ '<seed:bos>' + m.role + '\n' }}{% if m.reasoning_content %}"
        "{{ '<seed:think>' + m.reasoning_content + '</seed:think>' }}{% endif %}{{ m.content }}"
        + _calls("{{ '<seed:tool_call>' }}", _JSON, "{{ '</seed:tool_call>' }}")
        + "{{ '<seed:eos>' }}"
        + _DONE
        + _ASKS
        + "{{ '<seed:bos>assistant\n' }}{% endif %}"
    ),
    # the turn closes a thought at once that the prompt opens
    "glm": (
        "{{ '[gMASK]<sop>' }}"
        + _LAST_USER
        + _EACH
        + _SAID
        + _THOUGHT
        + "{{ {'tool': '<|observation|>', 'user': '<|user|>', 'system': '<|system|>'}.get(m.role, '<|assistant|>') }}"
        "{% if m.role == 'assistant' %}{{ '<think>' + thought if thought and "
        + _LATE
        + " else '' }}{{ '</think>' }}{% endif %}{{ said }}"
        + _calls("", "{{ '<tool_call>' }}" + _JSON + "{{ '</tool_call>' }}", "")
        + _DONE
        + _ASKS
        + "{{ '<|assistant|><think>' }}{% endif %}"
    ),
    # the same without a key for thoughts
    "deepseek": (
        "{{ '<｜begin▁of▁sentence｜>' }}"
        + _EACH
        + _SAID
        + "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
        "{{ '<｜Assistant｜></think>' + said }}"
        + _calls("{{ '<｜tool▁calls▁begin｜>' }}", _JSON, "{{ '<｜tool▁calls▁end｜>' }}")
        + "{{ '<｜end▁of▁sentence｜>' }}{% elif m.role == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m.content }}"
        "{{ '<｜tool▁output▁end｜>' }}{% else %}{{ m.content }}{% endif %}"
        + _DONE
        + _ASKS
        + "{{ '<｜Assistant｜>' + ('<think>' if thinking | default(true) else '</think>') }}{% endif %}"
    ),
    # no place for tools, another end at the end of the text
    "olmo": (
        _EACH + "{% if m.role in ('system', 'user') %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|endoftext|>' }}"
        "{{ '' if loop.last else '\n' }}{% endif %}" + _DONE + _ASKS + "{{ '<|assistant|>\n' }}{% endif %}"
    ),
    # two ends in a row, and words between tokens
    "command": (
        _EACH
        + "{{ '<|START_OF_TURN_TOKEN|><|' + m.role + '|>' }}{% if m.role == 'assistant' %}{{ '<|START_RESPONSE|>' }}"
        "{% endif %}{{ m.content }}"
        + _calls("{{ '<|START_ACTION|>' }}", _JSON, "{{ '<|END_ACTION|>' }}")
        + "{% if m.role == 'assistant' %}{{ '<|END_RESPONSE|>' }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}"
        + _DONE
        + _ASKS
        + "{{ '<|START_OF_TURN_TOKEN|><|assistant|>' }}{% endif %}"
    ),
    # an empty thought is written where there is none, and the prompt has it already
    "hunyuan": (
        "{{ '<｜hy_begin▁of▁sentence｜>' }}"
        + _EACH
        + _SAID
        + _THOUGHT
        + "{% if m.role == 'assistant' %}{{ '<｜hy_Assistant｜><think>\n' + thought + '\n</think>\n' + said }}"
        + _calls("", "{{ '<tool_call>' }}" + _JSON + "{{ '</tool_call>' }}", "")
        + "{{ '<｜hy_place▁holder▁no▁2｜>' }}{% else %}{{ '<｜hy_User｜>' + m.content }}{% endif %}"
        + _DONE
        + _ASKS
        + "{{ '<｜hy_Assistant｜>' }}{% if not enable_thinking | default(true) %}"
        "{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
    ),
    "exaone": (
        _EACH
        + "{{ '[|' + m.role + '|]' + m.content.split('</thought>')[-1] }}{{ '[|endofturn|]\n' }}"
        + _DONE
        + _ASKS
        + "{{ '[|assistant|]<thought>\n' }}{% endif %}"
    ),
    "phi4": (
        _EACH
        + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content }}"
        + _calls("", "{{ '<tool_call>' }}" + _JSON, "")
        + "{{ '<|im_end|>' }}"
        + _DONE
        + _ASKS
        + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    ),
}
