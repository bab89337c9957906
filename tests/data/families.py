"""Chat templates in the shapes of real families, shortened. `FAMILIES`: name -> (template, how it takes user, system, assistant)."""

from __future__ import annotations

LOOP = "{% for m in messages %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
TEXT, PARTS = "text", "parts"
CONTENT = (  # takes both
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<img>{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
)
FAMILIES: dict[str, tuple[str, tuple[str, str | None, str | None]]] = {
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set sys = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set sys = false %}{% endif %}{% for m in rest %}"
        + ALTERNATE
        + "{% if loop.index0 == 0 and sys"
        " != false %}{% set content = '<<SYS>>\\n' + sys + '\\n<</SYS>>\\n\\n' + m['content'] %}{% else %}{% set content = m['content'] %}"
        "{% endif %}{% if m['role'] == 'user' %}{{ '<s>' + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + '</s>' }}{% endif %}{% endfor %}",
        (TEXT, TEXT, TEXT),
    ),
    "llama 3.2": (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}{%- if messages[0]['role'] == 'system' %}"
        "{%- set sys = messages[0]['content']|trim %}{%- set messages = messages[1:] %}{%- else %}{%- set sys = '' %}{%- endif %}"
        "{{- '<s><|im_start|>system\n\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}{{- sys }}{{- '<|im_end|>' }}"
        "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}",
        (TEXT, TEXT, TEXT),
    ),
    "mistral 1": (
        "{{ bos_token }}" + LOOP + ALTERNATE + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        (TEXT, None, TEXT),
    ),
    "mistral 3": (  # the system text goes to the last request
        "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] %}{%- set said = messages[1:] %}"
        "{%- else %}{%- set said = messages %}{%- endif %}{{- bos_token }}{%- for m in said %}{%- if m['role'] == 'user' %}"
        "{%- if loop.last and sys is defined %}{{- '[INST] ' + sys + '\n\n' + m['content'] + '[/INST]' }}"
        "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}{%- else %}{{- ' ' + m['content']|trim + eos_token }}"
        "{%- endif %}{%- endfor %}",
        (TEXT, TEXT, TEXT),
    ),
    "mistral 7, tekken": (  # the system text as text, a request as parts or text
        "{%- set today = strftime_now('%Y-%m-%d') %}{{- bos_token }}{%- if messages[0]['role'] == 'system' %}"
        "{%- if messages[0]['content'] is string %}{%- set sys = messages[0]['content'] %}{%- else %}"
        "{%- set sys = messages[0]['content'][0]['text'] %}{%- endif %}{%- set said = messages[1:] %}{%- else %}"
        "{%- set sys = 'The current date is ' + today %}{%- set said = messages %}{%- endif %}"
        "{{- '[SYSTEM_PROMPT]' + sys + '[/SYSTEM_PROMPT]' }}{%- for m in said %}{%- if m['role'] == 'user' %}"
        "{{- '[INST]' }}" + CONTENT + "{{- '[/INST]' }}{%- else %}{{- m['content'] + eos_token }}{%- endif %}{%- endfor %}",
        (TEXT, TEXT, TEXT),
    ),
    "pixtral": (  # a request as parts alone, the system text as text alone
        "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] %}{%- set said = messages[1:] %}{%- else %}"
        "{%- set said = messages %}{%- endif %}{{- bos_token }}{%- for m in said %}{%- if m['role'] == 'user' %}{{- '[INST]' }}"
        "{%- if loop.last and sys is defined %}{{- sys + '\n\n' }}{%- endif %}{%- for c in m['content'] %}{%- if c['type'] == 'text' %}"
        "{{- c['text'] }}{%- endif %}{%- endfor %}{{- '[/INST]' }}{%- else %}{{- m['content'] + eos_token }}{%- endif %}{%- endfor %}",
        (PARTS, TEXT, TEXT),
    ),
    "gemma 2": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + LOOP
        + ALTERNATE
        + "{% if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        (TEXT, None, TEXT),
    ),
    "gemma 3": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- if messages[0]['content'] is string -%}"
        "{%- set first = messages[0]['content'] + '\n\n' -%}{%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}"
        "{%- endif -%}{%- set said = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set said = messages -%}{%- endif -%}"
        "{%- for m in said -%}{{ '<start_of_turn>' + m['role'] + '\n' + (first if loop.first else '') }}"
        + CONTENT.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
        + "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
        (TEXT, TEXT, TEXT),
    ),
    "qwen 2": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nYou are Ada.<|im_end|>\n'"
        " }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}" + OPEN,
        (TEXT, TEXT, TEXT),
    ),
    "qwen 3": (  # thoughts of earlier answers are left out
        "{%- set ns = namespace(seek=true, last=messages|length - 1) %}"
        "{%- for m in messages[::-1] %}{%- set i = messages|length - 1 - loop.index0 %}"
        "{%- if m.role == 'user' and ns.seek %}"
        "{%- set ns.seek = false %}{%- set ns.last = i %}{%- endif %}{%- endfor %}{%- for m in messages %}"
        "{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}"
        "{%- set thought = '' %}{%- set content = m.content %}{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last %}"
        "{{- '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') + '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
        (TEXT, TEXT, TEXT),
    ),
    "phi 3": (
        LOOP + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        (TEXT, TEXT, TEXT),
    ),
    "glm 4": (
        "[gMASK]<sop>" + LOOP + "<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' and '</think>' in m['content'] %}"
        "{{ m['content'].split('</think>')[-1].strip() }}{% else %}" + CONTENT + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        (TEXT, TEXT, TEXT),
    ),
    "deepseek r1": (  # opens a thought; an answer's thought is left out
        "{% set ns = namespace(sys='') %}" + LOOP + "{% if m['role'] == 'system' %}{% set ns.sys = m['content'] %}{% endif %}{% endfor %}"
        "{{ bos_token }}{{ ns.sys }}" + LOOP + "{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}"
        "{% if m['role'] == 'assistant' %}{% set content = m['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|Assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
        (TEXT, TEXT, TEXT),
    ),
    "granite 3": (
        "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] %}{%- set said = messages[1:] %}{%- else %}"
        "{%- set sys = \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' %}{%- set said = messages %}{%- endif %}"
        "{{- '<|im_start|>system\n' + sys + '<|im_end|>\n' }}{%- for m in said %}" + TURN + "{%- endfor %}" + OPEN,
        (TEXT, TEXT, TEXT),
    ),
    "gpt-oss": (
        "{%- macro system() -%}{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\n' }}{%- endmacro -%}<|start|>system<|message|>"
        "{{ system() }}<|end|>{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}"
        "{%- set dev = messages[0].content %}{%- set said = messages[1:] %}{{- '<|start|>developer<|message|>"
        "# Instructions\n\n' + dev + '<|end|>' }}"
        "{%- else %}{%- set said = messages %}{%- endif %}{%- for m in said %}{%- if m.role == 'assistant' %}"
        "{%- if loop.last and not add_generation_prompt %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
        "{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
        "{%- else %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}",
        (TEXT, TEXT, TEXT),
    ),
    "smolvlm": (
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}"
        "{{ ': ' }}{% endif %}{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        (PARTS, PARTS, PARTS),
    ),
    "llava": (
        LOOP + "{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% if m['role'] != 'assistant' %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% else %}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}"
        "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        (PARTS, PARTS, PARTS),
    ),
    "qwen 2 vl": (LOOP + "<|im_start|>{{ m['role'] }}\n" + CONTENT + "<|im_end|>\n{% endfor %}" + OPEN, (TEXT, TEXT, TEXT)),
    "only parts, and says so": (
        LOOP + "{% if m['content'] is string %}{{ raise_exception('content must be a list') }}{% endif %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'][0]['text'] }}<|im_end|>\n{% endfor %}" + OPEN,
        (PARTS, PARTS, PARTS),
    ),
    "as json": (LOOP + "{{ {'role': m['role'], 'content': m['content']} | tojson }}\n{% endfor %}" + OPEN, (TEXT, TEXT, TEXT)),
    "escaped": (LOOP + "<|im_start|>{{ m['role'] }}\n{{ m['content'] | e }}<|im_end|>\n{% endfor %}" + OPEN, (TEXT, TEXT, TEXT)),
    "no answers": ("{{ bos_token }}{{ messages[-1]['content'] if messages[-1]['role'] == 'user' else '' }}", (TEXT, None, None)),
}
