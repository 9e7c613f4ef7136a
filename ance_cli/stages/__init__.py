"""One story per subcommand, importable from Python: `from ance_cli.stages.mine import mine`.

Each takes paths and a config, returns a summary (a dict that is also what `--json` prints), and
imports torch and the other heavy libraries only once it knows that there is work to do.
"""
