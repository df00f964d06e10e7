"""Models: one file each, named in `registry.py` (torch-free), built by `build_model` in `base.py`."""
