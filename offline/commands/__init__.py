"""The commands of the command line, a file for each group; `offline/cli.py` names them all."""
