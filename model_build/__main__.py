"""Run the command line as `python -m model_build`."""

from model_build.cli import main

main()
