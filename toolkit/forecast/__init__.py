"""Forecasts: run a trained model on the latest frames of an archive, and write files that other programs can read.

trained.py describes the input of a model, tiles.py runs it on tiles of large frames, make.py computes a forecast,
files.py and picture.py write it, verify.py computes its scores, watch.py makes one forecast per new frame.
"""
