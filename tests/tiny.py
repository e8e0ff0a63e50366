"""Random tiny backbones in the formats that the package ships: a causal LM with its own tokenizer, and a vision tower.
Used by every test that needs a model; nothing is downloaded. `tiny_world()` builds the folders once per test session.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<|im_start|>", "<|im_end|>", "<image_placeholder>")
CORPUS = (
    "What colour is the circle on the left? It is red. A large blue square is beside a small green star.",
    "Welche Farbe hat der Kreis? Er ist rot. Ein großes blaues Quadrat steht neben einem kleinen Stern.",
    "De quelle couleur est le cercle ? Il est rouge. Combien d'étoiles vois-tu ? Trois.",
    "圆圈是什么颜色？红色。左边有一个蓝色的正方形。",
    "ما لون الدائرة؟ أحمر. هناك مربع أزرق على اليسار.",
    "वृत्त का रंग क्या है? लाल। बाईं ओर एक नीला वर्ग है।",
    "Какого цвета круг? Красный. Слева синий квадрат.",
)
IMAGE_SIZE = 24
PATCH_SIZE = 8  # 24 / 8 = 3, so 3 x 3 = 9 tokens of an image


@dataclass(frozen=True)
class TinyWorld:
    """Where the fakes lie: `llm` and `tower` are values for `ModelConfig.llm` and `ModelConfig.tower`."""

    folder: Path
    llm: str
    tower: str

    def model_config(self, **changes: Any) -> Any:
        """A `ModelConfig` on these backbones, with the fields in `changes` replaced."""
        from lvlm.settings import ModelConfig

        return ModelConfig(**{"llm": self.llm, "tower": self.tower, **changes})

    def assemble(self, *, seed: int = 0, **changes: Any) -> Any:
        """A fresh (model, processor) on these backbones."""
        from lvlm.model.lvlm import Lvlm

        return Lvlm.assemble(self.model_config(**changes), seed=seed)


@cache
def tiny_world() -> TinyWorld:
    """The fakes of this session, built on the first call (about a second)."""
    folder = Path(tempfile.mkdtemp(prefix="lvlm-tiny-"))
    return TinyWorld(folder, str(make_llm(folder / "llm")), str(make_tower(folder / "tower")))


def make_tokenizer(folder: Path, *, placeholder: bool = True, vocabulary: int = 400) -> Any:
    """A byte-level BPE tokenizer (every string can be encoded and decoded) with a ChatML template and no BOS."""
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL_TOKENS if placeholder else SPECIAL_TOKENS[:-1])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(CORPUS, special, vocabulary=vocabulary),
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens=special[1:2] + special[3:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def byte_level(texts: Sequence[str], special: Sequence[str], *, vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on texts; its first tokens are the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def begin_with(tokenizer: Any, token: str) -> None:
    """Let a tokenizer put a BOS before every text by itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": token})
    begin = [(token, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=begin
    )


def make_llm(folder: Path, *, seed: int = 0, placeholder: bool = True, hidden: int = 32, tied: bool = True) -> Path:
    """A folder with a random Qwen2 (2 layers) and its tokenizer, as half-precision safetensors."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(folder, placeholder=placeholder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(folder)
    return folder


def make_tower(folder: Path, *, seed: int = 0, width: int = 16, class_token: bool = False) -> Path:
    """A folder with a random three-block timm ViT for 24 x 24 pixels, as half-precision safetensors."""
    import timm
    import torch
    from safetensors.torch import save_file

    args = {
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": width,
        "depth": 3,
        "num_heads": 2,
        "class_token": class_token,
        "global_pool": "token" if class_token else "avg",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **args)
        for parameter in tower.parameters():  # weights large enough that features of two images differ clearly
            torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "timm": {"architecture": "vit_tiny_patch16_224", "args": args},
        "image_size": IMAGE_SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
    }
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file(
        {key: value.half().contiguous() for key, value in tower.state_dict().items()}, folder / "model.safetensors"
    )
    return folder


def tiny_image(seed: int = 0, *, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A noise image, the same for the same seed."""
    import numpy as np

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
