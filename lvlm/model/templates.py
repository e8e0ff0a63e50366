"""Centurio's chat templates as facts of its code (arXiv 2501.05122), for models that were trained with them. Used by
`lvlm.model.assembly`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lvlm.errors import InputError


@dataclass(frozen=True)
class Template:
    """How a conversation is written: before the first turn, a user's turn, an assistant's turn up to its text, and
    what ends that; `{system}` and `{text}` stand for texts. `separator` comes between an image and the question."""

    start: str
    user: str
    assistant: str
    end: str
    separator: str = "\n"
    system: str = "You are a helpful AI assistant."

    def jinja(self) -> str:
        """The template in the form that tokenizers keep."""
        before, after = self.start.split("{system}") if "{system}" in self.start else (self.start, None)
        told = "{% if messages[0]['role'] == 'system' %}{% set told, turns = messages[0]['content'], messages[1:] %}"
        told += f"{{% else %}}{{% set told, turns = {self.system!r}, messages %}}{{% endif %}}"
        opening = f"{{{{ {before!r} }}}}" if after is None else f"{{{{ {before!r} + told + {after!r} }}}}"
        user_before, user_after = self.user.split("{text}")
        return (
            f"{told}{opening}{{% for m in turns %}}{{% if m['role'] == 'user' %}}"
            f"{{{{ {user_before!r} + m['content'] + {user_after!r} }}}}"
            f"{{% else %}}{{{{ {self.assistant!r} + m['content'] + {self.end!r} }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {self.assistant!r} }}}}{{% endif %}}"
        )


LLAMA_HEAD = "<|start_header_id|>{role}<|end_header_id|>\n\n"
CENTURIO: dict[str, Template] = {
    "qwen2": Template(
        start="<|im_start|>system\n{system}<|im_end|>\n",
        user="<|im_start|>user\n{text}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        end="<|im_end|>",
        system="You are a helpful assistant.",
    ),
    "phi3": Template(
        start="<s><|system|>\n{system}<|end|>",
        user="<|user|>\n{text}<|end|>\n",
        assistant="<|assistant|>\n",
        end="<|end|>\n",
    ),
    "llama": Template(  # the system turn has no end, as in Centurio's code
        start="<|begin_of_text|>" + LLAMA_HEAD.format(role="system") + "{system}",
        user=LLAMA_HEAD.format(role="user") + "{text}<|eot_id|>",
        assistant=LLAMA_HEAD.format(role="assistant"),
        end="<|eot_id|>",
    ),
    "gemma2": Template(
        start="<bos>",
        user="<start_of_turn>user\n{text}<end_of_turn>\n",
        assistant="<start_of_turn>model\n",
        end="<end_of_turn>\n",
        separator="",
    ),
    "cohere": Template(
        start="<BOS_TOKEN>",
        user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{text}<|END_OF_TURN_TOKEN|>",
        assistant="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        end="<|END_OF_TURN_TOKEN|>",
        separator="",
    ),
}
"""Model type of the LLM -> template: Qwen 2.5, Phi-3.5, Llama 3, Gemma 2, Aya Expanse."""


def centurio_template(llm_config: Any) -> Template:
    """Centurio's template for this LLM; an error for a family that it was not trained with."""
    kind = llm_config.model_type
    if kind not in CENTURIO:
        raise InputError(
            f"Centurio has no template for an LLM of type '{kind}'; it has them for {', '.join(CENTURIO)}. Use "
            "model.template=own."
        )
    return CENTURIO[kind]
