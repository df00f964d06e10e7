"""Forecasts: the latest frames of an archive through a trained model, into files that other programs read.

trained.py says what a model expects, tiles.py lets it see large frames in pieces, make.py makes a forecast, files.py
and picture.py write it, verify.py scores it, watch.py makes one whenever a frame arrives.
"""
