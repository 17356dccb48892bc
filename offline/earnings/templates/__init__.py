"""Jinja2 template of the page; a package, so that it is installed with the code."""
