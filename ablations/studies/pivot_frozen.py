"""Should the language model be frozen, learn with LoRA or in full, in pre-training and in tuning? (viscpm A6, A7)

    python -m sweeps launch pivot_frozen        # 9 arms x 5 seeds
    python -m ablations report pivot_frozen

Cost: 45 seconds a run on one core, so about 18 minutes on 2; captions are trained once per seed and way.

Captions and dialogues are all in the pivot, English: what the language model loses of other languages, it loses here.
VisCPM-Chat freezes it on captions, "to prevent the powerful capabilities of LLM from being influenced by short texts",
and trains it in full on dialogues; no ablation of that is public.

Expected: full training on captions in the pivot costs other languages more than LoRA, and that more than none; frozen
in both stages, fidelity is what the language model brings along, and answers are worse; training in full on dialogues
costs fidelity most.
"""

from ablations.designs import FullGrid
from ablations.factors import Factor
from ablations.studies import Expectation, Study

WAYS = {"frozen": 1.0e-3, "lora": 1.0e-3, "full": 3.0e-4}
"""How the LLM learns -> its learning rate; the adapter's is the same in every arm."""
FULL, FROZEN = {"pretraining": "full"}, {"tuning": "frozen"}


def factor(name: str, stage: str, said: str) -> Factor:
    return Factor(
        name=name,
        path=f"{stage}.train.llm",
        levels=tuple(WAYS),
        labels={way: f"{said}: {'LoRA' if way == 'lora' else way}" for way in WAYS},
        settings={way: {f"{stage}.train.llm": way, f"{stage}.optim.lr": lr} for way, lr in WAYS.items()},
    )


study = Study(
    name="pivot_frozen",
    question="Should the language model be frozen, learn with LoRA or in full, in each stage?",
    base="tiny",
    fixed={
        "pretrain.optim.adapter_lr": 2.0e-3,
        "instruct.mix.languages": "en",
        "instruct.mix.english_share": None,
    },
    factors=(
        factor("pretraining", "pretrain", "captions"),
        factor("tuning", "instruct", "dialogues"),
    ),
    baseline={"pretraining": "frozen", "tuning": "lora"},
    design=FullGrid(),
    seeds=(0, 1, 2, 3, 4),
    primary="score_any_language/multilingual",
    expectations=(
        Expectation(
            claim="Full training on captions in the pivot lowers what is right in any language",
            metric="score_any_language", group="multilingual", arm=FULL, direction="lower",
        ),
        Expectation(
            claim="It lowers fidelity",
            metric="fidelity", group="multilingual", arm=FULL, direction="lower",
        ),
        Expectation(
            claim="It costs more than training with LoRA",
            metric="score_any_language", group="multilingual", arm=FULL, against={"pretraining": "lora"},
            direction="lower",
        ),
        Expectation(
            claim="It costs the pivot little (less than 3 points either way)",
            metric="score", group="en", arm=FULL, direction="little", margin=3.0,
        ),
        Expectation(
            claim="Frozen on dialogues, the language model keeps more of its fidelity",
            metric="fidelity", group="multilingual", arm=FROZEN, direction="higher",
        ),
        Expectation(
            claim="But it answers worse in the pivot",
            metric="score", group="en", arm=FROZEN, direction="lower",
        ),
        Expectation(
            claim="Full training on dialogues costs more fidelity than LoRA",
            metric="fidelity", group="multilingual", arm={"tuning": "full"}, direction="lower",
        ),
    ),
)  # fmt: skip
