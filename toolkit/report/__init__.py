"""Reports: tables of mean ± std over seeds, curves and frames of a sweep on one page. Does not import torch.

data/ reads run directories and aggregates them, html/ creates the page (jinja2 templates, one style sheet, figures),
paper/ the tables of the ModeRNN paper, build.py writes the files.
"""
