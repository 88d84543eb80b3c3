"""Out of memory: one message that names the settings to change, by the stage that ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.config import Config
from utils.errors import UserError, first_line

CPU_ALLOCATOR_WORDS = ("DefaultCPUAllocator: can't allocate memory", "not enough memory: you tried to allocate")


@contextmanager
def out_of_memory_as_user_error(config: Config, stage_of: object = None) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a UserError.

    Args:
        stage_of: its attribute `current_stage` says what ran ("train", "statistics", "alignment", "evaluation" or "");
            default: no stage.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        stage = getattr(stage_of, "current_stage", "")
        raise UserError(f"out of memory{f' in stage {stage!r}' if stage else ''}: {advice(config, stage)}. "
                        f"({first_line(error)[:200]})") from None


def is_out_of_memory(error: BaseException) -> bool:
    """The CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in CPU_ALLOCATOR_WORDS)


def advice(config: Config, stage: str) -> str:
    """Which settings make `stage` smaller, the one that costs least first, with their values now."""
    precision = "" if config.precision != "32-true" else "; precision bf16-mixed halves the activations (now 32-true)"
    if stage == "alignment":
        return (f"lower ca_memory_gb (now {config.ca_memory_gb:g}), which changes how samples are drawn but not how many; set ca_rank, "
                f"e.g. 64 (now {config.ca_rank}), or stats_dtype float16 (now {config.stats_dtype})")
    if stage in ("statistics", "evaluation"):
        return f"lower test_batch_size (now {config.test_batch_size or config.batch_size}); no result depends on it{precision}"
    return (f"raise accumulate (now {config.accumulate}): each batch of {config.batch_size} is then computed in that many parts, with the "
            f"same result{precision}; set grad_checkpointing true (now {str(config.grad_checkpointing).lower()}); lower batch_size last, "
            "since it changes the result")
