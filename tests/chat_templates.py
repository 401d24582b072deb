# ruff: noqa: E501 (templates have lines of their own)
"""Chat templates of six families, written from what their authors document of each: roles, tokens, thoughts, calls.

Each is small, and in what it keeps and drops it does as the family's own.
"""

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(
        "<start_of_turn>",
        "<end_of_turn>",
        "<|start|>",
        "<|message|>",
        "<|channel|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
    ),
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<tool_response|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
)

SMOLLM2 = """{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
You are a helpful AI assistant<|im_end|>
{% endif %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# Thoughts stand only behind the user's last question, the last answer has a block even without one; results of tools
# are a user's turn; the arguments of a call may be text or a mapping; a developer has no place.
QWEN3 = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{% set thought = m.reasoning_content or '' %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}<think>
{{ thought }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first else '' }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {% if call.function.arguments is string %}
{{- call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ m.content }}
</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>
{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""

# One call a message, as JSON with `parameters`; results of tools are of the role ipython and in JSON; contents trimmed.
LLAMA31 = """<|begin_of_text|>
{%- if messages[0].role == 'system' %}{% set system, rest = messages[0].content | trim, messages[1:] %}
{%- else %}{% set system, rest = '', messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' + system + '<|eot_id|>' }}
{%- for m in rest %}
{%- if tools and loop.first %}{{ '<|start_header_id|>user<|end_header_id|>\n\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\n\n' }}{% endfor %}{{ m.content | trim + '<|eot_id|>' }}
{%- elif m.tool_calls %}
{%- if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
{%- set call = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ '}<|eot_id|>' }}
{%- elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ m.content | tojson }}{{ '<|eot_id|>' }}
{%- else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

# Users and model alternate, and there is no place for anything else; a system message goes into the first question.
GEMMA3 = """{%- if messages[0].role == 'system' %}{% set first, rest = messages[0].content + '\n\n', messages[1:] %}
{%- else %}{% set first, rest = '', messages %}{% endif %}
{%- for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

# Thoughts in `thinking`, of the last answer or in front of calls that no answer follows; the last answer ends otherwise
# than those before; one call a message; the system's message is the developer's.
GPT_OSS = """{{- '<|start|>system<|message|>Valid channels: analysis, commentary, final.<|end|>' }}
{%- if messages[0].role in ('system', 'developer') %}{% set developer, rest = messages[0].content, messages[1:] %}
{%- else %}{% set developer, rest = '', messages %}{% endif %}
{%- if developer or tools %}{{ '<|start|>developer<|message|>' + developer }}
{%- for tool in tools or [] %}{{ '\ntype ' + tool.function.name + ' = ' }}{{ tool.function.parameters | tojson }}{% endfor %}
{{- '<|end|>' }}{% endif %}
{%- set ns = namespace(call='') %}
{%- for m in rest %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- if m.content and m.thinking %}{{ raise_exception('Cannot pass both content and thinking') }}{% endif %}
{%- set later = namespace(answer=false) %}
{%- for other in rest[loop.index:] %}{% if other.role == 'assistant' and not other.tool_calls %}
{%- set later.answer = true %}{% endif %}{% endfor %}
{%- if (m.content or m.thinking) and not later.answer %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (m.content or m.thinking) + '<|end|>' }}{% endif %}
{%- set ns.call = m.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + ns.call + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{ '<|call|>' }}
{%- elif m.role == 'assistant' and loop.last and not add_generation_prompt %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' %}
{%- if not ns.call %}{{ raise_exception('there was no previous assistant message with a tool call!') }}{% endif %}
{{- '<|start|>functions.' + ns.call + ' to=assistant<|channel|>commentary<|message|>' }}{{ m.content | tojson }}
{{- '<|end|>' }}
{%- elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# The arguments of a call must be text; whatever stands in front of </think> is cut from an answer; tools are not told.
DEEPSEEK = """{% set ns = namespace(system='', tool=false) %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endif %}{% endfor %}
{{- ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' and m.tool_calls %}{{ '' if ns.tool else '<｜Assistant｜>' }}{{ m.content }}
{%- for call in m.tool_calls %}
{{- 'function ' + call.function.name + '\n```json\n' + call.function.arguments + '\n```\n' }}{% endfor %}
{{- '<｜end▁of▁sentence｜>' }}{% set ns.tool = false %}
{%- elif m.role == 'assistant' %}{{ '' if ns.tool else '<｜Assistant｜>' }}
{{- m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% set ns.tool = false %}
{%- elif m.role == 'tool' %}{{ '[result]' + m.content + '[/result]' }}{% set ns.tool = true %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜>' }}{% endif %}"""

TEMPLATES = {
    "SmolLM2": SMOLLM2,
    "Qwen3": QWEN3,
    "Llama 3.1": LLAMA31,
    "Gemma 3": GEMMA3,
    "gpt-oss": GPT_OSS,
    "DeepSeek-V3": DEEPSEEK,
}

# As Gemma 4 does: thoughts stand in a channel, only with calls, and both in front of the text.
GEMMA4 = """{% for m in messages %}{% if m.role == 'tool' %}<|tool_response>{{ m.content }}<tool_response|>
{%- else %}{{ '' if m.role == 'assistant' and loop.index0 and messages[loop.index0 - 1].role == 'tool' else
'<|turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}
{%- if m.reasoning_content and m.tool_calls %}<|channel>thought
{{ m.reasoning_content }}
<channel|>{% endif %}
{%- for call in m.tool_calls or [] %}<|tool_call>call:{{ call.function.name }}{{ call.function.arguments | tojson }}<tool_call|>
{%- endfor %}{{ m.content }}{{ '' if m.tool_calls and not m.content else '<turn|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|turn>model\n' }}{% endif %}"""

# It takes thoughts from nowhere, and writes calls in front of the text, where a thought would stand.
CALLS_FIRST = GEMMA4.replace("m.reasoning_content and m.tool_calls", "false")

# As Qwen3.5 and DeepSeek-R1 do: the prompt opens a thought, and of earlier answers none is written.
OPENING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""

# As GLM-4.5 does: nothing ends a turn but the token of who speaks next; </tool_call> is a token as well.
NEXT_SPEAKER = """{% for m in messages %}
{%- if m.role == 'tool' %}{{ '' if messages[loop.index0 - 1].role == 'tool' else '<|observation|>' }}
<tool_response>{{ m.content }}</tool_response>
{%- else %}<|{{ m.role }}|>
{{ m.content }}{% for call in m.tool_calls or [] %}
<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}</tool_call>{% endfor %}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
SPEAKERS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "</tool_call>")

CALLED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}CALLS{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
XML = CALLED.replace(
    "CALLS",
    "{% for c in m.tool_calls %}<function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
    "<parameter={{ k }}>{{ v }}</parameter>{% endfor %}</function>{% endfor %}",
)
"""One that writes calls as Qwen3-Coder's does."""
