"""Parts of `benchmarks/serving.py`: menu, scenarios, rivals, trials, LoadGen, costs, results."""
