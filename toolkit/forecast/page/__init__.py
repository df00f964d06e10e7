"""A nowcast page: the last forecasts of a watched archive, the observations that have arrived since, and their scores.

folder.py keeps the files, fields.py what is verified later, scores.py verifies, pictures.py draws frames, html.py
renders index.html, keeper.py does all of it after each check of the archive.
"""
