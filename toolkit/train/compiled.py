"""torch.compile of the step, by `train.compile`.

What is compiled is one time step of a model, in place and before DeepSpeed wraps it: parameters keep their names, and
checkpoints don't know about it. The whole unroll isn't: its graph, and the minutes to compile it, grow with the time
steps. Off by default: on two CPU cores a step's first compilation takes from half a minute to minutes, for training and
again for validation, and the convolutions stay what they are. The paper's ModeRNN, much of whose work is element by
element, then trains 1.25 times as fast in bf16, 1.06 in fp32 (benchmarks/cell-modernn-compiled-*).
"""

from __future__ import annotations

from toolkit.config.sections import TrainConfig
from toolkit.errors import ConfigError
from toolkit.models.base import SequenceModel, StepSequence


def compile_step(model: SequenceModel, config: TrainConfig) -> None:
    """Compile the model's step as the config says; `none` does nothing. The work is done at the first call.

    Raises:
        ConfigError: a model without a step, or weights that ZeRO-3 takes away between steps.
    """
    if reason := config.why_not_compiled(type(model).__name__, isinstance(model, StepSequence)):
        raise ConfigError(reason)
    if config.compile != "none":
        assert isinstance(model, StepSequence)
        model.cell.compile()
