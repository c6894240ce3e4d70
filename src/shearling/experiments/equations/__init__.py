"""The equations that a model executes, made from the modules that are there.

`tracing` runs the model's own code on tensors without data and keeps what was done as a graph of `nodes`; `operations`
says what torch's functions mean, `parts` which parts of a model are traced, `writing` how a graph is written.
"""

from shearling.experiments.equations.model import block_equations, equation_groups, model_equations

__all__ = ["block_equations", "equation_groups", "model_equations"]
