"""How good a run is: measures over judged queries, and whether two runs differ."""
