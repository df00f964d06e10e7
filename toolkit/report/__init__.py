"""From run directories to one page: tables of mean ± std over seeds, curves, rows of frames. Does not import torch.

collect.py reads run directories, aggregate.py takes means, tables.py writes CSV and Markdown, figures.py draws curves,
pictures.py turns codes into images, page.py is the HTML, build.py puts them together.
"""
