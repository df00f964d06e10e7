"""Resource estimates for a run before it is started: memory, time, communication.

measure.py   runs a training step on torch's meta device (nothing is computed) and records which tensors are alive
cost.py      the results as polynomials in batch size and grid area; a table of the shipped configs; a cache. No torch
predict.py   memory by policy and micro-batch, communication, hours. No torch
"""
