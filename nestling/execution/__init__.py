"""Channel execution: the parts of a training in which only the chosen units are computed."""
