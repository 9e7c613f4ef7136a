"""The cycle of training and refreshing, coupled only through the run folder."""
