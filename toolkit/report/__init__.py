"""From run directories to one page: tables of mean ± std over seeds, curves, rows of frames. Does not import torch.

data/ reads run directories and aggregates them, html/ is the page (jinja2 templates, one style sheet, figures), paper/
is the tables of the ModeRNN paper, build.py writes the files.
"""
