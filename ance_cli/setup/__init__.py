"""First steps: check a machine, write settings, run the demo."""
