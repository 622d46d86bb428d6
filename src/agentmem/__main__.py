"""python -m agentmem: the command line."""

from agentmem.cli import main

main()
