"""The cycle of training and refreshes, coupled only through the run folder."""
