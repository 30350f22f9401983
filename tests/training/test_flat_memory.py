"""A training of 10,000 steps takes no more memory at its end than at its beginning."""

import gc

import psutil
import pytest
import torch

from dual_cross_attention.training.trainer import Trainer


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_steps(make_trainer, birds, monkeypatch):
    """Resident memory and living tensors, with a checkpoint every 100 steps and an evaluation every 1,000."""
    seen = []
    on_step_end = Trainer.on_step_end
    process = psutil.Process()

    def measure(trainer):
        on_step_end(trainer)
        if trainer.state.step % 100 == 0:
            trainer.checkpoints.save(trainer.state)
        if trainer.state.step % 1000 == 0:
            trainer.checkpoints.writer.wait()
            trainer.checkpoints.writer._thread.submit(int).result()  # only now has the thread let go of what it wrote
            gc.collect()
            tensors = sum(type(item) in (torch.Tensor, torch.nn.Parameter) for item in gc.get_objects())
            seen.append((trainer.state.step, process.memory_info().rss / 2**20, tensors))

    monkeypatch.setattr(Trainer, "on_step_end", measure)
    settings = {"backbone_kwargs": {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 3}}
    make_trainer(birds * 5, batch_size=2, epochs=50, eval_every=5, lr=1e-5, **settings).fit()
    print(f"\nstep, MiB, tensors: {seen}")
    steps, memory, tensors = zip(*seen, strict=True)
    assert steps == tuple(range(1000, 10_001, 1000))
    assert max(tensors[5:]) <= max(tensors[:5])
    assert memory[-1] - memory[1] < 8  # after the first evaluation; 1 KiB a step would be as much
