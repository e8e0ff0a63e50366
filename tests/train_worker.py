"""Trains one stage of the tiny world as one of several processes; forked by the test of gradients across processes."""

from __future__ import annotations

from pathlib import Path

import torch

from lvlm.config import RunConfig
from lvlm.settings import ComputeConfig
from lvlm.train.batches import BatchStream, SampleEncoder, StepBatches
from lvlm.train.compute import compute
from lvlm.train.features import TowerFeatures
from lvlm.train.loop import StageLoop
from lvlm.train.progress import Reporter


def train(corpus: Path, folder: Path, llm: str, tower_folder: str, *, processes: int) -> None:
    """Three steps without dropout; writes curve.jsonl and weights.pt into `folder`."""
    from lvlm.data.corpus import open_corpus
    from lvlm.data.plan import build_plan
    from lvlm.model.assembly import assemble
    from lvlm.model.parts import prepare_training
    from tests.train_world import run_config

    config: RunConfig = run_config(
        corpus, llm=llm, tower=tower_folder, instruct__steps=3, instruct__lora={"r": 4, "alpha": 8, "dropout": 0.0}
    )
    assert config.instruct is not None
    with compute(ComputeConfig(device="cpu", threads=1)) as machinery:
        accelerator = machinery.accelerator
        model, processor = assemble(config.model, seed=0)
        prepare_training(model, config.instruct, seed=0)
        encoder = SampleEncoder(processor)
        plan = build_plan(
            "instruct", config.instruct, seed=0, corpora={str(corpus): open_corpus(corpus)}, measure=encoder.measure
        )
        rank = accelerator.process_index
        assert accelerator.num_processes == processes
        batches = StepBatches(plan, encoder, "token", token_budget=420, rank=rank, processes=processes)
        tower = TowerFeatures(model, device=machinery.device, precision="fp32")

        def stream_from(step: int) -> BatchStream:
            return BatchStream(
                batches, model.config.image_transform, store=None, tower=tower, device=machinery.device, first_step=step
            )

        loop = StageLoop(
            model=model,
            batches=batches,
            stream_from=stream_from,
            config=config.instruct,
            stage="instruct",
            seed=0,
            folder=folder,
            identity={},
            compute=machinery,
            reporter=Reporter(silent=True),
        )
        spent = loop.run()
        assert spent.samples == 24, "every process counts the samples of all"
        if accelerator.is_main_process:
            torch.save(
                {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, folder / "weights.pt"
            )
        accelerator.wait_for_everyone()
        accelerator.end_training()
