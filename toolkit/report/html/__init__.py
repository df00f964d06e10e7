"""The HTML page: data for its templates, figures and images."""
