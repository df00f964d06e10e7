"""What a run will need before it is started: memory, time, communication.

measure.py   runs a training step on torch's meta device (nothing is computed) and notes what lives when
cost.py      the outcome as polynomials in batch and grid; a table of the shipped configs; a cache. Knows no torch
predict.py   memory by policy and micro-batch, communication, hours. Knows no torch
"""
