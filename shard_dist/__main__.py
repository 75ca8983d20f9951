"""`python -m shard_dist`: the command line with the interpreter that is named, as submitted jobs want it."""

from shard_dist.cli import main

main()
